"""Packets written down as NumPy arrays, valid or not, for the tests of the wire format."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch

from gcext._packet import wire
from gcext._packet.codes import Code, Contents, Merged, Random
from gcext._packet.packet import Packet
from gcext._packet.sums import Sum
from gcext._packet.wire import Located

__all__ = ["DTYPES", "METHODS", "Body", "Drawn", "Located", "locate", "merge", "pack", "packet_of"]
__all__ += ["unmerge", "unpack"]

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
    "codes": 10,
    "sum": 12,
    "powers": 11,
    "levels2": 16,
    "sketch": 14,
    "lowrank": 13,
    "dct": 15,
}
DTYPES = {"float32": 0, "float16": 1, "bfloat16": 2, "float64": 3}
FIELDS = {
    "sign": ("scale", "bits"),
    "levels": ("steps", "bucket", "norms", "at", "level"),
    "levels2": ("steps", "bucket", "norms", "at", "level"),
    "powers": ("scale", "power"),
    "sketch": ("rows", "cols", "seed", "table"),
    "polar": ("message", "block", "kept", "soft", "scale", "seed"),
    "codes": ("table", "width", "bucket", "scales", "bits"),
    "lowrank": ("rows", "cols", "rank", "left", "right"),
    "dct": ("rows", "cols", "block", "ternary", "index", "value", "scale", "by_block"),
}


class Drawn(NamedTuple):
    """A support of k elements drawn from a seed."""

    seed: int
    k: int


@dataclass(frozen=True, eq=False)
class Body:
    """A packet written down as NumPy arrays, whatever they hold: valid or not."""

    method: str
    shape: tuple[int, ...] = ()
    dtype: str = "float32"
    index: Any = None
    value: Any = None
    scale: float = 0.0
    code: tuple[Any, ...] = ()
    merged: Merged | None = None
    members: tuple[Body, ...] = ()
    encoded: Any = None


def packet_of(body: Body) -> Packet:
    """Return the packet of a body, valid or not."""
    dtype: Any = body.dtype
    if body.method == "group":
        return Packet("group", (), dtype, _members=tuple(map(packet_of, body.members)))
    coded: Any = body.value
    if body.method == "sum":
        coded = SimpleNamespace(terms=tuple(map(packet_of, body.members)))
    if body.method in FIELDS:
        coded = SimpleNamespace(**dict(zip(FIELDS[body.method], body.code, strict=False)))
    contents = Contents(body.index, coded, body.scale)
    return Packet(
        body.method, body.shape, dtype, contents, merged=body.merged, encoded=body.encoded
    )


def body_of(packet: Packet) -> Body:
    """Return what a packet on the host holds, as NumPy arrays."""
    if packet.members:
        return Body("group", members=tuple(map(body_of, packet.members)))
    dtype = str(packet.dtype).removeprefix("torch.")
    if packet.encoded is not None:
        return Body(packet.method, packet.shape, dtype, encoded=packet.encoded)

    def array(x: Any) -> Any:
        return x.numpy() if isinstance(x, torch.Tensor) else x

    support, coded, scale = packet.contents
    index = Drawn(support.seed, support.k) if isinstance(support, Random) else array(support)
    head = (packet.method, packet.shape, dtype, index)
    if isinstance(coded, Sum):
        return Body(*head, members=tuple(map(body_of, coded.terms)))
    if isinstance(coded, Code):
        return Body(*head, code=tuple(map(array, coded.fields())))
    return Body(*head, array(coded), scale, merged=packet.merged)


def pack(body: Body) -> bytes:
    return wire.pack(packet_of(body))


def unpack(message: Any, expect_shape: Any = None) -> Body:
    return body_of(wire.unpack(Packet, message, expect_shape))


def locate(message: Any, expect_shape: Any = None) -> Body:
    return body_of(wire.locate(Packet, message, expect_shape))


def merge(bodies: Sequence[Body]) -> Body:
    return body_of(wire.merge(Packet, list(map(packet_of, bodies))))


def unmerge(body: Body) -> tuple[Body, ...]:
    return tuple(map(body_of, wire.unmerge(Packet, packet_of(body))))
