"""python -m bench server: all ways give one answer, a row names what was extrapolated."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from packet_kit import dense
from typer.testing import CliRunner

import gcext
from bench import server
from bench.__main__ import app
from bench.case import Setting
from bench.report import Row


def test_packets_are_sound_and_conflict() -> None:
    packets = server.make_packets(Setting(40_000, 0.02, m=6))
    for packet in packets:
        index = packet.indices()
        assert (index.diff() > 0).all() and index[0] >= 0 and index[-1] < 40_000
        assert abs(packet.k - 800) < 200
        assert set(packet.values().abs().tolist()) == {packet.scale}
    assert (gcext.gram(packets) < 0).any()


def test_three_ways_one_answer() -> None:
    packets = server.make_packets(Setting(30_000, 0.05, m=12))
    x = server.densify(packets, 30_000)
    right = server.aggregate(packets)
    assert torch.equal(x[3], dense(packets[3]))
    for got in (server.dense(x), server.loop(x, 11)):  # floor(0.1*12) = 1 is kept
        assert np.allclose(got, right, rtol=1e-4, atol=1e-4 * float(right.abs().max()))


def test_a_row_names_what_was_extrapolated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "MOST_DENSE", 20_000)
    monkeypatch.setattr(server, "MOST_LOOPED", 500_000)
    row = server.measure(Setting(4000, 0.05, m=20), 1, lambda _: None)
    few = 8
    assert row["extrapolated"] == {
        "loop": 18 * 19 / ((few - 1) * (few - 1)),
        **dict.fromkeys(("densify", "dense", "mm"), 4.0),
    }
    assert row["loop_over_gcext"] == row["loop_ms"] / row["gcext_ms"]


def test_command_writes_rows(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    run = CliRunner().invoke(
        app,
        ["server", "--m", "4", "--n", "20K", "--p", "0.05", "--rounds", "1", "--json", str(path)],
    )
    assert run.exit_code == 0, run.output
    (row,) = json.loads(path.read_text())
    assert (row["m"], row["n"], row["p"], row["extrapolated"]) == (4, 20000, 0.05, {})
    assert row["gcext_peak_bytes"] is None or row["gcext_peak_bytes"] < 64 << 20


def test_exponents_of_a_power_law() -> None:
    rows = [
        Row("server", n, p, extra={"m": m, "ms": 3 * m**1.5 * n * p**0.5})
        for m in (2, 20)
        for n in (100, 1000)
        for p in (0.01, 0.1)
    ]
    fit = server.exponents(rows, "ms")
    assert fit == pytest.approx({"m": 1.5, "d": 1.0, "p": 0.5})
