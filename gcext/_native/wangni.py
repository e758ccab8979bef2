"""The operator that sends elements with probabilities of their own, csrc/wangni.h."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gcext._native.ops import fake, signed

__all__ = ["wangni"]


def wangni(
    tensor: Tensor,
    memory: Tensor | None,
    out: Tensor | None,
    decay: float,
    budget: float,
    seed: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return index and value of what is sent as it is, those of what is drawn, and info of both.

    budget: elements in the mean.
    """
    made = torch.ops.gcext.wangni.default(tensor, memory, out, decay, budget, signed(seed))
    index, value, at, sent, info, drawn = made
    return index, value, at, sent, info, drawn


def _fake(tensor: Tensor, *_: Any) -> tuple[Tensor, ...]:
    index = torch.int64 if tensor.numel() >= 2**31 else torch.int32
    made: list[Tensor] = []
    for _kind in range(2):
        found = torch.library.get_ctx().new_dynamic_size()
        made += [tensor.new_empty((found,), dtype=index)]
        made += [tensor.new_empty((found,), dtype=torch.float32)]
    return *made, *(tensor.new_empty((4,), dtype=torch.int64) for _kind in range(2))


fake("wangni", _fake)
