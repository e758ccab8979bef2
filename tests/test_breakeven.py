"""The break-even calculator: its arithmetic, with the clock replaced, and the command."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import gcext
from gcext.__main__ import app
from gcext._recipes.breakeven import MOST, parse_rate

runner = CliRunner()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every reading of the clock is 10 ms after the one before."""
    now = [0.0]

    def read() -> float:
        now[0] += 0.01
        return now[0]

    monkeypatch.setattr(time, "perf_counter", read)


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize("ranks", [2, 4])
def test_both_exchanges_take_equally_long_at_the_break_even(ranks: int) -> None:
    n = 10_000
    (row,) = gcext.breakeven(n, ranks=ranks, specs=["stc:p=0.01"], repeat=1)
    assert (round(row.encode_ms), round(row.decode_ms)) == (10, 10)
    speed = 1e6 * row.megabits
    ring = 2 * (ranks - 1) / ranks * 32 * n / speed
    assert ring == pytest.approx((ranks - 1) * 8 * row.nbytes / speed + 0.02, rel=1e-6)
    (at,) = gcext.breakeven(n, speed, ranks, ["stc:p=0.01"], repeat=1)
    assert at.speedup == pytest.approx(1, rel=1e-6) and at.seconds == pytest.approx(ring, rel=1e-6)


@pytest.mark.usefixtures("clock")
def test_what_is_larger_than_what_is_measured_is_scaled() -> None:
    (row,) = gcext.breakeven(10 * MOST, specs=["sign"], repeat=1)
    assert row.encode_ms == pytest.approx(100)
    assert row.nbytes == pytest.approx(10 * MOST / 8, rel=1e-3)


@pytest.mark.usefixtures("clock")
def test_a_method_of_more_bytes_never_pays() -> None:
    (row,) = gcext.breakeven(1000, 1e6, 4, ["dense"], repeat=1)
    assert row.megabits == 0 and row.speedup < 1


def test_sixteen_bits_of_four_ranks_are_all_reduced() -> None:
    (row,) = gcext.breakeven(1000, 1e5, 4, ["bf16"], repeat=1)
    assert row.nbytes == 2000 and row.megabits > 0
    # Twice as fast as float32, less what it takes to convert.
    assert 1.5 < row.speedup < 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"params": 0}, "params must be at least 1, got 0"),
        ({"params": 9, "ranks": 1}, "ranks must be at least 2, got 1"),
        ({"params": 9, "repeat": 0}, "repeat must be at least 1, got 0"),
        ({"params": 9, "link": 0.0}, "link must be positive bit/s, got 0.0"),
        ({"params": 9, "specs": ["stk"]}, "stk"),
        ({"params": 9, "specs": ["powersgd"]}, "powersgd must work on flat tensors"),
    ],
)
def test_refuses(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gcext.breakeven(**arguments)


@pytest.mark.parametrize("text", ["3", "1Tbit", "0.1K", "nanG", "", "G"])
def test_a_rate_that_is_none(text: str) -> None:
    with pytest.raises(ValueError, match="rate must be a number with K, M or G"):
        parse_rate(text)


def test_the_command(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    given = ["breakeven", "--params", "1e4", "--link", "10M", "--method", "sign", "--json", path]
    done = runner.invoke(app, [str(each) for each in given])
    assert done.exit_code == 0 and "pays below" in done.output and "ms at 10M" in done.output
    (row,) = json.loads(path.read_text())
    assert row["spec"] == "sign" and row["speedup"] > 0
    bad = runner.invoke(app, ["breakeven", "--params", "1.5"])
    assert bad.exit_code == 2 and "whole number" in bad.output
