"""Golden packets of the method codes, for make.py."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import wire_bodies as wire
from pieces import bits, f32, seal, support, varint

TINY, LARGE = float(np.float32(1e-45)), float(np.finfo(np.float32).max)
WIDTH_OF = {"dynamic8": 8, "float16": 16, "bfloat16": 16}


def packed(code: np.ndarray, width: int) -> np.ndarray:
    plane = code[:, None] >> np.arange(width) & 1
    return np.packbits(plane.astype(np.uint8).reshape(-1), bitorder="little")


def body(
    table: str, shape: tuple[int, ...], code: Any, width: int, bucket: int = 0, scales: Any = (),
    index: Any = None,
) -> wire.Body:  # fmt: skip
    fields = table, width, bucket, np.array(scales, np.float32), packed(np.array(code, int), width)
    return wire.Body("codes", shape, index=index, code=fields)


def drawn(
    rng: np.random.Generator, table: str, shape: tuple[int, ...], k: int, width: int,
    bucket: int = 0, index: Any = None,
) -> wire.Body:  # fmt: skip
    """Any codes, and scales that are not 0."""
    each = {"values": 1 << width, "uniform": 1, "dynamic8": 1}.get(table, 0)
    scales = (0.1 + rng.random(each * (-(-k // bucket) if bucket else min(k, 1)))).astype("f4")
    if table == "values":
        scales -= np.float32(0.6)
    top = {"float16": 0x7C00, "bfloat16": 0x7F80}.get(table, 1 << width)
    code = rng.integers(0, top, k) | rng.integers(0, 2, k) * (0x8000 if width == 16 else 0)
    return body(table, shape, code, width, bucket, scales, index)


def valid() -> Iterator[tuple[str, wire.Body]]:
    rng = np.random.default_rng(3)
    for width in range(9):
        yield f"codes-values-{width}", drawn(rng, "values", (7, 3), 21, width, 8 * (width < 4))
    for width in range(1, 9):
        yield f"codes-uniform-{width}", drawn(rng, "uniform", (300,), 300, width, 64)
    yield "codes-dynamic8", body("dynamic8", (16, 16), range(256), 8, scales=[1.5])
    yield "codes-dynamic8-bucket", drawn(rng, "dynamic8", (300,), 300, 8, 64)
    yield "codes-float16", drawn(rng, "float16", (11, 9), 99, 16)
    yield "codes-bfloat16", drawn(rng, "bfloat16", (11, 9), 99, 16)
    halves = [0, 0x8000, 1, 0x83FF, 0x400, 0x7BFF, 0xFBFF]
    yield "codes-float16-edge", body("float16", (7,), halves, 16)
    floats = [0, 0x8000, 1, 0x807F, 0x80, 0x7F7F, 0xFF7F]
    yield "codes-bfloat16-edge", body("bfloat16", (7,), floats, 16)
    yield "codes-values-edge", body("values", (4,), [3, 1, 0, 2], 2, 0, [-0.0, TINY, LARGE, -LARGE])
    edge = [TINY, 0.0, LARGE]
    yield "codes-uniform-edge", body("uniform", (9,), [0, 3, 7, 4, 4, 4, 0, 4, 7], 3, 3, edge)
    yield "codes-dynamic8-edge", body("dynamic8", (9,), [0, 127, 255] + 5 * [127] + [0], 8, 3, edge)
    for table, width in [("values", 0), ("values", 3), ("uniform", 5), *WIDTH_OF.items()]:
        yield f"codes-{table}-{width}-empty", drawn(rng, table, (3, 0), 0, width)
        yield f"codes-{table}-{width}-0d", drawn(rng, table, (), 1, width)
    yield "codes-bucket-1", drawn(rng, "uniform", (9,), 9, 3, 1)
    yield "codes-zeros-1-bit", body("uniform", (21,), [1] * 21, 1, 0, [0])
    yield "codes-zeros-5-bits", body("uniform", (50,), [16] * 50, 5, 7, [0] * 8)
    yield "codes-constant", body("values", (70_000,), [], 0, 0, [-2.5])
    index = support(rng, 600, 100)
    yield "codes-indices", drawn(rng, "dynamic8", (600,), 100, 8, 16, index)
    yield "codes-indices-one-mean", drawn(rng, "values", (600,), 100, 0, 0, index)
    wide = support(rng, 2**31, 9)
    yield "codes-indices-numel2p31", drawn(rng, "uniform", (2**31,), 9, 2, 4, wide)
    seed = wire.Drawn(int(rng.integers(0, 2**63)), 100)
    yield "codes-random", drawn(rng, "float16", (20, 30), 100, 16, 0, seed)
    members = drawn(rng, "uniform", (40,), 40, 2, 16), drawn(rng, "bfloat16", (5,), 5, 16)
    yield "group-of-codes", wire.Body("group", members=members)


# Nine codes of 3 bits, of buckets of four elements; 4 is that of 0.
CODES = {
    "head": b"\x0a\x01\x09",
    "support": b"\x00",
    "table": b"\x01",
    "width": b"\x03",
    "bucket": b"\x04",
    "scales": f32(1, 2, 0.5),
    "codes": bits(*((c, 3) for c in (0, 7, 4, 3, 4, 4, 4, 4, 1))),
}
DYNAMIC = {"table": b"\x02", "width": b"\x08"}
HALVES = {"width": b"\x10", "bucket": b"\x00", "scales": b""}


def codes_bytes(**fields: bytes) -> bytes:
    return seal(b"".join({**CODES, **fields}.values()))


def halves_bytes(table: int, *words: int) -> bytes:
    codes = np.array(words + (9 - len(words)) * (0,), "<u2").tobytes()
    return codes_bytes(table=bytes([table]), **HALVES, codes=codes)


def invalid() -> Iterator[tuple[str, bytes, str]]:
    for table in (5, 255):
        yield f"codes-table-{table}", codes_bytes(table=bytes([table])), "table"
    for table, widths in enumerate([(9, 255), (0, 9), (0, 7, 16), (0, 8, 17), (15, 32)]):
        for width in widths:
            name = f"codes-table-{table}-width-{width}"
            yield name, codes_bytes(table=bytes([table]), width=bytes([width])), "width"
    yield "codes-table-cut", seal(b"\x0a\x01\x09\x00"), "truncated"
    yield "codes-width-cut", seal(b"\x0a\x01\x09\x00\x00"), "truncated"
    yield "codes-bucket-k", codes_bytes(bucket=b"\x09", scales=f32(1)), "bucket"
    for table in (3, 4):
        fields = {**HALVES, "table": bytes([table]), "bucket": b"\x04", "codes": bytes(18)}
        yield f"codes-table-{table}-bucket", codes_bytes(**fields), "bucket"
    yield "codes-bucket-of-empty", seal(b"\x0a\x01\x00\x00\x01\x03\x01"), "bucket"
    for name, scale in (("minus-zero", -0.0), ("negative", -1.0), ("inf", np.inf), ("nan", np.nan)):
        yield f"codes-scale-{name}", codes_bytes(scales=f32(1, scale, 1)), "scale"
    for name, scale in (("inf", -np.inf), ("nan", np.nan)):
        values = {"table": b"\x00", "bucket": b"\x00", "scales": f32(*range(7), scale)}
        yield f"codes-values-{name}", codes_bytes(**values), "scale"
    yield "codes-scales-cut", codes_bytes(scales=f32(1, 2), codes=b""), "truncated"
    yield "codes-padding", codes_bytes(codes=CODES["codes"][:-1] + b"\x09"), "padding"
    yield "codes-cut", codes_bytes(codes=CODES["codes"][:-1]), "truncated"
    yield "codes-more", codes_bytes(codes=CODES["codes"] + b"\x00"), "length"
    yield "codes-scale-zero-first", codes_bytes(scales=f32(0, 0, 1)), "scale"
    yield "codes-scale-zero-last", codes_bytes(scales=f32(1, 0, 0)), "scale"
    one = {"bucket": b"\x00", "scales": f32(0)}
    nine = bits(*[(4, 3)] * 6, (5, 3), (4, 3), (4, 3))
    yield "codes-scale-zero-seventh", codes_bytes(**one, codes=nine), "scale"
    nine = bits(*[(4, 3)] * 8, (0, 3))
    yield "codes-scale-zero-ninth", codes_bytes(**one, codes=nine), "scale"
    eight = bytes([127] * 8 + [128])
    yield "codes-dynamic8-scale-zero", codes_bytes(**DYNAMIC, **one, codes=eight), "scale"
    for name, word in (("inf", 0x7C00), ("minus-inf", 0xFC00), ("nan", 0x7C01)):
        yield f"codes-float16-{name}", halves_bytes(3, 0x3C00, word), "value"
    for name, word in (("inf", 0x7F80), ("minus-inf", 0xFF80), ("nan", 0xFFFF)):
        yield f"codes-bfloat16-{name}", halves_bytes(4, 0x3C00, word), "value"
    beyond = b"\x01\x02" + b"\x02\x01\x00" + bits((3, 2), (2, 2)) + bits((0b101, 3))  # 3 and 10
    two = {"bucket": b"\x00", "scales": f32(0), "codes": bits((0, 3), (0, 3))}
    yield "codes-index-before-values", codes_bytes(support=beyond, **two), "index"
    yield "codes-support-3", codes_bytes(support=b"\x03"), "support"
    yield "codes-k-above", codes_bytes(support=b"\x02\x0a" + bytes(8)), "k"
    for name, numel in (("2p31", 2**31), ("2p62", 2**62), ("2p63m1", 2**63 - 1)):
        head = b"\x0a\x01" + varint(numel) + b"\x00"
        yield f"bomb-codes-{name}", seal(head + b"\x01\x08\x00" + f32(1)), "truncated"
        yield f"bomb-codes-scales-{name}", seal(head + b"\x00\x00\x01" + f32(1)), "truncated"
        yield f"bomb-codes-values-{name}", seal(head + b"\x00\x08\x01" + f32(1)), "truncated"
        yield f"bomb-codes-floats-{name}", seal(head + b"\x03\x10\x00"), "truncated"
