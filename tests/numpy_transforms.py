"""The methods lowrank and dct in plain NumPy, from docs/wire-format.md alone; see numpy_decoder."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy_reader import Reader, Section, exact, require

__all__ = ["cuts", "dct", "dct_values", "lowrank", "lowrank_values"]


def lowrank(reader: Reader, expected: Any, out: dict[str, Any], numel: int) -> None:
    shape = out["shape"]
    rows, cols = (shape[0] if shape else 1), math.prod(shape[1:])
    rank = reader.varint()
    require(rank <= min(rows, cols), "rank")
    for side, size, most in (("left", rows, 2.0), ("right", cols, 2.0**95)):
        require(4 * size * rank <= len(reader.data) - reader.at, "truncated")
        # NumPy bounds the sizes of arrays without elements, too.
        out[side] = reader.f32(size * rank).reshape(size if rank else min(size, 1 << 30), rank)
        out[side + " fits"] = bool((np.abs(out[side]) <= most).all())
    expected()
    require(out.pop("left fits") and out.pop("right fits"), "value")
    out.update(rank=rank, k=numel, seed=None)


def dct(reader: Reader, expected: Any, out: dict[str, Any], numel: int) -> None:
    """The fields of a sparse or ternary body, whose indices are coefficients."""
    block = reader.take(1)[0]
    require(1 <= block <= 64, "edge")
    inner = reader.take(1)[0]
    require(inner in (2, 3), "method")
    k = reader.varint()
    require(k <= numel, "k")
    scale, value, coefficient = np.float32(0), np.zeros(0, np.float32), []
    if inner == 2:
        section = Section(reader, k)
        value = reader.f32(k)
    elif k > 0:
        (scale,) = reader.f32(1)
        require(bool(scale > 0) and scale.view("<u4") <= 0x79800000, "scale")
        section = Section(reader, k)
        signs = exact(reader.plane(k), k)
        value = np.where(signs, -scale, scale).astype(np.float32)
    expected()
    if k > 0:
        coefficient = [n for tile in section.tiles(numel) for n in tile]
    require(bool((value != 0).all() and (np.abs(value) <= 2.0**116).all()), "value")
    out.update(block=block, ternary=inner == 3, coefficient=coefficient, value=value, scale=scale)
    out.update(k=numel, seed=None)


def lowrank_values(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    out = np.zeros((len(left), len(right)), np.float32)
    for r in range(left.shape[1]):
        term = left[:, r : r + 1] * right[:, r]
        out = out + term if r else term
    return out.reshape(-1)


def cuts(n: int, block: int) -> list[tuple[int, int]]:
    """Where each part of a dimension begins, and how long it is."""
    m = -(-n // block)
    lengths = [n // m + (part < n % m) for part in range(m)]
    return [(sum(lengths[:part]), length) for part, length in enumerate(lengths)]


def basis(n: int) -> np.ndarray:
    """B[u, x]. The cosine of float64 is near enough to be rounded right, but where it is 0."""
    u, x = np.arange(n)[:, None], np.arange(n)
    m = (2 * x + 1) * u
    cosine = np.where(m % (2 * n) == n, 0, np.cos(np.pi * m / (2 * n)))
    cosine[0] = np.sqrt(0.5)
    return (np.sqrt(2 / n) * cosine).astype(np.float32)


def in_order(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The product of matrices, float32, summed over the rising inner index."""
    out = np.zeros((a.shape[0], b.shape[1]), np.float32)
    for j in range(a.shape[1]):
        out += a[:, j : j + 1] * b[j]
    return out


def dct_values(read: dict[str, Any]) -> np.ndarray:
    shape = read["shape"]
    rows, cols = int(np.prod(shape[:-1])), shape[-1] if shape else 1
    coefficients = np.zeros(rows * cols, np.float32)
    coefficients[read["coefficient"]] = read["value"]
    out = np.zeros((rows, cols), np.float32)
    for r, h in cuts(rows, read["block"]) if out.size else []:
        for c, w in cuts(cols, read["block"]):
            first = r * cols + h * c
            block = coefficients[first : first + h * w].reshape(h, w)
            out[r : r + h, c : c + w] = in_order(in_order(basis(h).T, block), basis(w))
    return out.reshape(-1)
