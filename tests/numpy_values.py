"""What coded packets decode to, written from docs/wire-format.md alone, in plain NumPy.

Takes what numpy_decoder.decode returns. Like that it shares no code with gcext, only the table of
frozen sets, which is part of the format.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy_transforms import dct_values, lowrank_values

MASK = 2**64 - 1
GOLDEN = 0x9E3779B97F4A7C15
TABLES = Path(__file__).parent.parent / "gcext" / "polar" / "tables.json"


def mixed(x: int) -> int:
    """SplitMix64's step and finaliser, modulo 2^64."""
    x = x + GOLDEN & MASK
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & MASK
    x = (x ^ x >> 27) * 0x94D049BB133111EB & MASK
    return x ^ x >> 31


def random_support(seed: int, k: int, numel: int) -> list[int]:
    """The k indices below numel that a seed names, rising."""
    bits = max(10, (numel - 1).bit_length())
    low_bits, high_bits = bits // 2, bits - bits // 2
    key = [mixed(mixed(seed) + r) for r in range(8)]
    index = []
    for x in range(k):
        while True:
            high, low = divmod(x, 2**low_bits)
            for r in range(0, 8, 2):
                high ^= mixed(key[r] ^ low) % 2**high_bits
                low ^= mixed(key[r + 1] ^ high) % 2**low_bits
            x = high << low_bits | low
            if x < numel:
                break
        index.append(x)
    return sorted(index)


