"""Operators over a whole model's tensors in one call; see gcext._native.ops."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gcext._native.ops import fake

_ops = torch.ops.gcext


def select_many(
    tensor: Sequence[Tensor],
    memory: Sequence[Tensor],
    out: Sequence[Tensor],
    k: Sequence[int],
    a: float,
    b: float,
    ternary: bool,
    sent: Sequence[Tensor] = (),
    next: Sequence[Tensor] = (),
) -> tuple[Tensor, Tensor, Tensor]:
    """Return ``select`` of many tensors, concatenated; info has a row a tensor.

    memory, out, sent, next: one a tensor, or none. Each tensor has less than 2^31 elements.
    """
    rest = k, a, b, ternary, sent, next
    index, value, info = _ops.select_many.default(tensor, memory, out, *rest)
    return index, value, info


def _fake_select_many(
    tensor: list[Tensor], memory: Any, out: Any, k: list[int], *_: Any
) -> tuple[Tensor, ...]:
    pairs, info = (sum(k),), (len(tensor), 4)
    new = tensor[0].new_empty
    return new(pairs, dtype=torch.int32), new(pairs), new(info, dtype=torch.int64)


fake("select_many", _fake_select_many)


def select_model(
    tensor: Sequence[Tensor],
    memory: Sequence[Tensor],
    out: Sequence[Tensor],
    k: int,
    a: float,
    b: float,
    ternary: bool,
    sent: Sequence[Tensor] = (),
    next: Sequence[Tensor] = (),
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the k of largest magnitude of all tensors together; otherwise as select_many.

    On the CPU alone.
    """
    rest = k, a, b, ternary, sent, next
    index, value, info = _ops.select_model.default(tensor, memory, out, *rest)
    return index, value, info


fake("select_model", lambda x, m, out, k, *rest: _fake_select_many(x, m, out, [k]))


def combine_add_many_(
    dense: Sequence[Tensor], index: Sequence[Tensor], value: Sequence[Tensor], alpha: float
) -> None:
    """Add alpha times a packet to each of many float32 tensors, of any shape; csrc/combine.h.

    Nothing is written where one of the packets is not valid, on the CPU.
    """
    _ops.combine_add_many_.default(dense, index, value, alpha)


fake("combine_add_many_", lambda dense, index, value, alpha: None)


def combine_add_finite_(
    dense: Sequence[Tensor],
    index: Sequence[Tensor],
    value: Sequence[Tensor],
    alpha: float,
    split: Sequence[int] = (),
) -> int:
    """Do as combine_add_many_, and return -1; on the CPU alone.

    Where a sum would not be finite, and what is there is, nothing is written: return which tensor.
    split: where given, a tensor's packet is the next so many entries of the first index and value;
    where that is -1, it is the next of the other ones.
    """
    return int(_ops.combine_add_finite_.default(dense, index, value, alpha, split))


fake("combine_add_finite_", lambda dense, index, value, alpha, split=(): -1)


_PLAIN = (Tensor, torch.nn.Parameter)


def are_plain(tensors: Sequence[Any]) -> bool:
    """Return whether all are torch's own tensors on the CPU.

    Their dtype and layout the CPU's operators check themselves, before they write anything. They
    are to be called under torch.no_grad.
    """
    return all([type(each) in _PLAIN and each.is_cpu for each in tensors])  # noqa: C419  (faster)
