"""Checkpoints of the loop: written whole or not at all, resumed bit for bit, refused when wrong."""

from __future__ import annotations

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from gcext import checkpoint
from gcext.fl import CheckpointError, Interrupted, Settings, load, local_sgd, run
from gcext.fl import _run as run_module
from gcext.fl._server import Server

METHODS = (
    "fedavg",
    "stc:p=0.1",
    "pstc:p=0.1,alpha=0.1,tau=2",
    "qsgd:bits=1,bucket=64,feedback=true,down=randomk:p=0.5",  # seeds at both ends
    "polar:rate=0.5,block=256,down=sign:feedback=true",
)
DATA = load("digits")


def settings(recipe: str = "stc:p=0.1", **changes: Any) -> Settings:
    usual = {"clients": 10, "participation": 0.3, "rounds": 7, "seed": 0, "target": 0.9}
    return Settings(data="digits", method="any", recipe=recipe, **(usual | changes))


def outcome(result: dict[str, Any]) -> tuple[Any, ...]:
    return result["rounds"], result["rounds_to_target"], result["model_digest"]


def interrupt_training(monkeypatch: pytest.MonkeyPatch, call: int) -> None:
    """Ctrl-C in the middle of the ``call``-th local training."""
    original, calls = local_sgd, iter(range(1, 10_000))

    def cut(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        if next(calls) == call:
            raise KeyboardInterrupt
        return result

    monkeypatch.setattr(run_module, "local_sgd", cut)


@pytest.mark.parametrize("recipe", METHODS)
class TestResume:
    def test_after_a_shorter_run(self, tmp_path: Path, recipe: str) -> None:
        path = tmp_path / "a.checkpoint"
        run(settings(recipe, rounds=4), DATA, path=path)
        assert outcome(run(settings(recipe), DATA, path=path, resume=True)) == outcome(
            run(settings(recipe), DATA)
        )

    def test_after_an_interrupt_within_a_round(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe: str
    ) -> None:
        path = tmp_path / "a.checkpoint"
        with monkeypatch.context() as patch:
            interrupt_training(patch, call=3 * 4 + 2)  # the second client of round 5
            with pytest.raises(Interrupted) as stop:
                run(settings(recipe), DATA, path=path, threads=1)
        assert len(stop.value.result["rounds"]) == 4 and stop.value.saved == path
        assert stop.value.result["interrupted"]
        assert outcome(run(settings(recipe), DATA, path=path, resume=True)) == outcome(
            run(settings(recipe), DATA)
        )

    def test_after_a_kill(self, tmp_path: Path, recipe: str) -> None:
        """Nothing is saved at the end: what counts is the last periodic checkpoint."""
        path = tmp_path / "a.checkpoint"

        def crash(record: dict[str, Any]) -> None:
            if record["round"] == 5:
                raise SystemExit

        with pytest.raises(SystemExit):
            run(settings(recipe), DATA, path=path, every=2, progress=crash)
        assert len(checkpoint.load(path)["records"]) == 4
        assert outcome(run(settings(recipe), DATA, path=path, resume=True)) == outcome(
            run(settings(recipe), DATA)
        )


def test_before_the_first_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.checkpoint"
    with monkeypatch.context() as patch:
        interrupt_training(patch, call=2)
        with pytest.raises(Interrupted) as stop:
            run(settings(), DATA, path=path, threads=1)
    assert stop.value.result["rounds"] == []
    resumed = run(settings(), DATA, path=path, resume=True)
    assert outcome(resumed) == outcome(run(settings(), DATA))


def test_a_real_signal_lands_between_whole_rounds(tmp_path: Path) -> None:
    path = tmp_path / "a.checkpoint"

    def press(record: dict[str, Any]) -> None:
        if record["round"] == 3:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted) as stop:
        run(settings(), DATA, path=path, progress=press)
    done = len(stop.value.result["rounds"])
    assert 3 <= done <= 4 and len(checkpoint.load(path)["records"]) == done
    assert outcome(run(settings(), DATA, path=path, resume=True)) == outcome(run(settings(), DATA))


