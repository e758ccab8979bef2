"""hadamard on either backend."""

from __future__ import annotations

import ctypes

import torch
from emu.backends import GUARD, POISON, Emulated, pointer
from torch import Tensor


class Emu(Emulated):
    """hadamard under the emulator."""

    stem = "hadamard"

    def hadamard(self, values: Tensor, size: int, seed: int, inverse: bool) -> Tensor:
        n = values.numel()
        out = torch.full((n + GUARD,), float(POISON))
        self.lib.emu_hadamard(
            pointer(values), pointer(out), ctypes.c_int64(n), size.bit_length() - 1,
            ctypes.c_uint64(seed % 2**64), int(inverse), self.max_blocks,
        )  # fmt: skip
        assert (out[n:] == POISON).all()
        return out[:n]


class Cuda:
    """The operator on the first GPU. Its schedule is its own."""

    def hadamard(self, values: Tensor, size: int, seed: int, inverse: bool) -> Tensor:
        return torch.ops.gcext.hadamard(values.cuda(), size, seed, inverse).cpu()


def make(backend: str, max_blocks: int = 1024, reverse: bool = False) -> Emu | Cuda:
    """Return the backend of that name; the schedule asked for is the emulator's alone."""
    return Cuda() if backend == "cuda" else Emu(max_blocks, reverse)
