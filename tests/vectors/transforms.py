"""Golden packets of the methods lowrank and dct, for make.py."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import wire_bodies as wire
from coded import LARGE, TINY, body
from numpy_transforms import cuts
from pieces import bits, f32, seal, support, varint

MOST = np.float32(2.0**116)


def factors(rng: np.random.Generator, shape: tuple[int, ...], rank: int) -> wire.Body:
    rows, cols = (shape[0] if shape else 1), math.prod(shape[1:])
    left = np.clip(rng.normal(size=rows * rank), -2, 2).astype(np.float32)
    right = rng.normal(size=cols * rank).astype(np.float32)
    return body("lowrank", shape, None, rows, cols, rank, left, right)


def coefficients(
    rng: np.random.Generator,
    shape: tuple[int, ...],
    block: int,
    k: int,
    scale: float = 0.0,
    index: np.ndarray | None = None,
) -> wire.Body:
    """Coefficients of a sparse body, or where there is a scale of a ternary one.

    index: of the k coefficients, which then have a block code.
    """
    rows, cols = math.prod(shape[:-1]), shape[-1] if shape else 1
    value = rng.normal(size=k).astype(np.float32)
    if scale:
        value = np.where(value < 0, -scale, scale).astype(np.float32)
    by_block = index is not None
    if index is None:
        index = support(rng, rows * cols, k)
    own = scale if k else 0.0
    return body("dct", shape, None, rows, cols, block, scale > 0, index, value, own, by_block)


def by_block(
    rng: np.random.Generator, shape: tuple[int, ...], block: int, most: int, scale: float = 0.0
) -> wire.Body:
    """Up to `most` coefficients of each block, of the first as many."""
    rows, cols = math.prod(shape[:-1]), shape[-1] if shape else 1
    sizes = [h * w for _, h in cuts(rows, block) for _, w in cuts(cols, block)]
    picked, first = [], 0
    for size in sizes:
        count = min(size, most if first == 0 else int(rng.integers(0, most + 1)))
        picked += [first + int(place) for place in support(rng, size, count)]
        first += size
    index = np.array(picked, np.int32)
    return coefficients(rng, shape, block, len(index), scale, index)


def valid() -> Iterator[tuple[str, wire.Body]]:
    rng = np.random.default_rng(3)
    yield "lowrank-2", factors(rng, (20, 30), 2)
    yield "lowrank-4d", factors(rng, (6, 2, 3, 3), 3)
    yield "lowrank-0", factors(rng, (5, 4), 0)
    yield "lowrank-1d", factors(rng, (9,), 1)
    yield "lowrank-0d", factors(rng, (), 1)
    yield "lowrank-empty", factors(rng, (0, 3), 0)
    yield "lowrank-full", factors(rng, (3, 3), 3)
    large = np.array([2, -2, TINY, -0.0], np.float32), np.array([2.0**95, -TINY], np.float32)
    yield "lowrank-edge", body("lowrank", (4, 2), None, 4, 2, 1, *large)

    yield "dct-64", coefficients(rng, (64, 64), 64, 40)
    yield "dct-uneven", coefficients(rng, (150, 65), 64, 300)
    yield "dct-ternary", coefficients(rng, (131, 97), 64, 1100, 0.3)
    yield "dct-1d", coefficients(rng, (1009,), 64, 60, 2.0)
    yield "dct-4d", coefficients(rng, (5, 4, 3, 3), 16, 30)
    yield "dct-edge-1", coefficients(rng, (5, 7), 1, 9)
    yield "dct-edge-5", coefficients(rng, (23, 11), 5, 253)
    yield "dct-column", coefficients(rng, (200, 1), 64, 20, 1.0)
    yield "dct-k0", coefficients(rng, (9, 9), 64, 0)
    yield "dct-ternary-k0", coefficients(rng, (9, 9), 64, 0, 1.0)
    yield "dct-empty", coefficients(rng, (3, 0), 64, 0)
    yield "dct-0d", coefficients(rng, (), 64, 1)
    yield "dct-most", coefficients(rng, (64, 64), 64, 4096, float(MOST))
    yield "dct-least", coefficients(rng, (30, 40), 64, 70, TINY)
    yield "dct-one-of-each", coefficients(rng, (70, 70), 64, 4900)
    members = factors(rng, (7, 5), 2), coefficients(rng, (30, 40), 64, 7, 0.5)
    dense = wire.Body("dense", (2,), value=np.ones(2, np.float32))
    yield "group-of-transforms", wire.Body("group", members=(*members, dense))

    rng = np.random.default_rng(4)
    yield "dct-by-block", by_block(rng, (64, 64), 64, 4)
    yield "dct-by-block-uneven", by_block(rng, (150, 65), 40, 5)
    yield "dct-by-block-ternary", by_block(rng, (131, 197), 64, 4, 0.3)
    yield "dct-by-block-1d", by_block(rng, (1009,), 64, 8, 2.0)
    yield "dct-by-block-4d", by_block(rng, (5, 4, 3, 3), 16, 2)
    yield "dct-by-block-edge-1", by_block(rng, (5, 7), 1, 1)
    yield "dct-by-block-edge-2", by_block(rng, (9, 9), 2, 4, 1.0)
    yield "dct-by-block-0d", by_block(rng, (), 64, 1)
    ends = np.array([0, 1, 2, 3, 8188, 8189, 8190, 8191], np.int32)
    yield "dct-by-block-ends", coefficients(rng, (64, 128), 64, 8, 0.0, ends)
    last = np.arange(3838, 3844, dtype=np.int32)
    yield "dct-by-block-62-bits", coefficients(rng, (62, 62), 64, 6, 0.5, last)
    both = np.concatenate([last - 3000, last + 3844])
    yield "dct-by-block-62-bits-twice", coefficients(rng, (62, 124), 64, 12, 0.0, both)
    none = last[:0]
    yield "dct-by-block-k0", coefficients(rng, (9, 9), 64, 0, 0.0, none)
    yield "dct-by-block-ternary-k0", coefficients(rng, (9, 9), 64, 0, 1.0, none)
    yield "dct-by-block-empty", coefficients(rng, (3, 0), 64, 0, 0.0, none)
    members = by_block(rng, (7, 5), 3, 2), by_block(rng, (30, 40), 64, 7, 0.5)
    yield "group-of-block-codes", wire.Body("group", members=(*members, dense))


# A 4 x 3 matrix of rank 1, and two coefficients of one 3 x 3 block.
LOWRANK = {
    "head": b"\x0d\x02\x04\x03",
    "rank": b"\x01",
    "left": f32(1, -2, 0, 0.5),
    "right": f32(3, 1e20, -1),
}
DCT = {
    "head": b"\x0f\x02\x03\x03",
    "edge": b"\x40",
    "inner": b"\x02",
    "k": b"\x02",
    "scale": b"",
    "section": b"\x00\x00\x00\x03",
    "values": f32(1, -2),
}
# Coefficients 0 and 1 of one block of 9: number 1 + 9 of at most 2, in 6 bits.
BLOCK = {"inner": b"\x12", "scale": b"", "section": b"\x02" + bits((10, 6))}
SIGNS = {"inner": b"\x03", "scale": f32(0.5), "values": b"\x02"}


def lowrank_bytes(**fields: bytes) -> bytes:
    return seal(b"".join({**LOWRANK, **fields}.values()))


def dct_bytes(**fields: bytes) -> bytes:
    return seal(b"".join({**DCT, **fields}.values()))


def invalid() -> Iterator[tuple[str, bytes, str]]:
    yield "lowrank-rank-above", lowrank_bytes(rank=b"\x04", left=bytes(64)), "rank"
    yield "lowrank-rank-of-empty", seal(b"\x0d\x02\x00\x03\x01"), "rank"
    yield "lowrank-left-cut", lowrank_bytes(left=f32(1), right=b""), "truncated"
    yield "lowrank-right-cut", lowrank_bytes(right=f32(3, 1)), "truncated"
    yield "lowrank-more", lowrank_bytes(right=f32(3, 1, 1, 1)), "length"
    for name, value in (("nan", np.nan), ("inf", np.inf), ("above", 2.0000002)):
        yield f"lowrank-left-{name}", lowrank_bytes(left=f32(1, value, 0, 0)), "value"
    for name, value in (("nan", np.nan), ("inf", -np.inf), ("above", -4e28)):
        yield f"lowrank-right-{name}", lowrank_bytes(right=f32(1, value, 0)), "value"

    for edge in (0, 65, 255):
        yield f"dct-edge-{edge}", dct_bytes(edge=bytes([edge])), "edge"
    for inner in (0, 1, 4, 15):
        yield f"dct-inner-{inner}", dct_bytes(inner=bytes([inner])), "method"
    yield "dct-k-above", dct_bytes(k=b"\x0a"), "k"
    above = np.nextafter(MOST, np.float32(LARGE))
    for name, value in (("zero", 0.0), ("minus-zero", -0.0), ("nan", np.nan), ("above", -above)):
        yield f"dct-value-{name}", dct_bytes(values=f32(1, value)), "value"
    for name, scale in (("zero", 0.0), ("negative", -1.0), ("nan", np.nan), ("above", above)):
        yield f"dct-scale-{name}", dct_bytes(**{**SIGNS, "scale": f32(scale)}), "scale"
    yield "dct-padding", dct_bytes(**{**SIGNS, "values": b"\x06"}), "padding"
    yield "dct-signs-cut", dct_bytes(**{**SIGNS, "values": b""}), "truncated"
    yield "dct-cut", dct_bytes(values=f32(1)), "truncated"
    late = b"\x01\x02\x00" + bits((1, 1), (1, 1)) + bits((0b1010, 4))  # the indices 3 and 7
    yield "dct-index-beyond", dct_bytes(head=b"\x0f\x01\x07", section=late), "index"
    early = b"\x02\x01\x00" + bits((3, 2), (1, 2)) + bits((0b101, 3))
    yield "dct-tile", dct_bytes(section=early), "tile"

    for name, fields, code in (
        ("most-0", {"section": b"\x00" + bits((0, 1))}, "count"),
        ("most-9", {"section": b"\x09" + bits((10, 9))}, "count"),
        ("most-not-reached", {"section": b"\x03" + bits((10, 8))}, "count"),
        ("too-many-sets", {"head": b"\x0f\x02\x40\x40", "section": b"\x06" + bytes(8)}, "count"),
        ("set-beyond", {"section": b"\x02" + bits((46, 6))}, "index"),
        ("too-few", {"section": b"\x02" + bits((9, 6))}, "k"),
        ("too-many", {"k": b"\x01", "values": f32(1)}, "k"),
        ("padding", {"section": b"\x02" + bits((10 | 64, 7))}, "padding"),
        ("words-cut", {"section": b"\x02", "values": b""}, "truncated"),
        ("most-cut", {"section": b"", "values": b""}, "truncated"),
        ("values-cut", {"values": f32(1)}, "truncated"),
        ("value-zero", {"values": f32(1, 0)}, "value"),
        ("value-above", {"values": f32(1, above)}, "value"),
        ("signs-padding", {**SIGNS, "inner": b"\x13", "values": b"\x06"}, "padding"),
        ("scale-above", {**SIGNS, "inner": b"\x13", "scale": f32(above)}, "scale"),
        ("inner-17", {"inner": b"\x11"}, "method"),
        ("inner-34", {"inner": b"\x22"}, "method"),
    ):
        yield f"dct-by-block-{name}", dct_bytes(**{**BLOCK, **fields}), code

    for name, numel in (("2p31", 2**31), ("2p62", 2**62), ("2p63m1", 2**63 - 1)):
        n = varint(numel)
        yield f"bomb-lowrank-{name}", seal(b"\x0d\x01" + n + b"\x01" + bytes(8)), "truncated"
        yield f"bomb-dct-{name}", seal(b"\x0f\x01" + n + b"\x40\x02" + n), "truncated"
        ternary = b"\x0f\x01" + n + b"\x40\x03" + n + f32(1)
        yield f"bomb-dct-ternary-{name}", seal(ternary), "truncated"
        for edge in (1, 2, 64):
            head = b"\x0f\x01" + n + bytes([edge]) + b"\x12\x01\x01"
            yield f"bomb-dct-by-block-{edge}-{name}", seal(head + bytes(9)), "truncated"
