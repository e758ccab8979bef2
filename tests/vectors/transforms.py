"""Golden packets of the methods lowrank and dct, for make.py."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import wire_bodies as wire
from coded import LARGE, TINY, body
from pieces import bits, f32, seal, support, varint

MOST = np.float32(2.0**116)


def factors(rng: np.random.Generator, shape: tuple[int, ...], rank: int) -> wire.Body:
    rows, cols = (shape[0] if shape else 1), math.prod(shape[1:])
    left = np.clip(rng.normal(size=rows * rank), -2, 2).astype(np.float32)
    right = rng.normal(size=cols * rank).astype(np.float32)
    return body("lowrank", shape, None, rows, cols, rank, left, right)


def coefficients(
    rng: np.random.Generator, shape: tuple[int, ...], block: int, k: int, scale: float = 0.0
) -> wire.Body:
    """Coefficients of a sparse body, or where there is a scale of a ternary one."""
    rows, cols = math.prod(shape[:-1]), shape[-1] if shape else 1
    value = rng.normal(size=k).astype(np.float32)
    if scale:
        value = np.where(value < 0, -scale, scale).astype(np.float32)
    index = support(rng, rows * cols, k)
    own = scale if k else 0.0
    return body("dct", shape, None, rows, cols, block, scale > 0, index, value, own)


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

    for name, numel in (("2p31", 2**31), ("2p62", 2**62), ("2p63m1", 2**63 - 1)):
        n = varint(numel)
        yield f"bomb-lowrank-{name}", seal(b"\x0d\x01" + n + b"\x01" + bytes(8)), "truncated"
        yield f"bomb-dct-{name}", seal(b"\x0f\x01" + n + b"\x40\x02" + n), "truncated"
        ternary = b"\x0f\x01" + n + b"\x40\x03" + n + f32(1)
        yield f"bomb-dct-ternary-{name}", seal(ternary), "truncated"
