"""The outer optimizer by collectives: processes and a reference, resume, and what it refuses."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from outer_kit import EVERY, RECIPES, Net, local_step, reference, same
from torch import nn
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

import gcext
from gcext import OuterOptimizer

ROOT = Path(__file__).parents[1]
STEPS = 3 * EVERY + 1


def train(model: Net, outer: OuterOptimizer, rank: int, steps: range) -> None:
    for step in steps:
        local_step(model, rank, step)
        assert outer.step() == ((step + 1) % EVERY == 0)


def check_equals_the_reference(rank: int, world: int) -> None:
    for recipe in RECIPES:
        for dtype in (torch.float32, torch.bfloat16):
            model = Net(dtype)
            outer = OuterOptimizer(model, recipe)
            assert outer.every == EVERY
            train(model, outer, rank, range(STEPS))
            assert same(model, reference(recipe, world, STEPS, dtype)[rank]), (recipe, dtype)
            assert outer.round == 3 and outer.members == tuple(range(world))
            assert int(model.count) == STEPS * (1 + rank) and model.frozen.sum() == 2
            sent: list[Any] = [None] * world
            dist.all_gather_object(sent, outer.sent_bytes)
            assert outer.received_bytes == sum(sent) - sent[rank] > 0


def check_overridden_options(rank: int, world: int) -> None:
    model = Net()
    outer = OuterOptimizer(model, "localsgd", every=EVERY, lr=0.5, momentum=0.25)
    train(model, outer, rank, range(STEPS))
    assert same(model, reference("localsgd", world, STEPS, lr=0.5, momentum=0.25)[rank])


def check_resume_amid_local_steps(rank: int, world: int) -> None:
    """From a checkpoint of torch's, one step after an outer one, with a stochastic codec, too."""
    for number, recipe in enumerate([*RECIPES, "sparseloco:p=0.1,every=3,momentum=0.9"]):
        model = Net()
        outer = OuterOptimizer(model, recipe)
        train(model, outer, rank, range(STEPS))
        folder = Path(os.environ["FOLDER"]) / f"checkpoint{number}"
        local = {f"model{rank}": model.state_dict()}
        save({"outer": outer.state_dict(), **local}, checkpoint_id=folder)
        train(model, outer, rank, range(STEPS, 2 * STEPS))

        other = Net()
        again = OuterOptimizer(other, recipe)
        state = {"outer": again.state_dict(), f"model{rank}": other.state_dict()}
        load(state, checkpoint_id=folder)
        other.load_state_dict(state[f"model{rank}"])
        again.load_state_dict(state["outer"])
        assert (again.round, again.local_steps) == (3, 1) and again.sent_bytes > 0
        train(other, again, rank, range(STEPS, 2 * STEPS))
        assert same(other, model), recipe
        assert again.sent_bytes == outer.sent_bytes


def check_nan_on_one_rank(rank: int, world: int) -> None:
    """All raise, nothing has changed, and all go on when the rank has forgotten it."""
    model = Net()
    outer = OuterOptimizer(model, RECIPES[2])
    train(model, outer, rank, range(EVERY))
    for step in range(EVERY, 2 * EVERY - 1):
        local_step(model, rank, step)
        outer.step()
    if rank == 1:
        model.weight.data[3, 2] = torch.nan
        with pytest.raises(ValueError, match=r"'weight'.* OuterOptimizer\.reset\(\)"):
            outer.step()
        outer.reset()
    else:
        with pytest.raises(RuntimeError, match="got none from rank 1"):
            outer.step()
    assert (outer.round, outer.local_steps) == (1, EVERY - 1)
    assert outer.step() and outer.round == 2
    digests: list[Any] = [None] * world
    dist.all_gather_object(digests, [p.tolist() for p in model.trained().values()])
    assert all(each == digests[0] for each in digests)


def check_unequal_beginnings(rank: int, world: int) -> None:
    with pytest.raises(ValueError, match="must be the same on all ranks"):
        OuterOptimizer(Net(seed=rank), "diloco")
    with pytest.raises(ValueError, match="must be the same on all ranks"):
        OuterOptimizer(Net(), "diloco", lr=0.5 + rank)


