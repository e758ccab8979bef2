"""The last packet of every client ever seen and the round it came in, kept compressed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeAlias

import torch

from gcext._packet.arguments import as_packets
from gcext._packet.device import settle
from gcext._packet.packet import Packet
from gcext._packet.state import Lock, loading
from gcext.aggregate._clients import Client, as_client, in_order
from gcext.aggregate._history_file import FileStore

__all__ = ["History"]

Messages: TypeAlias = "Mapping[Any, bytes]"  # by client
CACHE = 2**30  # bytes


class History:
    """The last packet and round of every client ever seen, with an index by round.

    What projected STC calls GH (Tian 2022, Algorithm 3). Packets are kept as messages. In memory
    that is their bytes and some 250 more a client; in a file, an SQLite database, memory stays the
    same however many clients there are. ``keep_unpacked`` adds a bounded cache of unpacked packets.

    A round counts whole or not at all, in the file too, where a crash leaves the last whole one.
    Threads may share a history. One history at a time writes to a file, from its first change until
    it is closed, in whatever process; others may read it. A history is always true: ask for its
    length to learn whether it is empty.

    A file is checked when it is opened, all of it: its structure, its indices, and a hash of every
    client's last packet.

    Args:
        path: the file, made where there is none; None: in memory.
        cache: the bytes that unpacked packets may take in all; 0: none are kept.

    Raises HistoryError, a ValueError, where the file is no history, of a later version, or damaged.

    >>> import gcext, torch
    >>> history = gcext.History()
    >>> history.put(1, {7: gcext.stc(torch.ones(2), p=1), 9: gcext.stc(torch.zeros(2), p=1)})
    >>> history.put(2, {7: gcext.stc(-torch.ones(2), p=1)})
    >>> len(history), history.last_round, history.round_of(9), history.clients_of_round(1)
    (2, 2, 1, [9])
    >>> history.packet(7).to_dense()
    tensor([-1., -1.])
    """

    def __init__(self, path: str | Path | None = None, cache: int = CACHE) -> None:
        self._store: _Store = _Memory() if path is None else FileStore(Path(path))
        self._closed = False
        self._lock = Lock()
        self._cache, self._rounds = cache, 0
        # By client, in the order they were put: rounds rise. A round back empties it.
        self._unpacked: dict[Client, _Unpacked] = {}
        self._unpacked_bytes = 0

    @property
    def last_round(self) -> int | None:
        """The last round put, None where there was none."""
        with self._lock:
            return self._store.last_round()

    def __len__(self) -> int:
        """Return the number of clients ever seen."""
        with self._lock:
            return self._store.count()

    def __bool__(self) -> bool:
        """Return True, without counting."""
        return True

    def __repr__(self) -> str:
        """Return the number of clients and the last round."""
        if self._closed:
            return "History(closed)"
        last = "" if self.last_round is None else f", last round {self.last_round}"
        return f"History({len(self)} clients{last})"

    def __contains__(self, client: Client) -> bool:
        """Return whether the client was ever seen."""
        return self.round_of(client) is not None

    def round_of(self, client: Client) -> int | None:
        """Return the round of the client's last packet, None where it was never seen."""
        with self._lock:
            return self._store.round_of(client)

    def clients_of_round(self, round: int) -> list[Any]:
        """Return the clients whose last packet is of that round, in order."""
        with self._lock:
            return in_order("History", self._store.clients(round))

    def packet(self, client: Client, device: torch.device | str = "cpu") -> Packet:
        """Return the client's last packet; KeyError where it was never seen."""
        with self._lock:
            held = self._unpacked.get(client)
            if held is not None and held.packet.device == torch.device(device):
                return held.packet
            message = self._store.message(client)
        if message is None:
            raise KeyError(client)
        return Packet.from_bytes(message, device)

    def keep_unpacked(self, rounds: int) -> None:
        """From now on keep the packets of the last ``rounds`` rounds unpacked, as they were put.

        Where they take more than ``cache`` bytes, the newest are kept. ``Projection`` calls this
        with its ``tau``; of several calls the largest counts.
        """
        with self._lock:
            self._rounds = max(self._rounds, rounds)

    def put(self, round: int, packets: Mapping[Any, Packet]) -> None:
        """Make these the last packets of their clients, whose ids are all numbers or all strings.

        Raises ValueError where the round is negative or does not rise, TypeError for other ids, and
        for what is no packet; HistoryError where the file cannot be written, or another history
        writes to it. What is raised leaves the history as it was.
        """
        if not isinstance(packets, Mapping):
            raise TypeError(
                f"History: needs a mapping of clients to packets, got {type(packets).__name__}."
            )
        clients = [as_client("History", client) for client in in_order("History", packets)]
        as_packets(Packet, "History", [packets[client] for client in clients], clients)
        with self._lock:
            self._put(round, clients, packets)

    def _put(self, round: int, clients: list[Client], packets: Mapping[Any, Packet]) -> None:
        last = self.last_round
        if round < 0 or (last is not None and round <= last):
            raise ValueError(
                f"History: rounds must rise from 0 on, got {round} after {last}. "
                "To repeat a round, go back with restore or load_state_dict first."
            )
        given = [packets[client] for client in clients]
        messages = dict(zip(clients, Packet.pack_all(given), strict=True))
        kept: dict[Client, _Unpacked] = {}
        if self._rounds and self._cache:
            settle([each for packet in given for each in packet.members or (packet,)])
            for client in clients:
                packet = packets[client]
                if not packet.is_resident:  # a copy: a captured packet changes with its graph
                    packet = packet.to(packet.device)
                kept[client] = _Unpacked(packet, int(round), _nbytes(packet))
        for client in messages:  # first: an interrupt then leaves nothing that is out of date
            self._drop(client)
        self._store.put(int(round), messages)
        self._unpacked |= kept
        self._unpacked_bytes += sum([each.nbytes for each in kept.values()])
        while self._unpacked:
            client, oldest = next(iter(self._unpacked.items()))
            if oldest.round > round - self._rounds and self._unpacked_bytes <= self._cache:
                break
            self._drop(client)

    def _drop(self, client: Client) -> None:
        held = self._unpacked.pop(client, None)
        if held is not None:
            self._unpacked_bytes -= held.nbytes

    def _forget(self) -> None:
        self._unpacked, self._unpacked_bytes = {}, 0

    def state_dict(self) -> dict[str, Any]:
        """Return what ``load_state_dict`` needs to go back to this round.

        In memory: the last round and all messages, by round and client. With a file: the last
        round and a digest of all up to it, while the file keeps what the states of the last two
        rounds asked for need; so a state that could not be saved does not cost the one before.
        """
        with self._lock:
            return self._store.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Be as when ``state_dict`` was called; a file forgets the rounds after it.

        Raises TypeError for what is no dict; ValueError where the state is another kind's, or
        damaged; HistoryError where the file does not hold its round, or other packets than it did;
        gcext.DecodeError where a message is damaged. The history is then as before.
        """
        with self._lock:
            self._store.load_state_dict(state)
            self._forget()

    def snapshot(self) -> Any:
        """Return what ``restore`` goes back to within this process; it copies no packet.

        A file keeps what its last snapshot needs, and no earlier one's.
        """
        with self._lock:
            return self._store.snapshot()

    def restore(self, snapshot: Any) -> None:
        """Be as when ``snapshot`` was called; ValueError where a file no longer can."""
        with self._lock:
            self._store.restore(snapshot)
            self._forget()

    def close(self) -> None:
        """Close the file. What was put is in it already."""
        with self._lock:
            self._store.close()
            self._forget()
            self._closed = True

    def __enter__(self) -> History:
        """Return the history itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Close the file."""
        self.close()


def _nbytes(packet: Packet) -> int:
    """Return the bytes that a packet's contents take."""
    if packet.members:
        return sum(map(_nbytes, packet.members))
    return sum([tensor.nbytes for tensor in packet.contents.tensors()])


