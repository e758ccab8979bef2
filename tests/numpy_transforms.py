"""The methods lowrank and dct in plain NumPy, from docs/wire-format.md alone; see numpy_decoder."""

from __future__ import annotations

import math
from collections.abc import Iterator
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


class BlockCode:
    """Which coefficients of each block travel: the number of their set."""

    def __init__(self, reader: Reader, k: int, view: tuple[int, int], edge: int) -> None:
        self.k = k
        if k == 0:
            return
        self.most = reader.take(1)[0]
        (rows, tall), (cols, wide) = (parts(n, edge) for n in view)
        require(1 <= self.most <= 8 and self.sets(tall * wide) <= 1 << 62, "count")
        whole = sum(rows[h] * cols[w] * self.width(h * w) for h in rows for w in cols)
        require(-(-whole // 8) <= len(reader.data) - reader.at, "truncated")
        self.words = exact(reader.plane(whole), whole)
        self.sizes = [(h, w) for _, h in cuts(view[0], edge) for _, w in cuts(view[1], edge)]

    def sets(self, size: int) -> int:
        return sum(math.comb(size, j) for j in range(self.most + 1))

    def width(self, size: int) -> int:
        return (self.sets(size) - 1).bit_length()

    def tiles(self, limit: int) -> Iterator[list[int]]:
        """The coefficients of each block; limit as Section has it, the shape's own."""
        at = first = most = 0
        left = self.k
        for h, w in self.sizes:
            size = h * w
            word = self.words[at : at + self.width(size)]
            number = sum(int(bit) << i for i, bit in enumerate(word))
            require(number < self.sets(size), "index")
            count = 0
            while number >= math.comb(size, count):
                number -= math.comb(size, count)
                count += 1
            require(count <= left, "k")
            places = []
            for j in range(count, 0, -1):
                place = max(p for p in range(j - 1, size) if math.comb(p, j) <= number)
                number -= math.comb(place, j)
                places.append(first + place)
            yield places[::-1]
            most, left = max(most, count), left - count
            at, first = at + len(word), first + size
        require(left == 0, "k")
        require(most == self.most, "count")


def dct(reader: Reader, expected: Any, out: dict[str, Any], numel: int) -> None:
    """The fields of a sparse or ternary body, whose indices are coefficients."""
    block = reader.take(1)[0]
    require(1 <= block <= 64, "edge")
    inner = reader.take(1)[0]
    require(inner in (2, 3, 18, 19), "method")
    k = reader.varint()
    require(k <= numel, "k")
    shape = out["shape"]
    view = math.prod(shape[:-1]), shape[-1] if shape else 1

    def take_index() -> Section | BlockCode:
        return BlockCode(reader, k, view, block) if inner > 16 else Section(reader, k)

    section: Section | BlockCode
    scale, value, coefficient = np.float32(0), np.zeros(0, np.float32), []
    if inner in (2, 18):
        section = take_index()
        value = reader.f32(k)
    elif k > 0:
        (scale,) = reader.f32(1)
        require(bool(scale > 0) and scale.view("<u4") <= 0x79800000, "scale")
        section = take_index()
        signs = exact(reader.plane(k), k)
        value = np.where(signs, -scale, scale).astype(np.float32)
    expected()
    if k > 0:
        coefficient = [n for tile in section.tiles(numel) for n in tile]
    require(bool((value != 0).all() and (np.abs(value) <= 2.0**116).all()), "value")
    out.update(block=block, ternary=inner % 16 == 3, by_block=inner > 16, scale=scale)
    out.update(coefficient=coefficient, value=value, k=numel, seed=None)


def lowrank_values(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    out = np.zeros((len(left), len(right)), np.float32)
    for r in range(left.shape[1]):
        term = left[:, r : r + 1] * right[:, r]
        out = out + term if r else term
    return out.reshape(-1)


def parts(n: int, block: int) -> tuple[dict[int, int], int]:
    """How many parts of each length a dimension has, and the longest; as cuts, of any n."""
    m = max(-(-n // block), 1)
    lengths = {n // m: m - n % m}
    if n % m:
        lengths[n // m + 1] = n % m
    return lengths, max(lengths)


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
