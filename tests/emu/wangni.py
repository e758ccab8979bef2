"""wangni on either backend; ``out`` is changed in place."""

from __future__ import annotations

import ctypes

import torch
from emu.backends import GUARD, POISON, Emulated, pointer
from torch import Tensor


class Emu(Emulated):
    """wangni under the emulator; all arrays have a capacity of all elements."""

    stem = "wangni"

    def wangni(
        self, tensor: Tensor, memory: Tensor | None, out: Tensor | None, decay: float,
        budget: float, seed: int, wide: bool = False,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        n = tensor.numel()
        dtype = torch.int64 if wide else torch.int32
        index, at = (torch.full((n + GUARD,), POISON, dtype=dtype) for _ in range(2))
        value, sent = (torch.full((n + GUARD,), float(POISON)) for _ in range(2))
        info, drawn = (torch.full((4 + GUARD,), POISON, dtype=torch.int64) for _ in range(2))
        run = self.lib.emu_wangni
        run.restype = ctypes.c_int64
        given = (
            pointer(tensor), pointer(memory), pointer(out), ctypes.c_float(decay),
            ctypes.c_int64(n), ctypes.c_double(budget), ctypes.c_uint64(seed % 2**64),
            pointer(index), pointer(at), int(wide), pointer(value), pointer(sent), pointer(info),
            pointer(drawn),
        )  # fmt: skip
        size = run(*given, None, self.max_blocks)
        scratch = torch.full((size + GUARD,), 0xA5, dtype=torch.uint8)
        assert run(*given, pointer(scratch), self.max_blocks) == 0
        assert (scratch[size:] == 0xA5).all()
        for head, *arrays in ((info, index, value), (drawn, at, sent)):
            assert (head[4:] == POISON).all()
            for each in arrays:
                assert (each[int(head[0]) :] == POISON).all()
        return index[:n], value[:n], at[:n], sent[:n], info[:4], drawn[:4]


make = Emu.make
