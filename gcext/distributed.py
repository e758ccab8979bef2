"""Packets between the processes of ``torch.distributed``.

Packets are bytes of different lengths, which collectives of tensors do not take as they are.
``all_gather`` waits for the packets of all ranks; a ``Gather`` is under way while other work goes
on, and needs one collective where a ``Capacity`` foresaw the longest message.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from gcext._packet.errors import DecodeError
from gcext._packet.packet import Packet

if dist.is_available() and not dist.is_initialized():
    # DDP imports this module with its first model, and the module keeps what is group.WORLD then as
    # its functions' default: a group that is never freed, whose threads may meet the interpreter's
    # end ("terminate called without an active exception"). Imported now, it keeps None.
    import torch.distributed.nn

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["Capacity", "Gather", "all_gather"]

_FAILED = -1  # in place of a length: the rank has no message
_HEAD = struct.Struct("<qq")  # length, number


def all_gather(
    packet: Packet | None,
    group: ProcessGroup | None = None,
    expect: Sequence[Any] | Tensor | Mapping[str, Tensor] | Packet | None = None,
    number: int = 0,
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
        number: of the round or step, in [-2^63, 2^63), the same on all ranks: a rank that resumed
            from another checkpoint is then an error on all.

    Returns:
        one packet for each rank, this one's too, decoded from bytes onto ``packet.device``.

    Raises:
        DecodeError: a rank sent no packet of the shape expected; names the rank.
        RuntimeError: torch.distributed is not initialized, this process is not in the group, the
            ranks' numbers differ, or another rank passed no packet, or one that does not pack.
        TypeError: not a packet, or ValueError: it does not pack. The other ranks get a
            RuntimeError, so that none waits.

    >>> import gcext, torch
    >>> import torch.distributed as dist
    >>> dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    >>> gcext.distributed.all_gather(gcext.stc(torch.tensor([0.0, 4.0, -2.0]), p=0.7))
    [Packet(ternary, shape=(3,), k=2, scale=3)]
    >>> dist.destroy_process_group()
    """
    return Gather(packet, group, expect, number=number).wait()


