"""What the makers of golden packets share."""

from __future__ import annotations

import numpy as np
import xxhash


def seal(body: bytes, version: int = 1) -> bytes:
    message = b"\x89GCX" + bytes([version]) + body
    return message + xxhash.xxh3_64_intdigest(message).to_bytes(8, "little")


def varint(value: int) -> bytes:
    out = bytearray()
    while value >= 128:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def bits(*fields: tuple[int, int]) -> bytes:
    """Fields (value, width), lowest bit first, padded with zeros."""
    at = value = 0
    for number, width in fields:
        value |= number << at
        at += width
    return value.to_bytes(-(-at // 8), "little")


def f32(*values: float) -> bytes:
    return np.array(values, "<f4").tobytes()


def support(rng: np.random.Generator, numel: int, k: int) -> np.ndarray:
    picked: set[int] = set()
    while len(picked) < k:
        picked.add(int(rng.integers(0, numel)))
    return np.array(sorted(picked), np.int32 if numel < 2**31 else np.int64)
