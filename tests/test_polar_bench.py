"""The figures of ``python -m bench polar``, on small inputs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import gcext
from bench import polar, polar_real
from bench.__main__ import app

INVOKE = CliRunner().invoke
FIELDS = {"name", "n", "p", "device", "gcext_ms", "torch_ms", "floor_ms", "speedup", "of_floor"}


def test_distortion_and_its_plot(tmp_path: Path) -> None:
    rows = tmp_path / "rows.json"
    picture = tmp_path / "plot.png"
    arguments = ["polar", "--part", "distortion", "--blocks", "64", "--block", "256"]
    done = INVOKE(app, [*arguments, "--json", str(rows), "--plot", str(picture)])
    assert done.exit_code == 0, done.output
    seen = json.loads(rows.read_text())
    assert all(set(row) >= FIELDS for row in seen)
    assert {row["coder"] for row in seen} == {name for name, _, _ in polar.CODERS}
    assert all(row["bound"] < row["distortion"] < 0.4 for row in seen)
    assert all(abs(row["published_z"]) < 6 for row in seen if row["coder"] == "randomised")
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_unknown_part() -> None:
    done = INVOKE(app, ["polar", "--part", "speed"])
    assert done.exit_code == 2 and "part must be of" in done.output


def test_updates_are_real_or_none(tmp_path: Path) -> None:
    real = polar_real.updates("digits", None)
    assert len(real) == polar_real.CLIENTS
    assert all(float(x.abs().max()) > 0 and len(x) == len(real[0]) for x in real)
    assert polar_real.updates("mnist", tmp_path) == []


def test_bias_shows_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for row in polar_real.bias([], draws=(100, 400)):
        assert row["T=400"] == pytest.approx(row["T=100"], rel=0.25)
    code = gcext.polar.encode_rotated
    # The same rotation every time: nothing averages out.
    monkeypatch.setattr(gcext.polar, "encode_rotated", lambda x, r, seed: code(x, r, seed=0))
    for row in polar_real.bias([], draws=(100, 400)):
        assert row["T=400"] == pytest.approx(4 * row["T=100"], rel=0.01)


def test_variance_against_subsampled_signs_in_equal_bytes() -> None:
    for row in polar_real.variance([], rounds=1, n=1 << 14):
        assert row["bytes"] == row["signs_bytes"]
        assert row["ratio"] < 0.6
        # Signs of a share R of rotated Gaussian values: (pi/2)/R - 1.
        assert row["signs"] == pytest.approx(torch.pi / 2 / row["rate"] - 1, rel=0.05)


def test_cosine_is_at_equal_bytes() -> None:
    for row in polar_real.cosine([], n=1 << 16):
        assert row["rotated_bytes"] <= row["bytes"] and row["stc_bytes"] <= row["bytes"]
        assert row["weighted"] > row["plain"] > row["signs"]
