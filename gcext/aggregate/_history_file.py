"""A history in an SQLite database: memory stays the same however many clients there are.

A packet is a row (client, round, message), only ever inserted; a client's last packet is its row of
highest round. So going back to a round is deleting what came later, and the file decides only when
older rows may go: once no snapshot and neither of the last two states needs them.

Each round also leaves a digest of every client's last packet up to it. A state names its round and
that digest: another run's file, or one that lost or changed packets, is refused.

One object writes: the first call that does locks `<path>.lock` until `close`. A store is used by
one thread at a time: `History` has the lock.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gcext._packet.state import loading
from gcext.aggregate._clients import client_of, text_of
from gcext.aggregate._history_check import (
    SCHEMA,
    START,
    HistoryError,
    check,
    damaged,
    digest_of,
    hash_of,
    named,
    sum_at,
    sum_in,
)

__all__ = ["FileStore"]

_APPLICATION = 0x67637868  # "gcxh"
_VERSION = 1
_MAKE = f"""
    BEGIN IMMEDIATE;
    PRAGMA application_id = {_APPLICATION};
    PRAGMA user_version = {_VERSION};
    {SCHEMA}
    COMMIT;
"""

_LAST = "SELECT max(number) FROM round"
_COUNT = "SELECT count(DISTINCT client) FROM packet"
_ROUND_OF = "SELECT max(round) FROM packet WHERE client = ?"
_NEWEST = "SELECT round, message FROM packet WHERE client = ? ORDER BY round DESC LIMIT 1"
_CLIENTS = """
    SELECT client FROM packet AS p WHERE round = ? AND NOT EXISTS
        (SELECT 1 FROM packet AS later WHERE later.client = p.client AND later.round > p.round)
"""
# States but the last two are forgotten.
_FORGET = """
    UPDATE round SET state = 0 WHERE state AND number NOT IN
        (SELECT number FROM round WHERE state ORDER BY number DESC LIMIT 2)
"""
# Rows that a packet of a round up to ? came after; rounds up to the first kept one are done.
_SEAL = """
    DELETE FROM packet WHERE rowid IN (
        SELECT older.rowid FROM packet AS p
        JOIN packet AS older ON older.client = p.client AND older.round < p.round
        WHERE p.round > (SELECT min(number) FROM round) AND p.round <= ?)
