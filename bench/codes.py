"""The rows rice, bits-pack and bits-unpack: kernels that are compared with NumPy, not PyTorch.

All work on k = p*n symbols; the floor is a plain copy of the array that goes in or comes out.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from . import internals, oracle
from .case import Case, Setting
from .timing import Variant

Streams = tuple[bytes, bytes, bytes]
Symbols = npt.NDArray[np.uint32]


def rice(setting: Setting, compiled: bool) -> Case:
    """The gaps of a random support, to the three streams of docs/wire-format.md."""
    rng = np.random.default_rng(setting.seed)
    index = rng.choice(setting.n, setting.k, replace=False, shuffle=False)
    index = np.sort(index).astype(np.int32 if setting.n < 2**31 else np.int64)
    ours = partial(internals.rice_pack, index, setting.n)

    def check(streams: Streams) -> str:
        back = oracle.rice_decode(streams, index.size, internals.TILE)
        return oracle.differs("decoded indices", back, index.astype(np.int64))

    size = sum(map(len, ours()))
    facts = {"bytes": size, "bits_per_index": 8 * size / index.size}
    return _case("rice", setting, ours, partial(_numpy_rice, index), check, index, facts)


def bits_pack(setting: Setting, compiled: bool) -> Case:
    """b-bit symbols into a plane, at the b that Rice remainders have for this p."""
    value, b = _symbols(setting)

    def check(plane: bytes) -> str:
        return oracle.differs("plane", np.frombuffer(plane, np.uint8), _plane(value, b))

    ours, numpy = partial(internals.bits_pack, value, b), partial(_numpy_pack, value, b)
    return _case("bits-pack", setting, ours, numpy, check, value, {"b": b})


def bits_unpack(setting: Setting, compiled: bool) -> Case:
    """A plane back into b-bit symbols."""
    value, b = _symbols(setting)
    args = (_plane(value, b).tobytes(), value.size, b)

    def check(got: Symbols) -> str:
        return oracle.differs("symbols", got, value)

    ours, numpy = partial(internals.bits_unpack, *args), partial(_numpy_unpack, *args)
    return _case("bits-unpack", setting, ours, numpy, check, value, {"b": b})


def _case(
    name: str,
    setting: Setting,
    ours: Callable[[], object],
    numpy: Callable[[], object],
    check: Callable[[Any], str],
    array: npt.NDArray[Any],
    facts: dict[str, Any],
) -> Case:
    to = np.empty_like(array)
    floor = Variant(
        "floor",
        partial(np.copyto, to, array),
        lambda _: oracle.differs("copy", to, array),
        does="copy of the indices" if name == "rice" else "copy of the symbols",
    )
    baselines = (Variant("numpy", numpy, check),)
    return Case(name, setting, Variant("gcext", ours, check), baselines, floor, facts=facts)


def _symbols(setting: Setting) -> tuple[Symbols, int]:
    b = min(max(math.floor(math.log2(math.log(2) / setting.p)), 1), 32)
    rng = np.random.default_rng(setting.seed)
    return rng.integers(0, 2**b, setting.k, dtype=np.uint32), b


def _plane(value: Symbols, b: int) -> npt.NDArray[np.uint8]:
    """One bit of every symbol at a time, where the numpy variant makes a matrix of them."""
    out = np.zeros(value.size * b, np.uint8)
    for bit in range(b):
        out[bit::b] = value >> np.uint32(bit) & np.uint32(1)
    return np.packbits(out, bitorder="little")


def _numpy_pack(value: Symbols, b: int) -> bytes:
    bits = value[:, None] >> np.arange(b, dtype=np.uint32) & np.uint32(1)
    return np.packbits(bits.astype(np.uint8), bitorder="little").tobytes()


def _numpy_unpack(plane: bytes, n: int, b: int) -> Symbols:
    bits = np.unpackbits(np.frombuffer(plane, np.uint8), count=n * b, bitorder="little")
    weight = np.uint32(1) << np.arange(b, dtype=np.uint32)
    value: Symbols = (bits.reshape(n, b) * weight).sum(axis=1, dtype=np.uint32)
    return value


def _numpy_rice(index: npt.NDArray[np.int32] | npt.NDArray[np.int64]) -> Streams:
    # The stubs take any difference for one of dates.
    gap = np.asarray(np.diff(index.astype(np.int64), prepend=-1), np.int64) - 1
    first = np.arange(0, gap.size, internals.TILE)
    count = np.diff(first, append=gap.size)
    # The smallest b with sum ceil((gap >> b) / 2) <= count is that of the shortest code.
    b = np.zeros(first.size, np.int64)
    while (more := np.add.reduceat((gap >> np.repeat(b, count)) + 1 >> 1, first) > count).any():
        b += more
    b_each = np.repeat(b, count)
    quotient = gap >> b_each
    place = np.cumsum(quotient + 1) - 1
    unary = np.zeros(place[-1] + 1, np.uint8)
    unary[place] = 1
    end = np.cumsum(b_each)
    remainders = np.zeros(end[-1], np.uint8)
    for bit in range(int(b.max())):
        there = b_each > bit
        remainders[(end - b_each)[there] + bit] = gap[there] >> bit & 1
    table = np.empty(first.size, np.dtype([("b", "u1"), ("zeros", "<u2")]))
    table["b"], table["zeros"] = b, np.add.reduceat(quotient, first)
    return (
        table.tobytes(),
        np.packbits(remainders, bitorder="little").tobytes(),
        np.packbits(unary, bitorder="little").tobytes(),
    )
