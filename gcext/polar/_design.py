"""Frozen sets of polar codes, the same on every platform.

A set is found by density evolution (csrc/polar/polar_design.cpp) at a design point. For signs that
is a binary symmetric channel whose crossover is the distortion D(R), the solution of
``R = 1 - h2(D)``; for real values the test channel of a Gaussian source at the rate's nearest
tenth, as an integer density. The common sets, and those densities, are shipped in tables.json and
are part of the format; tools/polar_tables.py writes that file. Other sets are the first indices of
an order. For real values one order serves all rates of a tenth, so a block has 11; those up to 2^13
are shipped in orders.bin. All others, and for signs one for each K, are computed when first needed
and kept in memory (_cache.py).
"""

from __future__ import annotations

import functools
import json
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

import gcext._wire as _wire
from gcext._native.library import capturing, current_stream
from gcext._native.polar import polar_unpack
from gcext._packet.streams import Ready, use_here
from gcext.polar._cache import Kept

__all__ = [
    "computed_set",
    "crossover",
    "evolved",
    "expect",
    "frozen_set",
    "order",
    "sign_weight",
    "tells_apart",
    "tenth",
]

TABLES = Path(__file__).with_name("tables.json")
ORDERS = Path(__file__).with_name("orders.bin")
VERSION = 1
LONGEST = 1 << 13  # block whose orders are shipped
TENTHS = 11

_ONE = 1 << 32  # the unit of a crossover
_BITS = 48  # fraction bits of a logarithm

_ORDERS: Kept[Tensor] = Kept(1 << 24)  # int32: four of the longest block
_SETS: Kept[Tensor] = Kept(1 << 23)  # uint8: eight of them
_THERE: Kept[_There] = Kept(1 << 23)  # the same on CUDA devices


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
    """Return the indices of a block, int32, the most reliable at the design point first.

    Not to be written to.
    """
    point = tenth(kept, block) if soft else kept
    return _ORDERS.get((block, point, soft), lambda: _ordered(block, kept, soft))


def _ordered(block: int, kept: int, soft: bool) -> Tensor:
    if soft and block <= LONGEST:
        first = TENTHS * (block - 32) + tenth(kept, block) * block
        shipped = _orders()[first : first + block]
        return torch.from_numpy(shipped.astype(np.int32))
    return evolved(block, kept, soft)


@functools.lru_cache(maxsize=1)
def _orders() -> npt.NDArray[np.uint16]:
    """Return the shipped orders: blocks from 2^5 on, of each those of all tenths."""
    return np.frombuffer(zlib.decompress(ORDERS.read_bytes()), "<u2")


def evolved(block: int, kept: int, soft: bool) -> Tensor:
    """Return the order as computed; see order."""
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
    """Return the frozen set of the first indices of the order; see frozen_set."""
    frozen = torch.ones(block, dtype=torch.uint8)
    frozen[order(block, kept, soft)[:kept].long()] = 0
    return frozen


def expect(block: int, kept: int) -> None:
    """Let budgets admit the design of real values' code, and of shorter blocks at its rate.

    For codes that this process has chosen itself: one that a message names is counted.
    """
    while block > LONGEST:
        _wire.expect_polar(block.bit_length() - 1, tenth(kept, block))
        block, kept = block // 2, -(-kept // 2)


def frozen_set(
    block: int, kept: int, soft: bool = False, device: torch.device | str = "cpu"
) -> Tensor:
    """Return a uint8 tensor of shape (block,), 1 where an index is frozen. Not to be written to.

    On CUDA for work on the current stream; nothing waits. While a graph is captured the set is made
    by the graph, anew by each replay: what is kept here goes when others need its memory.
    """
    device = torch.device(device)
    if device.type == "cpu":
        return _SETS.get((block, kept, soft), lambda: _made_set(block, kept, soft))
    if capturing():
        return _sent(frozen_set(block, kept, soft), device)
    there = _THERE.get(
        (block, kept, soft, device), lambda: _There.of(frozen_set(block, kept, soft), device)
    )
    return there.use()


class _There(NamedTuple):
    """A set on a CUDA device, and what had to be enqueued to make it."""

    frozen: Tensor
    made: Ready

    @classmethod
    def of(cls, frozen: Tensor, device: torch.device) -> _There:
        sent = _sent(frozen, device)
        made = Ready.here(device)
        assert made is not None
        return cls(sent, made)

    @property
    def nbytes(self) -> int:
        return self.frozen.nbytes

    def use(self) -> Tensor:
        """Return the set for the current stream, which waits for it, and keeps its memory."""
        here = current_stream(self.frozen.device)
        if here is not None and here != self.made.stream:
            assert self.made.event is not None
            here.wait_event(self.made.event)
            use_here((self.frozen,))
        return self.frozen


def _sent(frozen: Tensor, device: torch.device) -> Tensor:
    """Return a set on a device, where its bits come as arguments of kernels.

    A copy from pageable memory would wait for all that the stream has, and is not allowed while a
    graph is captured; pinned memory would have to stay as long as the graph.
    """
    bits = np.packbits(frozen.numpy(), bitorder="little")
    words = np.pad(bits, (0, -bits.size % 8)).view(np.int64).tolist()
    there = torch.zeros(len(words), dtype=torch.int64, device=device)
    torch._foreach_add_(list(there.unbind()), words)
    return polar_unpack(there.view(torch.uint8)[: bits.size], frozen.numel())


def _made_set(block: int, kept: int, soft: bool) -> Tensor:
    if kept in (0, block):
        return torch.full((block,), int(kept == 0), dtype=torch.uint8)
    shipped = _tables()["values" if soft else "signs"].get(f"{kept}/{block}")
    if shipped is None:
        return computed_set(block, kept, soft)
    bits = np.unpackbits(np.frombuffer(bytes.fromhex(shipped), np.uint8), bitorder="little")
    return torch.from_numpy(1 - bits)


@functools.lru_cache(maxsize=64)
def tells_apart(block: int, kept: int) -> bool:
    """Return whether every two symbols of a block differ in some codeword, of the soft code.

    Row i of the transform has a one in column j where i has all of j's bits. So it takes a row
    without bit b to tell j from j with bit b, and the one that lacks b alone has all others' bits:
    it is more reliable than every other one, and tells apart all such j.
    """
    frozen = frozen_set(block, kept, soft=True)
    return not any(frozen[block - 1 - (1 << bit)] for bit in range(block.bit_length() - 1))


@functools.lru_cache(maxsize=64)
def sign_weight(block: int, kept: int, steps: int) -> int:
    """Return ln((1 - D)/D) at the design distortion in steps per nat, rounded down; at least 1."""
    d = max(1, crossover(kept, block))
    nats = (_log2(_ONE - d) - _log2(d)) * 693147180559945309 // 10**18
    return max(1, nats * steps >> _BITS)
