"""gcext.ddp in one process: what is refused, and states that do not fit."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ddp_kit import (
    SEED,
    backward,
    flat,
    leave,
    make_model,
    new_state,
    residuals,
    same_bits,
    train,
    wrapped,
)
from torch import nn

import gcext
from gcext.ddp import State
from gcext.ddp._exchange import mean_of


@pytest.fixture
def alone() -> Iterator[None]:
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())  # type: ignore[attr-defined]
    yield
    leave()


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"recipe": "pstc"}, r"ddp\.State: pstc needs the ranks' losses: .* Use stc"),
        ({"recipe": "fetchsgd"}, r"fetchsgd needs one sketch of the whole model: .* Use stc"),
        ({"recipe": "localsgd:every=4"}, r"needs local steps: .*gcext\.OuterOptimizer"),
        ({"recipe": "laq"}, r"laq needs the steps of the model: .* gcext\.fl"),
        ({"recipe": "powersgd:combine=median"}, r"all-reduces factors.*Use combine=mean"),
        ({"recipe": "stc", "nonfinite": "skip"}, r"must be 'raise' or 'propagate', got 'skip'"),
        ({"recipe": "stc", "exact_below": -1}, r"exact_below must be at least 0, got -1"),
        ({"recipe": "stc", "round_steps": 0}, r"round_steps must be at least 1, got 0"),
        ({"recipe": "stc", "module": 3}, r"module must be a torch\.nn\.Module, got int"),
        ({"recipe": "nothing"}, "recipe: must be one of"),
    ],
)
def test_construction_refuses(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        State(**arguments)


def test_needs_an_initialized_process_group() -> None:
    with pytest.raises(RuntimeError, match=r"ddp\.State: torch\.distributed must be initialized"):
        State("stc")


@pytest.mark.usefixtures("alone")
def test_the_hook_refuses() -> None:
    """What it cannot do, with what to do instead; on all ranks alike."""
    state, parameter = State("stc"), nn.Parameter(torch.ones(2))
    with pytest.raises(RuntimeError, match=r'optimize_ddp = "ddp_optimizer"'):
        gcext.ddp.hook(state, (parameter, parameter))
    ddp = wrapped(State("stc"), nn.Embedding(50, 4, sparse=True))
    with pytest.raises(RuntimeError, match=r"must be dense.*sparse=False"):
        ddp(torch.tensor([1, 2])).sum().backward()
    ddp = wrapped(State("stc", module=make_model()))
    with pytest.raises(ValueError, match=r"must be of the module that State was given"):
        backward(ddp, 0, 0)


@pytest.mark.usefixtures("alone")
def test_a_backward_pass_that_ends_early() -> None:
    model = make_model()
    state = new_state("stc:p=0.05", model)
    ddp = wrapped(state, model)
    train(ddp, 0, 2)
    before, weights = residuals(state), copy.deepcopy(model.state_dict())
    handle = model[0].get_parameter("weight").register_hook(lambda g: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        backward(ddp, 0, 2)
    handle.remove()
    with pytest.raises(RuntimeError, match="must be called between steps"):
        state.state_dict()
    again = make_model()
    again.load_state_dict(weights)
    ddp = wrapped(state, again)
    state._names._named = None  # the new model's parameters are others
    with pytest.raises(RuntimeError, match=r"buckets must come in order.*call abort\(\)"):
        backward(ddp, 0, 2)
    state.abort()
    assert residuals(state) == before


@pytest.mark.usefixtures("alone")
def test_loading_amid_a_run() -> None:
    """Names by order are those of the first step, also after DDP has made its buckets anew."""
    model = make_model()
    state = State("stc:p=0.05", seed=SEED, exact_below=0)
    ddp = wrapped(state, model)
    train(ddp, 0, 3)
    saved, weights = state.state_dict(), copy.deepcopy(model.state_dict())
    train(ddp, 0, 2, first=3)
    final = flat(ddp)
    state.load_state_dict(saved)
    model.load_state_dict(weights)
    train(ddp, 0, 2, first=3)
    assert same_bits(flat(ddp), final)
    other = State("stc:p=0.05", seed=SEED, exact_below=0)
    train(wrapped(other, nn.Sequential(*make_model(), nn.Linear(5, 5))), 0, 1)
    with pytest.raises(ValueError, match="parameters must be the 8 of the state, got 6 others"):
        state.load_state_dict(other.state_dict())


@pytest.mark.usefixtures("alone")
def test_states_that_do_not_fit() -> None:
    model = make_model()
    state = new_state("stc:p=0.05", model)
    train(wrapped(state, model), 0, 1)
    saved, two = state.state_dict(), {"world_size": 2, "rank0": b""}
    for other, text in (
        ({}, "must have world_size"),
        (two, r"world_size must be the state's 2, got 1\. Run with 2"),
        ({**saved, "rank0": b"text"}, "must be what state_dict wrote"),
        ({"world_size": 1}, r"needs the states of ranks \[0\] of 1, got none of \[0\]"),
        (new_state("stc:p=0.1", model).state_dict(), "recipe must be the state's"),
        (new_state("stc:p=0.05", model, exact_below=5).state_dict(), "exact_below must be"),
    ):
        with pytest.raises(ValueError, match=text):
            state.load_state_dict(other)
        assert state.state_dict() == saved
    with pytest.raises(ValueError, match=r"ranks \[0, 1\] of 2, got none of \[1\]"):
        state.load_state_dict({**two, "rank0": saved["rank0"]}, redistribute=True)
    state.load_state_dict({**two, **saved, "world_size": 2, "rank1": saved["rank0"]}, True)
    bigger = nn.Sequential(*make_model(), nn.Linear(5, 5))
    state = new_state("stc:p=0.05", bigger)
    state.load_state_dict(saved)
    with pytest.raises(ValueError, match=r"must be those of the state that was loaded, got '5\."):
        backward(wrapped(state, bigger), 0, 0)


def test_residuals_that_some_ranks_lack_are_zeros_of_the_mean() -> None:
    """A parameter that a rank has not used has no residual there."""
    both, one = torch.ones(2), torch.full((3,), 4.0)
    merged = mean_of([{"r": {"a": both}, "n": 1}, {"r": {"a": both, "b": one}, "n": 5}])
    assert merged["r"]["a"].tolist() == [1, 1]
    assert merged["r"]["b"].tolist() == [2, 2, 2] and merged["n"] == 5
