"""A history's file under threads and processes: one writer, whole rounds, nothing lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

import gcext
from gcext import History, HistoryError

WRITERS, ROUNDS, CLIENTS = 4, 40, 3


def packet(number: float) -> gcext.Packet:
    return gcext.stc(torch.full((3,), float(number + 1)), p=1)


def together(*calls: Callable[[], Any]) -> list[Any]:
    barrier = threading.Barrier(len(calls))

    def one(call: Callable[[], Any]) -> Any:
        barrier.wait()
        return call()

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(one, calls))


@pytest.mark.parametrize("kind", ["memory", "file"])
def test_threads_that_write_and_one_that_takes_states(kind: str, tmp_path: Path) -> None:
    """Each writer takes the next free round for clients of its own, until all rounds are put."""
    file = tmp_path / "history" if kind == "file" else None
    done, taken = threading.Event(), threading.Lock()
    for trial in range(4):
        path = None if file is None else file.with_name(f"h{trial}")
        done.clear()
        with History(path) as history:
            history.keep_unpacked(2)
            next_round = iter(range(1000))
            wrote: dict[int, int] = {}

            def write(
                writer: int,
                history: History = history,
                rounds: Any = next_round,
                wrote: dict[int, int] = wrote,
            ) -> None:
                for _ in range(ROUNDS):
                    with taken:  # rounds must rise
                        number = next(rounds)
                        clients = range(writer * CLIENTS, (writer + 1) * CLIENTS)
                        history.put(number, {c: packet(number) for c in clients})
                        wrote[writer] = number

            def race(history: History = history) -> list[str]:
                """Write without asking: each round is put or refused whole."""
                said = []
                for _ in range(ROUNDS):
                    try:
                        history.put((history.last_round or 0) + 1, {})
                    except ValueError as error:
                        said.append(str(error))
                return said

            def checkpoint(history: History = history) -> int:
                states = 0
                while not done.is_set():
                    state = history.state_dict()
                    assert state["round"] is None or state["round"] >= 0
                    history.snapshot()
                    assert len(history) % CLIENTS == 0
                    states += 1
                return states

            def writers() -> None:
                try:
                    together(*[lambda w=w: write(w) for w in range(WRITERS)])
                finally:
                    done.set()

            together(writers, checkpoint)
            assert race() == []
            for writer, number in wrote.items():
                for client in range(writer * CLIENTS, (writer + 1) * CLIENTS):
                    assert history.round_of(client) == number
                    assert history.packet(client).scale == number + 1
            assert len(history) == WRITERS * CLIENTS
            assert history.last_round == WRITERS * ROUNDS - 1 + ROUNDS
            before = {c: history.packet(c).to_bytes() for c in range(WRITERS * CLIENTS)}
        if path is not None:
            with History(path) as again:  # which checks all of it
                assert {c: again.packet(c).to_bytes() for c in before} == before


def test_threads_that_write_the_same_rounds(tmp_path: Path) -> None:
    """Of two that put one round one is refused, in words of gcext, and the other's is whole."""
    with History(tmp_path / "h") as history:

        def write(writer: int) -> list[tuple[int, bool]]:
            said = []
            for number in range(60):
                try:
                    history.put(number, {c: packet(writer) for c in range(CLIENTS)})
                    said.append((number, True))
                except ValueError as error:
                    assert "rounds must rise" in str(error)
                    said.append((number, False))
            return said

        results = together(lambda: write(0), lambda: write(1), lambda: write(2))
        put = sorted(number for said in results for number, good in said if good)
        assert put == sorted(set(put)) and put[-1] == history.last_round == 59
        assert len({history.packet(c).scale for c in range(CLIENTS)}) == 1
        state = history.state_dict()
    with History(tmp_path / "h") as again:
        again.load_state_dict(state)


WRITER = """
import sys, torch, gcext
history = gcext.History(sys.argv[1])
history.put(1, {1: gcext.stc(torch.ones(3), p=1)})
print("open", flush=True)
sys.stdin.readline()
history.put(2, {1: gcext.stc(torch.full((3,), 2.0), p=1)})
print("put", flush=True)
sys.stdin.readline()
"""


def test_two_processes_have_one_writer(tmp_path: Path) -> None:
    file = tmp_path / "h"
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(file)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdin is not None and other.stdout is not None
        assert other.stdout.readline() == "open\n"
        with History(file) as history:
            assert history.last_round == 1
            calls: list[Callable[[], Any]] = [
                lambda: history.put(2, {1: packet(9)}),
                history.state_dict,
                lambda: history.restore(history.snapshot()),
            ]
            for call in calls:
                with pytest.raises(HistoryError, match="must have one writer, got another one"):
                    call()
            other.stdin.write("\n")
            other.stdin.flush()
            assert other.stdout.readline() == "put\n"
            assert history.last_round == 2 and history.packet(1).scale == 2  # reads go on
            os.kill(other.pid, signal.SIGKILL)
            other.wait()
            history.put(3, {1: packet(2)})  # the lock went with the process
        with History(file) as again:
            assert again.last_round == 3 and again.packet(1).scale == 3


def test_one_writer_within_a_process(tmp_path: Path) -> None:
    first, second = History(tmp_path / "h"), History(tmp_path / "h")
    first.put(1, {1: packet(1)})
    assert second.last_round == 1
    with pytest.raises(HistoryError, match="Close the other history"):
        second.put(2, {1: packet(2)})
    first.close()
    second.put(2, {1: packet(2)})
    second.close()
    forgotten = History(tmp_path / "h")
    forgotten.put(3, {1: packet(3)})
    forgotten._store._base.close()  # type: ignore[attr-defined]
    del forgotten  # as one that is not closed, its lock goes with it
    with History(tmp_path / "h") as last:
        last.put(4, {1: packet(4)})


def test_a_history_is_true_without_asking_the_file(tmp_path: Path) -> None:
    history = History(tmp_path / "h")
    assert history and History()
    history.close()
    assert history
    with pytest.raises(HistoryError, match="closed database"):
        history.put(1, {1: packet(1)})