def check_a_rank_of_another_round(rank: int, world: int) -> None:
    """One rank resumes from an older checkpoint: all raise, and nothing has changed."""
    model = Net()
    outer = OuterOptimizer(model, RECIPES[2])
    train(model, outer, rank, range(EVERY))
    older = outer.state_dict()
    train(model, outer, rank, range(EVERY, 2 * EVERY))
    if rank == 1:
        outer.load_state_dict(older)
    before = str(outer.state_dict())
    for step in range(2 * EVERY, 3 * EVERY - 1):
        local_step(model, rank, step)
        outer.step()
    weights = {name: p.clone() for name, p in model.trained().items()}
    with pytest.raises(RuntimeError, match=r"number must be the same on all ranks, got \[2, 1"):
        outer.step()
    after = str(outer.state_dict()).replace(f"'local_steps': {EVERY - 1}", "'local_steps': 0")
    assert after == before
    assert all(torch.equal(p, weights[name]) for name, p in model.trained().items())


CHECKS = [
    check_equals_the_reference, check_a_rank_of_another_round,
    check_overridden_options, check_resume_amid_local_steps,
    check_nan_on_one_rank, check_unequal_beginnings,
]  # fmt: skip


def run_rank(rank: int, world: int, store: str) -> None:
    torch.set_num_threads(1)
    timeout = timedelta(seconds=60)
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=world, timeout=timeout
    )
    for check in CHECKS:
        check(rank, world)
    dist.destroy_process_group()


@pytest.mark.parametrize("world", [2, 3])
def test_between_processes(world: int, tmp_path: Path) -> None:
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    env = {**os.environ, "PYTHONPATH": path, "GLOO_SOCKET_IFNAME": "lo", "FOLDER": str(tmp_path)}
    command = [sys.executable, __file__, str(world), str(tmp_path / "store")]
    ranks = [
        subprocess.Popen([*command, str(rank)], env=env, stderr=subprocess.PIPE, text=True)
        for rank in range(world)
    ]
    try:
        ended = [rank.communicate(timeout=120) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    for rank, (_, error) in zip(ranks, ended, strict=True):
        assert rank.returncode == 0, error


@pytest.fixture
def alone() -> Iterator[None]:
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())  # type: ignore[attr-defined]
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("alone")
def test_16_bit_parameters_do_not_lose_small_outer_steps() -> None:
    """The global parameters are float32, and rounding alone is no progress."""
    model = Net(torch.bfloat16)
    outer = OuterOptimizer(model, "localsgd:every=1", lr=2**-8)
    before = model.weight.detach().clone()
    for _ in range(256):
        with torch.no_grad():
            model.weight.add_(0.5)
        outer.step()
    moved = (model.weight - before).float()
    assert (moved - 0.5).abs().max() < 0.1
    held = [each.clone() for each in outer._global]
    assert not torch.equal(held[0], model.weight.float())  # there is something between two bf16
    outer.step()
    assert all(torch.equal(a, b) for a, b in zip(held, outer._global, strict=True))


@pytest.mark.usefixtures("alone")
def test_what_fails_in_the_outer_step_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Net()
    outer = OuterOptimizer(model, "diloco:every=3,codec=stc:p=0.1,feedback=true")
    train(model, outer, 0, range(2 * EVERY - 1))
    local_step(model, 0, 2 * EVERY - 1)
    before = str(outer.state_dict())

    def fails(*_: Any) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(outer, "_set", fails)
        with pytest.raises(MemoryError):
            outer.step()
    assert str(outer.state_dict()) == before and not outer._sender.pending
    assert outer.step()
    recipe = "diloco:every=3,codec=stc:p=0.1,feedback=true"
    assert same(model, reference(recipe, 1, 2 * EVERY)[0])


