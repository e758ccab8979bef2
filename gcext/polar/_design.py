"""Frozen sets of polar codes, the same on every platform.

A set is found by density evolution (csrc/polar/polar_design.cpp) at a design point. For signs that
is a binary symmetric channel whose crossover is the distortion D(R), the solution of
``R = 1 - h2(D)``; for real values the test channel of a Gaussian source at the rate's nearest
tenth, as an integer density. The common sets, and those densities, are shipped in tables.json and
are part of the format; tools/polar_tables.py writes that file. Other sets are computed when first
needed and kept on disk (_cache.py).
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gcext._native import library as _lib  # noqa: F401  (loads the operators)
from gcext.polar import _cache as cache

__all__ = [
    "computed_set",
    "crossover",
    "frozen_set",
    "frozen_set_on",
    "order",
    "sign_weight",
    "tells_apart",
    "tenth",
]

TABLES = Path(__file__).with_name("tables.json")
VERSION = 1

_ONE = 1 << 32  # the unit of a crossover
_BITS = 48  # fraction bits of a logarithm


def _log2(x: int) -> int:
    """Return log2(x) in units of 2^-_BITS, by repeated squaring of integers."""
    whole = x.bit_length() - 1
    result, mantissa = whole << _BITS, x << (64 - whole)
    for bit in reversed(range(_BITS)):
        mantissa = mantissa * mantissa >> 64
        if mantissa >> 65:
            result |= 1 << bit
            mantissa >>= 1
    return result


def crossover(kept: int, block: int) -> int:
    """Return D(R) for R = kept/block in units of 2^-32: the largest D with h2(D) <= 1 - R.

    Integer arithmetic only, so it is the same everywhere.
    """
    if kept == 0:
        return _ONE // 2
    low, high = 0, _ONE // 2
    while low < high:
        d = (low + high + 1) // 2
        entropy = (_ONE * (32 << _BITS) - d * _log2(d) - (_ONE - d) * _log2(_ONE - d)) * block
        if entropy <= (block - kept) * (_ONE << _BITS):
            low = d
        else:
            high = d - 1
    return low


def tenth(kept: int, block: int) -> int:
    """Return the rate in tenths, rounded."""
    return (20 * kept + block) // (2 * block)


def order(block: int, kept: int, soft: bool = False) -> Tensor:
    """Return the indices of a block, int32, the most reliable at the design point first."""
    if soft:
        density = torch.tensor(_tables()["gaussian"][tenth(kept, block)])
    else:
        density = torch.zeros(255, dtype=torch.int64)
        density[127 - 1] = crossover(kept, block)
        density[127 + 1] = _ONE - crossover(kept, block)
    out: Tensor = torch.ops.gcext.polar_order.default(density, block)
    return out


@functools.lru_cache(maxsize=1)
def _tables() -> dict[str, Any]:
    tables: dict[str, Any] = json.loads(TABLES.read_text())
    assert tables["version"] == VERSION
    return tables


def computed_set(block: int, kept: int, soft: bool = False) -> Tensor:
    """Return the frozen set as computed; see frozen_set."""
    frozen = torch.ones(block, dtype=torch.uint8)
    frozen[order(block, kept, soft)[:kept].long()] = 0
    return frozen


@functools.lru_cache(maxsize=64)
def frozen_set_on(device: torch.device, block: int, kept: int, soft: bool) -> Tensor:
    """Return frozen_set on a device, moved there once."""
    return frozen_set(block, kept, soft).to(device)


@functools.lru_cache(maxsize=64)
def frozen_set(block: int, kept: int, soft: bool = False) -> Tensor:
    """Return a uint8 tensor of shape (block,), 1 where an index is frozen. Not to be written to."""
    kind = "values" if soft else "signs"
    shipped = _tables()[kind].get(f"{kept}/{block}")
    if shipped is not None:
        return _unpacked(bytes.fromhex(shipped))
    name = f"polar-{VERSION}-{kind}-{kept}-{block}.set"
    cached = cache.read(name, block, kept)
    if cached is not None:
        return _unpacked(cached)
    frozen = computed_set(block, kept, soft)
    cache.write(name, np.packbits(1 - frozen.numpy(), bitorder="little").tobytes())
    return frozen


@functools.lru_cache(maxsize=64)
def tells_apart(block: int, kept: int) -> bool:
    """Return whether every two symbols of a block differ in some codeword, of the soft code.

    Row i of the transform has a one in column j where i has all of j's bits. So it takes a row
    without bit b to tell j from j with bit b, and the one that lacks b alone has all others' bits:
    it is more reliable than every other one, and tells apart all such j.
    """
    frozen = frozen_set(block, kept, soft=True)
    return not any(frozen[block - 1 - (1 << bit)] for bit in range(block.bit_length() - 1))


def _unpacked(free: bytes) -> Tensor:
    bits = np.unpackbits(np.frombuffer(free, np.uint8), bitorder="little")
    return torch.from_numpy(1 - bits)


@functools.lru_cache(maxsize=64)
def sign_weight(block: int, kept: int, steps: int) -> int:
    """Return ln((1 - D)/D) at the design distortion in steps per nat, rounded down; at least 1."""
    d = max(1, crossover(kept, block))
    nats = (_log2(_ONE - d) - _log2(d)) * 693147180559945309 // 10**18
    return max(1, nats * steps >> _BITS)
