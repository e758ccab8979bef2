"""Methods from 6 on: what they decode to, what pack refuses, how long they are."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy_decoder as reference
import numpy_values as reference_values
import pytest
import wire_bodies as wire
import xxhash
from wire_kit import INDEX, golden

import gcext


@pytest.mark.parametrize(("name", "digest"), INDEX["values"].items())
def test_golden_packets_decode_unchanged(name: str, digest: str) -> None:
    message = golden("valid", name)
    packet = gcext.Packet.from_bytes(message)
    index, value = reference_values.pairs(reference.decode(message))
    assert packet.indices().tolist() == index
    decoded = packet.values().numpy().astype("<f4").tobytes()
    assert decoded == value.astype("<f4").tobytes()
    assert np.isfinite(value).all()
    assert xxhash.xxh3_64_hexdigest(decoded) == digest


def wrong_coded() -> dict[str, wire.Body]:
    """The error of pack for an invalid coded body, and the body."""
    byte, one = np.zeros(2, np.uint8), np.ones(1, np.float32)
    at, level = np.array([1, 4], np.int32), np.array([1, -2], np.int16)
    powers = np.full(9, 150, np.int16)
    drawn, index = wire.Drawn(1, 9), np.arange(9, dtype=np.int32)
    nine, ones, halves = np.full(9, 128, np.uint8), np.ones(9, np.float32), np.zeros(18, np.uint8)

    def coded(method: str, index: Any, *code: Any, value: Any = None) -> wire.Body:
        return wire.Body(method, (9,), index=index, value=value, code=code)

    return {
        "with a support of all": coded("random", None, value=ones),
        "with a support of indices": coded("sign", index, 0.5, byte),
        r"k must be in \[0, 9\]": coded("random", wire.Drawn(1, 10), value=np.ones(10, np.float32)),
        "needs 9 values, got 1": coded("random", drawn, value=one),
        "values must be finite, got another at place 0": coded(
            "random", wire.Drawn(1, 1), value=one * np.inf
        ),
        "needs 2 bytes of signs, got 1": coded("sign", None, 0.5, byte[:1]),
        "must end with zeros": coded("sign", None, 0.5, byte + 2),
        "scale 0 must have no bit set": coded("sign", None, 0.0, byte + 1),
        "the scale of a sign packet must be at least 0 and finite": coded("sign", None, -1.0, byte),
        r"steps must be in \[1, 32767\], got 0": coded("levels", None, 0, 0, one, at, level),
        r"bucket must be in \[0, 9\), got 9": coded("levels", None, 3, 9, one, at, level),
        "needs 3 norms, got 1": coded("levels", None, 3, 4, one, at, level),
        "needs 2 levels": coded("levels", None, 3, 0, one, at, level[:1]),
        "norms of a levels packet": coded("levels", None, 3, 0, one * np.nan, at, level),
        "below the number of elements 9": coded("levels", None, 3, 0, one, at + 5, level),
        r"levels must be in \[-1, 1\]": coded("levels", None, 1, 0, one, at, level),
        "norm must be positive": coded("levels", None, 3, 0, one * 0, at, level),
        "array of int16": coded("levels", None, 3, 0, one, at, level.astype(np.int32)),
        "block must be a power of two": coded("polar", None, byte, 48, 9, True, one, None),
        r"kept must be in \[0, block\]": coded("polar", None, byte, 32, 33, True, one, None),
        "needs 1 scales, got 0": coded("polar", None, byte, 32, 16, True, one[:0], None),
        "must have kept bits a block": coded("polar", None, byte, 32, 17, True, one, None),
        "bits of a polar packet": coded("polar", None, byte + 128, 32, 15, True, one, None),
        r"rows must be in \[1, 64\], got 65": coded("sketch", None, 65, 1, 0, one),
        r"cols must be in \[1, 2\^31\), got 0": coded("sketch", None, 1, 0, 0, one),
        "needs 6 cells, got 1": coded("sketch", None, 2, 3, 0, one),
        "cells of a sketch must be finite, got another at place 0": coded(
            "sketch", None, 1, 1, 0, one * np.nan
        ),
        "at most 2\\^116": coded("polar", None, byte + 0, 64, 16, True, one * 1e36, 5),
        "table must be one of values, uniform": coded("codes", None, "spares", 2, 0, one, byte),
        "width must be one that the table has, got 9": coded(
            "codes", None, "uniform", 9, 0, one, nine
        ),
        r"bucket must be in \[0, 9\), and 0 for": coded("codes", None, "uniform", 8, 9, one, nine),
        "and 0 for 16-bit floats, got 3": coded("codes", None, "float16", 16, 3, one[:0], halves),
        "does not have 1 scales and 9 bytes": coded("codes", None, "uniform", 8, 4, one, nine),
        "not have 1 scales and 1 bytes": coded("codes", None, "uniform", 1, 0, one, byte[:1]),
        "bits of a codes packet": coded("codes", None, "uniform", 1, 0, one, byte + 2),
        "scales of a codes packet must be at": coded("codes", None, "uniform", 8, 0, -one, nine),
        "positive where a code is": coded("codes", None, "dynamic8", 8, 0, 0 * one, nine),
        "of a codes packet must be finite": coded(
            "codes", None, "values", 0, 0, one * np.inf, byte[:0]
        ),
        "16-bit floats must be finite": coded("codes", None, "float16", 16, 0, one[:0], halves - 1),
        "a powers packet must be positive": coded("powers", None, 0.0, powers),
        "powers packet must be positive and finite, got inf": coded("powers", None, np.inf, powers),
        r"needs 9 powers, one an element, got 2": coded("powers", None, 1.0, powers[:2]),
        r"powers must be in \[-278, 278\], got 279": coded("powers", None, 0.5, powers + 129),
        r"must be in \[-278, 278\], got -279": coded("powers", None, 0.5, -powers - 129),
        "highest power times the scale must be finite": coded("powers", None, 1.0, powers + 128),
        "array of int16, got": coded("powers", None, 1.0, powers.astype(np.int32)),
        "a levels2 packet needs 2 levels": coded("levels2", None, 3, 0, one, at, level[:1]),
        r"levels must be in \[-1, 1\] and not 0": coded("levels2", None, 1, 0, one, at, level),
        "places must rise strictly below 9, got 9": coded(
            "levels2", None, 3, 0, one, at + 5, level
        ),
        "places must rise strictly below 9, got 1": coded(
            "levels2", None, 3, 0, one, at[::-1].copy(), level
        ),
        "positive where a level is not 0, got 0": coded("levels2", None, 3, 0, 0 * one, at, level),
        r"bucket must be in \[0, 9\), got 9. Use": coded("levels2", None, 3, 9, one, at, level),
        r"rank must be in \[0, 1\], got 2": coded("lowrank", None, 9, 1, 2, one, one),
        "needs 9 left, got 1": coded("lowrank", None, 9, 1, 1, one, one),
        r"right of a lowrank packet must be in \[-2\^95": coded(
            "lowrank", None, 9, 1, 1, np.ones(9, np.float32), one * 4e28
        ),
        r"left of a lowrank packet must be in \[-2, 2\]": coded(
            "lowrank", None, 9, 1, 1, np.full(9, np.nan, np.float32), one
        ),
        r"block must be in \[1, 64\], got 65": coded(
            "dct", None, 1, 9, 65, False, at[1:], one, 0.0, False
        ),
        r"block must be in \[1, 64\], got 0": coded(
            "dct", None, 1, 9, 0, False, at[1:], one, 0.0, False
        ),
        "needs 2 values, got 1": coded("dct", None, 1, 9, 64, False, at, one, 0.0, False),
        "elements 9, got 9": coded("dct", None, 1, 9, 64, False, at[1:] + 5, one, 0.0, False),
        "coefficients of a dct packet must be": coded(
            "dct", None, 1, 9, 64, False, at[1:], one * 1e36, 0.0, False
        ),
        "coefficients of a dct packet must be at most": coded(
            "dct", None, 1, 9, 64, True, at[1:], one * 1e36, 1e36, False
        ),
        "scale must be positive and finite": coded(
            "dct", None, 1, 9, 64, True, at[1:], one, 0.0, False
        ),
        "by block, at most 8 coefficients of a block are packed": coded(
            "dct", None, 1, 9, 64, False, np.arange(9, dtype=np.int32), ones, 0.0, True
        ),
        "index must rise strictly and stay below the number of elements 9, got 1 at place 1": coded(
            "dct", None, 1, 9, 64, False, at[::-1].copy(), one.repeat(2), 0.0, True
        ),
        "elements 9, got 9 at place 0": coded(
            "dct", None, 1, 9, 64, False, at + 8, one.repeat(2), 0.0, True
        ),
        "values must be finite and not zero, got another at place 0": coded(
            "dct", None, 1, 9, 64, False, at[1:], 0 * one, 0.0, True
        ),
    }


@pytest.mark.parametrize(("text", "body"), wrong_coded().items())
def test_pack_refuses_what_is_no_coded_packet(text: str, body: wire.Body) -> None:
    with pytest.raises(ValueError, match=text):
        wire.pack(body)


# Size ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 1000, 10**6 + 1])
def test_a_sign_packet_is_a_bit_an_element(n: int) -> None:
    bits = np.zeros(-(-n // 8), np.uint8)
    size = len(wire.pack(wire.Body("sign", (n,), code=(0.5, bits))))
    assert size <= math.ceil(n / 8) + 32
    drawn = wire.Body("sign", (10 * n,), index=wire.Drawn(2**64 - 1, n), code=(0.5, bits))
    assert len(wire.pack(drawn)) <= math.ceil(n / 8) + 40


def test_a_polar_packet_is_its_message() -> None:
    n, block, kept = 10**6, 1024, 512
    bits = kept * math.ceil(n / block)
    message, one = np.zeros(bits // 8, np.uint8), np.ones(1, np.float32)
    plain = wire.Body("polar", (n,), code=(message, block, kept, True, one, None))
    assert len(wire.pack(plain)) <= bits // 8 + 32


def entropy(probabilities: np.ndarray) -> float:
    p = probabilities[probabilities > 0]
    return float(-(p * np.log2(p)).sum())


@pytest.mark.parametrize("steps", [1, 4, 15])
@pytest.mark.parametrize("density", [0.01, 0.1, 0.3, 0.7])
def test_levels_stay_near_the_entropy_of_independent_ones(steps: int, density: float) -> None:
    n = 10**6
    rng = np.random.default_rng(steps)
    size = density * 0.5 ** np.arange(steps) / (2 - 2 * 0.5**steps)  # of levels 1 .. steps
    p = np.concatenate([[1 - size.sum()], np.repeat(size / 2, 2)])
    level = np.append(0, np.ravel([[s, -s] for s in range(1, steps + 1)]))[
        rng.choice(len(p), n, p=p)
    ]
    at = np.flatnonzero(level).astype(np.int32)
    code = steps, 0, np.ones(1, np.float32), at, level[at].astype(np.int16)
    bound = n * entropy(p) / 8
    length = len(wire.pack(wire.Body("levels", (n,), code=code)))
    print(f"steps {steps}, density {density}: {length / bound:.3f} of the entropy")
    assert bound < length <= 1.05 * bound + 32
