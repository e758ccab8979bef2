"""robust on either backend."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from emu.backends import GUARD, POISON, Emulated, packets, pointer
from torch import Tensor


class Emu(Emulated):
    """robust under the emulator."""

    stem = "robust"

    def trimmed_mean(
        self, index: Sequence[Tensor], value: Sequence[Tensor], drop: int, numel: int
    ) -> Tensor:
        out = torch.full((numel + GUARD,), float(POISON))
        pairs = list(zip(index, value, strict=True))
        pairs.sort(key=lambda pair: pair[0].numel() == pair[1].numel())  # dense ones first
        self.lib.emu_trimmed_mean(
            *packets(*zip(*pairs, strict=True)),
            ctypes.c_int64(drop), ctypes.c_int64(numel), self.max_blocks, pointer(out),
        )  # fmt: skip
        assert (out[numel:] == POISON).all()
        return out[:numel]


make = Emu.make
