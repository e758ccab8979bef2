"""rice on either backend: selected pairs to the streams of a packet and back."""

from __future__ import annotations

import ctypes
from typing import NamedTuple

import torch
from emu.backends import GUARD, POISON, Emulated, pointer
from torch import Tensor

HEAD = 64


class Packed(NamedTuple):
    """What the head says, and the streams."""

    wrong: int
    info: list[int]
    streams: bytes


class Emu(Emulated):
    """rice under the emulator."""

    stem = "rice"

    def bound(self, k: int, numel: int) -> int:
        self.lib.emu_pack_bound.restype = ctypes.c_int64
        return int(self.lib.emu_pack_bound(ctypes.c_int64(k), ctypes.c_int64(numel)))

    def pack(self, index: Tensor, value: Tensor, info: Tensor, numel: int) -> Packed:
        k = index.numel()
        bound = self.bound(k, numel)
        out = torch.full((bound + GUARD,), POISON & 0xFF, dtype=torch.uint8)
        self.lib.emu_pack(
            pointer(index), int(index.dtype == torch.int64), pointer(value), ctypes.c_int64(k),
            ctypes.c_int64(numel), pointer(info), pointer(out), pointer(self._scratch()),
            self.max_blocks,
        )  # fmt: skip
        assert (out[bound:] == POISON & 0xFF).all()
        return packed(out[:bound])

    def unpack(
        self, message: bytes, begin: int, remainder_bytes: int, k: int, numel: int, scale: int,
        wide: bool = False,
    ) -> tuple[Tensor, Tensor, int]:  # fmt: skip
        index = torch.full((k + GUARD,), POISON, dtype=torch.int64 if wide else torch.int32)
        value = torch.full((k + GUARD,), float(POISON))
        wrong = torch.full((1,), POISON, dtype=torch.int64)
        there = torch.frombuffer(bytearray(message), dtype=torch.uint8)
        self.lib.emu_unpack(
            pointer(there), *[ctypes.c_int64(x) for x in (len(message), begin, remainder_bytes)],
            ctypes.c_int64(k), ctypes.c_int64(numel), ctypes.c_uint32(scale), pointer(index),
            int(wide), pointer(value), pointer(wrong), pointer(self._scratch()), self.max_blocks,
        )  # fmt: skip
        assert (index[k:] == POISON).all()
        assert (value[k:] == POISON).all()
        return index[:k], value[:k], int(wrong)

    def _scratch(self) -> Tensor:
        self.lib.emu_rice_scratch_bytes.restype = ctypes.c_int64
        return torch.full((self.lib.emu_rice_scratch_bytes(),), 0xA5, dtype=torch.uint8)


class Cuda:
    """The operators on the first GPU. Their schedule is their own."""

    def pack(self, index: Tensor, value: Tensor, info: Tensor, numel: int) -> Packed:
        there = [each.cuda() for each in (index, value, info)]
        return packed(torch.ops.gcext.pack_ternary(*there, numel).cpu())

    def unpack(
        self, message: bytes, begin: int, remainder_bytes: int, k: int, numel: int, scale: int,
        wide: bool = False,
    ) -> tuple[Tensor, Tensor, int]:  # fmt: skip
        del wide  # follows from the size
        there = torch.frombuffer(bytearray(message), dtype=torch.uint8).cuda()
        got = torch.ops.gcext.unpack_ternary(there, begin, remainder_bytes, k, numel, scale)
        return got[0].cpu(), got[1].cpu(), int(got[2])


def packed(out: Tensor) -> Packed:
    """Return what a buffer of the device holds."""
    size, wrong, *info = out[:48].view(torch.int64).tolist()
    return Packed(wrong, info, out[HEAD : HEAD + size].numpy().tobytes())


def make(backend: str, max_blocks: int = 1024, reverse: bool = False) -> Emu | Cuda:
    """Return the backend of that name; the schedule asked for is the emulator's alone."""
    return Cuda() if backend == "cuda" else Emu(max_blocks, reverse)
