"""The history against a dict, gone back in, killed, damaged, and checkpointed with the loop."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import gcext
from gcext import History
from gcext._links.link import Link
from gcext.aggregate import Projection
from gcext.fl import Interrupted, Settings, load, local_sgd, run
from gcext.fl import _run as run_module

KINDS = pytest.mark.parametrize("kind", ["memory", "file"])


def packet(number: int) -> gcext.Packet:
    return gcext.stc(torch.full((3,), float(number + 1)), p=1)


@pytest.fixture
def path(tmp_path: Path, kind: str) -> Path | None:
    return None if kind == "memory" else tmp_path / "history.sqlite"


def seen(history: History) -> tuple[int | None, dict[int, tuple[int | None, float]]]:
    """All that can be asked of a history, of clients and rounds up to 40."""
    clients = {c: (history.round_of(c), history.packet(c).scale) for c in range(40) if c in history}
    rounds = {r: held for r in range(40) if (held := history.clients_of_round(r))}
    assert len(history) == len(clients)
    assert {c: r for r, held in rounds.items() for c in held} == {
        c: r for c, (r, _) in clients.items()
    }
    return history.last_round, clients


@KINDS
def test_the_last_packet_and_round_of_every_client(kind: str, path: Path | None) -> None:
    with History(path) as history:
        assert seen(history) == (None, {}) and history.round_of(3) is None and 3 not in history
        history.put(0, {1: packet(1), 2: packet(2), 3: packet(3)})
        history.put(7, {2: packet(20), 2**64 - 1: packet(5), -4: packet(6)})
        assert history.last_round == 7 and len(history) == 5
        assert history.clients_of_round(0) == [1, 3] and history.clients_of_round(5) == []
        assert history.clients_of_round(7) == [-4, 2, 2**64 - 1]
        assert history.packet(2).scale == 21 and history.packet(-4).scale == 7
        for round in (7, 3, -1):
            with pytest.raises(ValueError, match=f"rounds must rise from 0 on, got {round} after"):
                history.put(round, {1: packet(0)})
        with pytest.raises(KeyError):
            history.packet(99)
        history.put(8, {})
        assert history.last_round == 8 and len(history) == 5


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.sets(st.integers(0, 9), max_size=4)),
        st.tuples(st.sampled_from(["state", "load", "snapshot", "restore", "reopen"]), st.none()),
    ),
    max_size=25,
)


@KINDS
@settings(max_examples=60, deadline=None)
@given(steps=STEPS)
def test_any_order_of_rounds_states_and_snapshots(
    tmp_path_factory: pytest.TempPathFactory, kind: str, steps: list[tuple[str, set[int]]]
) -> None:
    """Against a dict that is copied whole: the last two states, the last snapshot."""
    file = None if kind == "memory" else tmp_path_factory.mktemp("h") / "h.sqlite"
    history, last = History(file), None
    model: dict[int, tuple[int | None, float]] = {}
    states: list[tuple[Any, Any]] = []
    snapshot: tuple[Any, Any] | None = None
    for count, (step, clients) in enumerate(steps):
        now = (last, dict(model))
        if step == "put":
            last = 0 if last is None else last + 1
            history.put(last, {c: packet(count) for c in clients})
            model |= {c: (last, float(count + 1)) for c in clients}
        elif step == "state":
            states = [*[s for s in states if s[1][0] != last][-1:], (history.state_dict(), now)]
        elif step == "snapshot":
            snapshot = (history.snapshot(), now)
        elif step == "load" and states:
            state, (last, model) = states[0]
            history.load_state_dict(state)
            model, states, snapshot = dict(model), states[:1], None
        elif step == "restore" and snapshot:
            last, model = snapshot[1][0], dict(snapshot[1][1])
            history.restore(snapshot[0])
            states = [s for s in states if (s[1][0] or -1) <= (-1 if last is None else last)]
        elif step == "reopen" and file:
            history.close()
            history, snapshot = History(file), None
        assert seen(history) == (last, model)
    history.close()


@KINDS
def test_only_the_rows_that_are_needed_are_stored(kind: str, path: Path | None) -> None:
    """Without states and snapshots a client has one row, with them those that they need."""
    with History(path) as history:
        for round in range(50):
            history.put(round, {c: packet(round) for c in (1, 2)})
        if kind == "file":
            count = "SELECT count(*) FROM packet"
            store: Any = history._store
            assert store._one(count) == 2
            for round in range(50, 90):
                if round % 10 == 0:
                    history.state_dict()
                history.snapshot()
                history.put(round, {c: packet(round) for c in (1, 2)})
                assert store._one(count) <= 2 * 22


def plain(history: History) -> dict[int, tuple[int | None, bytes, str]]:
    """All packets that a history gives, by client, as bytes and as numbers."""
    return {
        c: (history.round_of(c), history.packet(c).to_bytes(), str(history.packet(c).to_dense()))
        for c in range(12)
        if c in history
    }


CACHED = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.sets(st.integers(0, 11), max_size=6)),
        st.tuples(st.just("read"), st.sets(st.integers(0, 11))),
        st.tuples(st.sampled_from(["state", "load", "snapshot", "restore"]), st.none()),
    ),
    max_size=30,
)


@KINDS
@settings(max_examples=60, deadline=None)
@given(steps=CACHED, rounds=st.integers(0, 3), cache=st.sampled_from([0, 25, 100, 10_000]))
def test_the_cache_changes_no_result(
    tmp_path_factory: pytest.TempPathFactory,
    kind: str,
    steps: list[tuple[str, set[int]]],
    rounds: int,
    cache: int,
) -> None:
    """Against a history without one, over rounds, reads and ways back; and it is bounded."""
    folder = None if kind == "memory" else tmp_path_factory.mktemp("h")
    ours, bare = History(folder and folder / "a", cache), History(folder and folder / "b", 0)
    ours.keep_unpacked(rounds)
    states = snapshots = None
    for count, (step, clients) in enumerate(steps):
        if step == "put":
            number = 0 if ours.last_round is None else ours.last_round + 1
            for each in (ours, bare):
                each.put(number, {c: mixed_packet(count, c) for c in clients})
        elif step == "read":
            for c in clients & plain(bare).keys():
                assert ours.packet(c).to_bytes() == bare.packet(c).to_bytes()
        elif step == "state":
            states, snapshots = [each.state_dict() for each in (ours, bare)], None
        elif step == "snapshot":
            snapshots = [each.snapshot() for each in (ours, bare)]
        elif step == "load" and states:
            for each, state in zip((ours, bare), states, strict=True):
                each.load_state_dict(state)
            snapshots = None
        elif step == "restore" and snapshots:
            for each, snapshot in zip((ours, bare), snapshots, strict=True):
                each.restore(snapshot)
            states = None
        kept, newest = ours._unpacked, ours.last_round or 0
        assert all(ours.round_of(c) == each.round > newest - rounds for c, each in kept.items())
        assert ours._unpacked_bytes == sum(contents(each.packet) for each in kept.values()) <= cache
    assert plain(ours) == plain(bare) and ours.last_round == bare.last_round
    ours.close()
    bare.close()


def mixed_packet(number: int, client: int) -> gcext.Packet:
    """A packet of 12 bytes and more: ternary, dense, or a group of both."""
    ternary, dense = packet(number), gcext.codec("dense").encode(torch.full((3,), float(client)))
    return (ternary, dense, gcext.Packet.group([ternary, dense]))[client % 3]


def contents(packet: gcext.Packet) -> int:
    single = packet.members or (packet,)
    return sum(4 * p.k + (0 if p.method == "dense" else 4 * p.k) for p in single)


@KINDS
def test_packets_of_the_last_rounds_are_not_unpacked(
    kind: str, path: Path | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    unpacked = []
    original = gcext.Packet.from_bytes

    def spy(message: bytes, *args: Any, **kwargs: Any) -> gcext.Packet:
        unpacked.append(message)
        return original(message, *args, **kwargs)

    monkeypatch.setattr(gcext.Packet, "from_bytes", staticmethod(spy))
    with History(path) as history:
        server = Projection(tau=3, history=history)
        for round in range(8):
            clients = range(2 * round, 2 * round + 4)  # the last two again, the first two never
            packets = {c: packet(c + round) for c in clients}
            snapshot = server.snapshot()
            server.aggregate(packets, dict.fromkeys(clients, 1.0))
        assert unpacked == []
        assert [each.round for each in history._unpacked.values()] == [6, 6, 7, 7, 8, 8, 8, 8]
        held = {c: history.packet(c).to_bytes() for c in history._unpacked}
        server.restore(snapshot)  # now the last packets of the round before are read
        assert history.packet(14).to_bytes() != held[14] and history.round_of(14) == 7
        assert history.packet(12).to_bytes() == held[12] and len(unpacked) == 2
    with History(None) as history:  # where no cache was asked for
        history.put(1, {1: packet(1)})
        assert history.packet(1).scale == 2 and len(unpacked) == 3
        assert not history._unpacked


def test_a_full_cache_keeps_the_newest_packets() -> None:
    with History(cache=5 * 12) as history:  # a dense packet of three is 12 bytes
        history.keep_unpacked(3)
        for round, (put, kept) in enumerate(
            (
                ([0, 1], [0, 1]),
                ([2, 3], [0, 1, 2, 3]),
                ([4, 5], [1, 2, 3, 4, 5]),
                ([2], [3, 4, 5, 2]),
            )
        ):
            encode = gcext.codec("dense").encode
            history.put(round, {c: encode(torch.full((3,), float(c))) for c in put})
            assert list(history._unpacked) == kept
        history.put(4, {c: encode(torch.ones(3)) for c in range(6, 13)})
        assert list(history._unpacked) == [8, 9, 10, 11, 12] and history._unpacked_bytes == 60


@KINDS
def test_a_round_that_raises_leaves_all_as_it_was(
    kind: str, path: Path | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(gcext.Packet):
        def __init__(self) -> None:
            super().__init__("dense", (2,), torch.float32)

        def to_bytes(self) -> bytes:
            raise KeyboardInterrupt

    with History(path) as history:
        history.put(1, {1: packet(1)})
        before = seen(history)
        with pytest.raises(KeyboardInterrupt):
            history.put(2, {1: packet(2), 2: Broken()})
        assert seen(history) == before
        if kind == "file":  # within the transaction, once rows are in
            with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
                patch.setattr(history._store, "_seal", Broken().to_bytes)
                history.put(2, {1: packet(2), 2: packet(3)})
            assert seen(history) == before
        history.put(2, {1: packet(2)})


def test_a_killed_process_leaves_whole_rounds(tmp_path: Path) -> None:
    script = """
