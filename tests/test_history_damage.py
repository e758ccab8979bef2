"""Damaged histories: refused with one error that names the file, or as if nothing had happened."""

from __future__ import annotations

import hashlib
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import gcext
from gcext import History, HistoryError

CLIENTS = [*range(12), "ada", "bo"]


def packet(number: float, numel: int = 40) -> gcext.Packet:
    return gcext.stc(torch.full((numel,), float(number + 1)), p=1)


def drawn(number: int) -> list[Any]:
    kind = int if number % 2 else str
    return [c for i, c in enumerate(CLIENTS) if isinstance(c, kind) and (i + number) % 3]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A history of a few pages, closed, and its state of two rounds before the last."""
    file = tmp_path_factory.mktemp("h") / "history"
    with History(file) as history:
        for number in range(9):
            history.put(number, {c: packet(number) for c in drawn(number)})
            if number == 5:
                state = history.state_dict()
    return file, state


def seen(history: History) -> Any:
    clients = {c: (history.round_of(c), history.packet(c).to_bytes()) for c in CLIENTS}
    rounds = [history.clients_of_round(number) for number in range(9)]
    return history.last_round, len(history), clients, rounds


def looks_of(file: Path, state: dict[str, Any]) -> Any:
    """What a file's history is, as it is and gone back to a state."""
    with History(file) as history:
        now = seen(history)
        history.load_state_dict(state)
        return now, seen(history)


def copied(file: Path, folder: Path) -> Path:
    for each in folder.glob("copy*"):
        each.unlink()
    shutil.copy(file, folder / "copy")
    return folder / "copy"


