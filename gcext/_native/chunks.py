"""Operators that work chunk by chunk, csrc/chunks/; see gcext._native.ops."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gcext._native.ops import fake

_ops = torch.ops.gcext


def _new_index(tensor: Tensor, size: int | torch.SymInt) -> Tensor:
    dtype = torch.int64 if tensor.numel() >= 2**31 else torch.int32
    return tensor.new_empty((size,), dtype=dtype)


def _new_info(tensor: Tensor) -> Tensor:
    return tensor.new_empty((4,), dtype=torch.int64)


def select_chunks(
    tensor: Tensor,
    memory: Tensor | None,
    out: Tensor | None,
    chunk: int,
    k: int,
    last: int,
    a: float,
    b: float,
    ternary: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return index, value and info of the k of largest magnitude of every chunk.

    k: of a chunk of ``chunk`` elements; ``last``: of the last one, which may be shorter. index and
    value have a capacity of all of them. ternary: as of ``select``.
    """
    index, value, info = _ops.select_chunks.default(
        tensor, memory, out, chunk, k, last, a, b, ternary
    )
    return index, value, info


def _fake_select_chunks(
    tensor: Tensor, memory: Any, out: Any, chunk: int, k: int, last: int, *_: Any
) -> tuple[Tensor, ...]:
    n = tensor.numel()
    size = (-(-n // chunk) - 1) * k + last if n else 0
    return _new_index(tensor, size), tensor.new_empty((size,)), _new_info(tensor)


fake("select_chunks", _fake_select_chunks)


def bin_means(
    index: Tensor, value: Tensor, info: Tensor, out: Tensor | None, bits: int, range: float
) -> tuple[Tensor, Tensor]:
    """Return 2^bits means and each value's code into them, packed; csrc/chunks/bin_means.h.

    index, value, info: as of ``select_chunks``; what is left of the values goes to their places in
    ``out``. The codes have a capacity for all of ``value``.
    """
    table, packed = _ops.bin_means.default(index, value, info, out, bits, range)
    return table, packed


def _fake_bin_means(
    index: Tensor, value: Tensor, info: Tensor, out: Any, bits: int, range: float
) -> tuple[Tensor, Tensor]:
    packed = value.new_empty(((value.numel() * bits + 7) // 8,), dtype=torch.uint8)
    return value.new_empty((1 << bits,)), packed


fake("bin_means", _fake_bin_means)


def adacomp(
    tensor: Tensor, memory: Tensor | None, out: Tensor | None, decay: float, bin: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return index, value and info of what AdaComp sends of bins of ``bin`` elements; adacomp.h."""
    index, value, info = _ops.adacomp.default(tensor, memory, out, decay, bin)
    return index, value, info


def _fake_adacomp(tensor: Tensor, *_: Any) -> tuple[Tensor, ...]:
    found = torch.library.get_ctx().new_dynamic_size()
    return _new_index(tensor, found), tensor.new_empty((found,)), _new_info(tensor)


fake("adacomp", _fake_adacomp)
