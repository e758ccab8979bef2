"""The prefix code and the methods 11 and 16 of the format's second decoder, numpy_decoder.py."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy_reader import Reader, Section, bits, require, scales

TILE, LONGEST, POWERS, MAGNITUDES = 4096, 12, 279, 30


def word_lengths(count: dict[int, int]) -> dict[int, int]:
    """The lengths of the code's words, by package-merge, for symbols and how often they occur."""
    if len(count) == 1:
        return dict.fromkeys(count, 0)
    coins = sorted((often, (symbol,)) for symbol, often in count.items())
    items: list[tuple[int, tuple[int, ...]]] = []
    for _ in range(LONGEST):
        packages = [
            (a[0] + b[0], a[1] + b[1]) for a, b in zip(items[::2], items[1::2], strict=False)
        ]
        items = sorted(coins + packages, key=lambda item: item[0])  # stable: coins first
    taken = items[: 2 * len(coins) - 2]
    return Counter(itertools.chain.from_iterable(symbols for _, symbols in taken))


def words_of(length: dict[int, int]) -> dict[str, int]:
    """The symbols by their words, as text."""
    words, code, before = {}, 0, 0
    for symbol, size in sorted(length.items(), key=lambda item: (item[1], item[0])):
        code <<= size - before
        words[f"{code:0{size}b}" if size else ""] = symbol
        code, before = code + 1, size
    return words


class Prefix:
    """A prefix code and its stream."""

    def __init__(
        self, reader: Reader, count: int, alphabet: int, most: int, may_be_none: bool
    ) -> None:
        self.count, self.alphabet, self.m = count, alphabet, reader.varint()
        require(self.m <= min(count, alphabet) and (self.m > 0 or may_be_none), "code")
        if self.m == 0:
            return
        self.section = Section(reader, self.m)
        self.lengths = bits(reader, 4 * self.m).reshape(-1, 4) @ (1 << np.arange(4))
        tiles = -(-count // TILE)
        require(3 * tiles <= len(reader.data) - reader.at, "truncated")
        table = reader.take(3 * tiles)
        self.sizes = [int.from_bytes(table[i : i + 3], "little") for i in range(0, 3 * tiles, 3)]
        for t, size in enumerate(self.sizes):
            n = min(TILE, count - TILE * t)
            require(n <= size <= n * most, "tile")
        stream = bits(reader, sum(self.sizes))
        self.bits = "".join(map(str, stream.tolist())) + 200 * "0"

    def open(self) -> None:
        """Read the code."""
        used = [n for tile in self.section.tiles(self.alphabet) for n in tile]
        self.length = dict(zip(used, self.lengths.tolist(), strict=True))
        for size in self.length.values():
            require(size == 0 if self.m == 1 else 1 <= size <= LONGEST, "code")
        require(sum(2.0**-size for size in self.length.values()) == 1, "code")
        self.words = words_of(self.length)
        self.seen: Counter[int] = Counter()

    def tiles(self) -> Iterator[tuple[int, int]]:
        self.at = 0
        for t, size in enumerate(self.sizes):
            end = self.at + size
            yield min(TILE, self.count - TILE * t), end
            require(self.at == end, "tile")

    def symbol(self) -> int:
        for size in range(LONGEST + 1):
            word = self.bits[self.at : self.at + size]
            if word in self.words:
                self.at += size
                self.seen[self.words[word]] += 1
                return self.words[word]
        raise AssertionError("the code is complete")

    def number(self, size: int) -> int:
        self.at += size
        return int("0" + self.bits[self.at - size : self.at][::-1], 2)

    def close(self) -> None:
        require(set(self.seen) == set(self.length), "code")
        require(word_lengths(self.seen) == self.length, "code")


def take_powers(reader: Reader, out: dict[str, Any], k: int) -> Prefix:
    (scale,) = reader.f32(1)
    require(bool(np.isfinite(scale) and scale > 0), "scale")
    out.update(scale=scale, power=[])
    return Prefix(reader, k, POWERS, LONGEST + 1, True)


def read_powers(prefix: Prefix, out: dict[str, Any]) -> None:
    if prefix.m == 0:
        return
    prefix.open()
    require(max(prefix.length) > 0, "code")
    for n, end in prefix.tiles():
        for _ in range(n):
            require(prefix.at < end, "tile")
            symbol = prefix.symbol()
            negative = symbol > 0 and prefix.number(1)
            out["power"].append(-symbol if negative else symbol)
    prefix.close()
    with np.errstate(over="ignore"):
        top = np.float32(np.ldexp(np.float64(out["scale"]), max(prefix.length) - 150))
    require(bool(np.isfinite(top)), "value")


def take_norms(reader: Reader, out: dict[str, Any], k: int) -> int:
    """What both methods of levels begin with; returns how many levels are not 0."""
    steps = reader.varint()
    require(1 <= steps <= 32767, "steps")
    bucket = reader.varint()
    require(bucket == 0 or bucket < k, "bucket")
    norms = scales(reader, -(-k // bucket) if bucket else min(k, 1))
    count = reader.varint()
    require(count <= k, "k")
    out.update(steps=steps, bucket=bucket, norms=norms, level=[], at=[])
    return count


def take_levels2(reader: Reader, out: dict[str, Any], k: int) -> Prefix | None:
    count = take_norms(reader, out, k)
    most = LONGEST + 61 + 13 + 1
    return Prefix(reader, count, 126 * MAGNITUDES, most, False) if count else None


def class_of(number: int) -> tuple[int, int]:
    """The least number of a class, and how many low bits there are."""
    return (number, 0) if number < 2 else ((2 + number % 2) << number // 2 - 1, number // 2 - 1)


def read_levels2(prefix: Prefix | None, out: dict[str, Any], k: int) -> None:
    if prefix is None:
        return
    prefix.open()
    place = -1
    for n, end in prefix.tiles():
        tile = []
        for _ in range(n):
            require(prefix.at < end, "tile")
            numbers = [class_of(c) for c in divmod(prefix.symbol(), MAGNITUDES)]
            gap, less_one = (least + prefix.number(low) for least, low in numbers)
            tile.append((gap, less_one + 1, prefix.number(1)))
        require(prefix.at == end, "tile")
        for gap, magnitude, negative in tile:
            place += gap + 1
            require(place < k, "index")
            require(magnitude <= out["steps"], "level")
            norm = out["norms"][place // out["bucket"] if out["bucket"] else 0]
            require(bool(norm > 0), "level")
            out["at"].append(place)
            out["level"].append(-magnitude if negative else magnitude)
    prefix.close()
