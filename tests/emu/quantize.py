"""quantize on either backend; ``out`` is changed in place."""

from __future__ import annotations

import ctypes

import torch
from emu.backends import GUARD, POISON, Emulated, pointer
from torch import Tensor


class Emu(Emulated):
    """quantize under the emulator; levels cut to their number."""

    stem = "quantize"

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


class Cuda:
    """The operators on the first GPU. Their schedule is their own."""

    def sign(
        self, tensor: Tensor, memory: Tensor | None, out: Tensor | None, decay: float,
        sent: Tensor | None = None, next: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        there = [None if t is None else t.cuda() for t in (tensor, memory, out, sent, next)]
        bits, info = torch.ops.gcext.sign(*there[:3], decay, *there[3:])
        for old, new in ((out, there[2]), (next, there[4])):
            if old is not None and new is not None:
                old.copy_(new)
        return bits.cpu(), info.cpu()

    def levels(
        self, tensor: Tensor, memory: Tensor | None, out: Tensor | None, decay: float, steps: int,
        bucket: int, largest: bool, clip: float, fit: bool, seed: int,
        wide: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
        del wide  # follows from the size
        there = [None if t is None else t.cuda() for t in (tensor, memory, out)]
        rule = (steps, bucket, largest, clip, fit, seed)
        norms, at, level, info = torch.ops.gcext.levels(*there, decay, *rule)
        if out is not None:
            out.copy_(there[2])  # type: ignore[arg-type]  # None only where out is
        count = int(info[0])
        return norms.cpu(), at[:count].cpu(), level[:count].cpu(), info.cpu()

    def level_values(
        self, norms: Tensor, at: Tensor, level: Tensor, bucket: int, steps: int
    ) -> Tensor:
        there = norms.cuda(), at.cuda(), level.cuda()
        return torch.ops.gcext.level_values(*there, bucket, steps).cpu()


def poisoned(size: int) -> Tensor:
    """Return uninitialised scratch."""
    return torch.full((size,), 0xA5, dtype=torch.uint8)


def make(backend: str, max_blocks: int = 1024, reverse: bool = False) -> Emu | Cuda:
    """Return the backend of that name; the schedule asked for is the emulator's alone."""
    return Cuda() if backend == "cuda" else Emu(max_blocks, reverse)
