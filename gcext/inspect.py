"""What is in a packet: its fields beside its bytes. Behind ``python -m gcext inspect FILE``.

The fields are those that the decoder reads, as far as a damaged packet lets it; the last line is
the decoder's own result.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

import gcext._wire as _wire
from gcext._native.codes import TABLES
from gcext._packet.errors import DecodeError
from gcext._packet.packet import Packet

__all__ = ["Row", "describe", "inspect_file", "rows"]

_METHODS = ["dense", "sparse", "ternary", "merged", "group", "random", "sign", "levels", "polar"]
_METHODS += ["codes", "powers", "sum", "lowrank", "sketch", "dct", "levels2"]
_DTYPES = ["float32", "float16", "bfloat16", "float64"]
_SUPPORTS = ["all elements", "indices", "random elements"]
_FLAGS = ["frozen sets of signs", "soft frozen sets"]
_SHOWN_BYTES = 8  # of a long field
_SHOWN_TILES = 4  # of a section
_SHOWN_MEMBERS = 50  # of a group

# Of fields that are one number, or an array of so many elements or bits; "method.field" where it is
# another field in each.
_MEANINGS = {
    "version": "format version {}",
    "count": "{} packets",
    "dims": "{}",
    "parts": "{} packets",
    "members": "{} elements of the parts",
    "steps": "{} steps from 0 to the norm",
    "bucket": "{} elements share a norm, 0: all",
    "codes.bucket": "{} elements share a scale, 0: all",
    "places": "{} levels are not 0",
    "polar.table": "frozen sets of version {}",
    "width": "{} bits a code",
    "codes": "{} bits",
    "block": "blocks of 2^{} symbols",
    "kept": "{} bits a block",
    "message": "{} bits",
    "symbols": "{} symbols in the prefix code",
    "lengths": "of {} words, 4 bits each",
    "sizes": "bits of {} tiles",
    "stream": "{} bits",
    "rows": "{} rows",
    "cols": "{} sums a row",
    "rank": "{} columns of either factor",
    "edge": "blocks of up to {0} x {0}",
    "most": "at most {} coefficients a block",
    "words": "{} bits, a number a block",
    "remainders": "{} bits",
    "unary": "{} bits, a one a number",
    "signs": "{} bits, 1 is negative",
    "magic": "gcext packet",
    "checksum": "XXH3-64 of the bytes above",
}


@dataclass(frozen=True)
class Row:
    """One field: its place in the message, its bytes, and what they mean."""

    offset: int
    data: bytes
    field: str
    meaning: str


def _name(names: Sequence[str], code: int) -> str:
    return names[code] if 0 <= code < len(names) else "reserved"


def _floats(data: bytes, count: int) -> str:
    return f"{struct.unpack('<f', data)[0]:.9g}" if count == 1 else f"{count} float32"


def _meaning(name: str, data: bytes, value: int, method: str, numel: int) -> str:
    """Return what a field of this name means; method, numel: of the packet that it is in."""
    if name == "method":
        return _name(_METHODS, value - 1)
    if name == "type":
        return f"{_name(_DTYPES, value >> 4)}, {value & 15} dims"
    if name == "support":
        return _name(_SUPPORTS, value)
    if name == "table" and method == "codes":
        return _name(TABLES, value)
    if name == "flags":
        kinds = [_FLAGS[value & 1]] + ["rotated"] * (value >> 1 & 1) + ["reserved"] * (value > 3)
        return ", ".join(kinds)
    if name == "k":
        return f"{value} of {numel} elements" if numel < 1 << 63 else f"{value} elements"
    if name == "magic" and data != b"\x89GCX":
        return "not 89 47 43 58"
    if name == "seed":
        return str(int.from_bytes(data, "little"))
    if name == "inner":
        block = ", by block" if value & 16 else ""
        return f"{_name(_METHODS, (value & ~16) - 1)} coefficients{block}"
    if name in ("scale", "scales", "norms", "values", "cells", "left", "right"):
        return _floats(data, value)
    return (_MEANINGS.get(f"{method}.{name}") or _MEANINGS.get(name, "")).format(value)


def _tiles(row: Row, prefix: str, k: int) -> Iterator[Row]:
    """Yield a row for each of the first tiles of a section of k numbers, one for the others."""
    numbers = {"": "elements", "members.": "members"}.get(prefix, prefix.rstrip("."))
    tiles = len(row.data) // 3
    for t in range(min(tiles, _SHOWN_TILES)):
        data = row.data[3 * t : 3 * t + 3]
        b, zeros = struct.unpack("<BH", data)
        first, last = t * _wire.TILE, min(k, (t + 1) * _wire.TILE) - 1
        text = f"tile {t}, {numbers} {first}..{last}: b = {b}, {zeros} zeros"
        yield Row(row.offset + 3 * t, data, row.field, text)
    rest = row.data[3 * _SHOWN_TILES :]
    if rest:
        offset = row.offset + 3 * _SHOWN_TILES
        yield Row(offset, rest, row.field, f"{tiles - _SHOWN_TILES} more tiles")


def rows(message: bytes) -> list[Row]:
    """Return the fields of a message in order, as far as it can be read; they cover all bytes."""
    found: list[Row] = []
    method, numel = "", 1
    for entry in _wire.trace(message):
        offset, value = entry["offset"], entry["value"]
        data = message[offset : offset + entry["size"]]
        *scopes, name = entry["name"].split(".")
        scope = scopes[0] if scopes and scopes[0].startswith("members[") else ""
        index = int(scope[8:-1]) if scope else 0
        if index >= _SHOWN_MEMBERS:  # one row for all of them
            first = found.pop() if found[-1].field.startswith("members[..") else None
            begin = first.offset if first else offset
            data = message[begin : offset + len(data)]
            text = f"members {_SHOWN_MEMBERS} to {index}"
            found.append(Row(begin, data, "members[..]", text))
            continue
        if name == "method":
            method, numel = _name(_METHODS, value - 1), 1
        if name == "dims":
            numel *= max(value, 0)
        row = Row(offset, data, entry["name"], "")
        if entry["missing"]:
            found.append(Row(offset, data, entry["name"], "cut short"))
        elif name == "tiles":
            inner = [part + "." for part in scopes if "[" not in part]  # of no member or term
            found += _tiles(row, "".join(inner), value)
        else:
            found.append(
                Row(offset, data, entry["name"], _meaning(name, data, value, method, numel))
            )
    at = found[-1].offset + len(found[-1].data) if found else 0
    if at < len(message):
        found.append(Row(at, message[at:], "", "not read"))
    return found


def _summary(packet: Packet, length: int) -> str:
    if packet.members:
        return f"group of {len(packet.members)} packets, {length} bytes"
    k, numel, dtype = packet.k, packet.numel, str(packet.dtype).removeprefix("torch.")
    text = f"{packet.method} {dtype} {packet.shape}: {k} of {numel} elements, {length} bytes"
    if packet.merged is not None:
        text += f", {len(packet.merged.scales)} packets in one"
    if packet.method == "sum":
        text += ", the sum of " + " and ".join(term.method for term in packet.parts())
    if k > 0:
        text += f", {8 * length / k:.2f} bits an element sent"
        text += f", {4 * numel / length:.1f} x smaller than float32"
    if k > 0 and packet.method in ("sparse", "ternary", "merged"):
        pairs = zip(packet.indices()[:4].tolist(), packet.values()[:4].tolist(), strict=True)
        text += "\n" + "  ".join(f"[{i}] {v:+.6g}" for i, v in pairs) + ("  ..." if k > 4 else "")
    return text


def describe(message: bytes | bytearray | memoryview) -> RenderableType:
    r"""Return a rich renderable of a packet's fields, its bytes and what the decoder reports.

    message may be any bytes: a damaged packet is shown as far as it can be read, with the error.

    >>> Console(width=80).print(describe(b"\x89GCX"))  # doctest: +ELLIPSIS
    offset  bytes...
    """
    return _describe(bytes(message))[0]


def _describe(message: bytes) -> tuple[RenderableType, bool]:
    table = Table(
        "offset", "bytes", "field", "meaning", box=None, pad_edge=False, header_style="bold"
    )
    table.columns[0].justify = "right"
    error: DecodeError | None = None
    try:
        result = Text(_summary(Packet.from_bytes(message), len(message)), style="green")
    except DecodeError as caught:
        error = caught
        result = Text(f"refused, {caught.code}: {caught}", style="bold red")
    for row in rows(message):
        dots = " .." if len(row.data) > _SHOWN_BYTES else ""
        here = error is not None and row.offset <= error.offset < row.offset + max(len(row.data), 1)
        style = "red" if here else None
        hexed = row.data[:_SHOWN_BYTES].hex(" ") + dots
        cells = (str(row.offset), hexed, row.field, row.meaning)
        table.add_row(*(Text(cell) for cell in cells), style=style)
    return Group(table, Text(), result), error is None


def inspect_file(path: Path, console: Console) -> int:
    """Print what is in the packet file at path. Return 0, or 1 where the decoder refuses it.

    Raises OSError where the file cannot be read.
    """
    text, fine = _describe(path.read_bytes())
    console.print(text)
    return 0 if fine else 1
