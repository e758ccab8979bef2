"""Ternary packets on a CUDA device: their streams are made and opened there, docs/wire-format.md.

Finished bytes alone travel, once each way; cuda/rice_launch.h says how many. Of what a message may
have wrong, the host finds checksum and structure before anything is sent or allocated; the device
finds the contents of the tiles, in one flag.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gcext import wire
from gcext.packet import BY_NAME, DTYPES, Packet

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["pack", "packs", "streams", "unpack"]

_HEAD = 64  # kPackHead: int64 length, wrong and select's info stand before the streams
_MOST = 2**52  # kUnpackNumel


def packs(packet: Packet) -> bool:
    """Whether the packet's streams are made on its device."""
    return packet.method == "ternary" and packet.device.type == "cuda"


def streams(
    index: Tensor, value: Tensor, info: Tensor, numel: int
) -> tuple[list[int], npt.NDArray[np.uint8]]:
    """Return select's info as numbers and the streams of the pairs, in one copy from the device.

    Raises ValueError where the indices do not rise strictly below numel.
    """
    there = torch.ops.gcext.pack_ternary(index, value, info, numel)
    here = torch.empty(there.shape, dtype=torch.uint8, pin_memory=there.is_cuda)
    here.copy_(there)
    size, wrong, *numbers = here[:48].view(torch.int64).tolist()
    if wrong:
        raise ValueError(
            f"pack: index must rise strictly from 0 below {numel}, got a fall, a repetition or a "
            "number beyond. Sort it and check the shape."
        )
    return numbers, here.numpy()[_HEAD : _HEAD + size]


def pack(packet: Packet) -> bytes:
    """Return the message of a ternary packet whose number of pairs is known."""
    index, value = packet.index, packet.value
    assert index is not None
    info = torch.tensor([packet.k, 0, 0, 0], device=packet.device)
    made = streams(index, value, info, packet.numel)[1]
    return wire.pack_streams(packet.shape, DTYPES[packet.dtype], packet.k, packet.scale, made)


def unpack(buf: Buffer, device: torch.device | str, shape: Any) -> Packet | None:
    """Return the ternary packet that ``buf`` says, opened on the device.

    None where that is the host's: other methods, shapes that are not the expected one, and streams
    that the device refuses, since the host can tell what is wrong with them. Raises DecodeError for
    the checksum and the structure.
    """
    found = wire.locate(buf)  # type: ignore[arg-type]
    if found is None or found.numel > _MOST or not (shape is None or found.shape == tuple(shape)):
        return None
    message = np.frombuffer(memoryview(buf), np.uint8)
    staged = torch.empty(message.size, dtype=torch.uint8, pin_memory=torch.cuda.is_available())
    staged.numpy()[:] = message
    there = staged.to(device, non_blocking=True)
    index, value, wrong = torch.ops.gcext.unpack_ternary(
        there, found.begin, found.remainder_bytes, found.k, found.numel, found.scale_bits
    )
    if int(wrong):
        return None
    return Packet("ternary", found.shape, BY_NAME[found.dtype], index, value, found.scale)
