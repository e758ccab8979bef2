"""The projection against conflicts, on nothing but the updates' dot products."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = ["project"]

Array: TypeAlias = npt.NDArray[np.float64]


def project(dots: Array, m: int, alpha: float, spans: Sequence[range]) -> Array:
    """Return the coefficients of the projected mean: Algorithms 2 and 3 on a Gram matrix.

    Args:
        dots: float64 (M, M), all dot products of this round's m updates, sorted by loss, smallest
            first, and of the remembered ones behind them.
        m: how many are this round's.
        alpha: share of the m, the last ones, that keep their update.
        spans: for each remembered round, oldest first, its places in ``dots``.

    Returns:
        float64 (M,): the update is the sum of the M updates times these.

    Only element-wise operations and exactly rounded sums: no library's order of addition, and so no
    machine, decides a branch.
    """
    # Internal. Row k of `change` is c_k in coefficients, row k of `along` its products with every
    # update. The rows do not see each other, so all of them meet update i at once.
    size = len(dots)
    change, along = np.eye(m, size), dots[:m].copy()
    free = np.arange(m) < m - math.floor(alpha * m)
    for i in range(m):
        if dots[i, i] > 0:
            conflict = free & (along[:, i] < 0)
            conflict[i] = False
            step = np.where(conflict, along[:, i] / dots[i, i], 0.0)
            change[:, i] -= step
            along -= step[:, None] * dots[i]
    mean = np.array([math.fsum(column) for column in change.T]) / m
    along_mean = _along(mean, dots)

    # External. h is a sum of updates, so its coefficients are ones.
    for span in spans:
        conflict = np.array([j for j in span if along_mean[j] < 0], dtype=np.int64)
        g_h = math.fsum(along_mean[conflict])
        h_h = math.fsum(dots[np.ix_(conflict, conflict)].flat)
        if g_h < 0 and h_h > 0:
            mean[conflict] -= g_h / h_h
            along_mean = _along(mean, dots)

    # Length. What is left of terms that cancel is rounding, not a direction: it counts as zero.
    square = math.fsum(mean * along_mean)
    noise = np.abs(mean) * _along(np.abs(mean), np.abs(dots))
    if square <= 2.0**-48 * math.fsum(noise):
        return np.zeros(size)
    plain = math.fsum(dots[:m, :m].flat) / m**2
    return np.asarray(mean * math.sqrt(max(plain, 0.0) / square))


def _along(coefficients: Array, dots: Array) -> Array:
    """A combination's products with every update: coefficients @ dots, its sums exactly rounded."""
    terms = coefficients * dots  # dots is symmetric
    return np.array([math.fsum(row) for row in terms])
