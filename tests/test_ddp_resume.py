"""Ranks that are killed: from the last checkpoint on they train as if nothing had happened."""

from __future__ import annotations

import hashlib
import io
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from ddp_kit import (
    ROOT,
    SEED,
    backward,
    end,
    flat,
    init,
    leave,
    make_model,
    run,
    same_on_all,
    start,
    step,
    wrapped,
)
from torch import Tensor
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from gcext.ddp import State

SPECS = ["stc:p=0.05", "dgc:warmup=3", "qsgd", "powersgd", "ef21"]
STEPS, EVERY = 9, 3


class Run:
    """The training of a model for each method, all in one process."""

    def __init__(self) -> None:
        self.models = [make_model() for _ in SPECS]
        self.states = [
            State(spec, module=model, seed=SEED)
            for spec, model in zip(SPECS, self.models, strict=True)
        ]
        self.ddps = [wrapped(s, m) for s, m in zip(self.states, self.models, strict=True)]

    def checkpoint(self) -> dict[str, Any]:
        """What torch.distributed.checkpoint saves, and loads into."""
        models = {f"model{i}": m.state_dict() for i, m in enumerate(self.models)}
        return {**models, **{f"ddp{i}": s for i, s in enumerate(self.states)}}

    def train(self, rank: int, first: int, folder: Path | None, die: int = -1) -> None:
        for number in range(first, STEPS):
            if folder and number and number % EVERY == 0:
                save(self.checkpoint(), checkpoint_id=folder / str(number))
                if rank == 0:
                    (folder / "last").write_text(str(number))
            for i, ddp in enumerate(self.ddps):
                if number == die and i == 2:  # of one rank in one layer, of the other in another
                    name = f"{4 - 2 * (rank % 2)}.weight"
                    ddp.module.get_parameter(name).register_hook(_kill)
                backward(ddp, rank, number)
                step(ddp)

    def digests(self) -> str:
        """What is compared: of each method the parameters', and the state's of this rank."""
        assert all(same_on_all(model) for model in self.models)
        parts = [flat(model).numpy().tobytes() for model in self.models]
        parts += [torch_hash(state) for state in self.states]
        return " ".join(hashlib.sha256(part).hexdigest()[:16] for part in parts)


def torch_hash(state: State) -> bytes:
    """The contents of a rank's state, in an order of its own."""
    (data,) = (value for value in state.state_dict().values() if isinstance(value, bytes))

    def text(value: Any) -> str:
        if isinstance(value, Tensor):
            return hashlib.sha256(value.numpy().tobytes()).hexdigest()
        if isinstance(value, dict):
            return str(sorted((str(key), text(each)) for key, each in value.items()))
        return (
            str([text(each) for each in value]) if isinstance(value, list | tuple) else str(value)
        )

    return text(torch.load(io.BytesIO(data), weights_only=True)).encode()


def _kill(_: Tensor) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def run_rank(world: int, rank: int, store: str, what: str, folder: Path, die: int = -1) -> None:
    init(rank, world, store, seconds=30)
    made = Run()
    if what == "other":
        other_world(made, rank, world, folder)
    else:
        first = 0
        if what == "resume":
            first = int((folder / "last").read_text())
            load(made.checkpoint(), checkpoint_id=folder / str(first))
            assert all(state.steps == first for state in made.states)
        made.train(rank, first, folder if what != "plain" else None, die)
        print(made.digests())
    del made
    leave()


def other_world(made: Run, rank: int, world: int, folder: Path) -> None:
    """Two ranks' checkpoint with three: an error that names both, or the mean of residuals."""
    path = folder / (folder / "last").read_text()
    for i, (state, ddp) in enumerate(zip(made.states, made.ddps, strict=True)):
        before = state.state_dict()
        with pytest.raises(ValueError, match=r"world_size must be the state's 2, got 3"):
            state.load_checkpoint(path, key=f"ddp{i}")
        assert state.state_dict() == before
        if SPECS[i] == "ef21":
            with pytest.raises(ValueError, match="cannot be redistributed"):
                state.load_checkpoint(path, key=f"ddp{i}", redistribute=True)
            continue
        state.load_checkpoint(path, key=f"ddp{i}", redistribute=True)
        if i == 0:
            old: dict[str, Any] = {"world_size": 0, "rank0": b"", "rank1": b""}
            load({f"ddp{i}": old}, checkpoint_id=path)
            held = [_residuals(old[f"rank{each}"]) for each in (0, 1)]
            mine = _residuals(next(v for k, v in state.state_dict().items() if k != "world_size"))
            assert mine
            for name, value in mine.items():
                mean = (held[0][name].double() + held[1][name].double()) / 2
                assert torch.equal(value, mean.float()) and value.any()
        for number in range(2):
            backward(ddp, rank, 100 + number)
            step(ddp)
        assert same_on_all(ddp)
    with pytest.raises(ValueError, match=r"must hold nothing\.rank0"):
        made.states[0].load_checkpoint(path, key="nothing")


def _residuals(data: Any) -> dict[str, Tensor]:
    held = torch.load(io.BytesIO(data), weights_only=True)
    return dict(held["method"]["sender"]["residuals"])


def test_killed_ranks_go_on_from_the_last_checkpoint(tmp_path: Path) -> None:
    plain = run(__file__, 2, tmp_path / "store0", "plain", tmp_path)
    killed = start(__file__, 2, tmp_path / "store1", "save", tmp_path, 7)
    end(killed)
    assert [rank.returncode for rank in killed] == [-signal.SIGKILL] * 2
    assert (tmp_path / "last").read_text() == "6"
    resumed = run(__file__, 2, tmp_path / "store2", "resume", tmp_path)
    assert resumed == plain and len(plain[0].split()) == 2 * len(SPECS)
    run(__file__, 3, tmp_path / "store3", "other", tmp_path)


def test_a_rank_that_dies_ends_the_others(tmp_path: Path) -> None:
    ranks = start(__file__, 2, tmp_path / "store", "half", tmp_path, 1)
    begun = time.monotonic()
    ended = end(ranks, 120)
    assert time.monotonic() - begun < 110
    assert ranks[1].returncode == -signal.SIGKILL and ranks[0].returncode == 1
    assert "RuntimeError" in ended[0][1] and "step" not in ended[0][0]


def test_the_example_as_its_readme_has_it(tmp_path: Path) -> None:
    """The commands of the README, with fewer epochs."""
    readme = (ROOT / "examples" / "ddp" / "README.md").read_text()
    commands = re.findall(r"^    torchrun (.+)$", readme, re.MULTILINE)
    assert len(commands) == 4
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    env["GLOO_SOCKET_IFNAME"] = "lo"
    printed = []
    for command in commands[:2]:
        command = command.replace("build/ddp", str(tmp_path))
        command = command.replace("--epochs 4", "--epochs 1").replace("--epochs 6", "--epochs 2")
        done = subprocess.run(
            [sys.executable, "-m", "torch.distributed.run", *command.split()],
            cwd=ROOT,
            env=env,
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert done.returncode == 0, done.stderr
        printed.append(done.stdout)
    assert printed[0].startswith("epoch 0: accuracy ") and len(printed[0].splitlines()) == 1
    assert printed[1].startswith("epoch 1: accuracy ") and "605224 dense" in printed[1]


if __name__ == "__main__":
    world, rank, store, what, folder, *die = sys.argv[1:]
    number = int(die[0]) if die else -1
    if what == "half" and rank == "0":
        number = -1
    run_rank(int(world), int(rank), store, what, Path(folder), number)
