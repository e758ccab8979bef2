"""Ternary streams on a CUDA device: encoded and decoded there, docs/wire-format.md.

Finished bytes alone travel, once each way, of a packet or of a whole group; cuda/rice_launch.h has
the layout. Of what a message may have wrong, the host finds checksum and structure before anything
is sent or allocated; the device finds the contents of the tiles, in a flag for each packet.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate
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
from gcext._packet.streams import SETTLED, Ready, reading

if TYPE_CHECKING:
    from gcext._packet.packet import Packet

__all__ = ["MOST", "decode", "encodes", "on_host", "settle"]

_FIELDS = 7  # PackField: int64 numbers of each packet, before all streams
MOST = 2**52  # kUnpackNumel
_ALIGNED = 64  # bytes, for any dtype

Pairs: TypeAlias = "tuple[Tensor, Tensor, Tensor]"  # index, value, select's info or none


class _Streams(NamedTuple):
    """What a device reports of one packet."""

    wrong: int  # 1 where the indices do not rise strictly below numel
    info: list[int]  # select's
    streams: npt.NDArray[np.uint8]  # from the tile table to the signs


def encodes(packet: Packet) -> bool:
    """Return whether the packet's streams are encoded on its device."""
    return packet.method == "ternary" and packet.device.type == "cuda"


def on_host(packets: Sequence[Packet]) -> list[Packet]:
    """Return packets with all contents on the host, as arrays or as encoded streams.

    Synchronizes once a device for all ternary packets and members, and twice for all others.
    """
    singles = [each for packet in packets for each in packet.members or (packet,)]
    made = _read(singles)
    moved = iter([made.get(i, each) for i, each in enumerate(singles)])
    here = []
    for packet in packets:
        parts = [next(moved) for _ in packet.members or (packet,)]
        here.append(packet.group(parts) if packet.members else parts[0])
    return here


def settle(packets: Sequence[Packet]) -> None:
    """Synchronize the deferred ones among single packets, all of a device at once.

    Raises what the first of them reports that has an error.
    """
    waiting = [each for each in packets if each.deferred is not None and not each.is_captured]
    for device in dict.fromkeys(each.device for each in waiting):
        there = [each for each in waiting if each.device == device]
        with reading(device, map(_after, there)):
            contents = _contents(there)
        for packet, each in zip(there, contents, strict=True):
            packet.keep(each)


def _read(singles: Sequence[Packet]) -> dict[int, Packet]:
    """Return those of single packets that are not on the host, there, by their place."""
    made: dict[int, Packet] = {}
    left = {i: each for i, each in enumerate(singles) if encodes(each) or not each.is_resident}
    for device in dict.fromkeys(each.device for each in left.values()):
        there = {i: each for i, each in left.items() if each.device == device}
        ternary = {i: each for i, each in there.items() if encodes(each)}
        with reading(device, map(_after, there.values())):
            streams = _make(list(ternary.values())) if ternary else []
            for (i, packet), each in zip(ternary.items(), streams, strict=True):
                if (packed := _encoded(packet, each)) is not None:
                    made[i] = packed
            others = {i: each for i, each in there.items() if i not in made}
            contents = _contents(list(others.values()))
            moved = _fetch(contents)
        for (i, packet), held, here in zip(others.items(), contents, moved, strict=True):
            if packet.deferred is not None and not packet.is_captured:
                packet.keep(held)
            made[i] = packet.having(here)
    return made


def _contents(packets: Sequence[Packet]) -> list[Contents]:
    """Return the contents of single packets of a device, the numbers of deferred ones in one copy.

    For use within ``reading``.
    """
    deferred = [packet.deferred for packet in packets]
    infos = [each.info for each in deferred if each is not None]
    rows = iter(torch.stack(infos).tolist() if infos else ())
    return [
        packet.contents if each is None else each.contents(next(rows))
        for packet, each in zip(packets, deferred, strict=True)
    ]


def _fetch(contents: Sequence[Contents]) -> list[Contents]:
    """Return contents on the host, in one buffer, having synchronized once; within ``reading``."""
    tensors: list[Tensor] = []

    def take(tensor: Tensor) -> Tensor:
        tensors.append(tensor)
        return tensor

    for each in contents:
        each.map(take)
    stream = current_stream(tensors[0].device) if tensors else None
    ends = list(accumulate(-(-tensor.nbytes // _ALIGNED) * _ALIGNED for tensor in tensors))
    buffer = torch.empty(ends[-1] if ends else 0, dtype=torch.uint8, pin_memory=stream is not None)
    here = []
    for tensor, at in zip(tensors, [0, *ends], strict=False):
        part = buffer[at : at + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        here.append(part.copy_(tensor, non_blocking=True))
    if stream is not None:
        stream.synchronize()
    moved = iter(here)
    return [each.map(lambda _: next(moved)) for each in contents]


def _encoded(packet: Packet, made: _Streams) -> Packet | None:
    """Return the packet of encoded streams; None where the host must find what is wrong."""
    deferred = packet.deferred
    if deferred is not None:
        k, _, _, bits = deferred.checked(made.info)
        scale = packet.scale_of(bits)
    else:
        k, scale = packet.k, packet.scale
    if made.wrong:
        return None
    encoded = wire.Encoded(k, scale, made.streams)
    return type(packet)("ternary", packet.shape, packet.dtype, encoded=encoded)


def _make(packets: Sequence[Packet]) -> list[_Streams]:
    """Return the streams of ternary packets of a device, in one copy."""
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


def _after(packet: Packet) -> Ready | None:
    """Return what reading a single packet has to wait for; None: all that the stream has."""
    deferred = packet.deferred
    return deferred.after if deferred is not None else SETTLED if packet.is_settled else None


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
