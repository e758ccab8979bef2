"""A second decoder of the packet format, written from docs/wire-format.md alone, in plain NumPy.

It shares no code with gcext: the tests hold the two against each other, byte for byte of what they
accept and code for code of what they refuse. It is slow, and it trusts no size either.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import struct
from fractions import Fraction
from typing import Any

import numpy as np
import xxhash
from numpy_prefix import read_levels2, read_powers, take_levels2, take_norms, take_powers
from numpy_reader import (
    MAX_F32,
    Reader,
    Refused,
    Section,
    bits,
    exact,
    finite,
    require,
    round_to_f32,
    scales,
)
from numpy_transforms import dct, lowrank

__all__ = ["Refused", "decode"]

METHODS = frozenset(range(1, 17))


def shape_of(reader: Reader) -> tuple[int, tuple[int, ...], int]:
    kind = reader.take(1)[0]
    require(kind >> 4 < 4, "dtype")
    shape = tuple(reader.varint() for _ in range(kind & 15))
    require(math.prod(d for d in shape if d) < 1 << 63, "shape")
    return kind >> 4, shape, math.prod(shape)


def body(reader: Reader, method: int, expect: Any) -> dict[str, Any]:
    dtype, shape, numel = shape_of(reader)
    out: dict[str, Any] = {"method": method, "dtype": dtype, "shape": shape}

    def expected() -> None:
        if expect is StructureEnds:
            raise StructureEnds
        require(expect is None or expect == shape, "expect")

    if method == 12:
        summed(reader, out, numel, expected)
        return out
    if method == 14:
        sketch(reader, expected, out, numel)
        return out
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


def coded(reader: Reader, method: int, expected: Any, out: dict[str, Any], numel: int) -> None:
    """The methods from 6 on: a support and what its elements became."""
    kind, k = reader.take(1)[0], numel
    require(kind in {6: (2,), 7: (0, 2)}.get(method, (0, 1, 2)), "support")
    if kind > 0:
        k = reader.varint()
        require(k <= numel, "k")
    section = Section(reader, k) if kind == 1 else None
    out["k"], out["seed"] = k, int.from_bytes(reader.take(8), "little") if kind == 2 else None
    places = levels = Section(reader, 0)
    prefix: Any = None
    if method == 6:
        require(4 * k <= len(reader.data) - reader.at, "truncated")
        out["value"] = reader.f32(k)
    elif method == 7:
        out["scale"] = scales(reader, 1)[0]
        out["signs"] = bits(reader, k)
    elif method == 8:
        count = take_norms(reader, out, k)
        steps, bucket, norms = out["steps"], out["bucket"], out["norms"]
        places = Section(reader, min(count, k - count))
        signs = bits(reader, count)
        if steps > 1:
            levels = Section(reader, count)
    elif method == 9:
        polar(reader, out, k)
    elif method == 10:
        codes(reader, out, k)
    elif method == 11:
        prefix = take_powers(reader, out, k)
    else:
        prefix = take_levels2(reader, out, k)
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
    elif method == 10:
        code_rules(out)
    elif method == 11:
        read_powers(prefix, out)
    elif method == 16:
        read_levels2(prefix, out, k)


class StructureEnds(Exception):  # noqa: N818 - not a fault
    pass


def summed(reader: Reader, out: dict[str, Any], numel: int, expected: Any) -> None:
    """The method 12: the structure of all terms first, then their contents."""
    count = reader.varint()
    require(2 <= count <= 64, "count")
    starts = []
    for _ in range(count):
        starts.append(reader.at)
        method = reader.take(1)[0]
        require(method in TERMS, "method")
        dtype, shape, _ = shape_of(Reader(reader.data[reader.at :]))
        with contextlib.suppress(StructureEnds):
            body(reader, method, StructureEnds)
        require(dtype == out["dtype"], "dtype")
        require(shape == out["shape"], "shape")
    expected()
    out["terms"] = []
    end = reader.at
    total = np.float32(0)
    for start in starts:
        reader.at = start + 1
        term = body(reader, reader.data[start], None)
        out["terms"].append(term)
        with np.errstate(over="ignore"):
            total = np.float32(total + bound(term))
    reader.at = end
    require(bool(np.isfinite(total)), "value")


TERMS = (1, 2, 3, 6, 7, 8, 9, 10, 11, 16)


def bound(term: dict[str, Any]) -> np.float32:
    """A number that no value of the term is beyond."""
    if term["method"] == 11:
        top = max(map(abs, term["power"]), default=0)
        return np.float32(np.ldexp(np.float64(term["scale"]), top - 150) if top else 0)
    named = {7: "scale", 8: "norms", 9: "scale", 10: "scales", 16: "norms"}.get(
        term["method"], "value"
    )
    values = np.atleast_1d(term[named])
    if term["method"] == 10 and term["table"] == 3:
        values = term["codes"].astype("<u2").view("<f2")
    if term["method"] == 10 and term["table"] == 4:
        values = (term["codes"] << 16).astype("<u4").view("<f4")
    most = np.abs(values).astype(np.float32).max(initial=np.float32(0))
    return np.float32(most * (2048 if term.get("rotation") is not None else 1))


def sketch(reader: Reader, expected: Any, out: dict[str, Any], numel: int) -> None:
    rows = reader.take(1)[0]
    require(1 <= rows <= 64, "sketch")
    cols = reader.varint()
    require(1 <= cols < 2**31, "sketch")
    seed = int.from_bytes(reader.take(8), "little")
    out.update(rows=rows, cols=cols, hash=seed, table=reader.f32(rows * cols), k=numel, seed=None)
    expected()
    require(finite(out["table"]), "value")


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


WIDTHS = [range(9), range(1, 9), [8], [16], [16]]  # of each table


def codes(reader: Reader, out: dict[str, Any], k: int) -> None:
    table = reader.take(1)[0]
    require(table < 5, "table")
    width = reader.take(1)[0]
    require(width in WIDTHS[table], "width")
    bucket = reader.varint()
    require(bucket == 0 or (bucket < k and table < 3), "bucket")
    buckets = -(-k // bucket) if bucket else min(k, 1)
    if table == 0:
        factors = reader.f32(buckets << width)
        require(finite(factors), "scale")
    else:
        factors = scales(reader, buckets if table < 3 else 0)
    out.update(table=table, width=width, bucket=bucket, scales=factors, codes=None)
    out["plane"] = bits(reader, k * width)
    if width > 0:
        out["codes"] = out["plane"].reshape(k, width).astype(np.int64) @ (1 << np.arange(width))


def code_rules(out: dict[str, Any]) -> None:
    table, width, each = out["table"], out["width"], out["codes"]
    if table == 3:
        require(bool((each & 0x7C00 != 0x7C00).all()), "value")
    elif table == 4:
        require(bool((each & 0x7F80 != 0x7F80).all()), "value")
    elif table > 0:
        zero = 127 if table == 2 else 1 << (width - 1)
        for j, scale in enumerate(out["scales"]):
            some = each[j * out["bucket"] :][: out["bucket"] or None]
            require(scale > 0 or bool((some == zero).all()), "scale")


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
