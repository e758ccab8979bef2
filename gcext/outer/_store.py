"""Rounds over a key-value store: who takes part is decided once, and whoever is late reads it."""

from __future__ import annotations

import json
import time
from datetime import timedelta
from typing import TYPE_CHECKING, NamedTuple

import torch.distributed as dist

if TYPE_CHECKING:
    from torch.distributed import Store  # type: ignore[attr-defined]

__all__ = ["Log", "StoreRounds"]

_CHUNK = 4 << 20  # bytes; TCPStore takes values of up to 8 MiB
_PATIENCE = 10  # timeouts, after which a round is decided without half of the last one's members


class Log(NamedTuple):
    """The decisions that the store keeps.

    Attributes:
        head: the last round decided; 0 before the first.
        members: the ranks of each of the last rounds, up to ``head``.
        last: by rank, the last round that it was a member of; 0: none in this store.
    """

    head: int
    members: tuple[tuple[int, ...], ...]
    last: tuple[int, ...]

    @property
    def first(self) -> int:
        """The oldest round that is kept; ``head + 1`` where none is."""
        return self.head - len(self.members) + 1

    def of(self, number: int) -> tuple[int, ...]:
        """Return the members of a round."""
        return self.members[number - self.first]


class StoreRounds:
    """Packets of rounds in a ``torch.distributed`` store, and one log of decisions.

    Keys, under the run's name: ``log`` (JSON, changed by compare_set alone, so that a round has one
    decision); ``p/ROUND/RANK`` is the number of chunks of a packet, written after the chunks
    ``p/ROUND/RANK/i``; ``want/RANK`` asks for the whole model, which ``full/RANK`` holds.

    Args:
        store: where. run: its keys' prefix. rank, world: of this process; one process a rank.
        timeout: seconds that this rank waits for others, from when its own packet is there.
        keep: rounds whose packets stay.
    """

    def __init__(
        self, store: Store, run: str, rank: int, world: int, timeout: float, keep: int
    ) -> None:
        self.store = dist.PrefixStore(f"gcext/outer/{run}", store)  # type: ignore[attr-defined]
        self.rank, self.world, self.timeout, self.keep = rank, world, timeout, keep
        self._text = ""  # of the log, as it was last read

    def agree(self, value: str) -> str:
        """Return the value of the first rank that called."""
        return self.store.compare_set("start", "", value).decode()

    def read(self, at_least: int = 0) -> Log:
        """Return the log. One that ends before round ``at_least`` is of a new store, and begun."""
        while True:
            self._text = self.store.get("log").decode() if self.store.check(["log"]) else ""
            head, members, last = json.loads(self._text) if self._text else (-1, (), ())
            if head >= at_least:
                return Log(head, tuple(map(tuple, members)), tuple(last))
            self._swap(Log(at_least, (), (0,) * self.world))

    def _swap(self, log: Log) -> bool:
        """Replace the log that was last read; False where another rank has."""
        text = json.dumps(log)
        return self.store.compare_set("log", self._text, text).decode() == text

    def post(self, number: int, message: bytes) -> bool:
        """Write this rank's packet; False where an earlier process of this rank has written one."""
        key = self._key(number, self.rank)
        if self.store.check([key]):
            return False
        self._write(key, message)
        return True

    def decide(self, number: int) -> bool:
        """Wait for a round's decision, or make it; return whether this rank's packet counts.

        It is made when all ranks' packets are there; or, once ``timeout`` has passed, those of at
        least half of the last round's members; or, ten timeouts on, any. Half: or a rank that comes
        back in the middle of the others' steps would go on without them.
        """
        begin, pause = time.monotonic(), 0.002
        ranks = range(self.world)
        while True:
            log = self.read(number - 1)
            if log.head >= number:
                return log.last[self.rank] == number
            waited = time.monotonic() - begin
            here: list[int] = []
            if self.store.check([self._key(number, rank) for rank in ranks]):
                here = list(ranks)
            elif waited >= self.timeout:
                here = [rank for rank in ranks if self.store.check([self._key(number, rank)])]
                last = log.members[-1] if log.members else tuple(ranks)
                few = 2 * len(set(here) & set(last)) < len(last)
                if few and waited < _PATIENCE * self.timeout:
                    here = []
            if not here:
                time.sleep(pause)
                pause = min(1.5 * pause, 0.1)
                continue
            members = (*log.members, tuple(here))[-self.keep :]
            last = tuple(number if rank in here else log.last[rank] for rank in ranks)
            if self._swap(Log(number, members, last)):
                self._sweep(number - self.keep)

    def messages(self, number: int, members: tuple[int, ...]) -> dict[int, bytes] | None:
        """Return a round's packets by rank; None where they are not kept any more."""
        found = {rank: self._read(self._key(number, rank)) for rank in members}
        there = {rank: message for rank, message in found.items() if message is not None}
        return there if len(there) == len(members) else None

    def discard(self, number: int, rank: int | None = None) -> None:
        """Delete a packet, this rank's by default."""
        self._delete(self._key(number, self.rank if rank is None else rank))

    def _sweep(self, oldest: int) -> None:
        """Delete the packets of a round, and of the one before it: its decider may have died."""
        for number in range(max(oldest - 1, 1), oldest + 1):
            for rank in range(self.world):
                self.discard(number, rank)

    def ask(self) -> bytes:
        """Return the whole model as another rank has it after its next round; TimeoutError."""
        token = str(time.time_ns())
        self._delete(f"full/{self.rank}")
        self.store.set(f"want/{self.rank}", token)
        begin = time.monotonic()
        while time.monotonic() - begin < _PATIENCE * self.timeout:
            if self.store.check([f"full/{self.rank}/{token}"]):
                message = self._read(f"full/{self.rank}")
                if message is not None:
                    self.store.delete_key(f"full/{self.rank}/{token}")
                    self._delete(f"full/{self.rank}")
                    return message
            time.sleep(0.05)
        self.store.delete_key(f"want/{self.rank}")
        raise TimeoutError

    def asked(self, members: tuple[int, ...]) -> list[int]:
        """Return which ranks that are not among a round's members want the model from this one."""
        if self.rank != min(members):
            return []
        absent = set(range(self.world)) - set(members)
        return [rank for rank in sorted(absent) if self.store.check([f"want/{rank}"])]

    def answer(self, rank: int, message: bytes) -> None:
        """Give a rank the whole model, unless it has given up."""
        if not self.store.check([f"want/{rank}"]):
            return
        token = self.store.get(f"want/{rank}").decode()
        self._write(f"full/{rank}", message)
        self.store.delete_key(f"want/{rank}")
        self.store.set(f"full/{rank}/{token}", "")

    def _key(self, number: int, rank: int) -> str:
        return f"p/{number}/{rank}"

    def _write(self, key: str, message: bytes) -> None:
        chunks = range(0, len(message), _CHUNK)
        for i, start in enumerate(chunks):
            self.store.set(f"{key}/{i}", message[start : start + _CHUNK])  # type: ignore[arg-type]
        self.store.set(key, str(len(chunks)))

    def _read(self, key: str) -> bytes | None:
        if not self.store.check([key]):
            return None
        parts = [f"{key}/{i}" for i in range(int(self.store.get(key)))]
        try:
            self.store.wait(parts, timedelta(seconds=max(self.timeout, 1.0)))
        except RuntimeError:  # being deleted
            return None
        return b"".join(self.store.get(part) for part in parts)

    def _delete(self, key: str) -> None:
        self.store.delete_key(key)
        i = 0
        while self.store.delete_key(f"{key}/{i}"):
            i += 1
