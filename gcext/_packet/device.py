"""Ternary streams on a CUDA device: they are made and opened there, docs/wire-format.md.

Finished bytes alone travel, once each way, of a packet or of a whole group; cuda/rice_launch.h says
how many. Of what a message may have wrong, the host finds checksum and structure before anything is
sent or allocated; the device finds the contents of the tiles, in a flag for each packet. Packets
themselves are not known here: gcext.packet stands on top.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gcext._packet import wire

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["MOST", "Pairs", "Streams", "make_streams", "open_streams"]

_FIELDS = 7  # PackField: int64 numbers of each packet, before all streams
MOST = 2**52  # kUnpackNumel


@dataclass(frozen=True)
class Pairs:
    """A ternary packet on a device."""

    index: Tensor  # room for its pairs
    value: Tensor
    info: Tensor  # select's; of no elements where all the room counts
    numel: int  # of its shape
    stream: torch.Stream | None  # that wrote them; None on the CPU


class Streams(NamedTuple):
    """What a device says of one packet."""

    wrong: int  # 1 where the indices do not rise strictly below numel
    info: list[int]  # select's
    made: npt.NDArray[np.uint8]  # from the tile table to the signs


def make_streams(packets: Sequence[Pairs]) -> list[Streams]:
    """Return the streams of each packet, in one copy from each device."""
    made: dict[int, Streams] = {}
    for device in dict.fromkeys(packet.value.device for packet in packets):
        there = [i for i, packet in enumerate(packets) if packet.value.device == device]
        made.update(zip(there, _make([packets[i] for i in there]), strict=True))
    return [made[i] for i in range(len(packets))]


def _make(packets: Sequence[Pairs]) -> list[Streams]:
    with _after_all(packets):
        there: Tensor = torch.ops.gcext.pack_ternary(
            [each.index for each in packets],
            [each.value for each in packets],
            [each.info for each in packets],
            [each.numel for each in packets],
        )
        here = torch.empty(there.shape, dtype=torch.uint8, pin_memory=there.is_cuda)
        here.copy_(there)
    out = here.numpy()
    heads = out[: 8 * _FIELDS * len(packets)].view(np.int64).reshape(-1, _FIELDS).tolist()
    return [Streams(wrong, numbers, out[at : at + size]) for at, size, wrong, *numbers in heads]


def _after_all(packets: Sequence[Pairs]) -> AbstractContextManager[object]:
    """Be on the stream that made the first of the packets, after what made the others."""
    first, *others = dict.fromkeys(packet.stream for packet in packets)
    if first is None:
        return nullcontext()
    for other in others:
        assert other is not None
        first.wait_stream(other)
    return first


def open_streams(
    buf: Buffer, device: torch.device | str, bodies: Sequence[wire.Body]
) -> list[tuple[Tensor, Tensor]] | None:
    """Send the message, and return index and value of these located bodies of it.

    None where the device finds one wrong. Each has at most ``MOST`` elements.
    """
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
    return [
        (index.to(torch.int64 if numel >= 2**31 else torch.int32), value)
        for index, value, numel in zip(indices.split(ks), values.split(ks), numels, strict=True)
    ]
