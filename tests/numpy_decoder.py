"""A second decoder of the packet format, written from docs/wire-format.md alone, in plain NumPy.

It shares no code with gcext: the tests hold the two against each other, byte for byte of what they
accept and code for code of what they refuse. It is slow, and it trusts no size either.
"""

from __future__ import annotations

import itertools
import math
import struct
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import numpy as np
import xxhash

TILE = 1024
METHODS = (*range(1, 10), 13, 15)


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


def shape_of(reader: Reader) -> tuple[int, tuple[int, ...], int]:
    kind = reader.take(1)[0]
    require(kind >> 4 < 4, "dtype")
    shape = tuple(reader.varint() for _ in range(kind & 15))
    require(math.prod(d for d in shape if d) < 1 << 63, "shape")
    return kind >> 4, shape, math.prod(shape)


def finite(values: np.ndarray) -> bool:
    return bool(np.isfinite(values).all())


def body(reader: Reader, method: int, expect: Any) -> dict[str, Any]:
    dtype, shape, numel = shape_of(reader)
    out: dict[str, Any] = {"method": method, "dtype": dtype, "shape": shape}

    def expected() -> None:
        require(expect is None or expect == shape, "expect")

    if method in (13, 15):
        (lowrank if method == 13 else dct)(reader, expected, out, numel)
        return out
    if method > 5:
        coded(reader, method, expected, out, numel)
        return out
    if method == 1:
        require(4 * numel <= len(reader.data) - reader.at, "truncated")
        out["value"] = reader.f32(numel)
        expected()
        require(finite(out["value"]), "value")
        return out
    if method == 4:
        parts = reader.varint()
        require(2 <= parts <= 4096, "parts")
        part_scales = scales(reader, parts)
    k = reader.varint()
    require(k <= numel, "k")
    out.update(index=[], value=np.zeros(0, np.float32), scale=0.0)
    if method == 2:
        section = Section(reader, k)
        out["value"] = reader.f32(k)
        expected()
        out["index"] = [n for tile in section.tiles(numel) for n in tile]
        require(finite(out["value"]) and bool((out["value"] != 0).all()), "value")
    elif method == 3 and k > 0:
        (scale,) = reader.f32(1)
        require(bool(np.isfinite(scale) and scale > 0), "scale")
        section = Section(reader, k)
        signs = exact(reader.plane(k), k)
        expected()
        out["index"] = [n for tile in section.tiles(numel) for n in tile]
        out["scale"] = float(scale)
        out["value"] = np.where(signs, -scale, scale).astype(np.float32)
    elif method == 4:
        merged(reader, out, numel, k, part_scales, expected)
    else:
        expected()
    return out


def lowrank(reader: Reader, expected: Any, out: dict[str, Any], numel: int) -> None:
    shape = out["shape"]
    rows, cols = (shape[0] if shape else 1), math.prod(shape[1:])
    rank = reader.varint()
    require(rank <= min(rows, cols), "rank")
    for side, size, most in (("left", rows, 2.0), ("right", cols, 2.0**95)):
        require(4 * size * rank <= len(reader.data) - reader.at, "truncated")
        out[side] = reader.f32(size * rank).reshape(size, rank)
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


MAX_F32 = 0x7F7FFFFF  # as bits


def scales(reader: Reader, count: int, largest: int = MAX_F32) -> np.ndarray:
    require(4 * count <= len(reader.data) - reader.at, "truncated")
    values = reader.f32(count)
    require(bool((values.view("<u4") <= largest).all()), "scale")
    return values


