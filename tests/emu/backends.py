"""Two ways to run the CUDA kernels of a base name: on the CPU (`emu`), on a GPU (`cuda`).

A subclass of `Emulated` has the operators' names and arguments, and calls the emulated launchers;
`Cuda` calls the operators. `make(backend, ...)` picks by name. All take and return CPU tensors.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import pytest
import torch
from emu.build import library
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

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


class Cuda:
    """The operators on the first GPU, whose schedule is its own; what they write is copied back."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return functools.partial(self.call, name)

    @staticmethod
    def call(name: str, *given: Any, wide: bool = False, **options: Any) -> Any:
        del wide  # follows from the size
        operator = getattr(torch.ops.gcext, name).default
        arguments = operator._schema.arguments
        assert len(given) <= len(arguments)
        here = {each.name: value for each, value in zip(arguments, given, strict=False)} | options
        there = tree_map_only(Tensor, Tensor.cuda, here)
        result = operator(**there)
        for each in arguments:
            written = each.alias_info is not None and each.alias_info.is_write
            if written:
                olds, news = (tree_leaves(every.get(each.name)) for every in (here, there))
                for old, new in zip(olds, news, strict=True):
                    if old is not None:
                        old.copy_(new)
        return tree_map_only(Tensor, Tensor.cpu, result)


class Emulated:
    """The kernels of one base name under tests/emu/cuemu.h, and their schedule."""

    stem: ClassVar[str]
    cuda: ClassVar[type[Cuda]] = Cuda
    load: ClassVar[Callable[[str], ctypes.CDLL]] = staticmethod(library)

    def __init__(self, max_blocks: int = 1024, reverse: bool = False) -> None:
        self.lib = type(self).load(self.stem)
        self.max_blocks = ctypes.c_int64(max_blocks)
        self.lib.emu_reverse(int(reverse))

    @classmethod
    def make(cls, backend: str, max_blocks: int = 1024, reverse: bool = False) -> Any:
        """Return the backend of that name; the schedule asked for is the emulator's alone."""
        return cls.cuda() if backend == "cuda" else cls(max_blocks, reverse)


def same_bits(x: Tensor, y: Tensor) -> bool:
    """Whether two tensors have the same bytes: torch.equal takes -0 for 0."""
    if x.dtype == y.dtype == torch.float32:
        x, y = x.view(torch.int32), y.view(torch.int32)
    return x.dtype == y.dtype and torch.equal(x, y)
