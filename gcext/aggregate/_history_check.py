"""What tells a history's file from a damaged one: sums of its rows, and the check of all of them.

A round's digest is 24 bytes: the sum of the hashes of every client's last packet up to that round
(16 bytes, modulo 2^128, so that a round adds its packets and takes off those that they supersede),
and a hash of that sum and the round's number (8). Opening a file checks SQLite's own structures and
indices, and the sum of the last round; going back checks that of the round gone back to.

Files of the first versions have digests of 16 bytes, chained from round to round: packets that
are gone entered them, so of such a file the messages' own checksums are what can be checked.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from xxhash import xxh3_64_digest, xxh3_128

from gcext.aggregate._clients import client_of

__all__ = ["SCHEMA", "START", "HistoryError", "check", "digest_of", "hash_of", "named", "sum_at"]
__all__ += ["sum_in"]

START = -1  # the row of the empty history in `round`
_SUM = 16  # bytes
_CHAINED = 16  # bytes of a digest of the form before

# A client is text: numbers of 64 bits, signed or not, are all in use; strings follow an apostrophe.
# state: 1 where a state was asked for.
SCHEMA = f"""
    CREATE TABLE round (number INTEGER PRIMARY KEY, digest BLOB NOT NULL, state INTEGER NOT NULL);
    CREATE TABLE packet (client TEXT NOT NULL, round INTEGER NOT NULL, message BLOB NOT NULL);
    CREATE UNIQUE INDEX by_client ON packet (client, round);
    CREATE INDEX by_round ON packet (round, client);
    INSERT INTO round VALUES ({START}, x'', 0);
"""

# In the order of the file. The last column: whether the row is its client's last one up to ?.
_ROWS = """
    SELECT client, round, message, NOT EXISTS (
        SELECT 1 FROM packet AS later
        WHERE later.client = p.client AND later.round > p.round AND later.round <= ?1)
    FROM packet AS p NOT INDEXED
"""
# What SQLite says where the file is not at fault.
_OUTSIDE = ("full", "locked", "busy", "readonly", "unable to open", "disk i/o", "closed database")


class HistoryError(ValueError):
    """A history's file that is damaged, cannot be written, or has another writer."""


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Raise HistoryError, which names the file, where SQLite raises."""
    try:
        yield
    except sqlite3.Error as error:
        if any(word in str(error).lower() for word in _OUTSIDE):
            raise HistoryError(
                f"History: {path} must be open, readable and writable, got {error}. Free space "
                "there and check its permissions; what was put before is in it."
            ) from error
        raise damaged(path, str(error)) from error


def damaged(path: Path, got: str) -> HistoryError:
    """Return the error of a file that holds something else than was put into it."""
    return HistoryError(
        f"History: {path} must hold what was put into it, got a damaged file: {got:.200}. Restore "
        "a copy, or remove it and its checkpoints to start anew."
    )


def hash_of(client: str, round: int, message: bytes) -> int:
    """Return the hash of a row, of 128 bits."""
    hashed = xxh3_128(f"{round} {client}\0".encode())
    hashed.update(message)
    number: int = hashed.intdigest()
    return number


def digest_of(number: int, total: int) -> bytes:
    """Return the digest of a round: the sum of its rows' hashes, and a hash of that and number."""
    sums: bytes = (total % 2 ** (8 * _SUM)).to_bytes(_SUM, "little")
    hashed: bytes = xxh3_64_digest(f"{number} ".encode() + sums)
    return sums + hashed


def sum_in(path: Path, number: int, digest: Any) -> int | None:
    """Return the sum in a round's digest; None for one of the form before. Raises HistoryError."""
    if type(number) is not int or not isinstance(digest, bytes):
        raise damaged(path, f"round {number!r} with digest {digest!r:.40}")
    if number == START and not digest:
        return 0
    total = int.from_bytes(digest[:_SUM], "little")
    if digest == digest_of(number, total):
        return total
    if len(digest) == _CHAINED:
        return None
    raise damaged(path, f"round {number} with digest {digest.hex()}")


def sum_at(base: sqlite3.Connection, path: Path, number: int, messages: bool = False) -> int:
    """Return the sum of the hashes of all last rows up to a round, having checked every row.

    messages: check the messages' own checksums, too.
    """
    total = 0
    for client, round, message, last in base.execute(_ROWS, (number,)):
        if type(client) is not str or type(round) is not int or type(message) is not bytes:
            raise damaged(path, f"a row of client {client!r:.40}, round {round!r:.40}")
        try:
            client_of(client)
        except ValueError as error:
            raise damaged(path, str(error)) from error
        if round > number:
            continue
        if messages and xxh3_64_digest(message[:-8])[::-1] != message[-8:]:
            raise damaged(path, f"an altered packet of client {client!r:.40}, round {round}")
        if last:
            total += hash_of(client, round, message)
    return int(total % 2 ** (8 * _SUM))


def check(base: sqlite3.Connection, path: Path) -> None:
    """Raise HistoryError where a file is not what was put into it. Reads all of it once."""
    found = set(base.execute("SELECT type, name, sql FROM sqlite_master"))
    if missing := sorted(str(name) for _, name, _ in _schema() - found):
        raise damaged(path, f"other tables or indices than {', '.join(missing)}")
    results = base.execute("PRAGMA integrity_check(1)").fetchall()
    if results != [("ok",)]:
        raise damaged(path, " ".join(str(results[0][0]).split()))
    rounds = base.execute("SELECT number, digest FROM round ORDER BY number").fetchall()
    if not rounds:
        raise damaged(path, "no round")
    sums = [sum_in(path, number, digest) for number, digest in rounds]
    last = rounds[-1][0]
    later = base.execute("SELECT count(*) FROM packet WHERE round > ?", (last,)).fetchone()[0]
    if later:
        raise damaged(path, f"{later} packets of rounds after the last one, {last}")
    total = sum_at(base, path, last, messages=sums[-1] is None)
    if sums[-1] is not None and sums[-1] != total:
        raise damaged(path, f"other packets than those put up to round {last}")


def _schema() -> set[tuple[Any, ...]]:
    with closing(sqlite3.connect(":memory:")) as base:
        base.executescript(SCHEMA)
        return set(base.execute("SELECT type, name, sql FROM sqlite_master"))
