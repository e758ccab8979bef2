"""codes on either backend."""

from __future__ import annotations

import ctypes

import torch
from emu.backends import GUARD, POISON, Emulated, pointer
from torch import Tensor


class Emu(Emulated):
    """codes under the emulator."""

    stem = "codes"

    def code_values(
        self, bits: Tensor, scales: Tensor, n: int, table: int, width: int, bucket: int
    ) -> Tensor:
        out = torch.full((n + GUARD,), float(POISON))
        self.lib.emu_code_values(
            pointer(bits), pointer(scales), ctypes.c_int64(n), table, width,
            ctypes.c_int64(bucket), pointer(out), self.max_blocks,
        )  # fmt: skip
        assert (out[n:] == POISON).all()
        return out[:n]


class Cuda:
    """The operator on the first GPU. Its schedule is its own."""

    def code_values(
        self, bits: Tensor, scales: Tensor, n: int, table: int, width: int, bucket: int
    ) -> Tensor:
        there = bits.cuda(), scales.cuda()
        return torch.ops.gcext.code_values(*there, n, table, width, bucket).cpu()


def make(backend: str, max_blocks: int = 1024, reverse: bool = False) -> Emu | Cuda:
    """Return the backend of that name; the schedule asked for is the emulator's alone."""
    return Cuda() if backend == "cuda" else Emu(max_blocks, reverse)
