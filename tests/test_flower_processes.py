"""gcext.flower over real processes: Ray's simulation, and a deployment with TLS.

GCEXT_FLOWER_LONG=1 runs the comparison with Flower's own FedAvg on the wire as well.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("flwr")
pytest.importorskip("cryptography")

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "examples/flower"))

from deployment import Deployment  # noqa: E402

RECIPE = "pstc:p=0.01,alpha=0.1,tau=1"


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Deployment]:
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
    with Deployment(folder=tmp_path) as deployment:
        yield deployment
        processes = [*deployment.nodes.values(), *deployment._others]
    assert all(process.poll() is not None for process in processes)


def test_the_loop_on_flower_has_the_built_in_figures(tmp_path: Path) -> None:
    """Simulation with four nodes: the same rounds, accuracies, bytes and model, bit for bit."""
    pytest.importorskip("ray")
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


def test_a_supernode_killed_in_a_round_comes_back(here: Deployment) -> None:
    import torch

    from gcext.fl._checkpoint import load

    states = here.folder / "states"
    config = {"recipe": RECIPE, "rounds": 30, "round_timeout": 12, "state_dir": str(states)}
    process = here.run(**config, min_nodes=2, report=str(here.folder / "report.json"))
    reports(here.folder, 200, 3)  # of two rounds
    ((kept,),) = [list(states.glob("*-0.state"))]
    here.kill_node(0)
    before = load(kept)
    rounds = len(reports(here.folder, 1, 1))
    here.start_node(0)
    deadline = time.monotonic() + 200
    while (after := load(kept))["round"] <= before["round"]:  # until the node has trained again
        assert time.monotonic() < deadline, (here.folder / "node-0.log").read_text()[-3000:]
        time.sleep(0.05)
    # Of the packet before the kill: counted or rolled back, and nothing else.
    (settled,) = after["sender"]["residuals"].values()
    choices = [*before["sender"]["residuals"].values(), *before["sender"]["pending"].values()]
    assert len(choices) == 2 and any(torch.equal(settled, choice) for choice in choices)
    found = reports(here.folder, 200, rounds + 2)
    assert found[-1]["up_bytes"] > found[rounds - 1]["up_bytes"]
    assert process.poll() in (None, 0)


@pytest.mark.skipif(
    os.environ.get("GCEXT_FLOWER_LONG") != "1", reason="takes minutes: GCEXT_FLOWER_LONG=1 runs it"
)
def test_bytes_on_the_wire_are_fifty_times_fewer(here: Deployment) -> None:
    """All bytes between SuperLink and SuperNodes: TLS, HTTP, polling, the app's download."""
    totals = []
    for recipe in (RECIPE, ""):
        before = sum(proxy.total for proxy in here.proxies)
        here.train(rounds=10, cnn=True, recipe=recipe)
        totals.append(sum(proxy.total for proxy in here.proxies) - before)
    assert totals[1] >= 50 * totals[0], totals
