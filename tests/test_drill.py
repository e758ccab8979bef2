"""Small shares of the drills in tests/drill: lost messages, killed processes, full disks, soak."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from drill import faults, poison

import gcext


def test_single_faults_leave_no_trace() -> None:
    counts = sum((faults.single(number) for number in range(0, 1630, 61)), Counter[str]())
    for what in ("drop", "double", "delay", "flip", "damaged", "duplicate", "replay"):
        assert counts[what] > 0, counts


def test_random_schedules_leave_no_trace() -> None:
    counts = sum((faults.schedule(seed) for seed in range(20)), Counter[str]())
    for what in ("damaged", "duplicate", "replay", "stale"):
        assert counts[what] > 100, counts


def test_a_drill_finds_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients that commit whatever is reported, and a server that counts a replay."""
    with monkeypatch.context() as patch, pytest.raises(AssertionError, match="another model"):
        patch.setattr(faults.Client, "settle", lambda self, counted: self.sender.commit())
        for seed in range(9):
            faults.schedule(seed)
    monkeypatch.setattr(gcext.Sender, "rollback", gcext.Sender.commit)
    with pytest.raises(AssertionError, match="another model"):
        for seed in range(9):
            faults.schedule(seed)


def drill(*arguments: str) -> str:
    """What a drill prints: children are forked, which a process with threads must not do."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "tests.drill", *arguments],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_kills_and_full_disks_leave_no_trace() -> None:
    said = drill("kill", "--kills", "4", "--full", "3")
    assert "every model that of a run that nothing stopped" in said


def test_a_soak_stays_in_its_memory() -> None:
    assert "round     200" in drill("soak", "--rounds", "200")


def test_poison_is_refused_or_bounded() -> None:
    """Bounds are asserted where the poison acts."""
    plain = poison.train(None, rounds=3)
    for name in poison.POISONS:
        got = poison.train(name, rounds=3)
        assert torch.equal(got.model, plain.model) == (name in poison.REFUSABLE), name
        assert got.model.isfinite().all()
        assert (got.refused > 0) == (name in poison.REFUSABLE)