def coded(reader: Reader, method: int, expected: Any, out: dict[str, Any], numel: int) -> None:
    """The methods 6 to 9: a support and what its elements became."""
    kind, k = reader.take(1)[0], numel
    require(kind in {6: (2,), 7: (0, 2), 8: (0, 1, 2), 9: (0, 1, 2)}[method], "support")
    if kind > 0:
        k = reader.varint()
        require(k <= numel, "k")
    section = Section(reader, k) if kind == 1 else None
    out["k"], out["seed"] = k, int.from_bytes(reader.take(8), "little") if kind == 2 else None
    places = levels = Section(reader, 0)
    if method == 6:
        require(4 * k <= len(reader.data) - reader.at, "truncated")
        out["value"] = reader.f32(k)
    elif method == 7:
        out["scale"] = scales(reader, 1)[0]
        out["signs"] = bits(reader, k)
    elif method == 8:
        steps, bucket = reader.varint(), None
        require(1 <= steps <= 32767, "steps")
        bucket = reader.varint()
        require(bucket == 0 or bucket < k, "bucket")
        norms = scales(reader, -(-k // bucket) if bucket else min(k, 1))
        count = reader.varint()
        require(count <= k, "k")
        places = Section(reader, min(count, k - count))
        signs = bits(reader, count)
        if steps > 1:
            levels = Section(reader, count)
        out.update(steps=steps, bucket=bucket, norms=norms, level=[])
    else:
        polar(reader, out, k)
    expected()
    if section is not None:
        out["index"] = [n for tile in section.tiles(numel) for n in tile]
    if method == 6:
        require(finite(out["value"]), "value")
    elif method == 7:
        require(out["scale"] > 0 or not out["signs"].any(), "scale")
    elif method == 8:
        at = [n for tile in places.tiles(k) for n in tile]
        if count > k - count:
            at = np.setdiff1d(np.arange(k), at).tolist()
        numbers = itertools.chain.from_iterable(levels.tiles(count * steps))
        previous = -1
        for place, sign in zip(at, signs, strict=True):
            number = next(numbers) if steps > 1 else previous + 1
            require(number - previous <= steps, "level")
            require(norms[place // bucket if bucket else 0] > 0, "level")
            out["level"].append((previous - number) if sign else number - previous)
            previous = number
        out["at"] = at


def bits(reader: Reader, count: int) -> np.ndarray:
    return exact(reader.plane(count), count)


def polar(reader: Reader, out: dict[str, Any], k: int) -> None:
    table, flags = reader.take(1)[0], None
    require(table == 1, "polar")
    flags = reader.take(1)[0]
    require(flags < 4, "polar")
    log_block = reader.take(1)[0]
    require(5 <= log_block <= 20, "polar")
    block, kept = 1 << log_block, reader.varint()
    require(kept <= block, "polar")
    rotation, sizes = None, [k]
    if flags & 2:
        rotation = int.from_bytes(reader.take(8), "little")
        largest = max(block, 2**16)
        whole, rest = divmod(k, largest)
        require(4 * whole <= len(reader.data) - reader.at, "truncated")
        sizes = [largest] * whole
        if rest:
            sizes.append(max(64, block, 1 << (rest - 1).bit_length()))
    scale = scales(reader, len(sizes), 0x79800000 if flags & 2 else MAX_F32)
    message = bits(reader, kept * -(-sum(sizes) // block))
    out.update(block=block, kept=kept, soft=flags & 1 == 1, rotation=rotation)
    out.update(scale=scale, sizes=sizes, message=message)


def merged(
    reader: Reader, out: dict[str, Any], numel: int, k: int, scales: np.ndarray, expected: Any
) -> None:
    parts, place, signs = len(scales), Section(Reader(b""), 0), np.zeros(0)
    if k > 0:
        count = reader.varint()
        require(k <= count <= k * parts, "member")
        section = Section(reader, k)
        place = Section(reader, count)
        signs = exact(reader.plane(count), count)
    expected()
    if k > 0:
        out["index"] = [n for tile in section.tiles(numel) for n in tile]
    exact_scales = [Fraction(float(s)) for s in scales]
    total, values, element, at = Fraction(0), [], 0, 0
    out["members"] = []
    for tile in place.tiles(k * parts):
        for number in tile:
            row, part = divmod(number, parts)
            if row > element:
                values.append(round_to_f32(total))
                require(math.isfinite(values[-1]), "value")
                total, element = Fraction(0), element + 1
            require(row == element and (at > 0 or row == 0), "member")
            total += -exact_scales[part] if signs[at] else exact_scales[part]
            out["members"].append((row, part, int(signs[at])))
            at += 1
    if k > 0:
        values.append(round_to_f32(total))
        require(math.isfinite(values[-1]), "value")
    require(len(values) == k, "member")
    used = {part for _, part, _ in out["members"]}
    require(all((s > 0) == (j in used) for j, s in enumerate(scales)), "scale")
    out["value"], out["scales"] = np.array(values, np.float32), scales


def decode(message: bytes, expect: Any = None) -> dict[str, Any]:
    """Return the contents of the message. expect is a shape, or a list of shapes for a group."""
    require(len(message) >= 13, "truncated")
    require(message[:4] == b"\x89GCX", "magic")
    require(message[4] == 1, "version")
    require(
        struct.unpack("<Q", message[-8:])[0] == xxhash.xxh3_64_intdigest(message[:-8]), "checksum"
    )
    reader = Reader(message[5:-8])
    method = reader.take(1)[0]
    require(method in METHODS, "method")
    if method == 5:
        count = reader.varint()
        require(count > 0, "count")
        require(expect is None or (isinstance(expect, list) and len(expect) == count), "expect")
        members = []
        for i in range(count):
            member = reader.take(1)[0]
            require(member in METHODS and member != 5, "method")
            members.append(body(reader, member, None if expect is None else expect[i]))
        out: dict[str, Any] = {"method": 5, "members": members}
    else:
        out = body(reader, method, expect)
    require(reader.at == len(reader.data), "length")
    return out
