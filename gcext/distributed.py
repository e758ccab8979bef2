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

__all__ = ["all_gather", "all_to_all"]

_FAILED = -1  # in place of a tag: the rank has no message


def all_gather(
    packet: Packet | None,
    group: ProcessGroup | None = None,
    expect: Sequence[Any] | Tensor | Mapping[str, Tensor] | Packet | None = None,
    tag: int = 0,
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
        tag: what the packets are of, a number below 2^63 that must be the same on all ranks; it
            travels beside the length.

    Returns:
        one packet for each rank, this one's too, decoded from bytes onto ``packet.device``.

    Raises:
        DecodeError: a rank sent no packet of the shape expected; names the rank.
        RuntimeError: torch.distributed is not initialized, this process is not in the group,
            another rank passed no packet, or one that does not pack, or tags differ.
        TypeError: not a packet, or ValueError: it does not pack. The other ranks get a
            RuntimeError, so that none waits.

    >>> import gcext, torch
    >>> import torch.distributed as dist
    >>> dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    >>> gcext.distributed.all_gather(gcext.stc(torch.tensor([0.0, 4.0, -2.0]), p=0.7))
    [Packet(ternary, shape=(3,), k=2, scale=3)]
    >>> dist.destroy_process_group()
    """
    _check_group("all_gather", group)
    device = _device(group)
    message, error = _packed("all_gather", packet)
    lengths, tags = _gather_sizes("all_gather", [len(message)], tag, error, device, group)
    assert packet is not None  # or there would be an error
    if len(set(tags)) > 1:
        raise RuntimeError(
            f"all_gather: packets of one call must be of the same thing, got the tags {tags} of "
            "ranks 0, 1 .. Call in the same order on all ranks."
        )
    sizes = [size for (size,) in lengths]
    padded = torch.frombuffer(bytearray(message.ljust(max(sizes), b"\0")), dtype=torch.uint8)
    rows = _gather(padded.to(device), group).cpu()
    expect = packet.shape if expect is None else expect
    cut = [row[:size] for row, size in zip(rows, sizes, strict=True)]
    return _unpack("all_gather", cut, packet.device, expect)


def all_to_all(packets: Sequence[Packet] | None, group: ProcessGroup | None = None) -> list[Packet]:
    """Return the packets that all ranks have for this one, in rank order.

    Two collectives: the lengths, then the messages, which travel from rank to rank unpadded.
    Devices and errors are those of ``all_gather``.

    Args:
        packets: of one tensor's shape, one for each rank of the group. None: this rank has none,
            and gets a TypeError, the others a RuntimeError.
        group: of processes; None: all of them.

    Returns:
        one packet for each rank, this one's own too, of the shape of ``packets[rank]``.

    >>> import gcext, torch
    >>> import torch.distributed as dist
    >>> dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    >>> gcext.distributed.all_to_all([gcext.stc(torch.tensor([0.0, 4.0, -2.0]), p=0.7)])
    [Packet(ternary, shape=(3,), k=2, scale=3)]
    >>> dist.destroy_process_group()
    """
    _check_group("all_to_all", group)
    device, world, rank = _device(group), dist.get_world_size(group), dist.get_rank(group)
    packed = [_packed("all_to_all", each) for each in packets or (None,)]
    messages = [message for message, _ in packed]
    error = next((error for _, error in packed if error), None)
    if error is None and len(packed) != world:
        error = ValueError(f"all_to_all: needs a packet for each of {world} ranks, got {packets}.")
    mine = [0] * world if error else [len(message) for message in messages]
    lengths, _ = _gather_sizes("all_to_all", mine, 0, error, device, group)
    assert packets is not None
    sizes = [row[rank] for row in lengths]
    sent = torch.frombuffer(bytearray(b"".join(messages)), dtype=torch.uint8).to(device)
    received = sent.new_empty(sum(sizes))
    dist.all_to_all_single(received, sent, sizes, mine, group=group)
    own = packets[rank]
    rows = torch.split(received.cpu(), sizes)
    return _unpack("all_to_all", rows, own.device, own.shape)


def _check_group(op: str, group: ProcessGroup | None) -> None:
    if not (dist.is_available() and dist.is_initialized()):
        raise RuntimeError(
            f"{op}: torch.distributed must be initialized. Call init_process_group first."
        )
    if dist.get_rank(group) < 0:
        raise RuntimeError(f"{op}: this process must be in the group, got another one's.")


def _gather_sizes(
    op: str,
    mine: list[int],
    tag: int,
    error: Exception | None,
    device: torch.device,
    group: ProcessGroup | None,
) -> tuple[list[list[int]], list[int]]:
    """Return every rank's lengths, and tags; raise on all ranks where one has an error."""
    first = _FAILED if error else tag
    rows = _gather(torch.tensor([first, *mine], device=device), group).tolist()
    if error:  # only now: the others have waited for the lengths
        raise error
    tags = [row[0] for row in rows]
    if _FAILED in tags:
        raise RuntimeError(
            f"{op}: every rank must have a packet, got none from rank "
            f"{tags.index(_FAILED)}, whose own error says why."
        )
    return [row[1:] for row in rows], tags


def _unpack(op: str, rows: Sequence[Tensor], device: torch.device, expect: Any) -> list[Packet]:
    """Return the packets of messages, one of each rank."""
    packets = []
    for rank, row in enumerate(rows):
        try:
            packets.append(Packet.from_bytes(row.numpy().tobytes(), device, expect))
        except DecodeError as wrong:
            text = f"{op}: from rank {rank}: {wrong}"
            raise DecodeError(wrong.code, wrong.field, wrong.offset, text) from wrong
    return packets


def _packed(op: str, packet: Any) -> tuple[bytes, Exception | None]:
    """Return the message, or the error in its place."""
    if not isinstance(packet, Packet):
        name = type(packet).__name__
        return b"", TypeError(f"{op}: needs a packet, got {name}.")
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
