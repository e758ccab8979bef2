"""States that are wrong anywhere: ValueError that names the owner, and nothing has changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

import gcext
from gcext import ErrorFeedback, History, LastValue, Lazy, MomentumCorrection, PowerSGD, Sender
from gcext.aggregate import (
    FetchSGD,
    LastValues,
    Mean,
    Momentum,
    Nesterov,
    NormBound,
    Predicted,
    Projection,
    Rounds,
    Vote,
)
from gcext.fl import Federation, Settings, Workers, load

X = [torch.randn(6, 8) for _ in range(3)]


def sender(make: Callable[[], Sender]) -> Callable[[], Sender]:
    def made() -> Sender:
        it = make()
        it.observe(X[0])
        for tensor in X:
            it.compress(tensor, "a")
        it.compress(X[0], "b", commit=False)
        return it

    return made


def server(make: Callable[[], gcext.aggregate.Aggregator], spec: str = "stc:p=0.5") -> Any:
    def made() -> gcext.aggregate.Aggregator:
        it = make()
        for number, tensor in enumerate(X, 1):
            packets = {c: gcext.codec(spec).encode(tensor * c) for c in (1, 2)}
            it.aggregate(packets, {1: 0.5, 2: 0.7}, number)
        return it

    return made


def history() -> History:
    it = History()
    it.put(1, {1: gcext.stc(X[0])})
    it.put(2, {2: gcext.stc(X[1])})
    return it


def rounds() -> Rounds:
    it = Rounds(Projection(), 5)
    it.begin()
    it.add(1, gcext.aggregate.Message(5, 1, 1, gcext.stc(X[0])), loss=0.5)
    it.finish()
    return it


OWNERS: dict[str, Callable[[], Any]] = {
    "sender": sender(lambda: Sender("qsgd:bits=2,bucket=16", seed=3)),
    "feedback": sender(lambda: ErrorFeedback("stc:p=0.1")),
    "seeds": sender(lambda: ErrorFeedback("randomk:p=0.5", seed=3)),
    "momentum stage": sender(lambda: ErrorFeedback("stc", stages=[MomentumCorrection(0.5)])),
    "last value": sender(lambda: Sender("topk:p=0.5", stages=[LastValue()])),
    "lazy": sender(lambda: Sender("topk:p=0.5", stages=[Lazy()])),
    "powersgd": sender(lambda: PowerSGD(rank=1)),
    "mean": server(Mean),
    "vote": server(Vote),
    "momentum": server(Momentum),
    "nesterov": server(lambda: Nesterov(NormBound(2.0))),
    "projection": server(lambda: Projection(tau=2)),
    "last": server(LastValues),
    "predicted": server(lambda: Predicted(2)),
    "fetchsgd": server(lambda: FetchSGD(k=3), "sketch:rows=3,cols=20"),
    "history": history,
    "rounds": rounds,
    "horovod": lambda: gcext.horovod.Compression.randomk(p=0.1),
}


def damaged(state: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Every state with one part removed, or replaced by something of another kind."""
    for wrong in (None, 5, -1, "text", b"bytes", [], {}, [3], {"x": 3}, 2.5, torch.zeros(3).int()):
        yield (*path, repr(wrong)), wrong
    if isinstance(state, dict):
        for key in state:
            yield (*path, f"no {key!r}"), {k: v for k, v in state.items() if k != key}
            for where, part in damaged(state[key], (*path, key)):
                yield where, state | {key: part}
        yield (*path, "more"), state | {"more": 1}
        yield (*path, "a key of another kind"), state | {3.5: 1}
    if isinstance(state, list | tuple):
        kind = type(state)
        for i, each in enumerate(state):
            yield (*path, f"less {i}"), kind([*state[:i], *state[i + 1 :]])
            for where, part in damaged(each, (*path, i)):
                yield where, kind([*state[:i], part, *state[i + 1 :]])


def alike(one: Any, other: Any) -> bool:
    """Deep equality, tensors bit for bit."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(alike(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(alike, one, other))
    return bool(one == other)


@pytest.mark.parametrize("name", OWNERS)
def test_every_damaged_state(name: str) -> None:
    owner = OWNERS[name]()
    state, tried, refused = owner.state_dict(), 0, 0
    for where, wrong in damaged(state):
        tried += 1
        kinds = ValueError if isinstance(wrong, dict) else (ValueError, TypeError)
        try:
            owner.load_state_dict(wrong)
        except kinds as error:
            refused += 1
            assert ": " in str(error), (where, error)
            assert alike(owner.state_dict(), state), where
        else:
            owner.load_state_dict(state)
    assert refused > 0.5 * tried, (refused, tried)


@pytest.mark.parametrize("name", OWNERS)
def test_what_is_no_dict(name: str) -> None:
    owner = OWNERS[name]()
    for wrong in (None, 5, [], [("round", 1)], "text"):
        with pytest.raises(TypeError, match=f"state must be a dict, got {type(wrong).__name__}"):
            owner.load_state_dict(wrong)


@pytest.mark.parametrize("recipe", ["stc:p=0.1", "pstc:p=0.1", "stc:p=0.1,down=stc:p=0.2"])
def test_a_federation(recipe: str) -> None:
    """Its servers' and clients' states: all that a checkpoint of the built-in loop holds."""
    data = load("digits")
    plan = Settings("digits", "any", recipe, clients=4, participation=0.5, rounds=3)
    with Workers(data, 1) as workers:
        federation = Federation(plan, data, workers)
        for _ in range(2):
            federation.step()
        state, tried, refused = federation.state_dict(), 0, 0
        for where, wrong in damaged({k: v for k, v in state.items() if k != "records"}):
            if not isinstance(wrong, dict) or "trajectory" in map(str, where):
                continue
            tried += 1
            try:
                federation.load_state_dict(wrong | {"records": state["records"]})
            except ValueError:
                refused += 1
                assert alike(federation.state_dict(), state), where
            else:
                federation.load_state_dict(state)
        assert refused > 0.5 * tried, (refused, tried)
