"""quantize on either backend; ``out`` is changed in place."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from emu.backends import GUARD, POISON, Cuda, Emulated, pointer
from torch import Tensor


def poisoned(size: int) -> Tensor:
    """Return uninitialised scratch."""
    return torch.full((size,), 0xA5, dtype=torch.uint8)


class Gpu(Cuda):
    """The operators on a GPU; levels cut to their number."""

    def levels(self, *given: Any, **options: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        norms, at, level, info = self.call("levels", *given, **options)
        count = int(info[0])
        return norms, at[:count], level[:count], info


class Emu(Emulated):
    """quantize under the emulator; levels cut to their number."""

    stem, cuda = "quantize", Gpu

    def sign(
        self, tensor: Tensor, memory: Tensor | None, out: Tensor | None, decay: float,
        sent: Tensor | None = None, next: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        n = tensor.numel()
        size = (n + 7) // 8
        bits = torch.full((size + GUARD,), POISON & 0xFF, dtype=torch.uint8)
        info = torch.full((4,), POISON, dtype=torch.int64)
        self.lib.emu_sign_scratch_bytes.restype = ctypes.c_int64
        self.lib.emu_sign(
            pointer(tensor), pointer(memory), pointer(out), ctypes.c_float(decay),
            ctypes.c_int64(n), pointer(bits), pointer(info), pointer(sent), pointer(next),
            pointer(poisoned(self.lib.emu_sign_scratch_bytes())), self.max_blocks,
        )  # fmt: skip
        assert (bits[size:] == POISON & 0xFF).all()
        return bits[:size], info

    def levels(
        self, tensor: Tensor, memory: Tensor | None, out: Tensor | None, decay: float, steps: int,
        bucket: int, largest: bool, clip: float, fit: bool, seed: int,
        wide: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
        n = tensor.numel()
        bucket = bucket if 0 < bucket < n else n
        buckets = -(-n // bucket)
        norms = torch.full((buckets + GUARD,), float(POISON))
        at = torch.full((n + GUARD,), POISON, dtype=torch.int64 if wide else torch.int32)
        level = torch.full((n + GUARD,), POISON, dtype=torch.int16)
        info = torch.full((4,), POISON, dtype=torch.int64)
        self.lib.emu_levels_scratch_bytes.restype = ctypes.c_int64
        scratch = self.lib.emu_levels_scratch_bytes(ctypes.c_int64(n), ctypes.c_int64(bucket))
        self.lib.emu_levels(
            pointer(tensor), pointer(memory), pointer(out), ctypes.c_float(decay),
            *[ctypes.c_int64(x) for x in (n, steps, bucket)], int(largest), ctypes.c_double(clip),
            int(fit), ctypes.c_int64(seed), pointer(norms), pointer(at), int(wide), pointer(level),
            pointer(info), pointer(poisoned(scratch)), self.max_blocks,
        )  # fmt: skip
        count = int(info[0])
        assert (norms[buckets:] == POISON).all()
        assert (at[count:] == POISON).all()
        assert (level[count:] == POISON).all()
        return norms[:buckets], at[:count], level[:count], info

    def level_values(
        self, norms: Tensor, at: Tensor, level: Tensor, bucket: int, steps: int
    ) -> Tensor:
        n = level.numel()
        value = torch.full((n + GUARD,), float(POISON))
        self.lib.emu_level_values(
            pointer(norms), ctypes.c_int64(norms.numel()), ctypes.c_int64(bucket), pointer(at),
            int(at.dtype == torch.int64), pointer(level), ctypes.c_int64(n), steps,
            pointer(value), self.max_blocks,
        )  # fmt: skip
        assert (value[n:] == POISON).all()
        return value[:n]


make = Emu.make
