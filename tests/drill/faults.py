"""Rounds over a network that drops, doubles, delays and alters messages.

A server and its clients, of public calls only: messages of a run, a residual that is pending until
the server tells that the packet counted, and a resend of the same bytes where no answer came. A run
is compared, bit for bit, with one without faults in which only those clients were drawn whose
messages counted: the model, the aggregator's state and every client's residual.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

import gcext
from gcext import ErrorFeedback, Packet, Sender
from gcext.aggregate import Aggregator, Mean, Message, Momentum, Projection, Rounds

__all__ = ["CLIENTS", "FAULTS", "KINDS", "ROUNDS", "Outcome", "each_in_turn", "random", "schedule"]
__all__ += ["single", "verify"]

ROUNDS, CLIENTS, NUMEL = 20, 10, 48
RUN = 0x5EED
ATTEMPTS = 6  # orders a client in a round
FAULTS = ("drop", "double", "delay", "flip")

Faults = Callable[[int, int, str, int], "tuple[str, int] | None"]
"""Of a message of (round, client, way, attempt): a fault and its size, rounds or the bit; None."""

Way = str  # "down" or "up"


class Kind(NamedTuple):
    """A method: what its clients send with, and what its server makes of it."""

    sender: Callable[[int], Sender]
    aggregator: Callable[[], Aggregator]


KINDS = (
    Kind(lambda client: ErrorFeedback("stc:p=0.1"), Mean),
    Kind(lambda client: ErrorFeedback("stc:p=0.1"), lambda: Projection(0.1, 2)),
    Kind(lambda client: Sender("qsgd:bits=2,bucket=16", seed=client), lambda: Momentum(beta=0.5)),
)

_rng = np.random.default_rng(0)
_TARGETS = torch.from_numpy(_rng.standard_normal((CLIENTS, NUMEL)).astype(np.float32))
_NOISE = _rng.standard_normal((ROUNDS + 1, CLIENTS, NUMEL)).astype(np.float32)
_NOISES = torch.from_numpy(_NOISE) * 0.1
_LOSSES = _rng.random((ROUNDS + 1, CLIENTS)).tolist()


class Network:
    """Delivers messages with faults; what is late comes at the beginning of a later round."""

    def __init__(self, faults: Faults | None) -> None:
        self.faults = faults
        self.round = 0
        self.late: defaultdict[int, list[tuple[Way, int, bytes]]] = defaultdict(list)
        self.count: Counter[str] = Counter()

    def carry(self, way: Way, client: int, data: bytes, attempt: int) -> Iterator[bytes]:
        """Yield what arrives now of a message."""
        fault = self.faults and self.faults(self.round, client, way, attempt)
        self.count["messages"] += 1
        if not fault:
            yield data
            return
        kind, size = fault
        self.count[kind] += 1
        if kind == "double":
            yield data
            yield data
        elif kind == "delay":
            self.late[self.round + size].append((way, client, data))
        elif kind == "flip":
            altered = bytearray(data)
            bit = size % (8 * len(data))
            altered[bit // 8] ^= 1 << bit % 8
            yield bytes(altered)


class Client:
    """One client: it answers an order with its message, always the same one in a round."""

    def __init__(self, number: int, kind: Kind) -> None:
        self.number = number
        self.sender = kind.sender(number)
        self.round = 0  # of the last order
        self.message = b""

    def settle(self, counted: int) -> None:
        """Commit or forget the pending packet: did the round that it was for count it?"""
        if self.sender.pending:
            if counted == self.round:
                self.sender.commit()
            else:
                self.sender.rollback()

    def answer(self, data: bytes) -> bytes | None:
        """Return the message for an order, None for one that is damaged or late."""
        try:
            order = Message.from_bytes(data, expect=(NUMEL + 1,))
        except gcext.DecodeError:
            return None
        if (order.run, order.client) != (RUN, self.number) or order.round < self.round:
            return None
        if order.round > self.round:
            given = order.packet.values()
            self.settle(int(given[-1]))
            model = given[:-1]
            update = 0.1 * (model - _TARGETS[self.number]) + _NOISES[order.round, self.number]
            packet = self.sender.compress(update, "w", commit=False)
            self.round = order.round
            self.message = Message(RUN, self.number, order.round, packet).to_bytes()
        return self.message


class Outcome(NamedTuple):
    """What a run came to."""

    model: Tensor
    counted: tuple[frozenset[int], ...]  # clients by round
    aggregator: dict[str, Any]
    clients: list[dict[str, Any]]
    messages: Counter[str]  # by the server's counts and the network's


class Server:
    """The rounds, the model, and what an order to a client holds."""

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self.rounds = Rounds(kind.aggregator(), RUN, expect=(NUMEL,))
        self.model = torch.zeros(NUMEL)
        self._orders: dict[int, Packet] = {}  # by the round that is reported to have counted

    def order(self, client: int) -> bytes:
        counted = self.rounds.last_of(client) or 0
        if counted not in self._orders:
            given = torch.cat([self.model, torch.tensor([float(counted)])])
            self._orders[counted] = gcext.codec("dense").encode(given)
        packet = self._orders[counted]
        return Message(RUN, client, self.rounds.number, packet).to_bytes()

    def take(self, client: int, data: bytes) -> None:
        loss = _LOSSES[self.rounds.number][client]
        with suppress(gcext.DecodeError, gcext.aggregate.MessageError):
            self.rounds.add(client, data, loss)

    def finish(self) -> frozenset[int]:
        clients = frozenset(int(client) for client in self.rounds.clients)
        if clients:
            update = self.rounds.finish()
            assert isinstance(update, Tensor)
            self.model -= update
        else:
            self.rounds.abandon()
        self._orders.clear()
        return clients

    def restart(self) -> Server:
        """Return a server that has read this one's state."""
        other = Server(self.kind)
        other.rounds.load_state_dict(self.rounds.state_dict())
        other.model = self.model.clone()
        return other


