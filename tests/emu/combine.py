"""combine on either backend; ``dense`` is changed in place."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from emu.backends import GUARD, POISON, Emulated, packets, pointer
from torch import Tensor


class Emu(Emulated):
    """combine under the emulator."""

    stem = "combine"

    def combine(
        self, index: Sequence[Tensor], value: Sequence[Tensor], weights: Sequence[float], numel: int
    ) -> Tensor:
        m = len(value)
        out = torch.full((numel + GUARD,), float(POISON))
        self.lib.emu_combine(
            *packets(index, value),
            (ctypes.c_double * m)(*weights),
            ctypes.c_int64(numel),
            self.max_blocks,
            pointer(out),
        )
        assert (out[numel:] == POISON).all()
        return out[:numel]

    def combine_add_(
        self, dense: Tensor, index: Tensor, value: Tensor, alpha: float, info: Tensor | None = None
    ) -> None:
        self.lib.emu_combine_add(
            pointer(dense), ctypes.c_int64(dense.numel()), pointer(index), pointer(value),
            ctypes.c_int64(value.numel()), int(index.dtype == torch.int64),
            int(index.numel() != value.numel()), ctypes.c_float(alpha), pointer(info),
            self.max_blocks,
        )  # fmt: skip


make = Emu.make
