"""The exact answers of chunked selection, SparseLoCo and AdaComp: the papers' formulas in NumPy."""

from __future__ import annotations

import math

import numpy as np

from bench.oracle import Answer, Floats, Index, exact_mean, top_k


def count_of(p: float, n: int) -> int:
    return max(math.floor(p * n), 1) if n else 0


def select(
    tensor: Floats, residual: Floats | None, p: float, chunk: int, ternary: bool = True
) -> Answer:
    """Return the exact top-k of every chunk of tensor + residual."""
    with np.errstate(over="ignore", under="ignore"):
        acc = tensor.copy() if residual is None else tensor + residual
        index = chosen(acc, p, chunk)
        mean = exact_mean(acc[index])
        value = np.copysign(mean, acc[index]) if ternary else acc[index]
        left = acc.copy()
        left[index] = acc[index] - value
    return Answer(index, value, left, mean)


def chosen(acc: Floats, p: float, chunk: int) -> Index:
    found = [np.empty(0, np.int64)]
    for begin in range(0, acc.size, chunk):
        one = acc[begin : begin + chunk]
        found.append(begin + top_k(one, count_of(p, one.size)))
    return np.concatenate(found)