class _Unpacked(NamedTuple):
    packet: Packet
    round: int
    nbytes: int


class _Store(Protocol):
    """Where messages are; rounds given to ``put`` rise."""

    def last_round(self) -> int | None: ...
    def count(self) -> int: ...
    def round_of(self, client: Client) -> int | None: ...
    def clients(self, round: int) -> list[Any]: ...
    def message(self, client: Client) -> bytes | None: ...
    def put(self, round: int, messages: Messages) -> None: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...
    def snapshot(self) -> Any: ...
    def restore(self, snapshot: Any) -> None: ...
    def close(self) -> None: ...


class _View(NamedTuple):
    """A history at one time. Never changed: a round puts another in its place."""

    last: int | None
    round_of: dict[Any, int]  # client -> round
    rounds: dict[int, Messages]  # without the clients that came again later


class _Memory:
    def __init__(self) -> None:
        self._view = _View(None, {}, {})

    def last_round(self) -> int | None:
        return self._view.last

    def count(self) -> int:
        return len(self._view.round_of)

    def round_of(self, client: Client) -> int | None:
        return self._view.round_of.get(client)

    def clients(self, round: int) -> list[Any]:
        return list(self._view.rounds.get(round, ()))

    def message(self, client: Client) -> bytes | None:
        round = self.round_of(client)
        return None if round is None else self._view.rounds[round][client]

    def put(self, round: int, messages: Messages) -> None:
        rounds = dict(self._view.rounds)
        for past in {self._view.round_of[c] for c in messages if c in self._view.round_of}:
            kept = {c: m for c, m in rounds.pop(past).items() if c not in messages}
            if kept:
                rounds[past] = kept
        rounds[round] = messages
        self._view = _View(round, self._view.round_of | dict.fromkeys(messages, round), rounds)

    def state_dict(self) -> dict[str, Any]:
        rounds = {past: dict(held) for past, held in sorted(self._view.rounds.items())}
        return {"round": self._view.last, "packets": rounds}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        with loading("History", state):
            self._view = _view(state)

    def snapshot(self) -> _View:
        return self._view

    def restore(self, snapshot: _View) -> None:
        self._view = snapshot

    def close(self) -> None:
        return None


def _view(state: Mapping[str, Any]) -> _View:
    """Return what a state of a history in memory holds; ValueError for another one."""
    if set(state) != {"round", "packets"}:
        raise ValueError(
            "History: a state of one in memory holds round and packets, got "
            f"{sorted(map(str, state))}. Open the file that the state is of."
        )
    last = None if state["round"] is None else int(state["round"])
    round_of: dict[Client, int] = {}
    rounds: dict[int, Messages] = {}
    for past, held in state["packets"].items():
        messages = {as_client("History", c): bytes(message) for c, message in held.items()}
        for client, message in messages.items():
            Packet.from_bytes(message)
            if round_of.setdefault(client, int(past)) != past:
                raise ValueError(
                    f"History: a client has one last packet, got rounds {round_of[client]} and "
                    f"{past} of client {client}. Check the file."
                )
        rounds[int(past)] = messages
    if rounds and (last is None or last < max(rounds)):
        raise ValueError(
            f"History: no packet is later than the last round, got {max(rounds)} after {last}. "
            "Check the file."
        )
    return _View(last, round_of, rounds)
