"""rice on either backend: selected pairs to the streams of packets and back."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import NamedTuple

import torch
from emu.backends import GUARD, POISON, Cuda, Emulated, pointer
from torch import Tensor

FIELDS = 7  # PackField of cuda/rice_launch.h
WRONG = torch.iinfo(torch.int64).min


class Pairs(NamedTuple):
    """What is packed; info of no elements: all of the pairs count."""

    index: Tensor  # type: ignore[assignment]  # hides tuple.index
    value: Tensor
    info: Tensor
    numel: int


class Packed(NamedTuple):
    """The fields of the head, and the streams."""

    wrong: int
    info: list[int]
    streams: bytes


class Located(NamedTuple):
    """Where the streams of a packet lie in a message."""

    begin: int
    end: int
    remainder_bytes: int
    k: int
    numel: int
    scale: int


class Opened(NamedTuple):
    """What the streams held, if nothing was wrong."""

    index: Tensor  # type: ignore[assignment]  # hides tuple.index
    value: Tensor
    wrong: int


def _items(rows: Sequence[Sequence[int]]) -> ctypes.Array[ctypes.c_int64]:
    numbers = [int(number) for row in rows for number in row]
    return (ctypes.c_int64 * len(numbers))(*numbers)


def packed(out: Tensor, count: int) -> list[Packed]:
    """Return what a buffer of the device holds."""
    heads = out[: 8 * FIELDS * count].clone().view(torch.int64).view(count, FIELDS).tolist()
    return [
        Packed(wrong, info, out[at : at + size].numpy().tobytes())
        for at, size, wrong, *info in heads
    ]


def opened(located: Sequence[Located], index: Tensor, value: Tensor, wrong: Tensor) -> list[Opened]:
    """Return the packets one by one."""
    ks = [each.k for each in located]
    return list(map(Opened, index.split(ks), value.split(ks), wrong.tolist()))


class Gpu(Cuda):
    """The operators on a GPU, of pairs and of messages."""

    def pack(self, pairs: Sequence[Pairs]) -> list[Packed]:
        columns = [list(column) for column in zip(*pairs, strict=True)]
        return packed(self.call("pack_ternary", *columns), len(pairs))

    def unpack(
        self, message: bytes, located: Sequence[Located], wide: bool = False
    ) -> list[Opened]:
        there = torch.frombuffer(bytearray(message), dtype=torch.uint8)
        fields = [list(field) for field in zip(*located, strict=True)]
        return opened(located, *self.call("unpack_ternary", there, *fields, wide=wide))


class Emu(Emulated):
    """rice under the emulator."""

    stem, cuda = "rice", Gpu

    def bound(self, k: int, numel: int) -> int:
        self.lib.emu_pack_bound.restype = ctypes.c_int64
        return int(self.lib.emu_pack_bound(ctypes.c_int64(k), ctypes.c_int64(numel)))

    def pack_ternary(
        self, index: Sequence[Tensor], value: Sequence[Tensor], info: Sequence[Tensor],
        numel: Sequence[int],
    ) -> Tensor:  # fmt: skip
        """Return what the operator of that name does."""
        rows = [
            (i.data_ptr(), v.data_ptr(), f.data_ptr() if f.numel() else 0, v.numel(), n,
             i.dtype == torch.int64)
            for i, v, f, n in zip(index, value, info, numel, strict=True)
        ]  # fmt: skip
        items, count = _items(rows), ctypes.c_int64(len(rows))
        sizes = (ctypes.c_int64 * 2)()
        self.lib.emu_pack(items, count, None, None, self.max_blocks, sizes)
        out, scratch = (torch.full((n + GUARD,), 0xA5, dtype=torch.uint8) for n in sizes)
        self.lib.emu_pack(items, count, pointer(out), pointer(scratch), self.max_blocks, sizes)
        for each, n in zip((out, scratch), sizes, strict=True):
            assert (each[n:] == 0xA5).all()
        return out[: sizes[0]]

    def unpack_ternary(
        self, message: Tensor, begin: Sequence[int], end: Sequence[int],
        remainder_bytes: Sequence[int], k: Sequence[int], numel: Sequence[int],
        scale: Sequence[int], wide: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        """Return what the operator of that name does; ``wide`` where a narrow index would do."""
        wide = wide or any(n > 2**31 - 1 for n in numel)
        total, m = sum(k), len(k)
        index = torch.full((total + GUARD,), POISON, dtype=torch.int64 if wide else torch.int32)
        value = torch.full((total + GUARD,), float(POISON))
        wrong = torch.full((m + GUARD,), WRONG)
        rows, at = [], 0
        for i, row in enumerate(zip(begin, end, remainder_bytes, k, numel, strict=True)):
            outs = (index[at:], value[at:], wrong[i:])
            rows.append((*row, *(each.data_ptr() for each in outs), scale[i], wide))
            at += k[i]
        rest = (_items(rows), ctypes.c_int64(m), pointer(message), ctypes.c_int64(message.numel()))
        self.lib.emu_unpack.restype = ctypes.c_int64
        size = self.lib.emu_unpack(*rest, None, self.max_blocks)
        scratch = torch.full((size + GUARD,), 0xA5, dtype=torch.uint8)
        self.lib.emu_unpack(*rest, pointer(scratch), self.max_blocks)
        assert (scratch[size:] == 0xA5).all()
        assert (index[total:] == POISON).all()
        assert (value[total:] == POISON).all()
        assert (wrong[m:] == WRONG).all()
        return index[:total], value[:total], wrong[:m]

    def pack(self, pairs: Sequence[Pairs]) -> list[Packed]:
        return packed(self.pack_ternary(*zip(*pairs, strict=True)), len(pairs))

    def unpack(
        self, message: bytes, located: Sequence[Located], wide: bool = False
    ) -> list[Opened]:
        there = torch.frombuffer(bytearray(message), dtype=torch.uint8)
        begin, end, remainder, k, numel, scale = zip(*located, strict=True)
        got = self.unpack_ternary(there, begin, end, remainder, k, numel, scale, wide)
        return opened(located, *got)


make = Emu.make
