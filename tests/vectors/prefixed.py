"""Golden packets of the methods powers and levels2, for make.py."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import wire_bodies as wire
from coded import LARGE, SEED, TINY, body, levels
from pieces import bits, f32, seal, support, varint


def powers(values: Any, shape: tuple[int, ...], index: Any = None, scale: float = 1.0) -> wire.Body:
    return body("powers", shape, index, scale, np.array(values, np.int16))


def fibonacci(rng: np.random.Generator) -> np.ndarray:
    """Seventeen powers whose Huffman code has words of 16 bits."""
    count = [1, 1]
    while len(count) < 17:
        count.append(count[-1] + count[-2])
    return rng.permutation(np.repeat(np.arange(140, 157), count))


def valid() -> Iterator[tuple[str, wire.Body]]:
    rng = np.random.default_rng(11)

    def normal(k: int) -> np.ndarray:
        x = rng.standard_normal(k)
        power = np.floor(np.log2(np.abs(x))).astype(int) + 150
        return power * np.sign(x).astype(int) * (rng.random(k) < 0.9)

    drawn = wire.Drawn(SEED, 100)
    yield "powers-normal", powers(normal(1500), (30, 50))
    yield "powers-2-tiles", powers(normal(5000), (5000,))
    yield "powers-one-tile", powers(normal(4096), (4096,))
    yield "powers-words-of-12-bits", powers(fibonacci(rng), (4180,))
    yield "powers-every-one", powers(np.arange(-277, 278), (555,))
    yield "powers-one", powers([150, -150, 150, 150, -150], (5,))
    yield "powers-one-and-zero", powers([150, 0, -150], (3,))
    yield "powers-zeros", powers([], (70,))
    yield "powers-zeros-numel2p62", powers([], (2**31, 2**31), wire.Drawn(SEED, 9))
    yield "powers-empty", powers([], (0, 3))
    yield "powers-0d", powers([-3], ())
    yield "powers-scale", powers([278, -278, 1, -1, 0, 150], (6,), scale=0.75)
    yield "powers-scale-denormal", powers([277, 150, 149, 1], (4,), scale=TINY)
    yield "powers-scale-large", powers([150, 1, -149], (3,), scale=LARGE)
    yield "powers-indices", powers(normal(100), (600,), support(rng, 600, 100))
    yield "powers-indices-numel2p31", powers(normal(9), (2**31,), support(rng, 2**31, 9))
    yield "powers-random", powers(normal(100), (600,), drawn)

    def levels2(*given: Any) -> wire.Body:
        made = levels(rng, *given)
        return wire.Body("levels2", made.shape, index=made.index, code=made.code)

    yield "levels2-1-step", levels2((1500,), 1500, 0.1, 1, 0)
    yield "levels2-4-steps", levels2((30, 10), 300, 0.6, 4, 64)
    yield "levels2-every-element", levels2((100,), 100, 2.0, 7, 0)
    yield "levels2-2-tiles", levels2((9000,), 9000, 0.6, 15, 512)
    yield "levels2-none", levels2((50,), 50, 0.0, 3, 7)
    yield "levels2-empty", levels2((0,), 0, 0.0, 3, 0)
    yield "levels2-0d", levels2((), 1, 2.0, 3, 0)
    yield "levels2-bucket-1", levels2((20,), 20, 0.7, 2, 1)
    index = support(rng, 600, 100)
    yield "levels2-indices", levels2((600,), 100, 0.7, 3, 16, index)
    yield "levels2-random", levels2((600,), 100, 0.7, 3, 16, drawn)
    edge = np.array([1, 2, 8], np.int32), np.array([1, -32767, 200], np.int16)
    norms = np.array([LARGE, 0, TINY], np.float32)
    yield "levels2-norms-edge", body("levels2", (9,), None, 32767, 3, norms, *edge)
    far = [0, 1, 3, 2**40, 2**40 + 2**33, 2**61 + 5, 2**62 - 1]
    sizes = np.array([1, -2, 3, -4, 255, -32767, 8], np.int16)
    code = 32767, 0, np.ones(1, np.float32), np.array(far), sizes
    yield "levels2-far", body("levels2", (2**62,), None, *code)

    members = powers(normal(9), (9,)), levels2((40,), 40, 0.5, 3, 16), powers([], (4,))
    yield "group-of-prefixed", wire.Body("group", members=members)


def u24(*sizes: int) -> bytes:
    return b"".join(size.to_bytes(3, "little") for size in sizes)


def stream(*words: str) -> bytes:
    """Bits as text, the first one first."""
    text = "".join(words)
    return bits(*((int(bit), 1) for bit in text))


# Nine powers 0 150 150 -150 151 150 0 150 -149; the words of 150, 0, 149, 151 are 0 10 110 111. The
# gaps of the four symbols are 0 148 0 0.
POWERS = {
    "head": b"\x0b\x01\x09",
    "support": b"\x00",
    "scale": f32(1),
    "m": b"\x04",
    "symbols": b"\x05\x04\x00" + bits((0, 5), (20, 5), (0, 5), (0, 5)) + stream("10000111"),
    "lengths": bits((2, 4), (3, 4), (1, 4), (3, 4)),
    "sizes": u24(22),
    "stream": stream("10 00 00 01 1110 00 10 00 1101".replace(" ", "")),
}

# Nine levels 0 1 0 0 -3 2 0 0 0 of three steps, of buckets of four: gaps 1 2 0, magnitudes less one
# 0 2 1, symbols 30 62 1; the words of 62, 1, 30 are 0 10 11. The symbols' gaps are 1 28 31.
LEVELS2 = {
    "head": b"\x10\x01\x09",
    "support": b"\x00",
    "steps": b"\x03",
    "bucket": b"\x04",
    "norms": f32(1, 2, 0.5),
    "count": b"\x03",
    "m": b"\x03",
    "symbols": b"\x04\x02\x00" + bits((1, 4), (12, 4), (15, 4)) + stream("10101"),
    "lengths": bits((2, 4), (2, 4), (1, 4)),
    "sizes": u24(8),
    "stream": stream("110", "01", "100"),
}


def powers_bytes(**fields: bytes) -> bytes:
    return seal(b"".join({**POWERS, **fields}.values()))


def levels2_bytes(**fields: bytes) -> bytes:
    return seal(b"".join({**LEVELS2, **fields}.values()))


def invalid() -> Iterator[tuple[str, bytes, str]]:
    yield "powers-support-3", powers_bytes(support=b"\x03"), "support"
    scales = {"zero": 0.0, "minus-zero": -0.0, "negative": -1.0, "inf": np.inf, "nan": np.nan}
    for name, scale in scales.items():
        yield f"powers-scale-{name}", powers_bytes(scale=f32(scale)), "scale"
    yield "powers-scale-beyond", powers_bytes(scale=f32(2.0**127)), "value"
    yield "powers-m-above-k", powers_bytes(m=b"\x0a"), "code"
    yield "powers-m-of-empty", powers_bytes(head=b"\x0b\x01\x00"), "code"
    yield (
        "powers-m-above-alphabet",
        powers_bytes(head=b"\x0b\x01" + varint(999), m=varint(280)),
        "code",
    )
    yield "powers-m-0-but-more", powers_bytes(m=b"\x00"), "length"
    last = b"\x06\x04\x00" + bits((0, 6), (20, 6), (0, 6), (63, 6)) + stream("10010101")
    yield "powers-symbol-beyond", powers_bytes(symbols=last), "index"
    yield (
        "powers-symbols-unary",
        powers_bytes(symbols=POWERS["symbols"][:-1] + stream("10001110")),
        "unary",
    )
    four = bits((0, 4), (3, 4), (1, 4), (3, 4))
    for name, lengths in {
        "0": four,
        "13": bits((2, 4), (13, 4), (1, 4), (3, 4)),
        "incomplete": bits((2, 4), (3, 4), (2, 4), (3, 4)),
        "too-many": bits((2, 4), (2, 4), (1, 4), (3, 4)),
    }.items():
        yield f"powers-lengths-{name}", powers_bytes(lengths=lengths), "code"
    even = stream("00 100 100 101 110 100 00 100 011".replace(" ", ""))
    yield (
        "powers-lengths-longer",
        powers_bytes(lengths=bits(*[(2, 4)] * 4), sizes=u24(25), stream=even),
        "code",
    )
    yield "powers-lengths-cut", seal(b"".join(list(POWERS.values())[:5]) + b"\x32"), "truncated"
    yield "powers-size-below", powers_bytes(sizes=u24(8)), "tile"
    yield "powers-size-above", powers_bytes(sizes=u24(9 * 13 + 1)), "tile"
    yield (
        "powers-size-less",
        powers_bytes(sizes=u24(21), stream=POWERS["stream"][:2] + b"\x0b"),
        "tile",
    )
    yield "powers-size-more", powers_bytes(sizes=u24(23)), "tile"
    yield "powers-sizes-cut", seal(b"".join(list(POWERS.values())[:6]) + b"\x16\x00"), "truncated"
    yield "powers-padding", powers_bytes(stream=POWERS["stream"][:2] + b"\xab"), "padding"
    yield "powers-cut", powers_bytes(stream=POWERS["stream"][:2]), "truncated"
    # One symbol: a sign bit each, or nothing.
    one = {"m": b"\x01", "sizes": u24(9), "stream": b"\x35\x01"}
    zero, power = b"\x00\x00\x00\x01", b"\x06\x02\x00" + bits((22, 6)) + stream("001")
    yield "powers-zeros-alone", powers_bytes(**one, symbols=zero, lengths=b"\x00"), "code"
    yield "powers-one-of-1-bit", powers_bytes(**one, symbols=power, lengths=b"\x01"), "code"
    yield "powers-lengths-padding", powers_bytes(**one, symbols=power, lengths=b"\x10"), "padding"
    # The powers are all 150, but the code is for 149 too.
    both = b"\x05\x04\x00" + bits((21, 5), (0, 5)) + stream("000011")
    unused = {"m": b"\x02", "symbols": both, "lengths": b"\x11", "sizes": u24(18)}
    yield "powers-unused", powers_bytes(**unused, stream=stream(9 * "10")), "code"

    yield "levels2-steps-0", levels2_bytes(steps=b"\x00"), "steps"
    yield "levels2-bucket-k", levels2_bytes(bucket=b"\x09", norms=f32(1)), "bucket"
    yield "levels2-norm-nan", levels2_bytes(norms=f32(1, np.nan, 2)), "scale"
    yield "levels2-count-above-k", levels2_bytes(count=b"\x0a"), "k"
    yield "levels2-m-0", levels2_bytes(m=b"\x00"), "code"
    yield "levels2-m-above", levels2_bytes(m=b"\x04"), "code"
    yield "levels2-above-steps", levels2_bytes(steps=b"\x02"), "level"
    yield "levels2-of-norm-0", levels2_bytes(norms=f32(1, 0, 0.5)), "level"
    yield "levels2-place-beyond", levels2_bytes(head=b"\x10\x01\x05", norms=f32(1, 2)), "index"
    yield (
        "levels2-size-more",
        levels2_bytes(sizes=u24(9), stream=stream("110", "01", "1000")),
        "tile",
    )
    yield "levels2-size-above", levels2_bytes(sizes=u24(3 * 87 + 1)), "tile"
    beyond = b"\x0a\x03\x00" + bits((1, 10), (28, 10), (708, 10)) + stream("110001")
    yield (
        "levels2-symbol-beyond",
        levels2_bytes(symbols=beyond),
        "index",
    )
    yield "levels2-cut", levels2_bytes(stream=b""), "truncated"
    yield "levels2-length", levels2_bytes(count=b"\x00"), "length"

    for name, numel in (("2p31", 2**31), ("2p62", 2**62), ("2p63m1", 2**63 - 1)):
        n, one_power = varint(numel), f32(1) + b"\x01" + power + b"\x00"
        yield f"bomb-powers-{name}", seal(b"\x0b\x01" + n + b"\x00" + one_power), "truncated"
        yield (
            f"bomb-powers-indices-{name}",
            seal(b"\x0b\x01" + n + b"\x01" + n),
            "truncated",
        )
        head = b"\x10\x01" + n + b"\x00\x03\x00" + f32(1) + n + b"\x01"
        yield f"bomb-levels2-{name}", seal(head + zero + b"\x00"), "truncated"