def test_a_signal_waits_for_the_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C while the round is being committed: the round counts whole, then the run ends."""
    commit = Server.commit

    def press(self: Server, *args: Any) -> None:
        if self.version == 2:
            os.kill(os.getpid(), signal.SIGINT)
        commit(self, *args)

    monkeypatch.setattr(Server, "commit", press)
    with pytest.raises(Interrupted) as stop:
        run(settings(), DATA)
    monkeypatch.undo()
    assert len(stop.value.result["rounds"]) == 3
    assert stop.value.result["model_digest"] == run(settings(rounds=3), DATA)["model_digest"]


@pytest.mark.parametrize("first", [3, None])
def test_a_signal_waits_for_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: int | None
) -> None:
    """Ctrl-C while the pool ends, be it the second one: what was done is neither lost nor false."""
    path = tmp_path / "a.checkpoint"
    shutdown, ended = ThreadPoolExecutor.shutdown, []

    def press(record: dict[str, Any]) -> None:
        if record["round"] == first:
            os.kill(os.getpid(), signal.SIGINT)

    def press_again(self: ThreadPoolExecutor, **options: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        shutdown(self, **options)
        ended.append(all(not thread.is_alive() for thread in self._threads))

    with monkeypatch.context() as patch:
        patch.setattr(ThreadPoolExecutor, "shutdown", press_again)
        with pytest.raises(Interrupted) as stop:
            run(settings(), DATA, path=path, progress=press)
    result, done = stop.value.result, len(stop.value.result["rounds"])
    assert ended == [True] and stop.value.saved == path
    assert result["interrupted"] == (first is not None) == (done < 7)
    assert len(checkpoint.load(path)["records"]) == done >= 3


def test_resuming_a_finished_run_returns_it(tmp_path: Path) -> None:
    path = tmp_path / "a.checkpoint"
    whole = run(settings(rounds=3), DATA, path=path)
    before = path.read_bytes()
    assert outcome(run(settings(rounds=3), DATA, path=path, resume=True)) == outcome(whole)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "changes, named",
    [
        ({"recipe": "stc:p=0.2"}, "recipe stc:p=0.1 there, stc:p=0.2 here"),
        ({"seed": 3}, "seed 0 there, 3 here"),
        ({"lr": 0.05, "batch": 32}, "batch 64 there, 32 here; lr 0.1 there, 0.05 here"),
        ({"split": "iid"}, "split shards there, iid here"),
    ],
)
def test_other_settings_are_named(tmp_path: Path, changes: Any, named: str) -> None:
    path = tmp_path / "a.checkpoint"
    run(settings(rounds=1), DATA, path=path)
    with pytest.raises(CheckpointError, match=named):
        run(settings(rounds=2, **changes), DATA, path=path, resume=True)


@pytest.mark.parametrize(
    "part", [(), ("server",), ("clients",), ("clients", "sender"), ("server", "held"), ("records",)]
)
def test_a_checkpoint_of_something_else_is_named(tmp_path: Path, part: tuple[str, ...]) -> None:
    """Whole and rightly digested, but no run's: what raised KeyError or AttributeError."""
    path = tmp_path / "a.checkpoint"
    run(settings(rounds=1), DATA, path=path)
    whole = checkpoint.load(path)
    for wrong in (None, 5, [1, 2], {"weights": torch.ones(3)}, b"bytes"):
        state = wrong
        for key in reversed(part):
            inner = whole
            for each in part[: part.index(key)]:
                inner = inner[each]
            state = inner | {key: state}
        if part == ("records",) and isinstance(wrong, list | dict | bytes):
            continue
        checkpoint.save(path, state)
        with pytest.raises(CheckpointError, match=r"a\.checkpoint must hold a run's state, got"):
            run(settings(rounds=2), DATA, path=path, resume=True)


def test_a_damaged_checkpoint_falls_back_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "a.checkpoint"
    run(settings(rounds=4), DATA, path=path, every=2)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.warns(RuntimeWarning, match=r"a damaged file of .* Going on from .*\.previous"):
        resumed = run(settings(), DATA, path=path, resume=True)
    assert outcome(resumed) == outcome(run(settings(), DATA))
    assert len(checkpoint.load(checkpoint.previous(path))["records"]) == 2


STATE: dict[str, Any] = {
    "model": torch.arange(50.0),
    "messages": {3: b"\x00\xff"},
    "records": [{"round": 1}],
}


class TestFile:
    def test_round_trip(self, tmp_path: Path) -> None:
        checkpoint.save(tmp_path / "deep" / "a", STATE)
        got = checkpoint.load(tmp_path / "deep" / "a")
        assert torch.equal(got.pop("model"), STATE["model"])
        assert got == {k: v for k, v in STATE.items() if k != "model"}

    def test_every_damage_is_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "a"
        checkpoint.save(path, STATE)
        whole = path.read_bytes()
        for at in (*range(0, 48), *range(48, len(whole), 37), len(whole) - 1):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
            with pytest.raises(CheckpointError, match="Remove it"):
                checkpoint.load(path)
            path.write_bytes(whole[:at])
            with pytest.raises(CheckpointError, match="Remove it"):
                checkpoint.load(path)

    def test_missing(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match="No such file"):
            checkpoint.load(tmp_path / "a")

    @pytest.mark.parametrize("call", ["open", "fsync", "replace"])
    def test_a_failing_save_keeps_the_old_one(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
    ) -> None:
        path = tmp_path / "a"
        checkpoint.save(path, STATE)
        before = path.read_bytes()

        def full(*_: Any, **__: Any) -> None:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(os if call == "fsync" else Path, call, full)
            with pytest.raises(OSError, match="No space"):
                checkpoint.save(path, {"model": torch.zeros(9)})
        assert path.read_bytes() == before
        assert [p.name for p in tmp_path.iterdir()] == ["a"]
