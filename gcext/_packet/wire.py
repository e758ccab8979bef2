"""Packets as bytes: bodies of NumPy arrays to messages and back, checksum included.

The format is docs/wire-format.md. torch is unknown here; `gcext.Packet` stands on top.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
from xxhash import xxh3_64_intdigest

from gcext import _wire

METHODS = {
    "dense": 1,
    "sparse": 2,
    "ternary": 3,
    "merged": 4,
    "group": 5,
    "random": 6,
    "sign": 7,
    "levels": 8,
    "polar": 9,
}
DTYPES = {"float32": 0, "float16": 1, "bfloat16": 2, "float64": 3}
METHOD_NAMES = {code: name for name, code in METHODS.items()}
DTYPE_NAMES = {code: name for name, code in DTYPES.items()}

Index: TypeAlias = npt.NDArray[np.int32] | npt.NDArray[np.int64]
Value: TypeAlias = npt.NDArray[np.float32]
Buffer: TypeAlias = bytes | bytearray | memoryview
Shape: TypeAlias = Sequence[int]


class Members(NamedTuple):
    """Which of the J parts of a merged body hold which of its k elements: K members."""

    scales: npt.NDArray[np.float32]  # (J,): each part's scale, 0 where the part is empty
    place: npt.NDArray[np.int64]  # (K,): element * J + part, rising
    negative: npt.NDArray[np.uint8]  # (K,): 1 where the member is -scale


class Drawn(NamedTuple):
    """A support of k elements drawn from a seed, csrc/support.h."""

    seed: int  # in [0, 2^64)
    k: int


class Made(NamedTuple):
    """The streams of k elements as a device has made them, from the tile table to the signs."""

    k: int
    streams: npt.NDArray[np.uint8]


class Located(NamedTuple):
    """Where the streams of k elements lie in a message, in bytes, for a device to open."""

    k: int
    begin: int
    end: int
    remainder_bytes: int
    scale_bits: int


@dataclass(frozen=True, eq=False)
class Body:
    """What a packet says, as NumPy arrays; a group only has members.

    index is int32 where the shape has less than 2^31 elements, else int64; None where all elements
    travel; and Drawn where they are not named. value is float32, k long (dense: one per element);
    of a sign, levels or polar body it is None, and code holds the fields of that class of
    gcext.values, in order. A merged body's values are the exact sums of its parts, rounded once.
    A ternary body that is closed has no arrays: a device makes, or opens, its streams.
    """

    method: str
    shape: tuple[int, ...] = ()
    dtype: str = "float32"
    index: Index | Drawn | None = None
    value: Value | None = None
    scale: float = 0.0
    code: tuple[Any, ...] = ()
    merged: Members | None = None
    members: tuple[Body, ...] = ()
    closed: Made | Located | None = None


def pack(body: Body) -> bytes:
    """Return the message that says body: its one byte string.

    Of a ternary body's values only the sign bits are read; of a merged body's, nothing; of closed
    streams the contents are taken as they are.

    Raises ValueError where the arrays do not make a packet: index not strictly rising below the
    number of elements, a scale or value that is zero or not finite, wrong lengths or dtypes.

    >>> index, value = np.array([1, 4], np.int32), np.array([0.5, -0.5], np.float32)
    >>> len(pack(Body("ternary", (6,), index=index, value=value, scale=0.5)))
    26
    """
    return _wire.pack(_to_tuple(body), xxh3_64_intdigest)


def unpack(message: Buffer, expect_shape: Shape | Sequence[Shape] | None = None) -> Body:
    """Return what a message says. Nothing in proportion to k is allocated before all is checked.

    expect_shape pins the shape of a single packet, or the shapes of a group's members (a sequence
    of shapes; an empty sequence is the shape of a 0-d tensor). Raises gcext.DecodeError on
    anything wrong: code, field and byte offset say what and where; TypeError where message is no
    buffer, and ValueError where expect_shape is no shape.

    >>> body = unpack(pack(Body("dense", (2,), value=np.ones(2, np.float32))), expect_shape=(2,))
    >>> body.method, body.shape
    ('dense', (2,))
    """
    return _unpack(message, expect_shape, closed=False)


def locate(message: Buffer, expect_shape: Shape | Sequence[Shape] | None = None) -> Body:
    """Return what a message says, with ternary bodies that have elements closed: Located.

    Of these the structure is right, the contents of the tiles unknown. Raises as unpack does, but
    where unpack would find such a tile wrong first, this may find what comes later.
    """
    return _unpack(message, expect_shape, closed=True)


def merge(bodies: Sequence[Body]) -> Body:
    """Merge ternary bodies of one shape and dtype into one body, without loss.

    Raises ValueError for less than 2 or more than 4096 bodies, for other methods, for unequal
    shapes or dtypes, and where a sum overflows float32.

    >>> one = Body("ternary", (4,), index=np.array([2], np.int32),
    ...            value=np.array([3], np.float32), scale=3.0)
    >>> merge([one, one]).value
    array([6.], dtype=float32)
    """
    for body in bodies:
        if body.method != "ternary":
            raise ValueError(f"merge: packets must be ternary, got {body.method}. Send it alone.")
        if (body.shape, body.dtype) != (bodies[0].shape, bodies[0].dtype):
            raise ValueError(
                "merge: packets must have one shape and dtype, "
                f"got {bodies[0].shape} {bodies[0].dtype} and {body.shape} {body.dtype}."
            )
    if len(bodies) < 2:
        raise ValueError(f"merge: needs at least 2 packets, got {len(bodies)}.")
    parts = [_to_tuple(body) for body in bodies]
    return _from_tuple(_wire.merge(DTYPES[bodies[0].dtype], bodies[0].shape, parts))


def unmerge(body: Body) -> tuple[Body, ...]:
    """Return the very ternary bodies that a merged body was made of, in order."""
    if body.method != "merged":
        raise ValueError(f"unmerge: the packet must be merged, got {body.method}.")
    return tuple(
        Body("ternary", body.shape, body.dtype, index, value, scale)
        for index, value, scale in _wire.unmerge(_to_tuple(body))
    )


def _unpack(message: Buffer, expect_shape: Any, closed: bool) -> Body:
    expect = None if expect_shape is None else _expectation(expect_shape)
    return _from_tuple(_wire.unpack(_buffer(message), xxh3_64_intdigest, expect, closed))


def _buffer(message: Buffer) -> Buffer:
    try:
        memoryview(message).release()
    except TypeError:
        raise TypeError(
            "unpack: message must be bytes or another contiguous buffer, "
            f"got {type(message).__name__}. Pass bytes; of a tensor, its .numpy()."
        ) from None
    return message


def _expectation(expect_shape: Any) -> tuple[bool, list[list[int]]]:
    """Whether a group is expected, and the shapes."""
    try:
        items = _items(expect_shape)
        group = len(items) > 0 and not _is_integer(items[0])
        return group, [[_dim(d) for d in _items(s)] for s in (items if group else [items])]
    except TypeError:
        raise ValueError(
            "unpack: expect_shape must be a shape of integers, or for a group a sequence of "
            f"shapes, got {expect_shape!r:.200}. Pass the tensor's shape."
        ) from None


def _items(sequence: Any) -> list[Any]:
    if isinstance(sequence, (str, bytes)) or not isinstance(sequence, (Sequence, np.ndarray)):
        raise TypeError
    return list(sequence)


def _is_integer(item: Any) -> bool:
    try:
        operator.index(item)
    except TypeError:
        return False
    return True


def _dim(item: Any) -> int:
    dim = operator.index(item)
    return dim if -(2**63) < dim < 2**63 else _wire.NO_DIM


def _to_tuple(body: Body) -> tuple[Any, ...]:
    if body.method not in METHODS:
        raise ValueError(f"pack: method must be one of {', '.join(METHODS)}, got {body.method}.")
    if body.method == "group":
        return (METHODS["group"], [_to_tuple(member) for member in body.members])
    if body.dtype not in DTYPES:
        raise ValueError(f"pack: dtype must be one of {', '.join(DTYPES)}, got {body.dtype}.")
    head = (METHODS[body.method], DTYPES[body.dtype], tuple(body.shape))
    if body.method == "dense":
        return (*head, body.value)
    if body.method == "sparse":
        return (*head, body.index, body.value)
    if body.method == "ternary":
        if body.closed is not None:
            return (*head, body.closed, body.scale)
        return (*head, body.index, body.value, body.scale)
    if body.method == "random":
        return (*head, body.index, body.value)
    if body.method != "merged":
        return (*head, body.index, *body.code)
    if body.merged is None:
        raise ValueError("pack: a merged body needs its members. Make it with merge.")
    return (*head, body.index, body.value, *body.merged)


def _from_tuple(fields: tuple[Any, ...]) -> Body:
    method = METHOD_NAMES[fields[0]]
    if method == "group":
        return Body(method, members=tuple(_from_tuple(member) for member in fields[1]))
    dtype, shape, rest = DTYPE_NAMES[fields[1]], tuple(fields[2]), fields[3:]
    if method == "dense":
        return Body(method, shape, dtype, value=rest[0])
    if method == "merged":
        return Body(method, shape, dtype, rest[0], rest[1], merged=Members(*rest[2:]))
    if method == "ternary" and isinstance(rest[0], tuple):
        return Body(method, shape, dtype, scale=rest[1], closed=Located(*rest[0]))
    if method in ("sparse", "ternary"):
        return Body(method, shape, dtype, *rest)
    index = Drawn(*rest[0]) if isinstance(rest[0], tuple) else rest[0]
    if method == "random":
        return Body(method, shape, dtype, index, rest[1])
    return Body(method, shape, dtype, index, code=rest[1:])
