"""STC in NumPy and Python integers, written from its definition: the judge of every kernel.

k = max(floor(p*n), 1); the k largest magnitudes, the lower index first; zeros never;
the mean of the chosen magnitudes exactly, rounded once to float32 (nearest, ties to even).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]


class Answer(NamedTuple):
    index: npt.NDArray[np.int64]
    value: F32
    residual: F32
    mean: np.float32


def top_k(acc: F32, k: int) -> npt.NDArray[np.int64]:
    """The k first of a stable sort by falling magnitude, without zeros, in order of index."""
    magnitude = np.abs(acc)
    k = min(k, int(np.count_nonzero(magnitude)))
    if k == 0:
        return np.empty(0, np.int64)
    bound = np.partition(magnitude, len(acc) - k)[len(acc) - k]
    above = np.flatnonzero(magnitude > bound)
    ties = np.flatnonzero(magnitude == bound)[: k - len(above)]
    return np.sort(np.concatenate([above, ties]))


def exact_mean(magnitude: F32) -> np.float32:
    """The exact mean, rounded once."""
    if len(magnitude) == 0:
        return np.float32(0)
    bits = magnitude.view(np.uint32).astype(np.int64)
    exponent = bits >> 23
    mantissa = (bits & 0x7FFFFF) | np.where(exponent > 0, 0x800000, 0)
    sums = np.bincount(exponent, mantissa)  # float64, exact: below 2^53
    total = sum(int(s) << max(e - 1, 0) for e, s in enumerate(sums))  # in units of 2^-149
    return divide(total, len(magnitude))


def divide(total: int, count: int) -> np.float32:
    """total/count units of 2^-149 as float32, to nearest, ties to even, by integers alone."""
    drop = max((total // count).bit_length() - 24, 0)
    kept, rest = divmod(total, count << drop)
    twice = 2 * rest - (count << drop)
    kept += twice > 0 or (twice == 0 and kept & 1)
    return np.float32(np.ldexp(float(kept), drop - 149))


def stc(tensor: F32, residual: F32 | None, k: int, ternary: bool = True) -> Answer:
    """What select must give for float32 input."""
    with np.errstate(over="ignore", under="ignore"):
        acc = tensor.copy() if residual is None else tensor + residual
        index = top_k(acc, k)
        mean = exact_mean(np.abs(acc[index]))
        value = np.copysign(mean, acc[index]) if ternary else acc[index]
        left = acc.copy()
        left[index] = acc[index] - value
    return Answer(index, value.astype(np.float32), left, mean)
