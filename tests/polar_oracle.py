"""The polar coder of csrc/polar/polar.h in NumPy: recursion over the tree, a row per block."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np


def transform(u: np.ndarray) -> np.ndarray:
    """Multiply u by G_N along the last axis."""
    n = u.shape[-1]
    if n == 1:
        return u
    first, second = transform(u[..., : n // 2]), transform(u[..., n // 2 :])
    return np.concatenate([first ^ second, second], axis=-1)


def f(a: np.ndarray, b: np.ndarray, correction: int) -> np.ndarray:
    p, q = np.abs(a), np.abs(b)
    near, far = np.maximum(0, correction - np.abs(p - q)), np.maximum(0, correction - p - q)
    return np.sign(a) * np.sign(b) * (np.minimum(p, q) - (near - far + 2 >> 2))


def g(a: np.ndarray, b: np.ndarray, u: np.ndarray) -> np.ndarray:
    return np.clip(b + np.where(u, -a, a), -127, 127)


def encode(
    llr: np.ndarray, frozen: np.ndarray, correction: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Decided u and codeword of LLRs of shape (blocks, N), both uint8."""
    n = llr.shape[-1]
    if frozen.all():
        return np.zeros(llr.shape, np.uint8), np.zeros(llr.shape, np.uint8)
    if not frozen.any():
        hard = (llr < 0).astype(np.uint8)
        return transform(hard), hard
    if n == 1:
        raise AssertionError("a leaf is frozen or free")
    a, b = llr[:, : n // 2], llr[:, n // 2 :]
    u, first = encode(f(a, b, correction), frozen[: n // 2], correction)
    v, second = encode(g(a, b, first), frozen[n // 2 :], correction)
    return np.concatenate([u, v], 1), np.concatenate([first ^ second, second], 1)


def groups(flat: np.ndarray, block: int) -> Iterator[np.ndarray]:
    """(blocks, N) of each group of up to 64 blocks; what is missing at the end is 0."""
    for start in range(0, len(flat), 64 * block):
        part = flat[start : start + 64 * block]
        lanes = -(-len(part) // block)
        rows = np.zeros(lanes * block, part.dtype)
        rows[: len(part)] = part
        yield rows.reshape(block, lanes).T


def quantise(rows, count, weight):
    """LLRs of one group of float32 values, summed as csrc/polar/polar.h says."""
    lanes = np.zeros((64, rows.shape[1]), np.float32)
    lanes[: len(rows)] = rows
    total = np.zeros(64, np.float32)
    for i in range(lanes.shape[1]):
        total += np.abs(lanes[:, i])
    mean = sum(float(t) for t in total)
    if mean == 0:
        return np.zeros(rows.shape, np.int64)
    scale = np.float32(float(weight) * count / mean)
    return np.rint(np.clip(rows * scale, -127, 127)).astype(np.int64)


def message(
    source: np.ndarray, frozen: np.ndarray, weight: float, correction: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """The packed message of 0/1 integers or of float32 values; and the codewords in order."""
    block, sent, decoded = len(frozen), [], []
    soft = source.dtype == np.float32
    llr = source if soft else np.where(source, -weight, weight).astype(np.int64)
    for start, rows in enumerate(groups(llr, block)):
        count = min(len(source) - 64 * block * start, 64 * block)
        u, x = encode(quantise(rows, count, weight) if soft else rows, frozen, correction)
        sent.append(u.T[frozen == 0].reshape(-1))
        decoded.append(x.T.reshape(-1))
    packed = np.packbits(np.concatenate(sent), bitorder="little")
    return packed, np.concatenate(decoded)[: len(source)]
