"""Packets of a round that arrive one by one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from gcext._packet.budget import Budget, as_pair
from gcext._packet.packet import Packet
from gcext._packet.wire import as_shapes
from gcext.aggregate._aggregator import Aggregator
from gcext.aggregate._clients import in_order
from gcext.aggregate._sums import check_alike, check_cost

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["Round"]


class _Sent(NamedTuple):
    packet: Packet
    loss: float | None
    weight: float | None


class Round:
    """The packets of one round, arriving one by one and in any order.

    Each is checked as it comes and kept compressed; ``finish`` hands them all to the aggregator, by
    client. So the result does not depend on the order of arrival, not in one bit, and any
    aggregator will do. Memory is the packets': 8 bytes for each element that travels.

    Args:
        aggregator: what the round is for.
        expect: the shape of all packets (groups: of their members), or a tensor or packet of it,
            as of ``Packet.from_bytes``. It is checked before anything is allocated; without it,
            the first packet decides.
        number: the round's, as ``round`` of ``Aggregator.aggregate``.
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
        budget: Budget | None = None,
    ) -> None:
        if not isinstance(aggregator, Aggregator):
            raise TypeError(
                f"Round: needs an aggregator, got {aggregator!r:.100}. Pass one, such as Mean()."
            )
        self.aggregator = aggregator
        self.expect = None if expect is None else _shape(expect)
        self.number = number
        if budget is not None:
            as_pair(budget)
        self.budget = budget
        self._sent: dict[Any, _Sent] = {}
        self._finished = False

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
        packet: Packet | Buffer | Tensor,
        loss: float | None = None,
        weight: float | None = None,
    ) -> bool:
        """Take one client's packet, or its bytes as of ``Packet.from_bytes``; True where it is new.

        The same once more changes nothing and returns False: a client may send again when no answer
        came. Another packet, loss or weight of a client that has sent is refused. The ids of
        clients are all numbers or all strings.

        Raises:
            DecodeError: bytes that are no packet of this shape, or one beyond the budget.
            ValueError: a packet of another shape, what the aggregator's ``check`` refuses, or a
                second, different one of a client. The round is then as before.
            TypeError: no packet or message, no number, or an id of another type than the others'.
            RuntimeError: the round is finished.
        """
        self._open("add")
        if not isinstance(packet, Packet):
            packet = Packet.from_bytes(packet, expect=self.expect, budget=self.budget)
        elif self.expect is not None and packet.shape != self.expect:
            raise ValueError(
                f"Round: packets must have the shape {self.expect}, got {packet.shape} from client "
                f"{client}."
            )
        elif self.budget is not None:
            check_cost("Round", self.budget, client, packet)
        for first in list(self._sent)[:1]:
            in_order("Round", (first, client))
            check_alike("Round", (self._sent[first].packet, packet), (first, client))
        self.aggregator.check(client, packet, loss, weight)
        if client not in self._sent:
            self._sent[client] = _Sent(packet, loss, weight)
            return True
        held = self._sent[client]
        if held[1:] != (loss, weight) or held.packet.to_bytes() != packet.to_bytes():
            raise ValueError(
                f"Round: a client sends once a round, got something else from client {client}. "
                "Keep the first, or begin the round anew."
            )
        return False

    def finish(self) -> Tensor | list[Tensor]:
        """Return the round's update: float32 of the packets' shape (groups: a list).

        Raises ValueError for what the aggregator cannot use, RuntimeError where the round is
        finished. The round is then as before.
        """
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


def _shape(expect: Any) -> tuple[Any, ...]:
    shape = expect.shape if isinstance(expect, Packet) else expect
    group, shapes = as_shapes("Round", shape)
    return tuple(map(tuple, shapes)) if group else tuple(shapes[0])
