"""bin_means on either backend; ``out`` is changed in place."""

from __future__ import annotations

import ctypes

import torch
from emu.backends import GUARD, POISON, Emulated, pointer
from torch import Tensor


class Emu(Emulated):
    """bin_means under the emulator."""

    stem = "bin_means"

    def bin_means(
        self, index: Tensor, value: Tensor, info: Tensor, out: Tensor | None, bits: int,
        sigmas: float,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        capacity = value.numel()
        size = (capacity * bits + 7) // 8
        table = torch.full((2**bits + GUARD,), float(POISON))
        packed = torch.full((size + GUARD,), POISON & 0xFF, dtype=torch.uint8)
        run = self.lib.emu_bin_means
        run.restype = ctypes.c_int64
        given = (
            pointer(index), int(index.dtype == torch.int64), pointer(value),
            ctypes.c_int64(capacity), pointer(info), pointer(out), bits, ctypes.c_double(sigmas),
            pointer(table), pointer(packed),
        )  # fmt: skip
        scratch_bytes = run(*given, None, self.max_blocks)
        scratch = torch.full((scratch_bytes + GUARD,), 0xA5, dtype=torch.uint8)
        assert run(*given, pointer(scratch), self.max_blocks) == 0
        written = (int(info[0]) * bits + 7) // 8
        assert (scratch[scratch_bytes:] == 0xA5).all()
        assert (table[2**bits :] == POISON).all()
        assert (packed[written:] == POISON & 0xFF).all()
        return table[: 2**bits], packed[:size]


make = Emu.make