def run(
    kind: Kind,
    faults: Faults | None = None,
    drawn: Sequence[frozenset[int]] | None = None,
    restarts: frozenset[int] = frozenset(),
) -> Outcome:
    """Run all rounds. drawn: clients by round; None: all. restarts: after which the server dies."""
    network, server = Network(faults), Server(kind)
    clients = [Client(number, kind) for number in range(CLIENTS)]
    counted = []
    for number in range(1, ROUNDS + 1):
        now = drawn[number - 1] if drawn is not None else frozenset(range(CLIENTS))
        server.rounds.begin(now)
        network.round = number
        for way, client, data in network.late.pop(number, []):
            if way == "down":
                _send_up(network, server, clients[client], data, ATTEMPTS)
            else:
                server.take(client, data)
        for attempt in range(ATTEMPTS):
            waiting = sorted(now - frozenset(server.rounds.clients))
            for client in waiting:
                for data in network.carry("down", client, server.order(client), attempt):
                    _send_up(network, server, clients[client], data, attempt)
        counted.append(server.finish())
        if number in restarts:
            server = server.restart()
    for each in clients:
        each.settle(server.rounds.last_of(each.number) or 0)
    states = [each.sender.state_dict() for each in clients]
    aggregator = server.rounds.aggregator.state_dict()
    messages = server.rounds.counts + network.count
    return Outcome(server.model, tuple(counted), aggregator, states, messages)


def _send_up(network: Network, server: Server, client: Client, data: bytes, attempt: int) -> None:
    message = client.answer(data)
    if message is not None:
        for arrived in network.carry("up", client.number, message, attempt):
            server.take(client.number, arrived)


_references: dict[Any, Outcome] = {}


def verify(number: int, faults: Faults, restarts: frozenset[int] = frozenset()) -> Outcome:
    """Run with faults; AssertionError where the outcome is not that of the run without them."""
    kind = number % len(KINDS)
    got = run(KINDS[kind], faults, restarts=restarts)
    if (kind, got.counted) not in _references:
        if len(_references) > 64:
            _references.clear()
        _references[kind, got.counted] = run(KINDS[kind], drawn=got.counted)
    expected = _references[kind, got.counted]
    assert expected.counted == got.counted
    assert same(got.model, expected.model), "another model"
    assert same(got.aggregator, expected.aggregator), "another aggregator's state"
    assert same(got.clients, expected.clients), "other residuals"
    return got


def same(one: Any, other: Any) -> bool:
    """Deep equality, tensors bit for bit."""
    if isinstance(one, Tensor):
        return bool(torch.equal(one.view(torch.int32), other.view(torch.int32)))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def each_in_turn() -> Iterator[tuple[int, Faults, bool]]:
    """Yield every single fault of every message, each with a bit or a delay of its own.

    The last value: whether every client's message counts all the same, in every round.
    """
    number = 0
    for fault in FAULTS:
        for round in range(1, ROUNDS + 1):
            for client in range(CLIENTS):
                for way in ("down", "up"):
                    at, size = (round, client, way, 0), number * 37 + 1
                    size = 1 + number % 3 if fault == "delay" else size

                    def faults(
                        *of: Any, at: Any = at, fault: str = fault, size: int = size
                    ) -> tuple[str, int] | None:
                        return (fault, size) if of == at else None

                    yield number, faults, True
                    number += 1
    for client in range(CLIENTS):  # one that never returns
        for first in (1, 7, ROUNDS):

            def lost(
                round: int, who: int, way: str, _: int, client: int = client, first: int = first
            ) -> tuple[str, int] | None:
                return ("drop", 0) if who == client and round >= first else None

            yield number, lost, False
            number += 1


def random(seed: int) -> tuple[int, Faults, frozenset[int]]:
    """Return a random schedule: faults of every kind, clients out for a while or for good."""
    rng = np.random.default_rng([7, seed])
    rate = rng.uniform(0, 0.6)
    out = {
        client: (int(first), int(first + length))
        for client, first, length in zip(
            range(CLIENTS),
            rng.integers(1, ROUNDS + 1, CLIENTS),
            rng.choice([0, 0, 0, 0, 0, 1, 3, ROUNDS], CLIENTS),
            strict=True,
        )
    }
    restarts = frozenset(np.flatnonzero(rng.random(ROUNDS) < 0.05).tolist())

    def faults(round: int, client: int, way: str, attempt: int) -> tuple[str, int] | None:
        first, end = out[client]
        if first <= round < end:
            return "drop", 0
        if rng.random() >= rate:
            return None
        fault = FAULTS[int(rng.integers(len(FAULTS)))]
        return fault, int(rng.integers(1, 4) if fault == "delay" else rng.integers(1 << 20))

    return seed, faults, restarts


def single(number: int) -> Counter[str]:
    """Run one single fault; return the counts of its messages."""
    of, fault, complete = next(itertools.islice(each_in_turn(), number, None))
    got = verify(of, fault)
    if complete and set(map(len, got.counted)) != {CLIENTS}:
        raise AssertionError("a client was left out")
    return got.messages


def schedule(seed: int) -> Counter[str]:
    """Run one random schedule; return the counts of its messages."""
    return verify(*random(seed)).messages
