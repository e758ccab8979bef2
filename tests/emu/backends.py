"""Two ways to run the CUDA kernels, under one interface: on the CPU (`emu`), on a GPU (`cuda`).

Both take and return CPU tensors; ``out`` and ``dense`` are changed in place.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import pytest
import torch
from emu.build import library
from torch import Tensor

BACKENDS = ["emu", pytest.param("cuda", marks=pytest.mark.cuda)]

_GUARD = 16  # entries after the room of an output that no kernel may touch
_POISON = -7


def _pointer(tensor: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


class Emu:
    """The kernels under tests/emu/cuemu.h."""

    def __init__(self, max_blocks: int = 1024, reverse: bool = False) -> None:
        self.lib = library()
        self.max_blocks = max_blocks
        self.lib.emu_reverse(int(reverse))

    def select(
        self, tensor: Tensor, memory: Tensor | None, out: Tensor | None, k: int,
        a: float = 1.0, b: float = 1.0, ternary: bool = True, wide: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        index = torch.full((k + _GUARD,), _POISON, dtype=torch.int64 if wide else torch.int32)
        value = torch.full((k + _GUARD,), float(_POISON))
        info = torch.full((4,), _POISON, dtype=torch.int64)
        scratch = torch.full((self.lib.emu_select_scratch_bytes(),), 0xA5, dtype=torch.uint8)
        self.lib.emu_select(
            _pointer(tensor), _pointer(memory), _pointer(out), ctypes.c_int64(tensor.numel()),
            ctypes.c_int64(k), ctypes.c_float(a), ctypes.c_float(b), int(ternary), int(wide),
            ctypes.c_int64(self.max_blocks), _pointer(index), _pointer(value), _pointer(info),
            _pointer(scratch),
        )  # fmt: skip
        untouched = int(info[0])
        assert (index[untouched:] == _POISON).all()
        assert (value[untouched:] == _POISON).all()
        return index[:k], value[:k], info

    def combine(
        self, index: Sequence[Tensor], value: Sequence[Tensor], weights: Sequence[float], numel: int
    ) -> Tensor:
        m = len(value)
        out = torch.full((numel + _GUARD,), float(_POISON))
        dense = [i.numel() != v.numel() for i, v in zip(index, value, strict=True)]
        self.lib.emu_combine(
            ctypes.c_int64(m),
            (ctypes.c_void_p * m)(*[_pointer(i) for i in index]),
            (ctypes.c_void_p * m)(*[_pointer(v) for v in value]),
            (ctypes.c_int64 * m)(*[v.numel() for v in value]),
            (ctypes.c_int * m)(*[i.dtype == torch.int64 for i in index]),
            (ctypes.c_int * m)(*dense),
            (ctypes.c_double * m)(*weights),
            ctypes.c_int64(numel),
            ctypes.c_int64(self.max_blocks),
            _pointer(out),
        )
        assert (out[numel:] == _POISON).all()
        return out[:numel]

    def combine_add(self, dense: Tensor, index: Tensor, value: Tensor, alpha: float) -> None:
        self.lib.emu_combine_add(
            _pointer(dense), ctypes.c_int64(dense.numel()), _pointer(index), _pointer(value),
            ctypes.c_int64(value.numel()), int(index.dtype == torch.int64),
            int(index.numel() != value.numel()), ctypes.c_float(alpha),
            ctypes.c_int64(self.max_blocks),
        )  # fmt: skip


class Cuda:
    """The operators on the first GPU. Its schedule is its own."""

    def select(
        self, tensor: Tensor, memory: Tensor | None, out: Tensor | None, k: int,
        a: float = 1.0, b: float = 1.0, ternary: bool = True, wide: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        del wide  # follows from the size
        there = [None if t is None else t.cuda() for t in (tensor, memory, out)]
        index, value, info = torch.ops.gcext.select(*there, k, a, b, ternary)
        if out is not None:
            out.copy_(there[2])
        return index.cpu(), value.cpu(), info.cpu()

    def combine(
        self, index: Sequence[Tensor], value: Sequence[Tensor], weights: Sequence[float], numel: int
    ) -> Tensor:
        there = [[t.cuda() for t in each] for each in (index, value)]
        return torch.ops.gcext.combine(*there, list(weights), numel).cpu()

    def combine_add(self, dense: Tensor, index: Tensor, value: Tensor, alpha: float) -> None:
        there = dense.cuda()
        torch.ops.gcext.combine_add_(there, index.cuda(), value.cuda(), alpha)
        dense.copy_(there)


def make(backend: str, max_blocks: int = 1024, reverse: bool = False) -> Emu | Cuda:
    """Return the backend of that name; the schedule asked for is the emulator's alone."""
    return Cuda() if backend == "cuda" else Emu(max_blocks, reverse)


def same_bits(x: Tensor, y: Tensor) -> bool:
    """Whether two tensors have the same bytes: torch.equal takes -0 for 0."""
    if x.dtype == y.dtype == torch.float32:
        x, y = x.view(torch.int32), y.view(torch.int32)
    return x.dtype == y.dtype and torch.equal(x, y)
