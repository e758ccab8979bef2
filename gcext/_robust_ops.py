"""The operators of the trimmed mean and the vote, typed, and what torch.compile must know."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gcext import _lib  # noqa: F401  (loads the operators)

__all__ = ["trimmed_mean", "vote"]


def trimmed_mean(index: Sequence[Tensor], value: Sequence[Tensor], drop: int, numel: int) -> Tensor:
    """Return each element's mean without its ``drop`` least and greatest values; csrc/robust.h.

    float32 of shape (numel,). Packets are as for ``combine``.
    """
    out: Tensor = torch.ops.gcext.trimmed_mean.default(list(index), list(value), drop, numel)
    return out


def vote(
    plane: Sequence[Tensor],
    index: Sequence[Tensor],
    value: Sequence[Tensor],
    scale: float,
    numel: int,
) -> Tensor:
    """Return the sign most voters have, times scale, float32 of shape (numel,); csrc/vote.h.

    plane: uint8, the sign bits of those who vote on every element, ceil(numel/8) bytes each.
    index, value: of those who vote with the signs of the entries that they have.
    """
    out: Tensor = torch.ops.gcext.vote.default(list(plane), list(index), list(value), scale, numel)
    return out


@torch.library.register_fake("gcext::trimmed_mean")  # type: ignore[untyped-decorator]
def _trimmed_mean_fake(index: list[Tensor], value: list[Tensor], drop: int, numel: int) -> Tensor:
    return value[0].new_empty((numel,))


@torch.library.register_fake("gcext::vote")  # type: ignore[untyped-decorator]
def _vote_fake(
    plane: list[Tensor], index: list[Tensor], value: list[Tensor], scale: float, numel: int
) -> Tensor:
    return (*plane, *value)[0].new_empty((numel,), dtype=torch.float32)
