"""Golden packets of the methods random, sign, levels and polar, for make.py."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import wire_bodies as wire
from pieces import bits, f32, seal, support, varint

TINY, LARGE = float(np.float32(1e-45)), float(np.finfo(np.float32).max)
SEED = 0x0123456789ABCDEF


def plane(rng: np.random.Generator, count: int) -> np.ndarray:
    return np.packbits(rng.integers(0, 2, count, dtype=np.uint8), bitorder="little")


def body(method: str, shape: tuple[int, ...], index: Any, *code: Any) -> wire.Body:
    return wire.Body(method, shape, index=index, code=code)


def levels(
    rng: np.random.Generator, shape: tuple[int, ...], k: int, share: float, steps: int, bucket: int,
    index: Any = None,
) -> wire.Body:  # fmt: skip
    wide = int(np.prod(shape, dtype=object)) >= 2**31
    at = np.flatnonzero(rng.random(k) < share).astype(np.int64 if wide else np.int32)
    size = np.minimum(rng.geometric(0.3, len(at)), steps)
    level = (size * rng.choice([-1, 1], len(at))).astype(np.int16)
    norms = rng.random(-(-k // bucket) if bucket else min(k, 1)).astype(np.float32)
    return body("levels", shape, index, steps, bucket, norms, at, level)


def polar(
    rng: np.random.Generator, shape: tuple[int, ...], k: int, block: int, kept: int, soft: bool,
    index: Any = None, sizes: tuple[int, ...] = (),
) -> wire.Body:  # fmt: skip
    message = plane(rng, kept * -(-(sum(sizes) or k) // block))
    scale = rng.random(len(sizes) or 1).astype(np.float32)
    return body("polar", shape, index, message, block, kept, soft, scale, SEED if sizes else None)


def valid() -> Iterator[tuple[str, wire.Body]]:
    rng = np.random.default_rng(2)

    def drawn(k: int) -> wire.Drawn:
        return wire.Drawn(int(rng.integers(0, 2**63)), k)

    def random(shape: tuple[int, ...], value: Any, dtype: str = "float32") -> wire.Body:
        value = np.array(value, np.float32)
        return wire.Body("random", shape, dtype, drawn(len(value)), value)

    yield "random-float32", random((20, 30), rng.normal(size=30))
    yield "random-float64", random((20, 30), rng.normal(size=30), "float64")
    yield "random-k0", random((600,), [])
    yield "random-empty", random((0, 3), [])
    yield "random-every-element", random((70,), rng.normal(size=70))
    yield "random-values-edge", random((9,), [0.0, -0.0, TINY, -LARGE])
    yield "random-numel2p31", random((2**31,), rng.normal(size=9))
    yield "random-numel2p63m1", random((2**63 - 1,), rng.normal(size=9))

    for k in (0, 1, 8, 9, 1000):
        yield f"sign-k{k}", body("sign", (k,), None, 0.125, plane(rng, k))
    yield "sign-0d", body("sign", (), None, 3.0, plane(rng, 1))
    yield "sign-scale-zero", body("sign", (9,), None, 0.0, np.zeros(2, np.uint8))
    yield "sign-scale-denormal", body("sign", (9,), None, TINY, plane(rng, 9))
    yield "sign-scale-largest", body("sign", (9,), None, LARGE, plane(rng, 9))
    yield "sign-random", body("sign", (20, 30), drawn(77), 0.5, plane(rng, 77))
    yield "sign-random-numel2p40", body("sign", (2**40,), drawn(7), 0.5, plane(rng, 7))

    yield "levels-1-step", levels(rng, (1500,), 1500, 0.1, 1, 0)
    yield "levels-4-steps", levels(rng, (30, 10), 300, 0.6, 4, 64)
    yield "levels-every-element", levels(rng, (100,), 100, 2.0, 7, 0)
    yield "levels-2-tiles", levels(rng, (2300,), 2300, 0.95, 15, 512)
    yield "levels-none", levels(rng, (50,), 50, 0.0, 3, 7)
    yield "levels-empty", levels(rng, (0,), 0, 0.0, 3, 0)
    yield "levels-0d", levels(rng, (), 1, 2.0, 3, 0)
    yield "levels-bucket-1", levels(rng, (20,), 20, 0.7, 2, 1)
    index = support(rng, 600, 100)
    yield "levels-indices", levels(rng, (600,), 100, 0.7, 3, 16, index)
    yield "levels-indices-numel2p31", levels(rng, (2**31,), 9, 0.7, 3, 4, support(rng, 2**31, 9))
    yield "levels-random", levels(rng, (600,), 100, 0.7, 3, 16, drawn(100))
    three = np.array([1, 4, 5], np.int32), np.array([1, -32767, 200], np.int16)
    norms = np.array([LARGE, 0, TINY], np.float32)
    edge = np.array([1, 2, 8], np.int32)  # none in the bucket of norm 0; the last rounds to 0
    yield "levels-norms-edge", body("levels", (9,), None, 32767, 3, norms, edge, three[1])
    yield "levels-norm-denormal", body("levels", (9,), None, 32767, 0, norms[2:], *three)

    yield "polar-soft", polar(rng, (30, 10), 300, 64, 32, True)
    yield "polar-hard", polar(rng, (300,), 300, 64, 32, False)
    yield "polar-unlisted", polar(rng, (300,), 300, 64, 17, False)
    yield "polar-soft-unlisted", polar(rng, (300,), 300, 32, 11, True)
    yield "polar-kept-0", polar(rng, (300,), 300, 64, 0, True)
    yield "polar-kept-all", polar(rng, (300,), 300, 64, 64, True)
    yield "polar-1024", polar(rng, (5000,), 5000, 1024, 102, True)
    yield "polar-2-groups", polar(rng, (2500,), 2500, 32, 16, True)
    yield "polar-empty", polar(rng, (0,), 0, 32, 16, True)
    yield "polar-0d", polar(rng, (), 1, 32, 16, True)
    yield "polar-indices", polar(rng, (600,), 100, 32, 16, True, index)
    yield "polar-random", polar(rng, (600,), 100, 32, 16, True, drawn(100))
    yield "polar-rotated", polar(rng, (300,), 300, 64, 32, True, sizes=(512,))
    yield "polar-rotated-hard", polar(rng, (40,), 40, 32, 16, False, sizes=(64,))
    yield "polar-rotated-2-chunks", polar(rng, (70_000,), 70_000, 64, 6, True, sizes=(65_536, 8192))
    yield "polar-rotated-random", polar(rng, (600,), 100, 32, 16, True, drawn(100), sizes=(128,))
    empty = plane(rng, 0), 32, 16, True, np.zeros(0, np.float32), SEED
    yield "polar-rotated-empty", body("polar", (0,), None, *empty)

    members = (
        random((5, 2), [1.0, -2.0]),
        body("sign", (9,), None, 0.5, plane(rng, 9)),
        levels(rng, (40,), 40, 0.5, 3, 16),
        polar(rng, (70,), 70, 32, 16, True),
        wire.Body("dense", (2,), value=np.ones(2, np.float32)),
    )
    yield "group-of-coded", wire.Body("group", members=members)


# Nine levels 0 1 0 0 -3 2 0 0 0 of three steps, of buckets of four elements.
LEVELS = {
    "head": b"\x08\x01\x09",
    "support": b"\x00",
    "steps": b"\x03",
    "bucket": b"\x04",
    "norms": f32(1, 2, 0.5),
    "count": b"\x03",
    "places": b"\x00\x03\x00" + bits((0b110010, 6)),
    "signs": b"\x02",
    "levels": b"\x00\x03\x00" + bits((0b101001, 6)),
}

# Forty symbols in two blocks of 32, 8 bits each.
POLAR = {
    "head": b"\x09\x01\x28",
    "support": b"\x00",
    "table": b"\x01",
    "flags": b"\x00",
    "block": b"\x05",
    "kept": b"\x08",
    "seed": b"",
    "scales": f32(0.5),
    "message": b"\x35\x4a",
}


def levels_bytes(**fields: bytes) -> bytes:
    return seal(b"".join({**LEVELS, **fields}.values()))


def polar_bytes(**fields: bytes) -> bytes:
    return seal(b"".join({**POLAR, **fields}.values()))


def random_bytes(support: bytes = b"\x02\x02" + bytes(8), values: bytes = f32(1, 0)) -> bytes:
    return seal(b"\x06\x01\x09" + support + values)


def sign_bytes(support: bytes = b"\x00", scale: float = 0.5, signs: bytes = b"\x35\x01") -> bytes:
    return seal(b"\x07\x01\x09" + support + f32(scale) + signs)


def invalid() -> Iterator[tuple[str, bytes, str]]:
    section = b"\x02" + b"\x00\x00\x00\x03"  # the indices 0 and 1
    yield "support-3", levels_bytes(support=b"\x03"), "support"
    yield "support-cut", seal(b"\x08\x01\x09"), "truncated"
    yield "random-support-all", random_bytes(b"\x00"), "support"
    yield "random-support-indices", random_bytes(b"\x01" + section), "support"
    yield "random-k-above", random_bytes(b"\x02\x0a" + bytes(8), f32(*range(10))), "k"
    yield "random-seed-cut", random_bytes(b"\x02\x02" + bytes(7), b""), "truncated"
    yield "random-nan", random_bytes(values=f32(1, np.nan)), "value"
    yield "random-cut", random_bytes(values=f32(1)), "truncated"
    yield "sign-support-indices", sign_bytes(b"\x01" + section, 0.5, b"\x01"), "support"
    yield "sign-scale-zero-but-set", sign_bytes(scale=0.0), "scale"
    for name, scale in (("minus-zero", -0.0), ("negative", -1.0), ("inf", np.inf), ("nan", np.nan)):
        yield f"sign-scale-{name}", sign_bytes(scale=scale, signs=b"\x00\x00"), "scale"
        yield f"levels-norm-{name}", levels_bytes(norms=f32(1, 2, scale)), "scale"
        yield f"polar-scale-{name}", polar_bytes(scales=f32(scale)), "scale"
    yield "sign-padding", sign_bytes(signs=b"\x35\x03"), "padding"
    yield "sign-cut", sign_bytes(signs=b"\x35"), "truncated"

    yield "steps-0", levels_bytes(steps=b"\x00"), "steps"
    yield "steps-2p15", levels_bytes(steps=varint(2**15)), "steps"
    yield "bucket-k", levels_bytes(bucket=b"\x09", norms=f32(1)), "bucket"
    yield "levels-norms-cut", seal(b"\x08\x01\x09\x00\x03\x04" + f32(1, 2)), "truncated"
    yield "levels-count-above-k", levels_bytes(count=b"\x0a"), "k"
    tenth = b"\x01\x03\x00" + bits((1, 1), (0, 1), (1, 1)) + bits((0b100101, 6))  # 1 4 10
    yield "levels-place-beyond", levels_bytes(places=tenth), "index"
    yield "levels-index-beyond", levels_bytes(support=b"\x01\x01\x03\x02\x00\x04\x04"), "bucket"
    late = b"\x01\x02\x02\x01\x00" + bits((3, 2), (2, 2)) + bits((0b101, 3))  # 3 and 10
    yield (
        "levels-support-beyond",
        levels_bytes(
            support=late, bucket=b"\x00", norms=f32(1), count=b"\x00", places=b"", signs=b"",
            levels=b"",
        ),
        "index",
    )  # fmt: skip
    yield "levels-signs-padding", levels_bytes(signs=b"\x0a"), "padding"
    most = {"count": b"\x07", "places": b"\x02\x01\x00" + bits((2, 2), (2, 2)) + bits((0b101, 3))}
    yield "levels-zero-beyond", levels_bytes(**most, levels=b"\x00\x00\x00\x7f"), "index"
    yield "levels-above-steps", levels_bytes(steps=b"\x02"), "level"
    tenth = b"\x01\x04\x00\x00" + bits((0b1000011, 7))  # numbers 0 1 10
    yield "levels-number-beyond", levels_bytes(levels=tenth), "index"
    yield "levels-of-norm-0", levels_bytes(norms=f32(1, 0, 0.5)), "level"
    yield "levels-cut", levels_bytes(levels=b"\x00\x03\x00"), "truncated"
    yield "levels-1-step-but-more", levels_bytes(steps=b"\x01"), "length"

    for table in (0, 2):
        yield f"polar-table-{table}", polar_bytes(table=bytes([table])), "polar"
    for flag in (4, 128):
        yield f"polar-flag-{flag}", polar_bytes(flags=bytes([flag])), "polar"
    for block in (4, 21):
        yield f"polar-block-{block}", polar_bytes(block=bytes([block])), "polar"
    yield "polar-kept-above", polar_bytes(kept=b"\x21", message=bytes(9)), "polar"
    yield "polar-padding", polar_bytes(kept=b"\x07"), "padding"
    yield "polar-cut", polar_bytes(message=b"\x35"), "truncated"
    rotated = {"flags": b"\x03", "seed": bytes(8)}
    above = f32(2.0**116 * (1 + 2.0**-23))
    yield "polar-rotated-scale-above", polar_bytes(**rotated, scales=above), "scale"
    yield "polar-rotated-scales-cut", polar_bytes(**rotated, scales=b"", message=b""), "truncated"
    yield "polar-support-k-above", polar_bytes(support=b"\x02\x29" + bytes(8)), "k"

    for name, numel in (("2p31", 2**31), ("2p62", 2**62), ("2p63m1", 2**63 - 1)):
        head, n = b"\x01" + varint(numel), varint(numel)
        seed, one = bytes(8), f32(1)
        yield f"bomb-random-{name}", seal(b"\x06" + head + b"\x02" + n + seed), "truncated"
        yield f"bomb-sign-{name}", seal(b"\x07" + head + b"\x00" + one), "truncated"
        yield f"bomb-levels-norms-{name}", seal(b"\x08" + head + b"\x00\x03\x01"), "truncated"
        several = b"\x08" + head + b"\x00\x03\x00" + one + n
        yield f"bomb-levels-{name}", seal(several), "truncated"
        indices = b"\x08" + head + b"\x01" + n
        yield f"bomb-levels-indices-{name}", seal(indices), "truncated"
        plain = b"\x09" + head + b"\x00\x01\x00\x0a\x80\x08"
        yield f"bomb-polar-{name}", seal(plain + one), "truncated"
        turned = b"\x09" + head + b"\x00\x01\x02\x0a\x80\x08" + seed
        yield f"bomb-polar-rotated-{name}", seal(turned), "truncated"