class Gather:
    """An all-gather of packets under way, beside other work: ``all_gather`` is its ``wait``.

    The first collective carries each rank's length and number, and the first ``capacity`` bytes of
    its message; where all messages fit, that is all. Where one does not, which every rank learns
    alike, a second collective carries the rest. Collectives of a group must begin in one order on
    all ranks, so the second begins in ``rest`` or ``wait`` and never on its own: call these in one
    order everywhere.

    Args:
        packet: this rank's; or None, or why there is none: then ``wait`` raises on all ranks.
        group: of processes; None: all of them.
        expect: see ``all_gather``.
        capacity: bytes, the same on all ranks; see Capacity.
        number: see ``all_gather``.

    Attributes:
        error: why this rank has no packet, or None.
        sent_bytes: that this rank gave to the collectives: its message, lengths and padding.
        received_bytes: of the other ranks, likewise.

    >>> import gcext, torch
    >>> import torch.distributed as dist
    >>> dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    >>> gather = Gather(gcext.stc(torch.tensor([0.0, 4.0, -2.0]), p=0.7), capacity=64)
    >>> gather.wait(), gather.sent_bytes
    ([Packet(ternary, shape=(3,), k=2, scale=3)], 80)
    >>> dist.destroy_process_group()
    """

    def __init__(
        self,
        packet: Packet | Exception | None,
        group: ProcessGroup | None = None,
        expect: Sequence[Any] | Tensor | Mapping[str, Tensor] | Packet | None = None,
        capacity: int = 0,
        number: int = 0,
    ) -> None:
        place("all_gather", group)
        self._packet, self._group, self._expect = packet, group, expect
        self._capacity = capacity
        self._message, self.error = _packed(packet)
        self._heads: list[tuple[int, int]] = []
        self._more: _Collective | None = None
        self.sent_bytes = self.received_bytes = 0
        length = _FAILED if self.error else len(self._message)
        head = _HEAD.pack(length, number)
        self._first = self._begin((head, self._message[:capacity]), _HEAD.size + capacity)

    def _begin(self, parts: Sequence[bytes], size: int) -> _Collective:
        made = _Collective(parts, size, self._group)
        self.sent_bytes += size
        self.received_bytes += size * (dist.get_world_size(self._group) - 1)
        return made

    def _read_heads(self) -> list[tuple[int, int]]:
        """Return each rank's length and number. Waits for the first collective."""
        if not self._heads:
            self._heads = [_HEAD.unpack_from(row) for row in self._first.wait()]
        return self._heads

    @property
    def lengths(self) -> list[int]:
        """Bytes of each rank's message; -1 of one without. Waits for the first collective."""
        return [length for length, _ in self._read_heads()]

    @property
    def failed(self) -> list[int]:
        """The ranks without a packet. Waits for the first collective."""
        return [rank for rank, length in enumerate(self.lengths) if length == _FAILED]

    @property
    def fits(self) -> bool:
        """Whether one collective was enough. Waits for it."""
        return max(self.lengths) <= self._capacity

    def then(self, call: Callable[[], None]) -> Callable[[], object]:
        """Call when the first collective has ended, in a thread of the backend's where it has any.

        Returns what waits for the call, and raises what it raised. ``call`` must not begin
        a collective.
        """
        return self._first.then(call)

    def rest(self) -> None:
        """Begin the second collective, where one is needed. Waits for the first."""
        if self.fits or self._more is not None or self.failed:
            return
        size = max(self.lengths) - self._capacity
        self._more = self._begin((self._message[self._capacity :],), size)

    def wait(self) -> list[Packet]:
        """Return the packets of all ranks, and raise, as ``all_gather``."""
        failed = self.failed
        if self.error:  # only now: the others have waited for the length
            raise self.error
        packet = self._packet
        assert isinstance(packet, Packet)  # or there would be an error
        if failed:
            raise RuntimeError(
                f"all_gather: every rank must have a packet, got none from rank {failed[0]}. See "
                "the error on that rank."
            )
        numbers = [number for _, number in self._read_heads()]
        if len(set(numbers)) > 1:
            raise RuntimeError(
                f"all_gather: number must be the same on all ranks, got {numbers} in rank order. "
                "Resume all ranks from one checkpoint, and call in one order."
            )
        self.rest()
        rows: list[Any] = [row[_HEAD.size :] for row in self._first.wait()]
        if self._more is not None:
            rows = [b"".join(pair) for pair in zip(rows, self._more.wait(), strict=True)]
        expect = packet.shape if self._expect is None else self._expect
        packets = []
        for rank, (row, size) in enumerate(zip(rows, self.lengths, strict=True)):
            try:
                received = Packet.from_bytes(row[:size], packet.device, expect)
            except DecodeError as wrong:
                text = f"all_gather: from rank {rank}: {wrong}"
                raise DecodeError(wrong.code, wrong.field, wrong.offset, text) from wrong
            packets.append(received)
        return packets


