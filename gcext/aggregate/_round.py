"""Packets of a round that arrive one by one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from gcext._packet.budget import Budget, as_pair
from gcext._packet.packet import Packet
from gcext._packet.state import Lock
from gcext._packet.wire import as_shapes
from gcext.aggregate._aggregator import Aggregator
from gcext.aggregate._clients import Client, as_client, in_order
from gcext.aggregate._message import (
    Envelope,
    Message,
    MessageError,
    check_envelope,
    number_of,
    open_envelope,
)
from gcext.aggregate._sums import check_alike, check_cost

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["Round", "as_expected"]


class _Sent(NamedTuple):
    packet: Packet
    loss: float | None
    weight: float | None


class Round:
    """The packets of one round, arriving one by one and in any order.

    Each is checked as it comes and kept compressed; ``finish`` hands them all to the aggregator, by
    client. So the result does not depend on the order of arrival, not in one bit, and any
    aggregator will do. Threads may share it. Memory is the packets': 8 bytes for each element that
    travels.

    Args:
        aggregator: what the round is for.
        expect: the shape of all packets (groups: of their members), or a tensor or packet of it,
            as of ``Packet.from_bytes``. It is checked before anything is allocated; without it,
            the first packet decides.
        number: the round's, as ``round`` of ``Aggregator.aggregate``.
        run: of which this is a round; ``add`` then takes messages (gcext.aggregate.Message) of this
            run and number, and refuses all others. None: packets.
        budget: the most that one packet may cost to decode, as of ``Packet.from_bytes``. None: for
            bytes the default one of ``expect``, where that is given.

    >>> import gcext, torch
    >>> round = gcext.aggregate.Round(gcext.aggregate.Mean(), expect=(2,))
    >>> for client in (7, 3):
    ...     message = gcext.stc(torch.full((2,), float(client)), p=1).to_bytes()
    ...     arrived = round.add(client, message, weight=client)
    >>> round.add(3, message, weight=3)  # once more, because the answer was lost
    False
    >>> round
    Round(2 packets for Mean())
    >>> round.finish()
    tensor([5.8000, 5.8000])
    """

    def __init__(
        self,
        aggregator: Aggregator,
        expect: Sequence[Any] | Tensor | Mapping[str, Tensor] | Packet | None = None,
        number: int | None = None,
        run: int | None = None,
        budget: Budget | None = None,
    ) -> None:
        if not isinstance(aggregator, Aggregator):
            raise TypeError(
                f"Round: needs an aggregator, got {aggregator!r:.100}. Pass one, such as Mean()."
            )
        self.aggregator = aggregator
        self.expect = None if expect is None else as_expected(expect)
        self.number = number
        self.run = None if run is None else number_of("Round", "run", run)
        if run is not None:
            if number is None:
                raise ValueError(
                    "Round: a round of a run needs its number, got none. Pass number=."
                )
            self.number = number_of("Round", "number", number)
        if budget is not None:
            as_pair(budget)
        self.budget = budget
        self._sent: dict[Client, _Sent] = {}
        self._finished = False
        self._lock = Lock()

    def __len__(self) -> int:
        """Return the number of clients that have sent."""
        return len(self._sent)

    def __repr__(self) -> str:
        """Return how many packets there are, and for which aggregator."""
        packets = f"{len(self)} packet{'' if len(self) == 1 else 's'}"
        return f"Round({packets} for {self.aggregator!r})"

    def add(
        self,
        client: int | str,
        packet: Packet | Message | Buffer | Tensor,
        loss: float | None = None,
        weight: float | None = None,
    ) -> bool:
        """Take one client's packet, or its bytes as of ``Packet.from_bytes``; True where it is new.

        With ``run``: one client's message, or its bytes.

        The same once more changes nothing and returns False: a client may send again when no answer
        came. Another packet, loss or weight of a client that has sent is refused. The ids of
        clients are all numbers or all strings; all have a weight, or none has.

        Raises:
            DecodeError: bytes that are no packet of this shape, or one beyond the budget.
            MessageError: a second, different packet of a client; with ``run`` a message of another
                run, round or client.
            ValueError: a packet of another shape, what the aggregator's ``check`` refuses, or one
                with a weight beside others without. The round is then as before.
            TypeError: no packet or message, no number, or an id of another type than the others'.
            RuntimeError: the round is finished.
        """
        self._open("add")
        client = as_client("Round", client)
        if self.run is None:
            return self._take(client, self._packet(client, packet), loss, weight)
        if isinstance(packet, Packet):
            raise TypeError(
                f"Round: a round of a run takes messages, got a packet from client {client}. "
                "Make a Message of it, or leave run out."
            )
        envelope = open_envelope(packet)
        check_envelope(envelope, self.run, self.number, client)
        return self.add_opened(client, envelope, loss, weight)

    def add_opened(
        self, client: Client, envelope: Envelope, loss: float | None, weight: float | None
    ) -> bool:
        """Do as ``add`` with a message that was opened and found to be of this round."""
        return self._take(client, self._packet(client, envelope.packet), loss, weight)

    def _take(
        self, client: Client, packet: Packet, loss: float | None, weight: float | None
    ) -> bool:
        with self._lock:
            self._open("add")
            self._check(client, packet, loss, weight)
            held = self._sent.setdefault(client, sent := _Sent(packet, loss, weight))
        if held is sent:
            return True
        alike = _same(held.loss, loss) and _same(held.weight, weight)
        if not alike or held.packet.to_bytes() != packet.to_bytes():
            raise MessageError(
                "conflict",
                f"Round: a client sends once a round, got something else from client {client}. "
                "Keep the first, or drop the client.",
            )
        return False

    def _check(
        self, client: Client, packet: Packet, loss: float | None, weight: float | None
    ) -> None:
        """Raise for what could not be aggregated, alone or beside the others'."""
        for first in list(self._sent)[:1]:
            in_order("Round", (first, client))
            check_alike("Round", (self._sent[first].packet, packet), (first, client))
        self.aggregator.check(client, packet, loss, weight)
        others = (each for each in self._sent if each != client)
        other = next(others, None)
        if other is not None and (self._sent[other].weight is None) != (weight is None):
            raise ValueError(
                f"Round: all clients must have a weight or none, got {weight} from client {client} "
                f"and {self._sent[other].weight} from client {other}. Pass all weights, or drop a "
                "client."
            )

    def _packet(self, client: Client, given: Any) -> Packet:
        """Return the packet of what a client sent, which must be of this round's shape."""
        if isinstance(given, Message):
            raise TypeError(
                f"Round: a message needs a round of a run, got one of none from client {client}. "
                "Pass run= and number=, or the message's packet."
            )
        if not isinstance(given, Packet):
            return Packet.from_bytes(given, expect=self.expect, budget=self.budget)
        if self.expect is not None and given.shape != self.expect:
            raise ValueError(
                f"Round: packets must have the shape {self.expect}, got {given.shape} from client "
                f"{client}."
            )
        if self.budget is not None:
            check_cost("Round", self.budget, client, given)
        return given

    def drop(self, client: int | str) -> bool:
        """Take a client out of the round, as if it had not sent; False where it has not.

        Raises RuntimeError where the round is finished.
        """
        with self._lock:
            self._open("drop")
            return self._sent.pop(as_client("Round", client), None) is not None

    @property
    def clients(self) -> tuple[Client, ...]:
        """The clients that have sent, in order."""
        return tuple(in_order("Round", list(self._sent)))

    def finish(self) -> Tensor | list[Tensor]:
        """Return the round's update: float32 of the packets' shape (groups: a list).

        Raises ValueError for what the aggregator cannot use, RuntimeError where the round is
        finished. The round is then as before.
        """
        with self._lock:
            return self._finish()

    def _finish(self) -> Tensor | list[Tensor]:
        self._open("finish")
        losses = {c: sent.loss for c, sent in self._sent.items() if sent.loss is not None}
        weights = {c: sent.weight for c, sent in self._sent.items() if sent.weight is not None}
        update = self.aggregator.aggregate(
            {client: sent.packet for client, sent in self._sent.items()},
            losses or None,
            self.number,
            weights or None,
        )
        self._finished = True
        return update

    def _open(self, what: str) -> None:
        if self._finished:
            raise RuntimeError(f"Round.{what}: the round is finished. Begin another.")


def _same(one: Any, other: Any) -> bool:
    """Return whether two numbers are one; NaN is NaN."""
    return bool(one is other or one == other or (one != one and other != other))


def as_expected(expect: Any) -> tuple[Any, ...]:
    """Return the shape that a caller expects, or the shapes of a group."""
    shape = expect.shape if isinstance(expect, Packet) else expect
    group, shapes = as_shapes("Round", shape)
    return tuple(map(tuple, shapes)) if group else tuple(shapes[0])
