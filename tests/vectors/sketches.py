"""Golden packets of the method sketch, for make.py."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import wire_bodies as wire
from coded import LARGE, SEED, TINY
from pieces import f32, seal, varint


def body(
    shape: tuple[int, ...],
    rows: int,
    cols: int,
    table: Any,
    seed: int = SEED,
    dtype: str = "float32",
) -> wire.Body:
    code = rows, cols, seed, np.array(table, np.float32).reshape(-1)
    return wire.Body("sketch", shape, dtype, code=code)


def valid() -> Iterator[tuple[str, wire.Body]]:
    rng = np.random.default_rng(3)

    def drawn(shape: tuple[int, ...], rows: int, cols: int, **rest: Any) -> wire.Body:
        return body(shape, rows, cols, rng.normal(size=rows * cols), **rest)

    for rows in (1, 2, 3, 4, 5, 64):
        yield f"sketch-{rows}-rows", drawn((20, 15), rows, 7)
    yield "sketch-1-column", drawn((40,), 3, 1)
    yield "sketch-3000-columns", drawn((500,), 2, 3000)
    yield "sketch-float16", drawn((50,), 3, 9, dtype="float16")
    yield "sketch-seed-0", drawn((50,), 3, 9, seed=0)
    yield "sketch-seed-2p64m1", drawn((50,), 3, 9, seed=2**64 - 1)
    yield "sketch-0d", drawn((), 5, 2)
    yield "sketch-empty", drawn((0, 3), 5, 2)
    yield "sketch-zeros", body((50,), 4, 5, np.zeros(20))
    edge = [0.0, -0.0, TINY, -TINY, LARGE, -LARGE]
    yield "sketch-cells-edge", body((90,), 3, 20, rng.choice(edge, 60))
    yield "sketch-cells-edge-2-rows", body((90,), 2, 20, rng.choice(edge, 40))
    yield "group-of-sketches", wire.Body("group", members=(drawn((30,), 3, 4), drawn((5, 5), 2, 3)))


# Nine elements in two rows of three sums.
SKETCH = {
    "head": b"\x0e\x01\x09",
    "rows": b"\x02",
    "cols": b"\x03",
    "seed": bytes(8),
    "cells": f32(1, 2, 0.5, -1, 0, 4),
}


def sketch_bytes(**fields: bytes) -> bytes:
    return seal(b"".join({**SKETCH, **fields}.values()))


def invalid() -> Iterator[tuple[str, bytes, str]]:
    yield "sketch-0-rows", sketch_bytes(rows=b"\x00", cells=b""), "sketch"
    yield "sketch-65-rows", sketch_bytes(rows=b"\x41", cols=b"\x01", cells=bytes(260)), "sketch"
    yield "sketch-0-columns", sketch_bytes(cols=b"\x00", cells=b""), "sketch"
    yield "sketch-2p31-columns", sketch_bytes(cols=varint(2**31)), "sketch"
    yield "sketch-cols-not-minimal", sketch_bytes(cols=b"\x83\x00"), "varint"
    yield "sketch-seed-cut", sketch_bytes(seed=bytes(7), cells=b""), "truncated"
    yield "sketch-cut", sketch_bytes(cells=f32(1, 2, 0.5, -1, 0)), "truncated"
    yield "sketch-more", sketch_bytes(cells=f32(1, 2, 0.5, -1, 0, 4, 4)), "length"
    for name, cell in (("inf", np.inf), ("nan", np.nan)):
        yield f"sketch-{name}", sketch_bytes(cells=f32(1, 2, 0.5, -1, 0, cell)), "value"
    yield "bomb-sketch", sketch_bytes(rows=b"\x40", cols=varint(2**31 - 1), cells=b""), "truncated"
