"""Ternary streams on a CUDA device: encoded and decoded there, docs/wire-format.md.

Finished bytes alone travel, once each way, of a packet or of a whole group; cuda/rice_launch.h has
the layout. Of what a message may have wrong, the host finds checksum and structure before anything
is sent or allocated; the device finds the contents of the tiles, in a flag for each packet.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gcext._native import ops
from gcext._native.library import current_stream
from gcext._packet import wire
from gcext._packet.codes import Contents
from gcext._packet.errors import DecodeError

if TYPE_CHECKING:
    from gcext._packet.packet import Packet

__all__ = ["MOST", "decode", "encodes", "on_host"]

_FIELDS = 7  # PackField: int64 numbers of each packet, before all streams
MOST = 2**52  # kUnpackNumel

Pairs: TypeAlias = "tuple[Tensor, Tensor, Tensor]"  # index, value, select's info or none


class _Streams(NamedTuple):
    """What a device reports of one packet."""

    wrong: int  # 1 where the indices do not rise strictly below numel
    info: list[int]  # select's
    streams: npt.NDArray[np.uint8]  # from the tile table to the signs


def encodes(packet: Packet) -> bool:
    """Return whether the packet's streams are encoded on its device."""
    return packet.method == "ternary" and packet.device.type == "cuda"


def on_host(packet: Packet) -> Packet:
    """Return the packet with all contents on the host, as arrays or as encoded streams."""
    packets = packet.members or (packet,)
    there = [i for i, each in enumerate(packets) if encodes(each)]
    streams = _make_streams([packets[i] for i in there])
    made = {i: _encoded(packets[i], each) for i, each in zip(there, streams, strict=True)}
    members = tuple(made.get(i) or each.to("cpu") for i, each in enumerate(packets))
    return type(packet).group(members) if packet.members else members[0]


def _encoded(packet: Packet, made: _Streams) -> Packet:
    deferred = packet.deferred
    if deferred is not None:
        k, _, _, bits = deferred.checked(made.info)
        scale = packet.scale_of(bits)
    else:
        k, scale = packet.k, packet.scale
    if made.wrong:  # the host can tell where
        return packet.to("cpu")
    encoded = wire.Encoded(k, scale, made.streams)
    return type(packet)("ternary", packet.shape, packet.dtype, encoded=encoded)


def _make_streams(packets: Sequence[Packet]) -> list[_Streams]:
    """Return the streams of each packet, in one copy from each device."""
    made: dict[int, _Streams] = {}
    for device in dict.fromkeys(packet.device for packet in packets):
        there = [i for i, packet in enumerate(packets) if packet.device == device]
        made.update(zip(there, _make([packets[i] for i in there]), strict=True))
    return [made[i] for i in range(len(packets))]


def _make(packets: Sequence[Packet]) -> list[_Streams]:
    with _after_all(packets):
        index, value, info = map(list, zip(*map(_pairs, packets), strict=True))
        there = ops.pack_ternary(index, value, info, [packet.numel for packet in packets])
        here = torch.empty(there.shape, dtype=torch.uint8, pin_memory=there.is_cuda)
        here.copy_(there)
    out = here.numpy()
    heads = out[: 8 * _FIELDS * len(packets)].view(np.int64).reshape(-1, _FIELDS).tolist()
    return [_Streams(wrong, numbers, out[at : at + size]) for at, size, wrong, *numbers in heads]


def _pairs(packet: Packet) -> Pairs:
    """Return a ternary packet's pairs; of a deferred one without synchronizing."""
    deferred = packet.deferred
    if deferred is not None:
        index, value = deferred.arrays
        return index, value, deferred.info
    support, value = packet.entries()
    assert support is not None
    return support, value, value.new_empty(0, dtype=torch.int64)


def _after_all(packets: Sequence[Packet]) -> AbstractContextManager[object]:
    """Be on the stream that encoded the first of the packets, after those of the others."""
    first, *others = dict.fromkeys(map(_encoder, packets))
    if first is None:
        return nullcontext()
    for other in others:
        assert other is not None
        first.wait_stream(other)
    return first


def _encoder(packet: Packet) -> torch.Stream | None:
    """Return the stream that encodes the packet, or that may read it; None on the CPU."""
    deferred = packet.deferred
    return current_stream(packet.device) if deferred is None else deferred.encoder()


def decode(
    kind: type[Packet],
    buf: Any,
    device: torch.device | str,
    expect: Any,
    budget: tuple[int, int] | None = None,
) -> Packet | None:
    """Return the packet in ``buf``, its ternary streams decoded on the device.

    None where anything is wrong, since the host can tell what, and where a shape is too large.
    """
    try:
        found = wire.locate(kind, buf, expect, budget)
    except DecodeError:
        return None
    packets = found.members or (found,)
    there = [each for each in packets if each.encoded is not None]
    if any(each.numel > MOST for each in there):
        return None
    pairs = _open_streams(buf, device, there) if there else iter(())
    if pairs is None:
        return None
    members = []
    for each in packets:
        if each.encoded is None:
            members.append(each.to(device))
        else:
            index, value = next(pairs)
            contents = Contents(index, value, each.encoded.scale)
            members.append(kind("ternary", each.shape, each.dtype, contents))
    return kind.group(members) if found.members else members[0]


def _open_streams(buf: Any, device: torch.device | str, packets: Sequence[Packet]) -> Any:
    """Send the message; an iterator of index and value of its located packets, or None."""
    message = np.frombuffer(memoryview(buf), np.uint8)
    staged = torch.empty(message.size, dtype=torch.uint8, pin_memory=torch.cuda.is_available())
    staged.numpy()[:] = message
    rows = []
    for each in packets:
        place = each.encoded
        assert isinstance(place, wire.Located)
        numel = math.prod(each.shape)
        rows.append(
            (place.begin, place.end, place.remainder_bytes, place.k, numel, place.scale_bits)
        )
    columns = [list(column) for column in zip(*rows, strict=True)]
    sent = staged.to(device, non_blocking=True)
    indices, values, wrong = ops.unpack_ternary(sent, *columns)
    if any(wrong.tolist()):
        return None
    *_, ks, numels, _ = columns
    split = zip(indices.split(ks), values.split(ks), numels, strict=True)  # type: ignore[no-untyped-call]
    return iter(
        (index.to(torch.int64 if numel >= 2**31 else torch.int32), value)
        for index, value, numel in split
    )
