"""Golden packets of the method sum, for make.py."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import wire_bodies as wire
from coded import LARGE, TINY, body, levels, plane, polar
from pieces import f32, seal, support

SHAPE = (20, 30)


def sparse(rng: np.random.Generator, k: int, shape: tuple[int, ...] = SHAPE) -> wire.Body:
    numel = int(np.prod(shape, dtype=object))
    value = rng.normal(size=k).astype(np.float32)
    return wire.Body("sparse", shape, index=support(rng, numel, k), value=value)


def ternary(
    rng: np.random.Generator, k: int, scale: float, shape: tuple[int, ...] = SHAPE
) -> wire.Body:
    numel = int(np.prod(shape, dtype=object))
    value = np.where(rng.random(k) < 0.5, -scale, scale).astype(np.float32)
    return wire.Body("ternary", shape, "float32", support(rng, numel, k), value, scale if k else 0)


def total(*terms: wire.Body) -> wire.Body:
    return wire.Body("sum", terms[0].shape, terms[0].dtype, members=terms)


def valid() -> Iterator[tuple[str, wire.Body]]:
    rng = np.random.default_rng(12)
    numel = 600
    dense = wire.Body("dense", SHAPE, value=rng.normal(size=numel).astype(np.float32))
    sign = body("sign", SHAPE, None, 0.125, plane(rng, numel))
    yield "sum-sparse-ternary", total(sparse(rng, 20), ternary(rng, 60, 0.5))
    yield "sum-4-ternary", total(*(ternary(rng, 60, 2.0**-i) for i in range(4)))
    yield "sum-disjoint-empty", total(ternary(rng, 0, 1), ternary(rng, 9, 0.5))
    yield "sum-of-nothing", total(ternary(rng, 0, 1), sparse(rng, 0))
    yield "sum-64", total(*(ternary(rng, 3, 1.5**i) for i in range(64)))
    random = wire.Body("random", SHAPE, index=wire.Drawn(7, 30), value=dense.value[:30])
    coded = levels(rng, SHAPE, numel, 0.3, 3, 64), polar(rng, SHAPE, numel, 64, 32, True)
    yield (
        "sum-of-every-method",
        total(dense, sparse(rng, 5), ternary(rng, 5, 3.0), random, sign, *coded),
    )
    yield (
        "sum-rotated",
        total(sparse(rng, 5), polar(rng, SHAPE, numel, 64, 32, True, sizes=(1024,))),
    )
    yield "sum-rounds-in-order", total(*(ternary(rng, 9, s, (9,)) for s in (1.0, 2.0**24, 0.75)))
    yield "sum-denormal", total(ternary(rng, 9, TINY, (9,)), ternary(rng, 5, 3 * TINY, (9,)))
    yield "sum-largest", total(ternary(rng, 9, LARGE, (9,)), ternary(rng, 9, 1e31, (9,)))
    yield "sum-0d", total(ternary(rng, 1, 1.0, ()), sparse(rng, 1, ()))
    yield "sum-empty", total(ternary(rng, 0, 1.0, (0, 3)), sparse(rng, 0, (0, 3)))
    yield "sum-numel2p40", total(ternary(rng, 9, 1.0, (2**40,)), sparse(rng, 3, (2**40,)))
    means = np.array([0.5, -0.25], np.float32)
    one = body("codes", SHAPE, support(rng, numel, 20), "values", 0, 0, means[:1], plane(rng, 0))
    two = body("codes", SHAPE, support(rng, numel, 20), "values", 1, 0, means, plane(rng, 20))
    yield "sum-of-means", total(one, two)
    halves = np.array([1.5, -3.0], "<f2").view(np.uint8), np.array([0.1, 7.0], "<f4").view(np.uint8)
    yield (
        "sum-of-16-bits",
        total(
            body("codes", (2,), None, "float16", 16, 0, means[:0], halves[0]),
            body("codes", (2,), None, "bfloat16", 16, 0, means[:0], halves[1][[2, 3, 6, 7]]),
        ),
    )
    power = rng.integers(140, 160, numel) * np.where(rng.random(numel) < 0.5, -1, 1)
    made = levels(rng, SHAPE, numel, 0.6, 4, 64)
    yield (
        "sum-of-prefixed",
        total(
            body("powers", SHAPE, None, 0.75, power.astype(np.int16)),
            wire.Body("levels2", made.shape, index=made.index, code=made.code),
            body("powers", SHAPE, None, 2.0, np.zeros(0, np.int16)),
        ),
    )
    other = sparse(rng, 3, (7,))
    yield "group-of-sums", wire.Body("group", members=(other, total(sparse(rng, 2), sign), other))


# +2 at 3 of nine elements, twice.
TERM = b"\x03\x01\x09\x01" + f32(2) + b"\x01\x01\x00\x01\x02\x00"


def sum_bytes(*terms: bytes, head: bytes = b"\x0c\x01\x09", count: int | None = None) -> bytes:
    return head + bytes([len(terms) if count is None else count]) + b"".join(terms)


def invalid() -> Iterator[tuple[str, bytes, str]]:
    good = sum_bytes(TERM, TERM)
    wire.unpack(seal(good))

    def changed(at: int, to: int) -> bytes:
        return TERM[:at] + bytes([to]) + TERM[at + 1 :]

    yield "sum-count-0", seal(sum_bytes()), "count"
    yield "sum-count-1", seal(sum_bytes(TERM)), "count"
    yield "sum-count-65", seal(sum_bytes(*[TERM] * 65)), "count"
    yield "sum-cut", seal(good[:-1]), "truncated"
    yield "sum-term-missing", seal(sum_bytes(TERM, TERM, count=3)), "truncated"
    yield "sum-one-more", seal(sum_bytes(TERM, TERM, TERM, count=2)), "length"
    yield "sum-dtype", seal(sum_bytes(TERM, changed(1, 0x11))), "dtype"
    yield "sum-shape", seal(sum_bytes(TERM, changed(2, 10))), "shape"
    yield "sum-ndim", seal(sum_bytes(TERM, b"\x03\x02\x09\x01" + TERM[3:])), "shape"
    yield "sum-in-sum", seal(sum_bytes(TERM, good)), "method"
    yield "sum-of-group", seal(sum_bytes(TERM, b"\x05\x01" + TERM)), "method"
    merged = wire.pack(wire.merge([wire.unpack(seal(TERM))] * 2))[5:-8]
    yield "sum-of-merged", seal(sum_bytes(TERM, merged)), "method"
    yield "sum-term-scale", seal(sum_bytes(TERM, TERM[:4] + f32(-2) + TERM[8:])), "scale"
    yield "sum-term-index", seal(sum_bytes(TERM, changed(12, 0x01))), "unary"
    large = TERM[:4] + f32(3e38) + TERM[8:]
    yield "sum-inf", seal(sum_bytes(large, large)), "value"
    away = large[:8] + b"\x01\x02\x00\x00\x04\x00"  # at 4
    yield "sum-bounds-inf", seal(sum_bytes(large, away)), "value"
    most = b"\x0a\x01\x09\x00\x04\x10\x00" + 8 * b"\x00\x00" + b"\x7f\x7f"  # the largest bfloat16
    yield "sum-bfloat16-inf", seal(sum_bytes(large, most)), "value"
    yield "group-of-sum-in-sum", seal(b"\x05\x01" + sum_bytes(TERM, good)), "method"
