"""Writes the golden packets of format version 1 that are not there yet; never one that is.

    python tests/vectors/make.py

valid/NAME.gcx must be accepted by every later gcext, and packed again to the same bytes.
invalid/NAME.gcx carries a right checksum (but where its name says otherwise) and must be refused
with the code that index.json gives. Where a packet's values are decoded and not stored, index.json
also has the XXH3-64 of the float32 values: no later gcext may decode others.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import coded
import numpy as np
import prefixed
import sketches
import sums
import tables
import transforms
import wire_bodies as wire
import xxhash
from pieces import bits, f32, seal, support, varint

from gcext import Packet

HERE = Path(__file__).parent / "v1"


def ternary(
    rng: np.random.Generator,
    shape: tuple[int, ...],
    k: int,
    scale: float = 0.125,
    dtype: str = "float32",
) -> wire.Body:
    index = support(rng, int(np.prod(shape, dtype=object)), k)
    value = np.where(rng.random(k) < 0.5, -scale, scale).astype(np.float32)
    return wire.Body("ternary", shape, dtype, index, value, scale if k else 0.0)


def sparse(
    rng: np.random.Generator, shape: tuple[int, ...], k: int, dtype: str = "float32"
) -> wire.Body:
    index = support(rng, int(np.prod(shape, dtype=object)), k)
    return wire.Body("sparse", shape, dtype, index, rng.normal(size=k).astype(np.float32))


def valid() -> Iterator[tuple[str, wire.Body]]:
    rng = np.random.default_rng(1)
    for dtype in wire.DTYPES:
        yield f"ternary-{dtype}", ternary(rng, (20, 30), 60, dtype=dtype)
        yield f"sparse-{dtype}", sparse(rng, (20, 30), 20, dtype=dtype)
        yield (
            f"dense-{dtype}",
            wire.Body("dense", (3, 4), dtype, value=rng.normal(size=12).astype(np.float32)),
        )
    for k in (0, 1, 2, 7, 8, 9, 63, 64, 65, 1023, 1024, 1025, 2049):
        yield f"ternary-k{k}", ternary(rng, (40_000,), k)
        if k < 1000:
            yield f"sparse-k{k}", sparse(rng, (5_000,), k)
    for name, numel in (
        ("2p31m1", 2**31 - 1),
        ("2p31", 2**31),
        ("2p32p1", 2**32 + 1),
        ("2p40", 2**40),
        ("2p63m1", 2**63 - 1),
    ):
        for k in (1, 65):
            yield f"ternary-numel{name}-k{k}", ternary(rng, (numel,), k)
        last = np.array([0, numel - 1], np.int32 if numel < 2**31 else np.int64)
        yield (
            f"sparse-numel{name}-ends",
            wire.Body("sparse", (numel,), index=last, value=np.array([1, -2], np.float32)),
        )
    yield "ternary-0d", ternary(rng, (), 1)
    yield "ternary-15d", ternary(rng, (1, 2, 1, 2, 1, 2, 1, 2, 1, 2, 1, 2, 1, 2, 1), 9)
    yield "ternary-every-element", ternary(rng, (1500,), 1500)
    yield "ternary-empty-shape", ternary(rng, (3, 0, 2**40), 0)
    tiny, large = float(np.float32(1e-45)), float(np.finfo(np.float32).max)
    yield "ternary-scale-denormal", ternary(rng, (50,), 5, tiny)
    yield "ternary-scale-largest", ternary(rng, (50,), 5, large)
    edge = np.array([tiny, -tiny, large, -large, 1.0], np.float32)
    yield (
        "sparse-values-edge",
        wire.Body("sparse", (9,), index=np.arange(5, dtype=np.int32), value=edge),
    )
    yield "dense-empty", wire.Body("dense", (0,), value=np.zeros(0, np.float32))
    yield "dense-0d", wire.Body("dense", (), value=np.array([-0.0], np.float32))
    clustered = np.concatenate([np.arange(1000), 5000 + 97 * np.arange(1200)]).astype(np.int32)
    yield (
        "ternary-clustered",
        wire.Body(
            "ternary", (10**6,), index=clustered, value=np.full(2200, 2, np.float32), scale=2.0
        ),
    )
    parts = [ternary(rng, (100, 20), 150, scale) for scale in (0.1, 3.0, 0.7, 1e-3)]
    yield "merged-2", wire.merge(parts[:2])
    yield "merged-4", wire.merge(parts)
    yield "merged-same-twice", wire.merge([parts[0], parts[0]])
    yield "merged-one-empty", wire.merge([parts[0], ternary(rng, (100, 20), 0)])
    yield "merged-all-empty", wire.merge([ternary(rng, (100, 20), 0)] * 2)
    plus = wire.Body(
        "ternary", (8,), index=np.array([3], np.int32), value=np.array([2], np.float32), scale=2.0
    )
    minus = wire.Body(
        "ternary", (8,), index=np.array([3], np.int32), value=np.array([-2], np.float32), scale=2.0
    )
    yield "merged-cancels", wire.merge([plus, minus])
    far = [ternary(rng, (6,), 6, scale) for scale in (3e38, 1.0, tiny, 2e-20, 1e19)]
    yield "merged-far-scales", wire.merge(far)
    yield "merged-64", wire.merge([ternary(rng, (3000,), 40, 0.01 * (j + 1)) for j in range(64)])
    members = (
        ternary(rng, (16, 3, 3, 3), 20),
        sparse(rng, (10,), 3),
        wire.Body("dense", (2,), value=np.ones(2, np.float32)),
    )
    yield "group-1", wire.Body("group", members=members[:1])
    yield "group-3", wire.Body("group", members=members)
    yield "group-with-merged", wire.Body("group", members=(wire.merge(parts[:2]), *members))
    yield "group-of-empty", wire.Body("group", members=(ternary(rng, (7,), 0),) * 20)


# The ternary body of the page's example, field by field; a case replaces some of them.
EXAMPLE = {
    "method": b"\x03",
    "type": b"\x02",
    "dims": b"\x04\xfa\x01",
    "k": b"\x04",
    "scale": f32(0.5),
    "tiles": b"\x07\x04\x00",
    "remainders": b"\x03\x40\x3f\x07",
    "unary": b"\x87",
    "signs": b"\x06",
}


def ternary_bytes(**fields: bytes) -> bytes:
    return b"".join({**EXAMPLE, **fields}.values())


# Two ternary packets of shape (9,): +2 at 3, -2 at 5, and +7 at 3.
MERGED = {
    "head": b"\x04\x01\x09\x02",
    "scales": f32(2, 7),
    "counts": b"\x02\x03",
    "index": b"\x01\x01\x00" + bits((1, 1), (1, 1)) + bits((0b110, 3)),
    "places": b"\x00\x00\x00" + bits((0b111, 3)),
    "signs": b"\x04",
}


def merged_bytes(**fields: bytes) -> bytes:
    return b"".join({**MERGED, **fields}.values())


def sparse_bytes(values: bytes, k: bytes = b"\x02", section: bytes = b"\x00\x00\x00\x03") -> bytes:
    return b"\x02\x01\x09" + k + section + values


def invalid() -> Iterator[tuple[str, bytes, str]]:
    good, big = ternary_bytes(), varint(2**62)
    yield "magic", b"\x88" + seal(good)[1:], "magic"
    yield "version-0", seal(good, 0), "version"
    yield "version-2", seal(good, 2), "version"
    yield "checksum", seal(good)[:-1] + b"\x00", "checksum"
    yield "empty", b"", "truncated"
    yield "short-12", seal(b"")[:12], "truncated"
    yield "no-body", seal(b""), "truncated"
    for method in (0, 6, 7, 10, 16, 17, 255):  # some were reserved when these were made
        code = "support" if method in (6, 7, 10, 16) else "method"
        yield f"method-{method}", seal(ternary_bytes(method=bytes([method]))), code
    for dtype in (4, 15):
        yield f"dtype-{dtype}", seal(ternary_bytes(type=bytes([dtype << 4 | 2]))), "dtype"
    yield "dims-missing", seal(b"\x03\x02\x04"), "truncated"
    yield "varint-cut", seal(b"\x03\x01\x84"), "truncated"
    yield "varint-long-zero", seal(ternary_bytes(dims=b"\x84\x00\xfa\x01")), "varint"
    yield "varint-2p63", seal(ternary_bytes(dims=b"\x04" + b"\x80" * 9 + b"\x01")), "varint"
    yield "varint-k-long", seal(ternary_bytes(k=b"\x84\x00")), "varint"
    yield "shape-2p63", seal(ternary_bytes(dims=big + b"\x02")), "shape"
    yield "shape-wraps-to-0", seal(ternary_bytes(dims=big + big)), "shape"
    yield "shape-2p63-times-0", seal(b"\x03\x03" + big + b"\x02\x00\x00"), "shape"
    yield "k-above-numel", seal(ternary_bytes(k=varint(1001))), "k"
    yield "k-of-empty", seal(b"\x03\x01\x00\x01" + f32(1) + b"\x00\x00\x00\x01\x00"), "k"
    for name, numel in (("2p31", 2**31), ("2p32", 2**32), ("2p62", 2**62), ("2p63m1", 2**63 - 1)):
        head = b"\x01" + varint(numel)
        yield f"bomb-ternary-{name}", seal(b"\x03" + head + varint(numel) + f32(1)), "truncated"
        yield f"bomb-sparse-{name}", seal(b"\x02" + head + varint(numel)), "truncated"
        yield f"bomb-dense-{name}", seal(b"\x01" + head), "truncated"
        members = varint(2 * numel) if numel < 2**62 else varint(numel)
        yield (
            f"bomb-merged-{name}",
            seal(b"\x04" + head + b"\x02" + f32(1, 1) + varint(numel) + members),
            "truncated",
        )
        yield (
            f"bomb-group-{name}",
            seal(b"\x05" + varint(numel) + b"\x01\x00" + f32(1)),
            "truncated",
        )
    for name, scale in (
        ("zero", 0.0),
        ("minus-zero", -0.0),
        ("negative", -1.0),
        ("inf", np.inf),
        ("nan", np.nan),
    ):
        yield f"scale-{name}", seal(ternary_bytes(scale=f32(scale))), "scale"
    yield "scale-of-nothing", seal(b"\x03\x01\x09\x00" + f32(0)), "length"
    yield "tile-b-63", seal(ternary_bytes(tiles=b"\x3f\x04\x00")), "tile"
    yield "tile-b-255", seal(ternary_bytes(tiles=b"\xff\x04\x00")), "tile"
    yield "tile-zeros-many", seal(ternary_bytes(tiles=b"\x07\x09\x00")), "tile"
    long = bits((3, 8), (0, 8), (125, 8), (569 & 255, 8)), bits((0b100111, 6))
    yield (
        "tile-b-large",
        seal(ternary_bytes(tiles=b"\x08\x02\x00", remainders=long[0], unary=long[1])),
        "tile",
    )
    low = bits((3, 6), (0, 6), (61, 6), (57, 6))  # the example's remainders, were b = 6
    true, fewer = bits((0b1011, 4), (1 << 8, 9)), bits((0b1011, 4), (1 << 7, 8))
    yield (
        "tile-zeros-too-many-by-1",
        seal(ternary_bytes(tiles=b"\x06\x09\x00", remainders=low, unary=true)),
        "tile",
    )
    yield (
        "tile-b-small",
        seal(ternary_bytes(tiles=b"\x06\x08\x00", remainders=low, unary=fewer)),
        "tile",
    )
    yield "unary-early", seal(ternary_bytes(unary=b"\x47")), "unary"
    yield "unary-many", seal(ternary_bytes(unary=b"\x8f")), "unary"
    yield "unary-few", seal(ternary_bytes(unary=b"\x83")), "unary"
    yield "index-at-numel", seal(ternary_bytes(dims=b"\x04" + varint(175))), "index"
    top = bits(((1 << 62) - 1, 62), ((1 << 62) - 1, 62))
    yield (
        "index-wraps",
        seal(
            b"\x02\x01"
            + varint(2**63 - 1)
            + b"\x02\x3e\x02\x00"
            + top
            + bits((0b1010, 4))
            + f32(1, 1)
        ),
        "index",
    )
    yield "padding-remainders", seal(ternary_bytes(remainders=b"\x03\x40\x3f\x87")), "padding"
    yield "padding-signs", seal(ternary_bytes(signs=b"\x16")), "padding"
    yield "padding-unary", seal(sparse_bytes(f32(1, 1), section=b"\x00\x00\x00\x83")), "padding"
    for name, value in (("zero", 0.0), ("minus-zero", -0.0), ("inf", -np.inf), ("nan", np.nan)):
        yield f"value-{name}", seal(sparse_bytes(f32(1, value))), "value"
    yield "value-cut", seal(sparse_bytes(f32(1) + b"\x00")), "truncated"
    yield "dense-nan", seal(b"\x01\x01\x02" + f32(0, np.nan)), "value"
    yield "dense-inf", seal(b"\x01\x01\x02" + f32(np.inf, 0)), "value"
    yield "dense-cut", seal(b"\x01\x01\x02" + f32(1)), "truncated"
    yield "length-1", seal(good + b"\x00"), "length"
    yield "length-second-body", seal(good + good), "length"
    yield "count-0", seal(b"\x05\x00"), "count"
    yield "group-in-group", seal(b"\x05\x01\x05\x01" + good), "method"
    yield "group-one-missing", seal(b"\x05\x02" + good), "truncated"
    yield "group-one-more", seal(b"\x05\x01" + good + good), "length"
    yield "group-second-wrong", seal(b"\x05\x02" + good + ternary_bytes(unary=b"\x47")), "unary"
    for parts in (0, 1):
        yield (
            f"parts-{parts}",
            seal(b"\x04\x01\x09" + bytes([parts]) + f32(*[2] * parts) + b"\x00"),
            "parts",
        )
    yield "parts-4097", seal(b"\x04\x01\x09" + varint(4097) + f32(*[0] * 4097) + b"\x00"), "parts"
    yield "merged-scale-minus-zero", seal(merged_bytes(scales=f32(2, -0.0))), "scale"
    yield "merged-scale-nan", seal(merged_bytes(scales=f32(np.nan, 7))), "scale"
    yield "merged-scale-zero-but-used", seal(merged_bytes(scales=f32(2, 0))), "scale"
    unused = b"\x04\x01\x09\x03"
    wide = b"\x00\x01\x00" + bits((0b1011, 4))
    yield (
        "merged-scale-of-empty",
        seal(merged_bytes(head=unused, scales=f32(2, 7, 1), places=wide)),
        "scale",
    )
    yield "merged-sum-inf", seal(merged_bytes(scales=f32(3e38, 3e38))), "value"
    yield "merged-k-above", seal(merged_bytes(counts=b"\x0a\x0a")), "k"
    yield "merged-members-few", seal(merged_bytes(counts=b"\x02\x01")), "member"
    yield "merged-members-many", seal(merged_bytes(counts=b"\x02\x05")), "member"
    yield (
        "merged-first-left-out",
        seal(merged_bytes(counts=b"\x02\x02", places=b"\x00\x02\x00\x0c", signs=b"\x00")),
        "member",
    )
    yield (
        "merged-last-left-out",
        seal(merged_bytes(counts=b"\x02\x02", places=b"\x00\x00\x00\x03", signs=b"\x00")),
        "member",
    )
    yield (
        "merged-place-beyond",
        seal(merged_bytes(places=b"\x00\x02\x00" + bits((0b10011, 5)))),
        "index",
    )
    yield "merged-padding", seal(merged_bytes(signs=b"\x0c")), "padding"
    yield "merged-cut", seal(merged_bytes(signs=b"")), "truncated"


def main() -> None:
    for kind in ("valid", "invalid"):
        (HERE / kind).mkdir(parents=True, exist_ok=True)
    index_path = HERE / "index.json"
    index: dict[str, Any] = {"valid": [], "invalid": {}, "values": {}}
    if index_path.exists():
        index |= json.loads(index_path.read_text())
    others = (coded, tables, prefixed, sums, sketches, transforms)
    for name, body in itertools.chain(valid(), *(each.valid() for each in others)):
        if name not in index["valid"]:
            message = wire.pack(body)
            (HERE / "valid" / f"{name}.gcx").write_bytes(message)
            index["valid"].append(name)
            if body.code or body.method == "sum":
                values = Packet.from_bytes(message).values().numpy().astype("<f4").tobytes()
                index["values"][name] = xxhash.xxh3_64_hexdigest(values)
    for name, message, code in itertools.chain(invalid(), *(each.invalid() for each in others)):
        if name not in index["invalid"]:
            (HERE / "invalid" / f"{name}.gcx").write_bytes(message)
            index["invalid"][name] = code
    index_path.write_text(json.dumps(index, indent=1) + "\n")


if __name__ == "__main__":
    main()
