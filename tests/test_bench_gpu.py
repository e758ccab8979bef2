"""The GPU's benchmark: what it can do without a GPU, on small tensors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("typer")

from typer.testing import CliRunner

import gcext
from bench import gpu, report
from bench.__main__ import app


def test_rows_without_a_gpu() -> None:
    row = gpu.identity(1000, torch.float16, "cpu")
    assert row["identical"]
    assert row["dtype"] == "float16"
    row = gpu.speed(2000, 0.1, "cpu", seconds=0.001)
    assert row["speedup_best"] <= row["speedup_topk"]
    assert row["speedup_best"] == row[f"{row['best']}_ms"] / row["feedback_ms"]
    assert row["stc_of_add_bandwidth"] == row["floor_ms"] / row["stc_ms"]
    assert row["bytes_of_feedback"] == row["feedback_bytes_ms"] / row["feedback_ms"] - 1
    row = gpu.server(5, 3000, 0.1, "cpu", seconds=0.001)
    assert row["speedup_mm"] == row["mm_ms"] / row["gram_ms"]
    assert row["largest_difference"] < 1e-5
    assert gpu.batch([5, 1000], "cpu", seconds=0.001)["tensors"] == 2
    row = gpu.packing([5, 1000, 0], "cpu", seconds=0.001)
    assert row["identical"]
    assert row["pack_of_encode"] == row["encode_pack_ms"] / row["encode_ms"] - 1
    assert report.machine()["versions"]["torch"] == torch.__version__


def test_counts_of_the_test_run(tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    assert gpu.tests(report) is None
    suite = '<testsuite name="pytest" errors="0" failures="1" skipped="2" tests="9"/>'
    report.write_text(f"<testsuites>{suite}</testsuites>")
    assert gpu.tests(report) == {"tests": 9, "failures": 1, "errors": 0, "skipped": 2}


def test_command_reports_why_there_is_no_gpu(tmp_path: Path) -> None:
    if not (why := gcext.build_info()["why_no_cuda"]):
        pytest.skip("there is a GPU")
    done = CliRunner().invoke(app, ["gpu", "--json", str(tmp_path / "gpu.json")])
    assert done.exit_code == 2
    assert why in done.output


@pytest.mark.cuda
def test_rows_of_a_gpu() -> None:
    assert gpu.identity(1000, torch.float32, "cuda")["identical"]
    assert gpu.server(5, 3000, 0.1, "cuda")["largest_difference"] < 1e-5
    assert gpu.speed(2000, 0.1, "cuda", seconds=0.001)["speedup_best"] > 0
    assert gpu.batch([5, 1000], "cuda", seconds=0.001)["tensors"] == 2
    assert gpu.memory(10**5, "cuda", 10)["growth_bytes"] == 0
    assert gpu.replays(1000, 3)["identical"] == 3
    assert gpu.packing([5, 1000, 0, 10**6], "cuda", seconds=0.001)["identical"]
    assert json.dumps(report.machine("cuda"))
