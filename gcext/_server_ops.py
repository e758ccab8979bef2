"""The server's operators, typed, and what torch.compile must know of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gcext import _lib  # noqa: F401  (loads the operators)

__all__ = ["combine", "combine_add_", "gram", "project"]


def combine(
    index: Sequence[Tensor], value: Sequence[Tensor], weights: Sequence[float], numel: int
) -> Tensor:
    """Return the weighted sum of packets, float32 of shape (numel,); csrc/combine.h.

    index: int32 or int64, rising strictly; empty beside numel values where a packet is dense.
    """
    out: Tensor = torch.ops.gcext.combine.default(list(index), list(value), list(weights), numel)
    return out


def combine_add_(dense: Tensor, index: Tensor, value: Tensor, alpha: float) -> None:
    """Add alpha times a packet to float32 ``dense`` in place; csrc/combine.h."""
    torch.ops.gcext.combine_add_.default(dense, index, value, alpha)


def gram(
    index: Sequence[Tensor], value: Sequence[Tensor], scale: Sequence[float], numel: int
) -> Tensor:
    """Return all dot products, float64 of shape (m, m); csrc/gram.h. scale > 0 says ternary."""
    out: Tensor = torch.ops.gcext.gram.default(list(index), list(value), list(scale), numel)
    return out


def project(dots: Tensor, m: int, kept: int, first: Sequence[int], last: Sequence[int]) -> Tensor:
    """Return the projection's coefficients, float64 of shape (M,); csrc/project.h.

    dots: float64 (M, M) on the CPU; the spans of remembered updates are [first, last).
    """
    out: Tensor = torch.ops.gcext.project.default(dots, m, kept, list(first), list(last))
    return out


@torch.library.register_fake("gcext::combine")  # type: ignore[untyped-decorator]
def _combine_fake(
    index: list[Tensor], value: list[Tensor], weights: list[float], numel: int
) -> Tensor:
    return value[0].new_empty((numel,))


@torch.library.register_fake("gcext::combine_add_")  # type: ignore[untyped-decorator]
def _combine_add_fake(dense: Tensor, index: Tensor, value: Tensor, alpha: float) -> None:
    return None


@torch.library.register_fake("gcext::gram")  # type: ignore[untyped-decorator]
def _gram_fake(index: list[Tensor], value: list[Tensor], scale: list[float], numel: int) -> Tensor:
    return value[0].new_empty((len(value), len(value)), dtype=torch.float64)


@torch.library.register_fake("gcext::project")  # type: ignore[untyped-decorator]
def _project_fake(dots: Tensor, m: int, kept: int, first: list[int], last: list[int]) -> Tensor:
    return dots.new_empty((dots.shape[0],))
