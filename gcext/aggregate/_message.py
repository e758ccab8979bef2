"""A packet with the run, client and round that it is for, as bytes with a checksum.

Little-endian:

     byte 0              4    5    6    8         16          24
     +-------------------+----+----+----+---------+-----------+--------+--------+---------+
     | magic 89 47 43 4D | 01 | 00 | c  | run u64 | round u64 | client | packet | XXH3-64 |
     +-------------------+----+----+----+---------+-----------+--------+--------+---------+

c, a u16, is the length of the client: UTF-8, a number's digits, or an apostrophe and a string. The
packet is as docs/wire-format.md has it; the checksum is of all bytes before it.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from xxhash import xxh3_64_intdigest

from gcext._packet.budget import Budget
from gcext._packet.errors import DecodeError
from gcext._packet.packet import Packet
from gcext._packet.wire import as_message
from gcext._spec import plain
from gcext.aggregate._clients import Client, as_client, client_of, text_of

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["Envelope", "Message", "MessageError", "check_envelope"]
__all__ += ["number_of", "open_envelope"]

MAGIC = b"\x89GCM"
VERSION = 1
_HEAD = struct.Struct("<4sBBHQQ")
_SUM = struct.Struct("<Q")
_MOST = 2**64 - 1


class MessageError(ValueError):
    """A sound message that a round does not take.

    Attributes:
        reason: "foreign", of another run; "stale", of an earlier round; "replay", of an earlier
            round in which it counted; "early", of a later round; "client", from another client than
            it says; "uninvited", from one that was not drawn; "conflict", another one than the
            client has sent in this round.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple[type[MessageError], tuple[str, str]]:
        return type(self), (self.reason, str(self))


class Envelope(NamedTuple):
    """What a message says of itself, and its packet or, not decoded yet, that one's bytes."""

    run: int
    client: Client
    round: int
    packet: Packet | bytes


@dataclass(frozen=True)
class Message:
    """A packet bound to the run, client and round that it is for.

    A packet alone may be replayed: its bytes are as good in the next round, or in another run. A
    ``Round`` or ``Rounds`` that knows its run and number takes messages and refuses all others. No
    signature: authenticate the channel.

    Args:
        run: a number of this run, below 2^64; drawn at random it tells runs apart.
        client: a whole number, or a string of at most 2^16 - 2 bytes.
        round: number of the round, below 2^64.
        packet: what the client sends.

    Raises ValueError for numbers that are not in their range, TypeError for other types.

    >>> import gcext, torch
    >>> from gcext.aggregate import Message
    >>> sent = Message(run=17, client=3, round=5, packet=gcext.stc(torch.ones(2), p=1)).to_bytes()
    >>> got = Message.from_bytes(sent, expect=(2,))
    >>> got.run, got.client, got.round, got.packet.to_dense()
    (17, 3, 5, tensor([1., 1.]))
    """

    run: int
    client: Client
    round: int
    packet: Packet

    def __post_init__(self) -> None:
        for name in ("run", "round"):
            object.__setattr__(self, name, number_of("Message", name, getattr(self, name)))
        object.__setattr__(self, "client", as_client("Message", self.client))
        if len(text_of(self.client).encode()) >= 2**16:
            raise ValueError("Message: a client must be of at most 65,534 bytes, got more.")
        if not isinstance(self.packet, Packet):
            raise TypeError(
                f"Message: needs a packet, got {type(self.packet).__name__}. Encode a tensor first."
            )

    def to_bytes(self) -> bytes:
        """Return the message's bytes: 32 and the client's id more than the packet's own."""
        name = text_of(self.client).encode()
        head = _HEAD.pack(MAGIC, VERSION, 0, len(name), self.run, self.round)
        body = b"".join((head, name, self.packet.to_bytes()))
        return body + _SUM.pack(xxh3_64_intdigest(body))

    @classmethod
    def from_bytes(
        cls,
        buf: Buffer | Tensor,
        device: torch.device | str = "cpu",
        expect: Sequence[Any] | Tensor | Mapping[str, Tensor] | Packet | None = None,
        budget: Budget | None = None,
    ) -> Message:
        """Return the message in ``buf``; device, expect and budget as of ``Packet.from_bytes``.

        Raises DecodeError on anything wrong; its code is one of docs/wire-format.md, or client.
        """
        run, client, round, payload = open_envelope(buf)
        assert isinstance(payload, bytes)
        return cls(run, client, round, Packet.from_bytes(payload, device, expect, budget))


def open_envelope(buf: Any) -> Envelope:
    """Return what a message, or its bytes, says of itself; DecodeError for bytes that are none."""
    if isinstance(buf, Message):
        return Envelope(buf.run, buf.client, buf.round, buf.packet)
    buf = as_message(buf)
    try:
        view = memoryview(buf).cast("B")
    except TypeError:
        raise TypeError(
            "Message: must be bytes, another contiguous buffer or a uint8 tensor, got "
            f"{type(buf).__name__}. Pass bytes."
        ) from None
    size = len(view)
    if size < _HEAD.size + _SUM.size:
        raise _wrong("truncated", "frame", size, f"at least {_HEAD.size + _SUM.size} bytes", size)
    magic, version, zero, length, run, round = _HEAD.unpack_from(view)
    if magic != MAGIC:
        raise _wrong("magic", "magic", 0, f"bytes that begin with {MAGIC.hex()}", magic.hex())
    if (version, zero) != (VERSION, 0):
        raise _wrong("version", "version", 4, f"version {VERSION}", f"{version}, flags {zero}")
    end = size - _SUM.size
    if xxh3_64_intdigest(view[:end]) != _SUM.unpack_from(view, end)[0]:
        raise _wrong("checksum", "checksum", end, "the checksum of the bytes before", "another")
    begin = _HEAD.size + length
    if begin > end:
        raise _wrong("truncated", "client", _HEAD.size, f"a client of {length} bytes", "fewer")
    try:
        client = client_of(bytes(view[_HEAD.size : begin]).decode())
    except ValueError:
        got = bytes(view[_HEAD.size : begin]).hex()
        rule = "digits, or an apostrophe and a text"
        raise _wrong("client", "client", _HEAD.size, rule, f"{got:.80}") from None
    return Envelope(run, client, round, bytes(view[begin:end]))


def number_of(op: str, name: str, value: Any) -> int:
    """Return a run's or round's number; ValueError where it is not below 2^64."""
    number: int = plain(op, name, int, value)
    if not 0 <= number <= _MOST:
        raise ValueError(f"{op}: {name} must be from 0 to 2^64 - 1, got {value}.")
    return number


def _wrong(code: str, field: str, offset: int, rule: str, got: Any) -> DecodeError:
    return DecodeError(code, field, offset, f"message: {field} must be {rule}, got {got}.")


def check_envelope(got: Envelope, run: int, number: int | None, client: Client) -> None:
    """Raise MessageError for a message of another run, round or client."""
    reason = rule = ""
    if got.run != run:
        reason, rule = "foreign", f"of run {run}, got one of run {got.run}"
    elif got.client != client:
        reason, rule = "client", f"its sender's own, got one of client {got.client!r:.60}"
    elif number is not None and got.round != number:
        reason = "stale" if got.round < number else "early"
        rule = f"of round {number}, got one of round {got.round}"
    if reason:
        raise MessageError(reason, f"Round: a message must be {rule} from client {client!r:.60}.")