class Capacity:
    """How many bytes to foresee for the longest message of a place in a program.

    The longest of the last 32 rounds and 1/64 more, rounded up to 64 bytes: so that one collective
    is enough but for a few rounds, and padding is some 2 %. Made of lengths that all ranks know,
    so all ranks foresee the same.

    >>> capacity = Capacity()
    >>> capacity.nbytes
    256
    >>> capacity.observe([1000, 1900])
    >>> capacity.nbytes
    1984
    """

    def __init__(self) -> None:
        self._longest: deque[int] = deque(maxlen=32)

    @property
    def nbytes(self) -> int:
        """The ``capacity`` of the next Gather."""
        longest = max(self._longest, default=200)
        return -(-(longest + longest // 64) // 64) * 64

    def observe(self, lengths: Iterable[int]) -> None:
        """Learn the lengths of a round's messages, of all ranks."""
        self._longest.append(max(lengths))


class _Collective:
    """An all-gather of as many bytes of each rank, begun; a rank's parts are padded to the size."""

    def __init__(self, parts: Sequence[bytes], size: int, group: ProcessGroup | None) -> None:
        device = _device(group)
        padded = bytearray(size)
        at = 0
        for part in parts:
            padded[at : at + len(part)] = part
            at += len(part)
        row = torch.frombuffer(padded, dtype=torch.uint8).to(device)
        world = dist.get_world_size(group)
        self._rows = torch.empty((world, size), dtype=torch.uint8, device=device)
        self._work = dist.all_gather(list(self._rows.unbind()), row, group=group, async_op=True)
        self._row = row  # must stay until the end
        self._future = self._work.get_future()

    def then(self, call: Callable[[], None]) -> Callable[[], object]:
        if self._rows.is_cuda:  # a future of NCCL is complete when the collective is enqueued
            return call
        called = self._future.then(lambda _: call())
        return lambda: called.wait()

    def wait(self) -> list[memoryview]:
        self._future.wait()  # not the work's, which is not complete yet in a callback
        return [memoryview(row.numpy()) for row in self._rows.cpu()]


def _packed(packet: Any) -> tuple[bytes, Exception | None]:
    """Return the message, or the error in its place."""
    if isinstance(packet, Exception):
        return b"", packet
    if not isinstance(packet, Packet):
        name = type(packet).__name__
        return b"", TypeError(f"all_gather: needs a packet, got {name}.")
    try:
        return packet.to_bytes(), None
    except Exception as error:
        return b"", error


def _device(group: ProcessGroup | None) -> torch.device:
    """Return where the tensors of the group's collectives must be."""
    if dist.get_backend(group) != "nccl":
        return torch.device("cpu")
    bound = getattr(group or dist.group.WORLD, "bound_device_id", None)
    return bound or torch.device("cuda", torch.cuda.current_device())


# --- What the engines' adapters share: to start alike, and to fail together. ---


def place(owner: str, group: ProcessGroup | None) -> tuple[int, int]:
    """Return this process's rank in the group and the number of ranks; RuntimeError for none."""
    if not (dist.is_available() and dist.is_initialized()):
        raise RuntimeError(
            f"{owner}: torch.distributed must be initialized. Call init_process_group first."
        )
    rank = dist.get_rank(group)
    if rank < 0:
        raise RuntimeError(f"{owner}: this process must be in the group, got another one's.")
    return rank, dist.get_world_size(group)


def gather_objects(mine: Any, group: ProcessGroup | None) -> list[Any]:
    """Return what each rank passed, in rank order; all must call. Pickles: trusted ranks only."""
    everyone: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(everyone, mine, group=group)
    return everyone


def difference(options: Mapping[str, Any], group: ProcessGroup | None) -> str:
    """Return which option is not the same on all ranks, as a sentence, or ""; all must call."""
    everyone = gather_objects(dict(options), group)
    for rank, theirs in enumerate(everyone):
        for key in dict.fromkeys([*everyone[0], *theirs]):
            if everyone[0].get(key) != theirs.get(key):
                return (
                    f"{key} must be the same on all ranks, got {everyone[0].get(key)} on rank 0 of "
                    f"the group and {theirs.get(key)} on rank {rank}."
                )
    return ""


def check_alike(owner: str, options: Mapping[str, Any], group: ProcessGroup | None) -> None:
    """Raise ValueError, on all ranks, where an option differs between them; all must call."""
    if problem := difference(options, group):
        raise ValueError(f"{owner}: {problem}")


def any_failed(failed: bool, like: Tensor, group: ProcessGroup | None) -> bool:
    """Return whether a rank has failed, the same on all; all must call. like: for the device."""
    flag = like.new_tensor([float(failed)])
    dist.all_reduce(flag, dist.ReduceOp.MAX, group=group)
    return bool(flag.item())
