"""gcext.flower over real processes: Ray's simulation, and a deployment with TLS.

GCEXT_FLOWER_LONG=1 runs the comparison with Flower's own FedAvg on the wire as well.
"""

from __future__ import annotations

import json
import os
import runpy
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("flwr")
pytest.importorskip("cryptography")

ROOT = Path(__file__).parents[1]
EXAMPLE = runpy.run_path(str(ROOT / "examples/flower/deployment.py"))
Deployment: Any = EXAMPLE["Deployment"]
TREE: Any = EXAMPLE["tree"]

RECIPE = "pstc:p=0.01,alpha=0.1,tau=1"


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
    with Deployment(folder=tmp_path) as deployment:
        yield deployment
        processes = TREE(*[process.pid for process in deployment.processes])
    assert len(processes) > 3
    wait(lambda: not any(map(alive, processes)), 5)


def test_the_loop_on_flower_has_the_built_in_figures(tmp_path: Path) -> None:
    """Simulation with four nodes: the same rounds, accuracies, bytes and model, bit for bit."""
    pytest.importorskip("ray")
    if shutil.which("bash") is None:
        pytest.skip("Ray starts its processes by bash")
    results = []
    for engine in ("builtin", "flower"):
        out = tmp_path / f"{engine}.json"
        command = [sys.executable, "-m", "gcext", "fl", "--engine", engine, "--json", str(out)]
        command += ["--clients", "4", "--participation", "0.5", "--rounds", "3", "--quiet"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
        (result,) = json.loads(out.read_text())
        results.append(result)
    for key in ("rounds", "numel", "model_digest", "rounds_to_target"):
        assert results[0][key] == results[1][key]
    assert len(results[1]["rounds"]) == 3


def test_the_loop_on_flower_without_bash(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Ray would wait for ever."""
    pytest.importorskip("ray")
    monkeypatch.setenv("PATH", str(tmp_path))
    command = [sys.executable, "-m", "gcext", "fl", "--engine", "flower", "--rounds", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2 and "needs bash" in done.stderr


def reports(folder: Path, seconds: float, rounds: int) -> list[dict[str, Any]]:
    """Wait until so many rounds, the test of the initial model included, are reported."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.2)
        try:
            found: list[dict[str, Any]] = json.loads((folder / "report.json").read_text())
        except (OSError, json.JSONDecodeError):
            continue
        if len(found) >= rounds:
            return found
    raise AssertionError((folder / "run.log").read_text()[-3000:])


def wait(happened: Callable[[], bool], seconds: float = 200) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_supernode_killed_in_a_round_comes_back(here: Any) -> None:
    import torch

    from gcext.checkpoint import load

    states = here.folder / "states"
    config = {"recipe": RECIPE, "rounds": 30, "round_timeout": 20, "state_dir": str(states)}
    process = here.run(**config, min_nodes=2, report=str(here.folder / "report.json"))
    reports(here.folder, 200, 2)
    (kept,) = states.glob("*-0.state")
    wait(lambda: bool(load(kept)["sender"]["residuals"]))  # a packet was acknowledged
    here.kill_node(0)
    before = load(kept)
    rounds = len(reports(here.folder, 1, 1))
    here.start_node(0)
    wait(lambda: load(kept)["round"] > before["round"])  # the node has trained again
    # Of the packet before the kill: counted or rolled back, and nothing else.
    (settled,) = load(kept)["sender"]["residuals"].values()
    choices = [*before["sender"]["residuals"].values(), *before["sender"]["pending"].values()]
    assert len(choices) == 2 and not torch.equal(*choices)
    assert any(torch.equal(settled, choice) for choice in choices)
    aggregated = reports(here.folder, 1, rounds)[-1]["up_bytes"]
    wait(lambda: reports(here.folder, 1, rounds)[-1]["up_bytes"] > aggregated)
    assert process.poll() in (None, 0)


@pytest.mark.skipif(
    os.environ.get("GCEXT_FLOWER_LONG") != "1", reason="takes minutes: GCEXT_FLOWER_LONG=1 runs it"
)
def test_bytes_on_the_wire_are_fifty_times_fewer(here: Any) -> None:
    """All bytes between SuperLink and SuperNodes: TLS, HTTP, polling, the app's download."""
    totals = []
    for recipe in (RECIPE, ""):
        before = sum(proxy.total for proxy in here.proxies)
        here.train(rounds=10, cnn=True, recipe=recipe)
        totals.append(sum(proxy.total for proxy in here.proxies) - before)
    assert totals[1] >= 50 * totals[0], totals
