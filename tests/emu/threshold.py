"""threshold on either backend; ``out`` is changed in place."""

from __future__ import annotations

import ctypes

import torch
from emu.backends import GUARD, POISON, Emulated, pointer
from torch import Tensor

Selected = tuple[Tensor, Tensor, Tensor]


class Emu(Emulated):
    """threshold under the emulator; index and value have a capacity of all elements."""

    stem = "threshold"

    def threshold(
        self, tensor: Tensor, memory: Tensor | None, out: Tensor | None, decay: float,
        limit: Tensor, scale: int, sent: Tensor | None = None, next: Tensor | None = None,
        wide: bool = False,
    ) -> Selected:  # fmt: skip
        n = tensor.numel()
        index = torch.full((n + GUARD,), POISON, dtype=torch.int64 if wide else torch.int32)
        value = torch.full((n + GUARD,), float(POISON))
        info = torch.full((4 + GUARD,), POISON, dtype=torch.int64)
        run = self.lib.emu_threshold
        run.restype = ctypes.c_int64
        given = (
            pointer(tensor), pointer(memory), pointer(out), ctypes.c_float(decay),
            ctypes.c_int64(n), pointer(limit), ctypes.c_int64(scale), pointer(index), int(wide),
            pointer(value), pointer(info), pointer(sent), pointer(next),
        )  # fmt: skip
        size = run(*given, None, self.max_blocks)
        scratch = torch.full((size + GUARD,), 0xA5, dtype=torch.uint8)
        assert run(*given, pointer(scratch), self.max_blocks) == 0
        count = int(info[0])
        assert (scratch[size:] == 0xA5).all()
        assert (index[count:] == POISON).all()
        assert (value[count:] == POISON).all()
        assert (info[4:] == POISON).all()
        return index[:n], value[:n], info[:4]


make = Emu.make
