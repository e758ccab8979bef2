"""Ternary packets on a CUDA device: their streams are made and opened there, docs/wire-format.md.

Finished bytes alone travel, once each way, of a packet or of a whole group; cuda/rice_launch.h says
how many. Of what a message may have wrong, the host finds checksum and structure before anything is
sent or allocated; the device finds the contents of the tiles, in a flag for each packet.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gcext import wire
from gcext._lib import BY_NAME, DTYPES
from gcext.errors import DecodeError
from gcext.packet import Packet, body_of, packet_of

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["body", "packs", "unpack"]

_FIELDS = 7  # PackField: int64 numbers of each packet, before all streams
_MOST = 2**52  # kUnpackNumel


def packs(packet: Packet) -> bool:
    """Whether the packet's streams are made on its device."""
    return packet.method == "ternary" and packet.device.type == "cuda"


def body(packet: Packet) -> wire.Body:
    """Return what the packet says, with streams that are finished where its device makes them.

    Raises what looking at the packet, or at the first such member of a group, does.
    """
    if packet.method == "group":
        return wire.Body("group", members=tuple(_bodies(packet.members)))
    return _bodies([packet])[0]


def unpack(buf: Buffer, device: torch.device | str, shape: Any) -> Packet | None:
    """Return the packet that ``buf`` says, its ternary parts opened on the device.

    None where anything is wrong, since the host can tell what, and where a shape is too large.
    """
    try:
        found = wire.locate(buf, shape)  # type: ignore[arg-type]
    except DecodeError:
        return None
    bodies = found.members if found.method == "group" else (found,)
    closed = [each for each in bodies if each.closed is not None]
    if any(math.prod(each.shape) > _MOST for each in closed):
        return None
    opened = _open(buf, device, closed) if closed else []
    if opened is None:
        return None
    rest = iter(opened)
    packets = [packet_of(each).to(device) if each.closed is None else next(rest) for each in bodies]
    return Packet.group(packets) if found.method == "group" else packets[0]


class _Streams(NamedTuple):
    """What a device says of one packet."""

    wrong: int  # 1 where the indices do not rise strictly below numel
    info: list[int]  # select's
    made: npt.NDArray[np.uint8]


def _bodies(packets: Sequence[Packet]) -> list[wire.Body]:
    streams: dict[int, _Streams] = {}
    for device in dict.fromkeys(packet.device for packet in packets if packs(packet)):
        there = [i for i, each in enumerate(packets) if packs(each) and each.device == device]
        streams.update(zip(there, _pack([packets[i] for i in there]), strict=True))
    return [
        _finished(packet, streams[i]) if i in streams else body_of(packet)
        for i, packet in enumerate(packets)
    ]


def _pack(packets: Sequence[Packet]) -> list[_Streams]:
    """Make the streams of packets on one device, and copy all of them at once."""
    with _after_all(packets):
        pairs = [packet._pairs() for packet in packets]
        index, value, info = (list(column) for column in zip(*pairs, strict=True))
        numel = [packet.numel for packet in packets]
        there: Tensor = torch.ops.gcext.pack_ternary(index, value, info, numel)
        here = torch.empty(there.shape, dtype=torch.uint8, pin_memory=there.is_cuda)
        here.copy_(there)
    out = here.numpy()
    heads = out[: 8 * _FIELDS * len(packets)].view(np.int64).reshape(-1, _FIELDS).tolist()
    return [_Streams(wrong, numbers, out[at : at + size]) for at, size, wrong, *numbers in heads]


def _after_all(packets: Sequence[Packet]) -> AbstractContextManager[object]:
    """Be on the stream that made the first of the packets, after what made the others."""
    first, *others = dict.fromkeys(packet._maker() for packet in packets)
    if first is None:
        return nullcontext()
    for other in others:
        assert other is not None
        first.wait_stream(other)
    return first


def _finished(packet: Packet, streams: _Streams) -> wire.Body:
    k, scale = packet._told(streams.info)
    if streams.wrong:  # the host can tell where
        return body_of(packet)
    made = wire.Made(k, streams.made)
    return wire.Body("ternary", packet.shape, DTYPES[packet.dtype], scale=scale, closed=made)


def _open(
    buf: Buffer, device: torch.device | str, bodies: Sequence[wire.Body]
) -> list[Packet] | None:
    """Send the message and open these bodies of it; None where the device refuses one."""
    message = np.frombuffer(memoryview(buf), np.uint8)
    staged = torch.empty(message.size, dtype=torch.uint8, pin_memory=torch.cuda.is_available())
    staged.numpy()[:] = message
    there = staged.to(device, non_blocking=True)
    rows = []
    for each in bodies:
        assert isinstance(each.closed, wire.Located)
        k, begin, end, remainder_bytes, scale_bits = each.closed
        rows.append((begin, end, remainder_bytes, k, math.prod(each.shape), scale_bits))
    columns = [list(column) for column in zip(*rows, strict=True)]
    indices, values, wrong = torch.ops.gcext.unpack_ternary(there, *columns)
    if any(wrong.tolist()):
        return None
    *_, ks, numels, _ = columns
    parts = zip(bodies, indices.split(ks), values.split(ks), numels, strict=True)
    return [
        Packet(
            "ternary", each.shape, BY_NAME[each.dtype],
            index.to(torch.int64 if numel >= 2**31 else torch.int32), value, each.scale,
        )
        for each, index, value, numel in parts
    ]  # fmt: skip
