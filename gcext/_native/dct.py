"""Operators of the blocks' cosine transform, csrc/dct.h; see gcext._native.ops."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gcext._native.ops import fake

_ops = torch.ops.gcext


def dct_select(
    tensor: Tensor,
    memory: Tensor | None,
    out: Tensor | None,
    decay: float,
    rows: int,
    cols: int,
    block: int,
    k: int,
    ternary: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return index, value and info of the k largest coefficients of each block of a matrix.

    tensor: of rows*cols elements. ternary: values are plus or minus the mean magnitude of all that
    were chosen, whose bits are in info. On CUDA index and value have a capacity that info's number
    of elements may not reach.
    """
    index, value, info = _ops.dct_select.default(
        tensor, memory, out, decay, rows, cols, block, k, ternary
    )
    return index, value, info


def _fake_select(tensor: Tensor, *_: Any) -> tuple[Tensor, ...]:
    found = (torch.library.get_ctx().new_dynamic_size(),)
    kind = torch.int64 if tensor.numel() >= 2**31 else torch.int32
    info = tensor.new_empty((4,), dtype=torch.int64)
    return tensor.new_empty(found, dtype=kind), tensor.new_empty(found), info


fake("dct_select", _fake_select)


def dct_values(index: Tensor, value: Tensor, rows: int, cols: int, block: int) -> Tensor:
    """Return the rows*cols elements, float32, that have these coefficients and no others."""
    whole: Tensor = _ops.dct_values.default(index, value, rows, cols, block)
    return whole


fake("dct_values", lambda index, value, rows, cols, _: value.new_empty((rows * cols,)))
