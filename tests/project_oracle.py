"""The projection, twice: on dot products with exactly rounded sums, and on vectors as printed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[np.float64]


def project(dots: Array, m: int, kept: int, spans: Sequence[range]) -> Array:
    """The coefficients of the projected mean, csrc/project.h."""
    # Internal. Row k of `change` is c_k in coefficients, row k of `along` its products with every
    # update. The rows are independent, so update i is projected out of all at once.
    size = len(dots)
    change, along = np.eye(m, size), dots[:m].copy()
    free = np.arange(m) < m - kept
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
    most = math.fsum(np.abs(mean) * np.sqrt(np.diag(dots)))
    if square <= 2.0**-48 * most**2:
        return np.zeros(size)
    plain = math.fsum(dots[:m, :m].flat) / m**2
    return np.asarray(mean * math.sqrt(max(plain, 0.0) / square))


class Loops:
    """FedFV's loops on dense float64 vectors, line by line, as printed or as its authors run it.

    Wang et al. 2021, Algorithms 2 and 3; Tian 2022 has the same.
    """

    def __init__(self, alpha: float, tau: int, order: str = "paper") -> None:
        self.alpha, self.tau, self.order, self.t = alpha, tau, order, 0
        self.history: dict[int, tuple[int, Array]] = {}  # client -> (round, update)
        self.internal = self.external = 0  # conflicts found

    def aggregate(self, updates: Mapping[int, Array], losses: Mapping[int, float]) -> Array:
        self.t += 1
        for client, g in updates.items():
            self.history[client] = (self.t, g)
        order = sorted(updates, key=lambda c: (losses[c], c))
        m = len(order)
        if self.order == "paper":
            keep = order[m - math.floor(self.alpha * m) :]
            rounds = range(self.t - self.tau, self.t)
        else:
            keep = order[math.ceil((m - 1) * (1 - self.alpha)) :] if self.alpha > 0 else []
            rounds = range(self.t - self.tau + 1, self.t + 1) if self.t >= self.tau else range(0)
        changed = []
        for k in order:
            c = updates[k].copy()
            for i in order:
                g = updates[i]
                if k not in keep and i != k and c @ g < 0:
                    c -= (c @ g) / (g @ g) * g
                    self.internal += 1
            changed.append(c)
        mean = sum(changed, np.zeros_like(changed[0])) / m
        for r in rounds:
            held = [g for client, (t, g) in sorted(self.history.items()) if t == r]
            h = sum((g for g in held if mean @ g < 0), np.zeros_like(mean))
            if mean @ h < 0:
                mean = mean - (mean @ h) / (h @ h) * h
                self.external += 1
        length = np.linalg.norm(mean)
        plain = np.linalg.norm(sum(updates.values(), np.zeros_like(mean)) / m)
        return np.asarray(mean * (plain / length)) if length > 0 else np.zeros_like(mean)


def _along(coefficients: Array, dots: Array) -> Array:
    """A combination's products with every update: coefficients @ dots, its sums exactly rounded."""
    terms = coefficients * dots  # dots is symmetric
    return np.array([math.fsum(row) for row in terms])
