"""Two ways to run the CUDA kernels of a base name: on the CPU (`emu`), on a GPU (`cuda`).

`emu/<name>.py` has both under one interface and picks by name: `make(backend, ...)`. All take and
return CPU tensors.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import ClassVar

import pytest
import torch
from emu.build import library
from torch import Tensor

BACKENDS = ["emu", pytest.param("cuda", marks=pytest.mark.cuda)]

GUARD = 16  # entries after the end of an output that no kernel may touch
POISON = -7


def pointer(tensor: Tensor | None) -> ctypes.c_void_p:
    """Return where the tensor's elements are, as ctypes passes it."""
    at = ctypes.c_void_p(None if tensor is None else tensor.data_ptr())
    at.owner = tensor  # type: ignore[attr-defined]  # a temporary must outlive the call
    return at


def packets(index: Sequence[Tensor], value: Sequence[Tensor]) -> tuple[object, ...]:
    """Return a list of packets as the emulated launchers take it: how many, and what each has."""
    m = len(value)
    dense = [i.numel() != v.numel() for i, v in zip(index, value, strict=True)]
    return (
        ctypes.c_int64(m),
        (ctypes.c_void_p * m)(*[pointer(i) for i in index]),
        (ctypes.c_void_p * m)(*[pointer(v) for v in value]),
        (ctypes.c_int64 * m)(*[v.numel() for v in value]),
        (ctypes.c_int * m)(*[i.dtype == torch.int64 for i in index]),
        (ctypes.c_int * m)(*dense),
    )


class Emulated:
    """The kernels of one base name under tests/emu/cuemu.h, and their schedule."""

    stem: ClassVar[str]
    load: ClassVar[Callable[[str], ctypes.CDLL]] = staticmethod(library)

    def __init__(self, max_blocks: int = 1024, reverse: bool = False) -> None:
        self.lib = type(self).load(self.stem)
        self.max_blocks = ctypes.c_int64(max_blocks)
        self.lib.emu_reverse(int(reverse))


def same_bits(x: Tensor, y: Tensor) -> bool:
    """Whether two tensors have the same bytes: torch.equal takes -0 for 0."""
    if x.dtype == y.dtype == torch.float32:
        x, y = x.view(torch.int32), y.view(torch.int32)
    return x.dtype == y.dtype and torch.equal(x, y)
