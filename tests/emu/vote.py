"""vote on either backend."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from emu.backends import GUARD, POISON, Emulated, packets, pointer
from torch import Tensor


class Emu(Emulated):
    """vote under the emulator."""

    stem = "vote"

    def vote(
        self, plane: Sequence[Tensor], index: Sequence[Tensor], value: Sequence[Tensor],
        scale: float, numel: int,
    ) -> Tensor:  # fmt: skip
        out = torch.full((numel + GUARD,), float(POISON))
        count, places, *rest, _ = packets([*plane, *index], [*plane, *value])
        every = (ctypes.c_int * (len(plane) + len(value)))(*[1] * len(plane), *[0] * len(value))
        self.lib.emu_vote(
            count, places, *rest, every, ctypes.c_int64(len(plane)), ctypes.c_float(scale),
            ctypes.c_int64(numel), self.max_blocks, pointer(out),
        )  # fmt: skip
        assert (out[numel:] == POISON).all()
        return out[:numel]


make = Emu.make
