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

    def combine_add(
        self, dense: Tensor, index: Tensor, value: Tensor, alpha: float, info: Tensor | None = None
    ) -> None:
        self.lib.emu_combine_add(
            pointer(dense), ctypes.c_int64(dense.numel()), pointer(index), pointer(value),
            ctypes.c_int64(value.numel()), int(index.dtype == torch.int64),
            int(index.numel() != value.numel()), ctypes.c_float(alpha), pointer(info),
            self.max_blocks,
        )  # fmt: skip


class Cuda:
    """The operators on the first GPU. Their schedule is their own."""

    def combine(
        self, index: Sequence[Tensor], value: Sequence[Tensor], weights: Sequence[float], numel: int
    ) -> Tensor:
        there = [[t.cuda() for t in each] for each in (index, value)]
        return torch.ops.gcext.combine(*there, list(weights), numel).cpu()

    def combine_add(
        self, dense: Tensor, index: Tensor, value: Tensor, alpha: float, info: Tensor | None = None
    ) -> None:
        there = dense.cuda()
        info = None if info is None else info.cuda()
        torch.ops.gcext.combine_add_(there, index.cuda(), value.cuda(), alpha, info)
        dense.copy_(there)


def make(backend: str, max_blocks: int = 1024, reverse: bool = False) -> Emu | Cuda:
    """Return the backend of that name; the schedule asked for is the emulator's alone."""
    return Cuda() if backend == "cuda" else Emu(max_blocks, reverse)