def pairs(read: dict[str, Any]) -> tuple[list[int], np.ndarray]:
    """Return the indices and values of a coded packet or a sum; levels: of those not 0."""
    numel = int(np.prod(read["shape"], dtype=object))
    if read["method"] == 12:
        return summed(read, numel)
    k = read["k"]
    index: Any = read["index"] if "index" in read else range(numel)
    if read["seed"] is not None:
        index = random_support(read["seed"], k, numel)
    if read["method"] == 13:
        return list(index), lowrank_values(read["left"], read["right"])
    if read["method"] == 15:
        return list(index), dct_values(read)
    if read["method"] == 6:
        return list(index), read["value"]
    if read["method"] == 7:
        return list(index), np.where(read["signs"], -read["scale"], read["scale"])
    if read["method"] == 14:
        return list(index), np.array([estimate(read, i) for i in index], np.float32)
    if read["method"] == 9:
        return list(index), polar(read)[:k]
    if read["method"] == 10:
        return list(index), code_values(read)
    if read["method"] == 11:
        power = np.array(read["power"] or [0] * k, np.int64)
        size = np.ldexp(np.float64(read["scale"]), abs(power) - 150).astype(np.float32)
        return list(index), np.where(power == 0, np.float32(0), np.copysign(size, power))
    at = np.array(read["at"], np.int64)
    norm = read["norms"][at // read["bucket"] if read["bucket"] else 0 * at].astype(np.float64)
    value = norm * np.array(read["level"], np.float64) / read["steps"]
    return [index[i] for i in read["at"]], value.astype(np.float32)


def summed(read: dict[str, Any], numel: int) -> tuple[list[int], np.ndarray]:
    """Return the union of the terms' elements, and 0 plus their values in order."""
    total: dict[int, np.float32] = {}
    for term in read["terms"]:
        index, value = term.get("index", range(numel)), term.get("value")
        if term["method"] > 5:
            index, value = pairs(term)
        for i, x in zip(index, value, strict=True):
            total[i] = np.float32(total.get(i, np.float32(0)) + np.float32(x))
    return sorted(total), np.array([total[i] for i in sorted(total)], np.float32)


def dynamic8() -> np.ndarray:
    """The 256 constants of the dynamic tree data type."""
    positive = [0.0]
    for t in range(1, 128):
        i = t.bit_length() - 1
        twice = 2 << i
        positive.append((twice + 18 * (t - (1 << i)) + 9) / (twice * 10 ** (7 - i)))
    negative = [-x for x in positive[:0:-1]]
    return np.array([*negative, *positive, 1.0], np.float32)


def code_values(read: dict[str, Any]) -> np.ndarray:
    table, width, code, scales = (read[name] for name in ("table", "width", "codes", "scales"))
    code = np.zeros(read["k"], np.int64) if code is None else code
    if table == 3:
        return code.astype("<u2").view("<f2").astype(np.float32)
    if table == 4:
        return (code << 16).astype("<u4").view("<f4")
    bucket = np.arange(len(code)) // (read["bucket"] or max(len(code), 1))
    if table == 0:
        return scales[(bucket << width) + code]
    if table == 2:
        return scales[bucket] * dynamic8()[code]
    steps = 2**width - 1
    return (scales[bucket].astype(np.float64) * (2 * code - steps) / steps).astype(np.float32)


def estimate(read: dict[str, Any], i: int) -> float:
    """The median of an element's signed cells, one a row."""
    rows, cols = read["rows"], read["cols"]
    found = []
    for r in range(rows):
        h = mixed(mixed(mixed(read["hash"]) + r & MASK) ^ i)
        cell = float(read["table"][r * cols + ((h >> 32) * cols >> 32)])
        found.append(-cell if h & 1 else cell)
    found.sort()
    middle = (found[(rows - 1) // 2] + found[rows // 2]) / 2
    return float(np.float32(middle)) + 0.0


def polar(read: dict[str, Any]) -> np.ndarray:
    block, kept, sizes = read["block"], read["kept"], read["sizes"]
    free = free_indices(block, kept, read["soft"])
    left, at, symbols = sum(sizes), 0, []
    while left > 0:
        count = min(left, 64 * block)
        lanes = -(-count // block)
        u = np.zeros((block, lanes), np.uint8)
        u[free] = read["message"][at : at + kept * lanes].reshape(kept, lanes)
        symbols.append(transform(u).reshape(-1)[:count])
        left, at = left - count, at + kept * lanes
    sign = np.concatenate([np.zeros(0, np.uint8), *symbols])
    scale = np.repeat(read["scale"], sizes)
    y = np.where(sign, -scale, scale)
    if read["rotation"] is None:
        return y
    chunks, start = [np.zeros(0, np.float32)], 0
    for c, size in enumerate(sizes):
        chunks.append(rotate_back(y[start : start + size], read["rotation"] + GOLDEN * c & MASK))
        start += size
    return np.concatenate(chunks)


def transform(u: np.ndarray) -> np.ndarray:
    """Return u G along the first axis."""
    n = len(u)
    if n == 1:
        return u
    first, second = transform(u[: n // 2]), transform(u[n // 2 :])
    return np.concatenate([first ^ second, second])


def rotate_back(y: np.ndarray, seed: int) -> np.ndarray:
    n = len(y).bit_length() - 1
    words = [[mixed(mixed(seed) ^ mixed(2 * i + r)) for i in range(len(y) // 64)] for r in (0, 1)]
    negative = np.unpackbits(np.array(words, "<u8").view(np.uint8), bitorder="little")
    sign = np.where(negative, -1, 1).astype(np.float32).reshape(2, -1)
    y = hadamard(y * np.float32(0.5 ** ((n + 1) // 2)))
    return hadamard(y * np.float32(0.5 ** (n // 2)) * sign[1]) * sign[0]


def hadamard(y: np.ndarray) -> np.ndarray:
    h = 1
    while h < len(y):
        two = y.reshape(-1, 2, h)
        y = np.stack([two[:, 0] + two[:, 1], two[:, 0] - two[:, 1]], 1).reshape(-1)
        h *= 2
    return y


def free_indices(block: int, kept: int, soft: bool) -> np.ndarray:
    tables = json.loads(TABLES.read_text())
    listed = tables["values" if soft else "signs"].get(f"{kept}/{block}")
    if listed is not None:
        free = np.unpackbits(np.frombuffer(bytes.fromhex(listed), np.uint8), bitorder="little")
        return np.flatnonzero(free)
    density = np.zeros(255)
    if soft:
        density[:] = tables["gaussian"][(20 * kept + block) // (2 * block)]
    else:
        d = crossover(kept, block)
        density[126], density[128] = d, 2**32 - d
    errors = evolve(density / 2**32, block)
    order = sorted(range(block), key=lambda i: (errors[i], -i))
    return np.sort(np.array(order[:kept], np.int64))


def log2(x: int) -> int:
    """In units of 2^-48, rounded down bit by bit."""
    result, y = x.bit_length() - 1, x << 65 - x.bit_length()
    for _ in range(48):
        y = y * y >> 64
        result = 2 * result + (y >> 65)
        y >>= y >> 65
    return result


def crossover(kept: int, block: int) -> int:
    if kept == 0:
        return 2**31

    def holds(d: int) -> bool:
        rest = 2**32 - d
        entropy = 2**85 - (d * log2(d) if d else 0) - rest * log2(rest)
        return entropy * block <= (block - kept) * 2**80

    low, high = 0, 2**31
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if holds(middle) else (low, middle - 1)
    return low


def evolve(p: np.ndarray, size: int) -> list[float]:
    """The errors of the `size` indices below a node of density p, p[v + 127] for the LLR v."""
    error = p[127] / 2
    for v in range(1, 128):
        error += p[127 - v]
    if size == 1 or error < 1e-9 or error > 0.5 - 1e-9:
        return [float(error)] * size
    return evolve(check(p), size // 2) + evolve(variable(p), size // 2)


def check(p: np.ndarray) -> np.ndarray:
    plus, minus = p[128:], p[126::-1]  # of m = 1 .. 127

    def above(x: np.ndarray) -> np.ndarray:
        return np.append(np.cumsum(x[::-1])[::-1][1:], 0.0)

    a, b = above(plus), above(minus)
    up = plus * (plus + 2 * a) + minus * (minus + 2 * b)
    down = 2 * (plus * (minus + b) + minus * a)
    return np.concatenate([down[::-1], [p[127] * (2 - p[127])], up])


def variable(p: np.ndarray) -> np.ndarray:
    total = np.zeros(509)  # of v = -254 .. 254
    for w in range(255):
        total[w : w + 255] += p[w] * p
    out = total[127:382].copy()
    for v in range(1, 128):
        out[254] += total[381 + v]
        out[0] += total[127 - v]
    return out
