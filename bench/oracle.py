"""The answers that every variant and every kernel is compared with: NumPy, Python integers.

gcext must give these bit for bit. PyTorch rounds a mean in its own way, so baselines must give the
same indices exactly, and the values within RELATIVE of them. The tests use this module, too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Index = npt.NDArray[np.int64]

RELATIVE = 1e-5


@dataclass(frozen=True)
class Answer:
    """index rising, value of the same length, what is left of the whole tensor, mean magnitude."""

    index: Index
    value: Floats
    residual: Floats
    mean: np.float32


def stc(tensor: Floats, residual: Floats | None, k: int, ternary: bool = True) -> Answer:
    """Return the selection from tensor + residual; ``ternary``: as plus or minus the exact mean."""
    with np.errstate(over="ignore", under="ignore"):
        acc = tensor.copy() if residual is None else tensor + residual
        index = top_k(acc, k)
        mean = exact_mean(acc[index])
        value = np.copysign(mean, acc[index]) if ternary else acc[index]
        left = acc.copy()
        left[index] = acc[index] - value
    return Answer(index, value, left, mean)


def stc_model(
    tensors: Sequence[Floats], residuals: Sequence[Floats] | None, k: int, ternary: bool = True
) -> list[Answer]:
    """Return the selection from all flat sums together, a mean each; ties as if concatenated."""
    nothing = [np.empty(0, np.float32)]
    held = (
        [t.copy() for t in tensors]
        if residuals is None
        else [t + r for t, r in zip(tensors, residuals, strict=True)]
    )
    index = top_k(np.concatenate(nothing + held), k)
    answers, first = [], 0
    for acc in held:
        mine = index[(index >= first) & (index < first + acc.size)] - first
        first += acc.size
        mean = exact_mean(acc[mine])
        value = np.copysign(mean, acc[mine]) if ternary else acc[mine]
        left = acc.copy()
        left[mine] = acc[mine] - value
        answers.append(Answer(mine, value, left, mean))
    return answers


def top_k(acc: Floats, k: int) -> Index:
    """Return the indices of the k largest magnitudes that are not zero, ties to the lower index."""
    key = _keys(acc)
    k = min(k, int(np.count_nonzero(key)))
    if k == 0:
        return np.empty(0, np.int64)
    kth = np.partition(key, key.size - k)[key.size - k]
    greater = np.flatnonzero(key > kth)
    equal = np.flatnonzero(key == kth)[: k - greater.size]
    return np.sort(np.concatenate([greater, equal]))


def tie_losers(acc: Floats, k: int) -> Index:
    """Return the indices whose magnitude is the k-th largest, but that are not chosen."""
    key = _keys(acc)
    kth = np.partition(key, key.size - k)[key.size - k]
    return np.flatnonzero(key == kth)[k - np.count_nonzero(key > kth) :]


def exact_mean(values: Floats) -> np.float32:
    """Return the mean magnitude, summed as an integer and rounded once (nearest, ties to even)."""
    if values.size == 0:
        return _float32(0)
    key = _keys(values).astype(np.uint64)
    exponent = key >> np.uint64(23)
    mantissa = key & np.uint64(0x7FFFFF) | np.where(exponent > 0, np.uint64(1 << 23), np.uint64(0))
    total = 0  # in units of 2^-149
    for e in np.unique(exponent).tolist():
        total += int(mantissa[exponent == e].sum()) << max(e - 1, 0)
    drop = max((total // values.size).bit_length() - 24, 0)
    divisor = values.size << drop
    kept, rest = divmod(total, divisor)
    kept += 2 * rest > divisor or (2 * rest == divisor and kept & 1)
    return _float32(math.ldexp(kept, drop - 149))


def combine(pairs: Sequence[tuple[Index, Floats]], weights: Sequence[float], numel: int) -> Floats:
    """Return the weighted sum: float64 in the packets' order, rounded once."""
    total = np.zeros(numel)
    for (index, value), weight in zip(pairs, weights, strict=True):
        total[index] += weight * value.astype(np.float64)
    return total.astype(np.float32)


def gram(pairs: Sequence[tuple[Index, Floats]], scales: Sequence[float], numel: int) -> Doubles:
    """Return the dot products of ternary packets: an integer times the product of two scales."""
    out = np.zeros((len(pairs), len(pairs)))
    for i, (index, value) in enumerate(pairs):
        signs = np.zeros(numel)
        signs[index] = np.sign(value)
        for j, (other, its) in enumerate(pairs[: i + 1]):
            agreement = float(signs[other] @ np.sign(its))  # a sum of -1, 0 and 1: exact
            out[i, j] = out[j, i] = scales[i] * scales[j] * agreement
    return out


def rice_decode(streams: tuple[bytes, bytes, bytes], count: int, tile: int) -> Index:
    """Return the indices that the streams of a Rice section hold; docs/wire-format.md."""
    table = np.frombuffer(streams[0], np.dtype([("b", "u1"), ("zeros", "<u2")]))
    b = np.repeat(table["b"].astype(np.int64), tile)[:count]
    place = np.flatnonzero(np.unpackbits(np.frombuffer(streams[2], np.uint8), bitorder="little"))
    quotient = np.diff(place, prepend=-1) - 1
    bits = np.unpackbits(np.frombuffer(streams[1], np.uint8), bitorder="little").astype(np.int64)
    first = np.cumsum(b) - b
    remainder = np.zeros(count, np.int64)
    for bit in range(int(b.max(initial=0))):
        there = b > bit
        remainder[there] |= bits[first[there] + bit] << bit
    return (np.cumsum((quotient << b | remainder) + 1) - 1).astype(np.int64)


def differs(what: str, got: npt.NDArray[Any], expected: npt.NDArray[Any]) -> str:
    """Return "" where both are equal bit for bit, else the first place where they are not."""
    if got.shape != expected.shape or got.dtype != expected.dtype:
        return (
            f"{what}: expected {expected.dtype}{list(expected.shape)}, "
            f"got {got.dtype}{list(got.shape)}"
        )
    bits = f"u{got.dtype.itemsize}"
    wrong = got.view(bits) != expected.view(bits)
    return _first(what, wrong, got, expected)


def departs(
    what: str, got: npt.NDArray[Any], expected: npt.NDArray[Any], scale: npt.NDArray[Any] | float
) -> str:
    """Return "" where both are within RELATIVE of ``scale``, else the first place."""
    if got.shape != expected.shape:
        return f"{what}: expected {list(expected.shape)}, got {list(got.shape)}"
    off = np.abs(got.astype(np.float64) - expected.astype(np.float64))
    return _first(what, ~(off <= RELATIVE * np.abs(scale)), got, expected)


def _first(
    what: str, wrong: npt.NDArray[Any], got: npt.NDArray[Any], expected: npt.NDArray[Any]
) -> str:
    count = int(np.count_nonzero(wrong))
    if not count:
        return ""
    at = int(np.argmax(wrong))
    where = (got.reshape(-1)[at], expected.reshape(-1)[at])
    return f"{what}: {count} of {wrong.size} differ, first at {at}: got {where[0]}, not {where[1]}"


def _keys(values: Floats) -> npt.NDArray[np.uint32]:
    """Return the bit patterns without the sign: they order as magnitudes do."""
    keys: npt.NDArray[np.uint32] = values.view(np.uint32) & np.uint32(0x7FFFFFFF)
    return keys


def _float32(value: float) -> np.float32:
    rounded: np.float32 = np.float32(value)
    return rounded
