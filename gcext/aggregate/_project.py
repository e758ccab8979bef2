"""The projection against conflicts, on nothing but the updates' dot products."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from gcext._native import ops

__all__ = ["Order", "project"]

Array: TypeAlias = npt.NDArray[np.float64]
Order: TypeAlias = Literal["paper", "fedfv"]


def project(
    dots: Array, m: int, alpha: float, spans: Sequence[range], order: Order = "paper"
) -> Array:
    """Return the coefficients of the projected mean: Algorithms 2 and 3 on a Gram matrix.

    What FedFV's authors run (``order="fedfv"``) differs from what they print in two places:

    * ``floor(alpha*m + 1 - alpha)`` updates are kept where alpha > 0, not ``floor(alpha*m)``: often
      one more.
    * Rounds t - tau + 1 to t are projected against, not t - tau to t - 1: this round's own updates
      come last, as they were sent. Before round tau there are none, not even this round's.

    The rest is the same: updates are taken by loss, equal losses in the order they came, and as
    they were sent; conflicts are strict; of a past round those updates are summed that conflict
    themselves, and then their sum must conflict, too.

    Args:
        dots: float64 (M, M), all dot products of this round's m updates, sorted by loss, smallest
            first, and of the remembered ones behind them.
        m: how many are this round's.
        alpha: share of the m, the last ones, that keep their update.
        spans: for each remembered round, oldest first, its places in ``dots``. For "fedfv" this
            round is one of them, ``range(m)``, the last.

    Returns:
        float64 (M,): the update is the sum of the M updates times these.
    """
    coefficients = ops.project(
        torch.from_numpy(np.ascontiguousarray(dots)),
        m,
        kept(m, alpha, order),
        [span.start for span in spans],
        [span.stop for span in spans],
    )
    return np.asarray(coefficients.numpy())


def kept(m: int, alpha: float, order: Order = "paper") -> int:
    """Return how many of m updates, those of largest loss, are not projected."""
    if order == "fedfv":
        return m - math.ceil((m - 1) * (1 - alpha)) if alpha > 0 else 0
    return math.floor(alpha * m)
