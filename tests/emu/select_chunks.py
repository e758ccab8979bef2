"""select_chunks on either backend; ``out`` is changed in place."""

from __future__ import annotations

import ctypes

import torch
from emu.backends import GUARD, POISON, Emulated, pointer
from torch import Tensor

Selected = tuple[Tensor, Tensor, Tensor]


class Emu(Emulated):
    """select_chunks under the emulator."""

    stem = "select_chunks"

    def select_chunks(
        self, tensor: Tensor, memory: Tensor | None, out: Tensor | None, chunk: int, k: int,
        last: int, a: float, b: float, ternary: bool, wide: bool = False,
    ) -> Selected:  # fmt: skip
        n = tensor.numel()
        size = (-(-n // chunk) - 1) * k + last
        dtype = torch.int64 if wide else torch.int32
        index = torch.full((size + GUARD,), POISON, dtype=dtype)
        value = torch.full((size + GUARD,), float(POISON))
        info = torch.full((4 + GUARD,), POISON, dtype=torch.int64)
        run = self.lib.emu_select_chunks
        run.restype = ctypes.c_int64
        given = (
            pointer(tensor), pointer(memory), pointer(out), (ctypes.c_int64 * 4)(n, chunk, k, last),
            ctypes.c_float(a), ctypes.c_float(b), int(ternary), pointer(index), int(wide),
            pointer(value), pointer(info),
        )  # fmt: skip
        bytes_ = run(*given, None, self.max_blocks)
        scratch = torch.full((bytes_ + GUARD,), 0xA5, dtype=torch.uint8)
        assert run(*given, pointer(scratch), self.max_blocks) == 0
        count = int(info[0])
        assert (scratch[bytes_:] == 0xA5).all()
        assert (index[count:] == POISON).all()
        assert (value[count:] == POISON).all()
        assert (info[4:] == POISON).all()
        return index[:size], value[:size], info[:4]


make = Emu.make
