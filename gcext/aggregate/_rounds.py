"""Rounds of one run, one after another, in which every message counts once or not at all."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from gcext._packet.budget import Budget
from gcext._packet.errors import DecodeError
from gcext._packet.packet import Packet
from gcext._packet.state import Lock, loading
from gcext.aggregate._aggregator import Aggregator
from gcext.aggregate._clients import Client, as_client, by_kind
from gcext.aggregate._message import (
    Message,
    MessageError,
    check_envelope,
    number_of,
    open_envelope,
)
from gcext.aggregate._round import Round, as_expected

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["Rounds"]


class Rounds:
    """The rounds of one run: a message counts once by (run, client, round), or not at all.

    ``begin`` a round, ``add`` what arrives in whatever order, ``finish`` it, and so on. A copy of a
    message is no error and changes nothing; one of another run, of an earlier or a later round, or
    another one than the client has sent is refused, and counted by why. A client whose message is
    missing is left out: nothing of the round depends on it.

    Tell a client ``last_of(client)`` with the next model: where that is the round that its pending
    packet was for, the packet counted (``Sender.commit``), else it did not (``rollback``) and the
    residual is what it was. Where the server may be restored from a checkpoint, save the state
    before a client learns it.

    Args:
        aggregator: what the rounds are for.
        run: the run's number, below 2^64: drawn at random, another one for each run.
        expect: see Round.
        budget: see Round.

    Threads may share it: what they add is taken one by one.

    Attributes:
        number: of the last round begun; 0: none. They count from 1.
        counts: how many messages were "counted" or a "duplicate" of one; "damaged"; or refused,
            by the reason of MessageError, and else as "refused".

    >>> import gcext, torch
    >>> from gcext.aggregate import Mean, Message, Rounds
    >>> rounds = Rounds(Mean(), run=17, expect=(2,))
    >>> for number in (1, 2):
    ...     assert rounds.begin() == number
    ...     packet = gcext.stc(torch.full((2,), float(number)), p=1)
    ...     sent = Message(17, client=3, round=number, packet=packet).to_bytes()
    ...     rounds.add(3, sent), rounds.add(3, sent)
    ...     rounds.finish()
    (True, False)
    tensor([1., 1.])
    (True, False)
    tensor([2., 2.])
    >>> rounds.last_of(3), sorted(rounds.counts.items())
    (2, [('counted', 2), ('duplicate', 2)])
    """

    def __init__(
        self,
        aggregator: Aggregator,
        run: int,
        expect: Sequence[Any] | Tensor | Mapping[str, Tensor] | Packet | None = None,
        budget: Budget | None = None,
    ) -> None:
        self.run = number_of("Rounds", "run", run)
        self.expect = None if expect is None else as_expected(expect)
        self.aggregator = aggregator
        self.number = 0
        self.counts: Counter[str] = Counter()
        self._last: dict[Client, int] = {}  # the last round in which a client counted
        self._drawn: frozenset[Client] | None = None
        self._round: Round | None = None
        self.budget = budget
        self._lock = Lock()
        Round(aggregator, budget=budget)  # refuses now what it would refuse then

    def __repr__(self) -> str:
        """Return the run, and the round that is open or was the last."""
        if self._round is None:
            return f"Rounds(run {self.run}, {self.number} finished)"
        return f"Rounds(run {self.run}, round {self.number}: {self._round!r})"

    @property
    def clients(self) -> tuple[Client, ...]:
        """The clients whose messages the open round has, in order; none between rounds."""
        return () if self._round is None else self._round.clients

    def begin(self, clients: Iterable[Client] | None = None) -> int:
        """Begin the next round and return its number.

        clients: those that were drawn; messages of others are refused. None: anyone's are taken.

        Raises RuntimeError where a round is open, TypeError for what is no client.
        """
        with self._lock:
            if self._round is not None:
                raise RuntimeError(
                    f"Rounds.begin: round {self.number} is open. Finish or abandon it."
                )
            drawn = None
            if clients is not None:
                drawn = frozenset(as_client("Rounds", client) for client in clients)
            number = self.number + 1
            opened = Round(self.aggregator, self.expect, number, self.run, self.budget)
            self.number, self._drawn, self._round = number, drawn, opened
            return number

    def add(
        self,
        client: int | str,
        message: Message | Buffer | Tensor,
        loss: float | None = None,
        weight: float | None = None,
    ) -> bool:
        """Take a message or its bytes; True where it is new, False for a copy of one it has.

        Between rounds everything is refused, as stale or early.

        Args:
            client: who sent it, as the channel knows it: the message must say the same.
            loss, weight: see Round.add.

        Raises MessageError, with the reason, for a sound message that is not taken; DecodeError for
        bytes that are none; and what Round.add raises else. Nothing but ``counts`` changes then.
        """
        with self._lock:
            try:
                new = self._add(as_client("Rounds", client), message, loss, weight)
            except MessageError as error:
                self.counts[error.reason] += 1
                raise
            except DecodeError:
                self.counts["damaged"] += 1
                raise
            except (TypeError, ValueError):
                self.counts["refused"] += 1
                raise
            self.counts["counted" if new else "duplicate"] += 1
            return new

    def _add(self, client: Client, message: Any, loss: Any, weight: Any) -> bool:
        envelope = open_envelope(message)
        if (envelope.run, envelope.client) == (self.run, client):
            past = envelope.round < self.number or self._round is None
            if past and envelope.round == self._last.get(client):
                raise MessageError(
                    "replay",
                    f"Rounds: a message counts once, got another copy of round "
                    f"{envelope.round}'s from client {client!r:.60}.",
                )
        if self._round is None:
            # No round has this number, so that nothing is of it.
            open_number = self.number if envelope.round > self.number else self.number + 1
            check_envelope(envelope, self.run, open_number, client)
            raise AssertionError("a message between rounds is early or stale")
        check_envelope(envelope, self.run, self.number, client)
        if self._drawn is not None and client not in self._drawn:
            raise MessageError(
                "uninvited",
                f"Rounds: a client must be drawn in round {self.number}, got {client!r:.60}.",
            )
        return self._round.add_opened(client, envelope, loss, weight)

    def drop(self, client: int | str) -> bool:
        """Take a client out of the open round, as if it had not sent; False where it has not."""
        with self._lock:
            return self._opened("drop").drop(client)

    def finish(self) -> Tensor | list[Tensor]:
        """Return the open round's update; its clients' messages have then counted.

        Raises what Round.finish raises, the round being as before; RuntimeError between rounds.
        """
        with self._lock:
            open_round = self._opened("finish")
            update = open_round.finish()
            self._last |= dict.fromkeys(open_round.clients, self.number)
            self._round = None
            return update

    def abandon(self) -> None:
        """End the open round without a result: no message of it counts, its number is used up.

        RuntimeError between rounds.
        """
        with self._lock:
            self._opened("abandon")
            self._round = None

    def last_of(self, client: int | str) -> int | None:
        """Return the last round in which a client's message counted; None: none has."""
        return self._last.get(as_client("Rounds", client))

    def _opened(self, what: str) -> Round:
        if self._round is None:
            raise RuntimeError(f"Rounds.{what}: no round is open, got {self!r}. Call begin.")
        return self._round

    def state_dict(self) -> dict[str, Any]:
        """Return all that later rounds depend on, the aggregator's state too, between rounds.

        RuntimeError where a round is open.
        """
        if self._round is not None:
            raise RuntimeError(
                f"Rounds.state_dict: must be called between rounds, got {self!r}. Finish it first."
            )
        return {
            "run": self.run,
            "number": self.number,
            "counts": dict(self.counts),
            "last": [(client, self._last[client]) for client in sorted(self._last, key=by_kind)],
            "aggregator": self.aggregator.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state; an open round is abandoned.

        Raises ValueError, and nothing has changed, for one of another run or that does not fit.
        """
        with loading("Rounds", state, ("run", "number", "counts", "last", "aggregator")):
            if state["run"] != self.run:
                raise ValueError(
                    f"Rounds: run must be the state's {state['run']}, got {self.run}. Construct "
                    "with the same."
                )
            number = number_of("Rounds", "number", state["number"])
            counts = {str(why): operator.index(n) for why, n in state["counts"].items()}
            last = {
                as_client("Rounds", each[0]): number_of("Rounds", "round", each[1])
                for each in state["last"]
            }
            if any(each > number for each in last.values()):
                raise ValueError(
                    f"Rounds: no client counted after round {number}, got {max(last.values())}. "
                    "Load another state."
                )
            self.aggregator.load_state_dict(state["aggregator"])
            self.number, self.counts, self._last = number, Counter(counts), last
            self._round = self._drawn = None
