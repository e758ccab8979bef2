"""``python -m bench link``: a DDP training between network namespaces, on the small data."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.link_net import enter

ROOT = Path(__file__).parents[1]


def namespaces() -> bool:
    """Whether the system lets this user make network namespaces with limited links."""
    script = (
        "ip link add s type bridge && ip link add port0 type veth peer name port1 && "
        "tc qdisc replace dev port0 root tbf rate 1mbit burst 1600 limit 64000"
    )
    user = [] if os.geteuid() == 0 else ["--map-root-user"]
    try:
        done = subprocess.run(["unshare", "--net", *user, "sh", "-c", script], capture_output=True)
    except FileNotFoundError:
        return False
    return done.returncode == 0


@pytest.mark.skipif(not namespaces(), reason="needs network namespaces with veth and tc tbf")
def test_compression_pays_over_a_slow_link(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    options = "--task digits --ranks 2 --rate 2M --lr 0.1 --timed 3 --steps 100 --target 1.5"
    method = ["--method", "none; stc:p=0.01", "--json", str(path)]
    command = [sys.executable, "-m", "bench", "link", *options.split(), *method]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    plain, stc = json.loads(path.read_text())
    assert plain["method"] == "none" and plain["steps"] and stc["steps"]
    # Two ranks send n float32 each, and headers; a link of 2 Mbit/s is 0.25 kB a millisecond.
    assert 4 * plain["n"] < 1e3 * plain["kilobytes"] < 5 * plain["n"]
    assert plain["step_ms"] > plain["kilobytes"] / 0.25 * 0.8
    assert stc["kilobytes"] < plain["kilobytes"] / 5
    assert stc["of_ceiling"] > 0 and stc["ceiling"] > 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--rate 3", "rate must be a number"),
        ("--task chess", "task must be one of"),
        ("--ranks 1", "ranks must be at least 2"),
    ],
)
def test_refuses(arguments: str, message: str) -> None:
    command = [sys.executable, "-m", "bench", "link", *arguments.split()]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and message in done.stderr.replace("\n", " ")


def test_a_missing_tool_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GCEXT_BENCH_NAMESPACE", raising=False)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ValueError, match="link needs unshare, found none"):
        enter(["link"])