"""


class FileStore:
    """The store of a `gcext.History` with a path."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._snapshot: int | None = None  # the round that restore may go back to
        self._unlock: weakref.finalize[..., Any] | None = None  # while this object writes
        try:
            # Every statement is a transaction of its own except within _transaction.
            self._base = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        except sqlite3.DatabaseError as error:
            raise HistoryError(
                f"History: cannot open {path}: {error}. Give another path."
            ) from error
        try:
            with named(path):
                self._open()
        except BaseException:
            self._base.close()
            raise

    def _open(self) -> None:
        try:
            tables = self._one("SELECT count(*) FROM sqlite_master")
            application = self._one("PRAGMA application_id")
            version = self._one("PRAGMA user_version")
        except HistoryError as error:
            if isinstance(error.__cause__, sqlite3.OperationalError):
                raise  # nothing about what the file is
            raise HistoryError(
                f"History: {self._path} must be a history, got {error.__cause__}. Give another "
                "path, or restore a copy."
            ) from error
        if tables and application != _APPLICATION:
            raise HistoryError(
                f"History: {self._path} must be a history, got another database. Give another path."
            )
        if tables and version != _VERSION:
            raise HistoryError(
                f"History: {self._path} must be of version {_VERSION}, got {version}. "
                "Open it with the gcext that wrote it."
            )
        self._base.execute("PRAGMA journal_mode = WAL")
        self._base.execute("PRAGMA synchronous = NORMAL")
        if not tables:
            self._make()
        self._base.execute("BEGIN")  # one view of it, whoever else writes
        try:
            check(self._base, self._path)
        finally:
            self._base.execute("ROLLBACK")

    def _make(self) -> None:
        """Make the tables, unless another process has just done so."""
        try:
            self._base.executescript(_MAKE)
        except sqlite3.OperationalError:
            if self._base.in_transaction:
                self._base.execute("ROLLBACK")
            if not self._one("SELECT count(*) FROM sqlite_master"):
                raise

    def last_round(self) -> int | None:
        last = self._last()
        return None if last == START else last

    def _last(self) -> int:
        last = self._one(_LAST)
        if last is None:
            raise damaged(self._path, "no round")
        return int(last)

    def count(self) -> int:
        return int(self._one(_COUNT))

    def round_of(self, client: int | str) -> int | None:
        round: int | None = self._one(_ROUND_OF, text_of(client))
        return round

    def clients(self, round: int) -> list[Any]:
        with named(self._path):
            return [client_of(text) for (text,) in self._base.execute(_CLIENTS, (round,))]

    def message(self, client: int | str) -> bytes | None:
        with named(self._path):
            row = self._base.execute(_NEWEST, (text_of(client),)).fetchone()
        return None if row is None else bytes(row[1])

    def put(self, round: int, messages: Mapping[Any, bytes]) -> None:
        with self._transaction():
            last = self._last()
            if round <= last:
                raise HistoryError(
                    f"History: {self._path} must be before round {round}, is {last}."
                )
            total = self._sum(last)
            for client, message in sorted(messages.items()):
                text = text_of(client)
                if (row := self._base.execute(_NEWEST, (text,)).fetchone()) is not None:
                    total -= hash_of(text, *row)
                total += hash_of(text, round, message)
                self._base.execute("INSERT INTO packet VALUES (?, ?, ?)", (text, round, message))
            digest = digest_of(round, total)
            self._base.execute("INSERT INTO round VALUES (?, ?, 0)", (round, digest))
            self._seal()

    def _sum(self, number: int) -> int:
        """Return the sum in a round's digest; of one of the form before that of the rows."""
        digest = self._one("SELECT digest FROM round WHERE number = ?", number)
        total = sum_in(self._path, number, digest)
        return sum_at(self._base, self._path, number) if total is None else total

    def state_dict(self) -> dict[str, Any]:
        # FULL: on the disk before the state is returned, since a state must not outlive its rounds.
        with self._transaction("FULL"):
            self._base.execute(f"UPDATE round SET state = 1 WHERE number = ({_LAST})")
            self._base.execute(_FORGET)
            self._seal()
            number, digest = self._base.execute(
                f"SELECT number, digest FROM round WHERE number = ({_LAST})"
            ).fetchone()
        with named(self._path):
            self._base.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        return {"round": None if number == START else number, "digest": digest.hex()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        with loading("History", state):
            if set(state) != {"round", "digest"}:
                raise ValueError(
                    "History: a state of one in a file holds round and digest, got "
                    f"{sorted(map(str, state))}. Load it into a history in memory."
                )
            number = START if state["round"] is None else int(state["round"])
            digest = self._one("SELECT digest FROM round WHERE number = ?", number)
        if digest is None or digest.hex() != state["digest"]:
            first, last = self._one("SELECT min(number) FROM round"), self._last()
            raise HistoryError(
                f"History: {self._path} must hold round {number} as the state has it, got rounds "
                f"{first} to {last} without it. Open the file of the same run."
            )
        with self._transaction():
            total = sum_in(self._path, number, digest)
            if total is not None and total != sum_at(self._base, self._path, number):
                raise damaged(self._path, f"other packets than those put up to round {number}")
            self._go_back(number)

    def snapshot(self) -> int:
        number = self._last()
        self._snapshot = number
        return number

    def restore(self, snapshot: int) -> None:
        if self._one("SELECT 1 FROM round WHERE number = ?", snapshot) is None:
            raise ValueError(
                f"History: restore goes back to the last snapshot, got one of round {snapshot}. "
                "Load a state."
            )
        with self._transaction():
            self._go_back(snapshot)

    def close(self) -> None:
        self._base.close()
        if self._unlock is not None:
            self._unlock()

    def _go_back(self, number: int) -> None:
        self._base.execute("DELETE FROM packet WHERE round > ?", (number,))
        self._base.execute("DELETE FROM round WHERE number > ?", (number,))

    def _seal(self) -> None:
        """Drop the rows that no state and no snapshot needs."""
        states = self._base.execute("SELECT number FROM round WHERE state").fetchall()
        wanted = [number for (number,) in states]
        if self._snapshot is not None:
            wanted.append(self._snapshot)
        first = min(wanted, default=self._last())
        self._base.execute(_SEAL, (first,))
        self._base.execute("DELETE FROM round WHERE number < ?", (first,))

    def _one(self, query: str, *values: Any) -> Any:
        """The first column of the first row, None where there is none."""
        with named(self._path):
            row = self._base.execute(query, values).fetchone()
        return None if row is None else row[0]

    @contextmanager
    def _transaction(self, synchronous: str = "NORMAL") -> Iterator[None]:
        self._lock_writer()
        with named(self._path):
            self._base.execute(f"PRAGMA synchronous = {synchronous}")
            self._base.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._base.execute("COMMIT")
            except BaseException:
                if self._base.in_transaction:
                    self._base.execute("ROLLBACK")
                raise

    def _lock_writer(self) -> None:
        """Be the one object that writes, until `close`; HistoryError where another one is."""
        if self._unlock is not None:
            return
        try:
            descriptor = os.open(f"{self._path}.lock", os.O_RDWR | os.O_CREAT, 0o666)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BaseException:
                os.close(descriptor)
                raise
        except OSError as error:
            rule, got = "be writable", error.strerror
            if isinstance(error, BlockingIOError):
                rule, got = "have one writer", "another one that is open"
            raise HistoryError(
                f"History: {self._path} must {rule}, got {got}. Close the other history, or give "
                "another path."
            ) from error
        self._unlock = weakref.finalize(self, os.close, descriptor)