def test_every_cut(made: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    file, state = made
    whole = file.read_bytes()
    cuts = {100, 1, 4095, 4096, 4097, *range(1, len(whole), 1777)}
    for cut in sorted(cuts):
        copy = copied(file, tmp_path)
        copy.write_bytes(whole[:-cut])
        with pytest.raises(HistoryError, match=r"copy must .*(Restore|restore) a copy"):
            looks_of(copy, state)
    copy.write_bytes(b"")  # as a new file has it: there is no round, which the state tells
    with (
        History(copy) as history,
        pytest.raises(HistoryError, match="must hold round 5 as the state has it"),
    ):
        history.load_state_dict(state)


def test_flipped_bits(made: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    """At random places: an error, or the same answers (a place that nothing reads)."""
    file, state = made
    whole, expected = file.read_bytes(), looks_of(copied(file, tmp_path), state)
    rng, refused = np.random.default_rng(0), 0
    places = [*range(0, 100), *rng.integers(100, len(whole), 150).tolist()]
    for place in places:
        copy = copied(file, tmp_path)
        damaged = bytearray(whole)
        damaged[place] ^= 1 << int(rng.integers(8))
        copy.write_bytes(damaged)
        try:
            assert looks_of(copy, state) == expected, place
        except HistoryError as error:
            assert str(copy) in str(error)
            refused += 1
    assert refused > 60


ONE = "(SELECT rowid FROM packet WHERE client < 'A' AND client > '0' ORDER BY round DESC)"
EDITS = {
    "packets deleted": "DELETE FROM packet WHERE round = 8",
    "one packet deleted": "DELETE FROM packet WHERE rowid = (SELECT max(rowid) FROM packet)",
    "all packets deleted": "DELETE FROM packet",
    "the last round deleted": "DELETE FROM round WHERE number = 8",
    "all rounds deleted": "DELETE FROM round",
    "a client of another name": "UPDATE packet SET client = '99' WHERE rowid = {ONE}",
    "a round of another number": "UPDATE packet SET round = 7 WHERE round = 8",
    "a later round": "UPDATE packet SET round = 11 WHERE round = 8",
    "rounds of other numbers": "UPDATE round SET number = number + 100",
    "a message altered": "UPDATE packet SET message = zeroblob(40) WHERE round = 8",
    "a message that is a text": "UPDATE packet SET message = 'text' WHERE round = 8",
    "a message that is a number": "UPDATE packet SET message = 5 WHERE round = 8",
    "a client that is a blob": "UPDATE packet SET client = x'61' WHERE rowid = {ONE}",
    "a client that is no id": "UPDATE packet SET client = 'x' WHERE rowid = {ONE}",
    "a client of no text": "UPDATE packet SET client = CAST(x'27ff' AS TEXT) WHERE rowid = {ONE}",
    "a round that is a text": "UPDATE packet SET round = 'eight' WHERE round = 8",
    "a digest altered": "UPDATE round SET digest = zeroblob(24) WHERE number = 8",
    "a digest that is a text": "UPDATE round SET digest = 'text' WHERE number = 8",
    "an index less": "DROP INDEX by_round",
    "a table less": "DROP TABLE packet",
}


@pytest.mark.parametrize("what", EDITS)
def test_edited_rows(what: str, made: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    copy = copied(made[0], tmp_path)
    with closing(sqlite3.connect(copy)) as base, base:
        base.execute(EDITS[what].replace("{ONE}", ONE))
    with pytest.raises(HistoryError, match=r"copy must .* got .*\. Restore a copy, or remove it"):
        History(copy)


def test_superseded_packets_are_checked_where_they_count(
    made: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    """Those that only an earlier state needs: the file opens, the state does not load."""
    file, state = made
    for edit in ("DELETE FROM packet WHERE round = 5", "UPDATE packet SET round=4 WHERE round=5"):
        copy = copied(file, tmp_path)
        with closing(sqlite3.connect(copy)) as base, base:
            base.execute(edit + " AND client IN (SELECT client FROM packet WHERE round > 5)")
        with History(copy) as history:
            now = seen(history)
            with pytest.raises(HistoryError, match="other packets than those put up to round 5"):
                history.load_state_dict(state)
            assert seen(history) == now


def test_damage_found_later_is_named_too(made: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    copy = copied(made[0], tmp_path)
    with History(copy) as history, closing(sqlite3.connect(copy)) as base:
        base.execute("DROP TABLE packet")
        base.commit()
        calls: list[Callable[[], Any]] = [
            lambda: len(history),
            lambda: history.round_of(1),
            lambda: history.packet(1),
            lambda: history.clients_of_round(8),
            lambda: history.put(9, {1: packet(1)}),
            history.state_dict,
        ]
        for call in calls:
            with pytest.raises(HistoryError, match="copy must hold what was put into it"):
                call()


def chained(file: Path) -> None:
    """Give a file the digests of its first version: 16 bytes, each made of the one before."""
    with closing(sqlite3.connect(file)) as base, base:
        before = b""
        base.execute("DELETE FROM round")
        for number in range(-1, 9):
            if number >= 0:
                digest = hashlib.blake2b(before, digest_size=16)
                rows = "SELECT client, message FROM packet WHERE round = ? ORDER BY client"
                for client, message in base.execute(rows, (number,)):
                    digest.update(f"{client} {len(message)} ".encode() + message)
                before = digest.digest()
            base.execute("INSERT INTO round VALUES (?, ?, ?)", (number, before, number == -1))


def test_files_of_the_first_version(tmp_path: Path) -> None:
    file = tmp_path / "h"
    with History(file) as history:
        history.state_dict()
        for number in range(9):
            history.put(number, {c: packet(number) for c in drawn(number)})
        expected = seen(history)
    chained(file)
    with closing(sqlite3.connect(file)) as base:
        digest = base.execute("SELECT digest FROM round WHERE number = 7").fetchone()[0].hex()
    copy = copied(file, tmp_path)
    with History(copy) as history:  # goes back to a state of that version, and goes on
        assert seen(history) == expected
        history.load_state_dict({"round": 7, "digest": digest})
        assert history.last_round == 7
        history.put(8, {c: packet(8) for c in drawn(8)})
        state = history.state_dict()
    with History(copy) as history:
        assert seen(history) == expected
        history.load_state_dict(state)
    with closing(sqlite3.connect(copy)) as base, base:
        base.execute("DELETE FROM packet WHERE round = 8")
    with pytest.raises(HistoryError, match="other packets"):
        History(copy)
    with closing(sqlite3.connect(file)) as base, base:
        base.execute("UPDATE packet SET message = zeroblob(40) WHERE round = 8")
    with pytest.raises(HistoryError, match="an altered packet of client"):
        History(file)


def test_a_reader_beside_a_writer_and_a_missing_log(
    made: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    copy = copied(made[0], tmp_path)
    with History(copy) as writer, History(copy) as reader:
        writer.put(9, {1: packet(9)})
        assert reader.last_round == 9 and reader.packet(1).scale == 10
        state = writer.state_dict()
    with History(copy) as history:
        history.load_state_dict(state)
        assert seen(history)[0] == 9
