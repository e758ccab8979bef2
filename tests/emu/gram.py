"""gram on either backend."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from emu.backends import GUARD, POISON, Emulated, packets, pointer
from torch import Tensor


class Emu(Emulated):
    """gram under the emulator."""

    stem = "gram"

    def gram(
        self, index: Sequence[Tensor], value: Sequence[Tensor], scale: Sequence[float], numel: int
    ) -> Tensor:
        m = len(value)
        out = torch.full((m * m + GUARD,), float(POISON), dtype=torch.float64)
        self.lib.emu_gram_scratch_bytes.restype = ctypes.c_int64
        size = self.lib.emu_gram_scratch_bytes(ctypes.c_int64(m))
        scratch = torch.full((size,), 0xA5, dtype=torch.uint8)
        self.lib.emu_gram(
            *packets(index, value),
            (ctypes.c_double * m)(*scale),
            ctypes.c_int64(numel),
            self.max_blocks,
            pointer(out),
            pointer(scratch),
        )
        assert (out[m * m :] == POISON).all()
        return out[: m * m].view(m, m)


make = Emu.make
