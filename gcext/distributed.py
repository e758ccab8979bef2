"""Packets between the processes of ``torch.distributed``.

Packets are bytes of different lengths, which collectives of tensors do not take as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from gcext._packet.errors import DecodeError
from gcext._packet.packet import Packet

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["all_gather"]

_FAILED = -1  # in place of a length: the rank has no message


def all_gather(
    packet: Packet | None,
    group: ProcessGroup | None = None,
    expect: Sequence[Any] | Tensor | Mapping[str, Tensor] | Packet | None = None,
) -> list[Packet]:
    """Return the packets of all ranks, in rank order; every rank gets the same ones, bit for bit.

    Two collectives: the lengths, then the messages, each padded to the largest. Works with gloo,
    and with NCCL, where the bytes travel on the process group's device (the current CUDA device
    unless the group is bound to one) and are copied to the host, which synchronizes. NCCL is not
    covered by the tests.

    Args:
        packet: this rank's. All ranks of the group must call: one that has no packet, because its
            gradient was refused, passes None, and gets a TypeError.
        group: of processes; None: all of them.
        expect: what the others' packets must be, as of ``Packet.from_bytes``. None: the shape of
            this rank's packet.

    Returns:
        one packet for each rank, this one's too, decoded from bytes onto ``packet.device``.

    Raises:
        DecodeError: a rank sent no packet of the shape expected; names the rank.
        RuntimeError: torch.distributed is not initialized, this process is not in the group, or
            another rank passed no packet, or one that does not pack.
        TypeError: not a packet, or ValueError: it does not pack. The other ranks get a
            RuntimeError, so that none waits.

    >>> import gcext, torch
    >>> import torch.distributed as dist
    >>> dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    >>> gcext.distributed.all_gather(gcext.stc(torch.tensor([0.0, 4.0, -2.0]), p=0.7))
    [Packet(ternary, shape=(3,), k=2, scale=3)]
    >>> dist.destroy_process_group()
    """
    if not (dist.is_available() and dist.is_initialized()):
        raise RuntimeError(
            "all_gather: torch.distributed must be initialized. Call init_process_group first."
        )
    if dist.get_rank(group) < 0:
        raise RuntimeError("all_gather: this process must be in the group, got another one's.")
    device = _device(group)
    message, error = _packed(packet)
    length = torch.tensor([_FAILED if error else len(message)], device=device)
    lengths = _gather(length, group).view(-1).tolist()
    if error:  # only now: the others have waited for the length
        raise error
    assert packet is not None  # or there would be an error
    if _FAILED in lengths:
        raise RuntimeError(
            f"all_gather: every rank must have a packet, got none from rank "
            f"{lengths.index(_FAILED)}, whose own error says why."
        )
    padded = torch.frombuffer(bytearray(message.ljust(max(lengths), b"\0")), dtype=torch.uint8)
    rows = _gather(padded.to(device), group).cpu()
    expect = packet.shape if expect is None else expect
    packets = []
    for rank, (row, size) in enumerate(zip(rows, lengths, strict=True)):
        try:
            received = Packet.from_bytes(row[:size].numpy().tobytes(), packet.device, expect)
        except DecodeError as wrong:
            text = f"all_gather: from rank {rank}: {wrong}"
            raise DecodeError(wrong.code, wrong.field, wrong.offset, text) from wrong
        packets.append(received)
    return packets


def _packed(packet: Any) -> tuple[bytes, Exception | None]:
    """Return the message, or the error in its place."""
    if not isinstance(packet, Packet):
        name = type(packet).__name__
        return b"", TypeError(f"all_gather: needs a packet, got {name}.")
    try:
        return packet.to_bytes(), None
    except Exception as error:
        return b"", error


def _gather(tensor: Tensor, group: ProcessGroup | None) -> Tensor:
    """Return the tensors of all ranks, which have one shape, as rows."""
    rows = tensor.new_empty((dist.get_world_size(group), *tensor.shape))
    dist.all_gather(list(rows.unbind()), tensor, group=group)
    return rows


def _device(group: ProcessGroup | None) -> torch.device:
    """Return where the tensors of the group's collectives must be."""
    if dist.get_backend(group) != "nccl":
        return torch.device("cpu")
    bound = getattr(group or dist.group.WORLD, "bound_device_id", None)
    return bound or torch.device("cuda", torch.cuda.current_device())
