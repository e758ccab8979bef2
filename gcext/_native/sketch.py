"""The operators of the count sketch, csrc/sketch.h; see gcext._native.ops."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gcext._native.ops import fake, signed

__all__ = ["MOST_COLS", "MOST_ROWS", "sketch", "sketch_query"]

MOST_ROWS, MOST_COLS = 64, 2**31 - 1

_ops = torch.ops.gcext


def sketch(
    tensor: Tensor, index: Tensor | None, rows: int, cols: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Return the table, float32 (rows * cols,), and info, of a flat tensor.

    index: int32 or int64, the number of each value's element; None: 0, 1, 2 ..
    """
    table, info = _ops.sketch.default(tensor, index, rows, cols, signed(seed))
    return table, info


def _fake_sketch(tensor: Tensor, index: Any, rows: int, cols: int, seed: int) -> tuple[Tensor, ...]:
    return tensor.new_empty((rows * cols,)), tensor.new_empty((4,), dtype=torch.int64)


fake("sketch", _fake_sketch)


def sketch_query(
    table: Tensor, index: Tensor | None, numel: int, rows: int, cols: int, seed: int
) -> Tensor:
    """Return estimates, float32, of the elements of an index; None: of the first ``numel``."""
    values: Tensor = _ops.sketch_query.default(table, index, numel, rows, cols, signed(seed))
    return values


def _fake_query(table: Tensor, index: Tensor | None, numel: int, *_: Any) -> Tensor:
    return table.new_empty((numel if index is None else index.numel(),))


fake("sketch_query", _fake_query)
