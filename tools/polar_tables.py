"""Writes gcext/polar/tables.json: free indices of the common polar codes, as packed bits; and
orders.bin, the orders behind all codes of real values up to 2^13.

    python tools/polar_tables.py            (after gcext was built; takes some minutes)

The tables are part of the format: what a message means depends on them. A change of the design is
a new VERSION.

Density evolution says how reliable an index is when all before it are known, not what freeing it
does for the distortion. In blocks of 512 and less that is worth up to 0.002: there the encoder
decides: indices near the boundary are exchanged as long as that lowers the distortion.
"""

import json
import math
import zlib
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gcext._native import polar as ops
from gcext.polar import _code, _design
from gcext.polar._design import ORDERS, TABLES, VERSION, computed_set, order

RATES = (0.1, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.9)
LEVELS = range(5, 14)
REFINED = 512  # the longest block whose set is refined
BLOCKS = 6400
NEAR = 14  # indices on either side of the boundary
EXCHANGES = 3


def wrong(source: Tensor, frozen: Tensor) -> int:
    """How many symbols of the packed source are coded wrongly."""
    block, numel = len(frozen), 8 * len(source)
    kept = block - int(frozen.sum())
    weight, correction = _code._steps(kept, block, soft=False, linear=True)
    message, *_ = ops.polar_encode(source, frozen, kept, numel, weight, correction)
    return int(ops.polar_unpack(source ^ ops.polar_decode(message, frozen, numel), numel).sum())


def refine(block: int, kept: int) -> Tensor:
    """The computed set after the best exchanges, one at a time."""
    rng = np.random.default_rng(block)
    source = torch.from_numpy(rng.integers(0, 256, block * BLOCKS // 8, np.uint8))
    frozen, ranked = computed_set(block, kept), order(block, kept).tolist()
    least = wrong(source, frozen)
    for _ in range(EXCHANGES):
        best = None
        free = [i for i in ranked if not frozen[i]][-NEAR:]
        for i in free:
            for j in [j for j in ranked if frozen[j]][:NEAR]:
                trial = frozen.clone()
                trial[i], trial[j] = 1, 0
                if (count := wrong(source, trial)) < least:
                    least, best = count, trial
        if best is None:
            break
        frozen = best
    return frozen


def gaussian(rate: float, weight: int) -> list[int]:
    """The density of LLRs, -127 to 127, of a Gaussian source at its test channel, in 2^-32.

    Given a value y the channel's input is 0 with probability 1 / (1 + exp(-b*y)), where b gives the
    rate: the mean of 1 - h2 of that. The LLR is that of the encoder, y times weight over mean |y|.
    """
    y = np.linspace(-8, 8, 160_001)
    p = np.exp(-y * y / 2)
    p /= p.sum()

    def channel(b: float) -> np.ndarray:
        return 1 / (1 + np.exp(-np.clip(b * y, -500, 500)))

    def rate_of(b: float) -> float:
        q = np.clip(channel(b), 1e-300, 1 - 1e-16)
        return float((p * (1 + q * np.log2(q) + (1 - q) * np.log2(1 - q))).sum())

    low, high = 0.0, 1000.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if rate_of(middle) < rate else (low, middle)
    llr = np.clip(np.rint(y * weight / math.sqrt(2 / math.pi)), -127, 127).astype(int) + 127
    density = np.bincount(llr, 2 * p * channel(low), 255)
    return [int(x) for x in np.rint(density * 2**32)]


def orders() -> bytes:
    """Each block's indices for each tenth of the rate, uint16."""
    made = []
    for block in (1 << level for level in LEVELS):
        for at in range(_design.TENTHS):
            kept = next(k for k in range(block + 1) if _design.tenth(k, block) == at)
            made.append(_design.evolved(block, kept, soft=True).numpy().astype("<u2").tobytes())
    return b"".join(made)


def main() -> None:
    tables: dict[str, Any] = {"version": VERSION, "gaussian": [], "signs": {}, "values": {}}
    for tenth in range(11):
        rate = min(max(tenth / 10, 0.05), 0.97)
        tables["gaussian"].append(gaussian(rate, _code._VALUE_WEIGHT[tenth]))
    TABLES.write_text(json.dumps(tables))  # the sets are computed from the densities
    _design._tables.cache_clear()
    ORDERS.write_bytes(zlib.compress(orders(), 9))
    _design._orders.cache_clear()
    for level in LEVELS:
        block = 1 << level
        for kept in sorted({round(rate * block) for rate in RATES}):
            signs = refine(block, kept) if block <= REFINED else computed_set(block, kept)
            for name, frozen in (("signs", signs), ("values", computed_set(block, kept, True))):
                free = np.packbits(1 - frozen.numpy(), bitorder="little")
                tables[name][f"{kept}/{block}"] = free.tobytes().hex()
    lines = [f'"{key}": {json.dumps(value)}' for key, value in tables.items()]
    TABLES.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
