"""A history in an SQLite database: memory stays the same however many clients there are.

A packet is a row (client, round, message), only ever inserted; a client's last packet is its row of
highest round. So going back to a round is deleting what came later, and the file decides only when
older rows may go: once no snapshot and neither of the last two states needs them.

Each round also leaves a digest, of its packets and of the digest before it. A state names its
round and that digest: another run's file, or one that lost or changed rounds, is refused.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["FileStore"]

_APPLICATION = 0x67637868  # "gcxh"
_VERSION = 1
_START = -1  # the row of the empty history in `round`

# A client is text: numbers of 64 bits, signed or not, are all in use; strings follow an apostrophe.
# state: 1 where a state was asked for.
_SCHEMA = f"""
    PRAGMA application_id = {_APPLICATION};
    PRAGMA user_version = {_VERSION};
    CREATE TABLE round (number INTEGER PRIMARY KEY, digest BLOB NOT NULL, state INTEGER NOT NULL);
    CREATE TABLE packet (client TEXT NOT NULL, round INTEGER NOT NULL, message BLOB NOT NULL);
    CREATE UNIQUE INDEX by_client ON packet (client, round);
    CREATE INDEX by_round ON packet (round, client);
    INSERT INTO round VALUES ({_START}, x'', 0);
"""

_LAST = "SELECT max(number) FROM round"
_COUNT = "SELECT count(DISTINCT client) FROM packet"
_ROUND_OF = "SELECT max(round) FROM packet WHERE client = ?"
_MESSAGE = "SELECT message FROM packet WHERE client = ? ORDER BY round DESC LIMIT 1"
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
        try:
            # Every statement is a transaction of its own except within _transaction.
            self._base = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        except sqlite3.DatabaseError as error:
            raise ValueError(f"History: cannot open {path}: {error}. Give another path.") from error
        try:
            self._open()
        except BaseException:
            self._base.close()
            raise

    def _open(self) -> None:
        try:
            tables = self._one("SELECT count(*) FROM sqlite_master")
            application = self._one("PRAGMA application_id")
            version = self._one("PRAGMA user_version")
        except sqlite3.DatabaseError as error:
            raise ValueError(
                f"History: {self._path} must be a history, got {error}. Give another path."
            ) from error
        if tables and application != _APPLICATION:
            raise ValueError(
                f"History: {self._path} must be a history, got another database. Give another path."
            )
        if tables and version != _VERSION:
            raise ValueError(
                f"History: {self._path} must be of version {_VERSION}, got {version}. "
                "Open it with the gcext that wrote it."
            )
        self._base.execute("PRAGMA journal_mode = WAL")
        self._base.execute("PRAGMA synchronous = NORMAL")
        if not tables:
            self._base.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} COMMIT;")

    def last_round(self) -> int | None:
        last: int = self._one(_LAST)
        return None if last == _START else last

    def count(self) -> int:
        return int(self._one(_COUNT))

    def round_of(self, client: int | str) -> int | None:
        round: int | None = self._one(_ROUND_OF, _text(client))
        return round

    def clients(self, round: int) -> list[Any]:
        return [_client(text) for (text,) in self._base.execute(_CLIENTS, (round,))]

    def message(self, client: int | str) -> bytes | None:
        row = self._base.execute(_MESSAGE, (_text(client),)).fetchone()
        return None if row is None else bytes(row[0])

    def put(self, round: int, messages: Mapping[Any, bytes]) -> None:
        with self._transaction():
            (before,) = self._base.execute(f"SELECT digest FROM round WHERE number = ({_LAST})")
            digest = hashlib.blake2b(before[0], digest_size=16)
            for client, message in sorted(messages.items()):
                text = _text(client)
                digest.update(f"{text} {len(message)} ".encode() + message)
                self._base.execute("INSERT INTO packet VALUES (?, ?, ?)", (text, round, message))
            self._base.execute("INSERT INTO round VALUES (?, ?, 0)", (round, digest.digest()))
            self._seal()

    def state_dict(self) -> dict[str, Any]:
        with self._transaction():
            self._base.execute(f"UPDATE round SET state = 1 WHERE number = ({_LAST})")
            self._base.execute(_FORGET)
            self._seal()
            number, digest = self._base.execute(
                f"SELECT number, digest FROM round WHERE number = ({_LAST})"
            ).fetchone()
        # On the disk before the state is returned: a state must not outlive its rounds.
        self._base.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        return {"round": None if number == _START else number, "digest": digest.hex()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if set(state) != {"round", "digest"}:
            raise ValueError(
                f"History: a state of one in a file holds round and digest, got {sorted(state)}. "
                "Load it into a history in memory."
            )
        number = _START if state["round"] is None else int(state["round"])
        digest = self._one("SELECT digest FROM round WHERE number = ?", number)
        if digest is None or digest.hex() != state["digest"]:
            first, last = self._one("SELECT min(number) FROM round"), self._one(_LAST)
            raise ValueError(
                f"History: {self._path} must hold round {number} as the state has it, got rounds "
                f"{first} to {last} without it. Open the file of the same run."
            )
        self._go_back(number)

    def snapshot(self) -> int:
        number: int = self._one(_LAST)
        self._snapshot = number
        return number

    def restore(self, snapshot: int) -> None:
        if self._one("SELECT 1 FROM round WHERE number = ?", snapshot) is None:
            raise ValueError(
                f"History: restore goes back to the last snapshot, got one of round {snapshot}. "
                "Load a state."
            )
        self._go_back(snapshot)

    def close(self) -> None:
        self._base.close()

    def _go_back(self, number: int) -> None:
        with self._transaction():
            self._base.execute("DELETE FROM packet WHERE round > ?", (number,))
            self._base.execute("DELETE FROM round WHERE number > ?", (number,))

    def _seal(self) -> None:
        """Drop the rows that no state and no snapshot needs."""
        states = self._base.execute("SELECT number FROM round WHERE state").fetchall()
        wanted = [number for (number,) in states]
        if self._snapshot is not None:
            wanted.append(self._snapshot)
        first = min(wanted, default=self._one(_LAST))
        self._base.execute(_SEAL, (first,))
        self._base.execute("DELETE FROM round WHERE number < ?", (first,))

    def _one(self, query: str, *values: Any) -> Any:
        """The first column of the first row, None where there is none."""
        row = self._base.execute(query, values).fetchone()
        return None if row is None else row[0]

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        try:
            self._base.execute("BEGIN IMMEDIATE")
            yield
            self._base.execute("COMMIT")
        except BaseException:
            if self._base.in_transaction:
                self._base.execute("ROLLBACK")
            raise


def _text(client: int | str) -> str:
    return f"'{client}" if isinstance(client, str) else str(client)


def _client(text: str) -> int | str:
    return text[1:] if text.startswith("'") else int(text)