import sys, torch, gcext
history = gcext.History(sys.argv[1])
for round in range(10_000):
    history.put(round, {c: gcext.stc(torch.full((500,), round + 1.0), p=1) for c in range(8)})
    print(round, flush=True)
"""
    file = tmp_path / "h"
    run = subprocess.Popen([sys.executable, "-c", script, str(file)], stdout=subprocess.PIPE)
    assert run.stdout is not None
    for line in run.stdout:
        if int(line) >= 30:
            os.kill(run.pid, signal.SIGKILL)
            break
    run.communicate()
    with History(file) as history:
        last = history.last_round
        assert last is not None and last >= 30 and history.clients_of_round(last) == list(range(8))
        assert {history.packet(c).scale for c in range(8)} == {last + 1.0}


def test_another_file_is_refused(tmp_path: Path) -> None:
    with History(tmp_path / "a") as a, History(tmp_path / "b") as b:
        for history, number in ((a, 1), (b, 2)):
            history.put(1, {1: packet(number)})
        state = a.state_dict()
        for other, message in (
            (b, "must hold round 1 as the state has it"),
            (History(), "Open the file"),
        ):
            before = seen(other)
            with pytest.raises(ValueError, match=message):
                other.load_state_dict(state)
            assert seen(other) == before
        with pytest.raises(ValueError, match="got rounds 1 to 1 without it"):
            b.load_state_dict({**state, "round": 9})
        with pytest.raises(ValueError, match="into a history in memory"):
            a.load_state_dict(History().state_dict())
        for round in range(2, 9):
            a.put(round, {1: packet(round)})
            a.state_dict()
        with pytest.raises(ValueError, match="must hold round 1"):  # not one of the last two
            a.load_state_dict(state)
    (tmp_path / "text").write_text("no database, but long enough to be read as one" * 30)
    with pytest.raises(ValueError, match="must be a history, got file is not a database"):
        History(tmp_path / "text")
    with sqlite3.connect(tmp_path / "other") as base:
        base.execute("CREATE TABLE t (x)")
    base.close()
    with pytest.raises(ValueError, match="got another database"):
        History(tmp_path / "other")
    with sqlite3.connect(tmp_path / "a") as base:
        base.execute("PRAGMA user_version = 2")
    base.close()
    with pytest.raises(ValueError, match="must be of version 1, got 2"):
        History(tmp_path / "a")
    with pytest.raises(ValueError, match="cannot open"):
        History(tmp_path / "no" / "folder")


def test_damaged_states_in_memory_are_refused() -> None:
    history = History()
    history.put(3, {1: packet(1)})
    before, message = seen(history), packet(1).to_bytes()
    for state, why in (
        ({"round": 3, "packets": {3: {1: message[:-1]}}}, "message"),
        ({"round": 3, "packets": {3: {1: message}, 2: {1: message}}}, "one last packet"),
        ({"round": 2, "packets": {3: {1: message}}}, "later than the last round"),
        ({"round": 3}, "holds round and packets"),
    ):
        with pytest.raises(ValueError, match=why):
            history.load_state_dict(state)
        assert seen(history) == before


DATA = load("digits")
PLAN = Settings(
    data="digits", method="any", recipe="pstc:p=0.1,alpha=0.1,tau=2", clients=10,
    participation=0.3, rounds=7, seed=0, target=0.9,
)  # fmt: skip


@pytest.mark.parametrize("call", [2, 14, 16])
def test_the_loop_resumes_with_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    """Interrupted within a round, or killed after rounds that the checkpoint does not know."""
    expected = run(PLAN, DATA)["model_digest"]
    recipe, opened = gcext.recipe, []

    def with_file(spec: str) -> gcext.Recipe:
        made = recipe(spec)

        def combine() -> Projection:
            opened.append(History(tmp_path / "h.sqlite"))
            return Projection(0.1, 2, opened[-1])

        return made.__class__(
            Link(made.up.codec, made.up.feedback, combine), made.down, made.schedule
        )

    monkeypatch.setattr(run_module, "recipe", with_file)
    checkpoint = tmp_path / "a.checkpoint"
    if call == 16:  # killed: the file is two rounds ahead of the last checkpoint

        def crash(record: dict[str, Any]) -> None:
            if record["round"] == 6:
                raise SystemExit

        with pytest.raises(SystemExit):
            run(PLAN, DATA, path=checkpoint, every=4, progress=crash)
        assert opened[0].last_round == 6
    else:
        original, calls = local_sgd, iter(range(1, 10_000))

        def cut(*args: Any, **kwargs: Any) -> Any:
            if next(calls) == call:
                raise KeyboardInterrupt
            return original(*args, **kwargs)

        with monkeypatch.context() as patch, pytest.raises(Interrupted):
            patch.setattr(run_module, "local_sgd", cut)
            run(PLAN, DATA, path=checkpoint, threads=1)
    opened[-1].close()
    assert run(PLAN, DATA, path=checkpoint, resume=True)["model_digest"] == expected
    opened[-1].close()
