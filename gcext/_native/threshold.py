"""The operator that selects from a magnitude on: its type, and its fake for torch.compile."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gcext._native.ops import fake

__all__ = ["threshold"]


def threshold(
    tensor: Tensor,
    memory: Tensor | None,
    out: Tensor | None,
    decay: float,
    limit: Tensor,
    scale: int,
    sent: Tensor | None = None,
    next: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return index, value and info of what is at least as large as a limit; csrc/threshold.h.

    limit: the bits of a magnitude, int32 of shape (1,). scale: those of the magnitude that all
    values get; 0: they stay as they are. sent, next: as of select.
    """
    made = torch.ops.gcext.threshold.default(tensor, memory, out, decay, limit, scale, sent, next)
    index, value, info = made
    return index, value, info


def _fake(tensor: Tensor, *_: Any) -> tuple[Tensor, ...]:
    found = torch.library.get_ctx().new_dynamic_size()
    index = torch.int64 if tensor.numel() >= 2**31 else torch.int32
    return (
        tensor.new_empty((found,), dtype=index),
        tensor.new_empty((found,), dtype=torch.float32),
        tensor.new_empty((4,), dtype=torch.int64),
    )


fake("threshold", _fake)