@pytest.mark.usefixtures("alone")
def test_float64_parameters_stay_float64() -> None:
    model = nn.Linear(3, 2).double()
    outer = OuterOptimizer(model, "localsgd:every=1")
    with torch.no_grad():
        model.weight.add_(0.5)
    expected = model.weight.detach().clone()
    outer.step()
    assert torch.equal(model.weight, expected)


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("recipe", [name for name in gcext.recipes() if name != "none"])
def test_every_recipe_trains_or_is_refused_at_once(recipe: str) -> None:
    model = Net()
    try:
        outer = OuterOptimizer(model, recipe, every=1)
    except ValueError as error:
        assert recipe in ("pstc", "fetchsgd", "subset") or "losses" in str(error), (recipe, error)
        return
    for step in range(3):
        local_step(model, 0, step)
        assert outer.step()
    assert all(p.isfinite().all() for p in model.parameters())


@pytest.mark.usefixtures("alone")
def test_warm_up_sets_the_codec_of_a_round() -> None:
    model = Net()
    outer = OuterOptimizer(model, "dgc:p=0.01,warmup=2", every=1)
    sizes = []
    for step in range(4):
        local_step(model, 0, step)
        before = outer.sent_bytes
        outer.step()
        sizes.append(outer.sent_bytes - before)
    assert sizes[0] > sizes[1] > sizes[2] and sizes[2] - sizes[3] < 8
    again = OuterOptimizer(Net(), "dgc:p=0.01,warmup=2", every=1)
    again.load_state_dict(outer.state_dict())


@pytest.mark.usefixtures("alone")
def test_a_state_that_does_not_fit_changes_nothing() -> None:
    model = Net()
    outer = OuterOptimizer(model, RECIPES[2])
    train(model, outer, 0, range(EVERY + 1))
    state = outer.state_dict()
    mine = state["rank0"]
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"rank1": mine}, "a state must be of rank 0 of 1"),
        ({"rank0": mine | {"world": 2}}, "Start as many ranks as had saved it"),
        ({"rank0": mine | {"global": {"weight": torch.zeros(40, 5)}}}, "others of empty, scale"),
    ]
    for bad, message in wrong:
        with pytest.raises(ValueError, match=message):
            outer.load_state_dict(bad)
    other = OuterOptimizer(Net(), "localsgd:every=3,codec=stc:p=0.1,feedback=true")
    with pytest.raises(ValueError, match="must be the state's"):
        other.load_state_dict(state)
    assert other.round == 0 and str(outer.state_dict()) == str(state)


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"recipe": "stc:p=0.1"}, ValueError, r"every must be at least 1, got 0\. Pass every=30"),
        ({"every": 0}, ValueError, "every must be at least 1, got 0"),
        ({"every": 1.5}, ValueError, "every must be a whole number"),
        ({"recipe": "pstc", "every": 1}, ValueError, "pstc needs the ranks' losses"),
        ({"rank": 0}, ValueError, "store, rank and world must come together"),
        ({"exact_below": -1}, ValueError, "exact_below must be at least 0, got -1"),
        ({"lr": 0}, ValueError, "lr must be positive"),
        ({"momentum": 1}, ValueError, r"beta must be in \[0, 1\)"),
        ({"store": True, "timeout": 0}, ValueError, "timeout must be positive"),
        ({"store": True, "keep": 0}, ValueError, "keep must be at least 1, got 0"),
        ({"store": True, "rank": 2, "world": 2}, ValueError, r"rank must be in \[0, world\)"),
        ({"model": nn.ReLU()}, ValueError, "must have parameters to train"),
        ({"model": nn.Linear(2, 2, device="meta")}, TypeError, "plain tensors of a float dtype"),
    ],
)
def test_what_is_refused(given: dict[str, Any], error: type[Exception], message: str) -> None:
    if given.get("store"):
        given = given | {"store": dist.HashStore()}  # type: ignore[attr-defined]
    with pytest.raises(error, match=message):
        OuterOptimizer(**{"model": Net(), "recipe": "diloco", **given})


def test_needs_processes_or_a_store() -> None:
    with pytest.raises(RuntimeError, match=r"without store.*must be initialized"):
        OuterOptimizer(Net(), "diloco")


if __name__ == "__main__":
    run_rank(int(sys.argv[3]), int(sys.argv[1]), sys.argv[2])
