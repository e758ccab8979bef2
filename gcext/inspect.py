"""What is in a packet: its fields beside its bytes. Behind `python -m gcext inspect FILE`.

The walk is by the tables of docs/wire-format.md and goes on as far as a damaged packet lets it; the
verdict at the end is the decoder's own.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from gcext import _wire
from gcext._errors import DecodeError
from gcext._packet import wire
from gcext.polar._values import chunks_of

_TILE = _wire.TILE
_SHOWN_BYTES = 8  # of a long field
_SHOWN_TILES = 4  # of a section
_SHOWN_MEMBERS = 50  # of a group


@dataclass(frozen=True)
class Row:
    """One field: its place in the message, its bytes, and what they mean."""

    offset: int
    data: bytes
    field: str
    meaning: str


class _CutError(Exception):
    """The message ends, or stops making sense, inside a field."""


@dataclass
class _Walk:
    data: bytes
    end: int
    at: int = 0
    prefix: str = ""
    rows: list[Row] = field(default_factory=list)

    def take(self, count: int, name: str, meaning: Callable[[bytes], str] | str) -> bytes:
        piece = self.data[self.at : min(self.at + count, self.end)]
        cut = len(piece) < count
        if callable(meaning):
            text = f"cut: {count} bytes needed" if cut else meaning(piece)
        else:
            text = f"{meaning}; cut: {count} bytes needed" if cut else meaning
        if count > 0:
            self.rows.append(Row(self.at, piece, self.prefix + name, text))
        self.at += len(piece)
        if cut:
            raise _CutError
        return piece

    def varint(self, name: str, meaning: str = "{}") -> int:
        value = length = 0
        while length < 9:
            byte = self.data[self.at + length] if self.at + length < self.end else 0
            value |= (byte & 127) << (7 * length)
            length += 1
            if byte < 128:
                break
        self.take(length, name, meaning.format(value))
        return value

    def section(self, k: int, name: str, numbers: str) -> None:
        tiles = -(-k // _TILE)
        if 3 * tiles > self.end - self.at:
            self.take(3 * tiles, name + "tiles", f"{tiles} tiles")
        remainders, unary = 0, k
        for t in range(tiles):
            b, zeros = struct.unpack_from("<BH", self.data, self.at + 3 * t)
            remainders += b * min(_TILE, k - t * _TILE)
            unary += zeros
        for t in range(min(tiles, _SHOWN_TILES)):
            first, last = t * _TILE, min(k, (t + 1) * _TILE) - 1
            self.take(
                3,
                name + "tiles",
                f"tile {t}, {numbers} {first}..{last}: b = {{}}, {{}} zeros".format(
                    *struct.unpack_from("<BH", self.data, self.at)
                ),
            )
        more = tiles - _SHOWN_TILES
        if more > 0:
            self.take(3 * more, name + "tiles", f"{more} more tiles")
        self.take(-(-remainders // 8), name + "remainders", f"{remainders} bits")
        self.take(-(-unary // 8), name + "unary", f"{k} ones, {unary - k} zeros")


def _values(count: int) -> str:
    return f"{count} float32"


def _float(piece: bytes) -> str:
    return f"{struct.unpack('<f', piece)[0]:.9g}"


def _body(walk: _Walk, member: bool) -> None:
    method = walk.take(1, "method", lambda piece: wire.METHOD_NAMES.get(piece[0], "reserved"))[0]
    if method == wire.METHODS["group"] and not member:
        count = walk.varint("count", "{} members")
        for i in range(count):
            walk.prefix = f"members[{i}]."
            shown = len(walk.rows)
            _body(walk, member=True)
            if i >= _SHOWN_MEMBERS:
                del walk.rows[shown:]
        walk.prefix = ""
        return
    if method not in wire.METHOD_NAMES or method == wire.METHODS["group"]:
        raise _CutError
    kind = walk.take(
        1,
        "type",
        lambda piece: (
            f"{wire.DTYPE_NAMES.get(piece[0] >> 4, 'reserved dtype')}, {piece[0] & 15} dims"
        ),
    )[0]
    shape = [walk.varint("dims") for _ in range(kind & 15)]
    numel = math.prod(shape)
    if method == wire.METHODS["dense"]:
        walk.take(4 * numel, "values", _values(numel))
        return
    if method > wire.METHODS["group"]:
        _coded(walk, wire.METHOD_NAMES[method], numel)
        return
    parts = 0
    if method == wire.METHODS["merged"]:
        parts = walk.varint("parts", "{} packets")
        for _ in range(parts):
            walk.take(4, "scales", _float)
    k = walk.varint("k", f"{{}} of {numel} elements" if numel < 1 << 63 else "{} elements")
    if method == wire.METHODS["sparse"]:
        walk.section(k, "", "elements")
        walk.take(4 * k, "values", _values(k))
    elif k > 0 and method == wire.METHODS["ternary"]:
        walk.take(4, "scale", _float)
        walk.section(k, "", "elements")
        walk.take(-(-k // 8), "signs", f"{k} bits, 1 is negative")
    elif k > 0:
        members = walk.varint("members", "{} elements of the parts")
        walk.section(k, "", "elements")
        walk.section(members, "members.", "members")
        walk.take(-(-members // 8), "signs", f"{members} bits, 1 is negative")


_SUPPORTS = ("all elements", "indices", "random elements")


def _coded(walk: _Walk, method: str, numel: int) -> None:
    support = walk.take(
        1, "support", lambda p: _SUPPORTS[p[0]] if p[0] < len(_SUPPORTS) else "reserved"
    )[0]
    if support >= len(_SUPPORTS):
        raise _CutError
    k = numel
    if support > 0:
        k = walk.varint("k", f"{{}} of {numel} elements" if numel < 1 << 63 else "{} elements")
    if support == 1:
        walk.section(k, "", "elements")
    if support == 2:
        walk.take(8, "seed", _seed)
    if method == "random":
        walk.take(4 * k, "values", _values(k))
    elif method == "sign":
        walk.take(4, "scale", _float)
        walk.take(-(-k // 8), "signs", f"{k} bits, 1 is negative")
    elif method == "levels":
        _levels(walk, k)
    else:
        _polar(walk, k)


def _levels(walk: _Walk, k: int) -> None:
    steps = walk.varint("steps", "{} steps from 0 to the norm")
    bucket = walk.varint("bucket", "{} elements share a norm, 0: all")
    norms = -(-k // bucket) if bucket else min(k, 1)
    walk.take(4 * norms, "norms", _float if norms == 1 else _values(norms))
    count = walk.varint("places", "{} levels are not 0")
    walk.section(min(count, max(k - count, 0)), "places.", "places")
    walk.take(-(-count // 8), "signs", f"{count} bits, 1 is negative")
    if steps > 1:
        walk.section(count, "levels.", "levels")


def _polar(walk: _Walk, k: int) -> None:
    walk.take(1, "table", lambda p: f"frozen sets of version {p[0]}")
    flags = walk.take(1, "flags", lambda p: _flags(p[0]))[0]
    level = walk.take(1, "block", lambda p: f"blocks of 2^{p[0]} symbols")[0]
    if flags > 3 or level > 62:
        raise _CutError
    kept = walk.varint("kept", "{} bits a block")
    sizes = [k]
    if flags & 2:
        walk.take(8, "seed", _seed)
        if 4 * (k >> max(16, level)) > walk.end - walk.at:
            walk.take(4 * (k >> max(16, level)), "scales", "a scale a chunk")
        sizes = [size for _, size in chunks_of(k, 1 << level)]
    walk.take(4 * len(sizes), "scales", _float if len(sizes) == 1 else _values(len(sizes)))
    bits = kept * -(-sum(sizes) // (1 << level))
    walk.take(-(-bits // 8), "message", f"{bits} bits")


def _flags(flags: int) -> str:
    names = ["soft frozen sets" if flags & 1 else "frozen sets of signs"]
    return ", ".join(names + ["rotated"] * (flags >> 1 & 1) + ["reserved"] * (flags > 3))


def _seed(piece: bytes) -> str:
    return str(int.from_bytes(piece, "little"))


def rows(message: bytes) -> list[Row]:
    """Return the fields of a message in order, as far as it can be read."""
    walk = _Walk(message, len(message))
    try:
        walk.take(4, "magic", lambda p: "gcext packet" if p == b"\x89GCX" else "not 89 47 43 58")
        walk.take(1, "version", lambda p: "format version 1" if p[0] == 1 else "unknown version")
        walk.end = max(walk.at, len(message) - 8)
        _body(walk, member=False)
        walk.take(walk.end - walk.at, "", "bytes that belong to nothing")
        walk.end = len(message)
        walk.take(8, "checksum", "XXH3-64 of the bytes above")
    except _CutError:
        walk.end = len(message)
        walk.prefix = ""
        walk.take(walk.end - walk.at, "", "not read")
    return walk.rows


def _sent(body: wire.Body, numel: int) -> int:
    if body.value is not None:
        return len(body.value)
    if body.method == "levels":
        return len(body.code[3])
    if body.index is None:
        return numel
    return body.index.k if isinstance(body.index, wire.Drawn) else len(body.index)


def _summary(body: wire.Body, length: int) -> str:
    if body.method == "group":
        return f"group of {len(body.members)} packets, {length} bytes"
    numel = math.prod(body.shape)
    k = _sent(body, numel)
    text = f"{body.method} {body.dtype} {body.shape}: {k} of {numel} elements, {length} bytes"
    if body.method == "merged" and body.merged is not None:
        text += f", {len(body.merged.scales)} packets in one"
    if k > 0:
        text += f", {8 * length / k:.2f} bits an element sent"
        text += f", {4 * numel / length:.1f} x smaller than float32"
    if k > 0 and isinstance(body.index, np.ndarray) and body.value is not None:
        pairs = zip(body.index[:4].tolist(), body.value[:4].tolist(), strict=True)
        text += "\n" + "  ".join(f"[{i}] {v:+.6g}" for i, v in pairs) + ("  ..." if k > 4 else "")
    return text


def describe(message: bytes | bytearray | memoryview) -> RenderableType:
    """Return a rich renderable of a packet's fields, its bytes and the decoder's verdict.

    message may be any bytes: a damaged packet is shown as far as it can be read, with the error.

    >>> from gcext import inspect
    >>> Console().print(inspect.describe(b""))  # doctest: +SKIP
    """
    return _describe(bytes(message))[0]


def _describe(message: bytes) -> tuple[RenderableType, bool]:
    table = Table(
        "offset", "bytes", "field", "meaning", box=None, pad_edge=False, header_style="bold"
    )
    table.columns[0].justify = "right"
    error: DecodeError | None = None
    try:
        verdict = Text(_summary(wire.unpack(message), len(message)), style="green")
    except DecodeError as caught:
        error = caught
        verdict = Text(f"refused, {caught.code}: {caught}", style="bold red")
    for row in rows(message):
        dots = " .." if len(row.data) > _SHOWN_BYTES else ""
        here = error is not None and row.offset <= error.offset < row.offset + max(len(row.data), 1)
        style = "red" if here else None
        hexed = row.data[:_SHOWN_BYTES].hex(" ") + dots
        cells = (str(row.offset), hexed, row.field, row.meaning)
        table.add_row(*(Text(cell) for cell in cells), style=style)
    return Group(table, Text(), verdict), error is None


def inspect_file(path: Path, console: Console) -> int:
    """Print what is in the packet file at path. Return 0, or 1 where a decoder refuses it.

    Raises OSError where the file cannot be read.
    """
    text, fine = _describe(path.read_bytes())
    console.print(text)
    return 0 if fine else 1
