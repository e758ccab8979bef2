"""What the packet format's second decoder reads a message with, numpy_decoder.py."""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction

import numpy as np

TILE = 1024


class Refused(ValueError):  # noqa: N818 - an expected outcome, not a fault
    """The message breaks a rule; code is the one that the format's page gives it."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


def require(condition: bool, code: str) -> None:
    if not condition:
        raise Refused(code)


class Reader:
    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, count: int) -> bytes:
        require(count <= len(self.data) - self.at, "truncated")
        self.at += count
        return self.data[self.at - count : self.at]

    def varint(self) -> int:
        value = 0
        for place in range(9):
            byte = self.take(1)[0]
            value |= (byte & 127) << (7 * place)
            if byte < 128:
                require(place == 0 or byte != 0, "varint")
                return value
        raise Refused("varint")

    def f32(self, count: int) -> np.ndarray:
        return np.frombuffer(self.take(4 * count), "<f4")

    def plane(self, bits: int) -> np.ndarray:
        return np.unpackbits(np.frombuffer(self.take(-(-bits // 8)), np.uint8), bitorder="little")


def exact(bits: np.ndarray, count: int) -> np.ndarray:
    """The first count bits; those after them are padding."""
    require(not bits[count:].any(), "padding")
    return bits[:count]


class Section:
    def __init__(self, reader: Reader, k: int) -> None:
        self.k = k
        tiles = -(-k // TILE)
        table = reader.take(3 * tiles)
        self.b, self.zeros = (
            list(table[::3]),
            [int.from_bytes(table[i + 1 : i + 3], "little") for i in range(0, 3 * tiles, 3)],
        )
        self.n = [min(TILE, k - TILE * t) for t in range(tiles)]
        for n, b, zeros in zip(self.n, self.b, self.zeros, strict=True):
            require(b <= 62 and zeros <= 2 * n, "tile")
        remainder_bits = sum(n * b for n, b in zip(self.n, self.b, strict=True))
        remainders, unary = reader.plane(remainder_bits), reader.plane(k + sum(self.zeros))
        self.remainders = exact(remainders, remainder_bits)
        self.unary = exact(unary, k + sum(self.zeros))

    def tiles(self, limit: int) -> Iterator[list[int]]:
        previous, r_at, u_at = -1, 0, 0
        for n, b, zeros in zip(self.n, self.b, self.zeros, strict=True):
            unary = self.unary[u_at : u_at + n + zeros]
            ones = np.flatnonzero(unary)
            require(len(ones) == n and bool(unary[-1]), "unary")
            q = np.diff(ones, prepend=-1) - 1
            bits = self.remainders[r_at : r_at + n * b].reshape(n, b)
            weights = [1 << i for i in range(b)]
            r = (bits @ np.array(weights, np.int64)) if b else np.zeros(n, np.int64)
            require(int(((q + 1) // 2).sum()) <= n, "tile")
            require(b == 0 or zeros + int(bits[:, -1].sum()) > n, "tile")
            numbers = []
            for high, low in zip(q.tolist(), r.tolist(), strict=True):
                previous += (high << b) + low + 1
                numbers.append(previous)
            require(numbers[-1] < limit, "index")
            yield numbers
            r_at, u_at = r_at + n * b, u_at + n + zeros


def round_to_f32(x: Fraction) -> float:
    """To the nearest float32, ties to even; infinity where it overflows."""
    if x == 0:
        return 0.0
    exponent = max(math.floor(math.log2(abs(x.numerator)) - math.log2(x.denominator)) - 25, -149)
    while True:
        unit = Fraction(2) ** exponent
        mantissa = round(x / unit)
        if abs(mantissa) <= 1 << 24:
            break
        exponent += 1
    result = Fraction(mantissa) * unit
    limit = Fraction(2) ** 128
    return math.copysign(math.inf, result) if abs(result) >= limit else float(result)


def finite(values: np.ndarray) -> bool:
    return bool(np.isfinite(values).all())


MAX_F32 = 0x7F7FFFFF  # as bits


def scales(reader: Reader, count: int, largest: int = MAX_F32) -> np.ndarray:
    require(4 * count <= len(reader.data) - reader.at, "truncated")
    values = reader.f32(count)
    require(bool((values.view("<u4") <= largest).all()), "scale")
    return values


def bits(reader: Reader, count: int) -> np.ndarray:
    return exact(reader.plane(count), count)
