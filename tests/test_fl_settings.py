"""Settings of a federated run."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from gcext.fl import Settings, complete


def plan(**changes: Any) -> Settings:
    usual = {"clients": 10, "participation": 0.3, "rounds": 5}
    return Settings(data="digits", method="stc", recipe="stc:p=0.1", **(usual | changes))


def test_bare_names_are_completed() -> None:
    given: dict[str, Any] = {"p": 0.05, "alpha": 0.2, "tau": 3}
    assert complete("stc", **given) == "stc:p=0.05"
    assert complete("pstc", **given) == "pstc:p=0.05,alpha=0.2,tau=3"
    assert complete("randomk", **given) == "randomk:p=0.05"
    assert complete("fedavg", **given) == "fedavg"
    assert complete("pstc:p=0.5", **given) == "pstc:p=0.5"


@pytest.mark.parametrize(
    "changes",
    [
        {"clients": 0},
        {"participation": 0.0},
        {"participation": 1.1},
        {"participation": float("nan")},
        {"rounds": 0},
        {"seed": -1},
        {"lr": 0.0},
        {"lr": float("nan")},
        {"batch": 0},
        {"epochs": 0},
        {"target": 0.0},
    ],
)
def test_rules(changes: dict[str, Any]) -> None:
    (name,) = changes
    with pytest.raises(ValueError, match=f"fl: {name} must be .*, got .*. Correct --{name}"):
        plan(**changes)


def test_drawn() -> None:
    assert plan(clients=200, participation=0.1).drawn == 20
    assert plan(clients=3, participation=0.01).drawn == 1


def test_trajectory_leaves_out_only_names_and_ends() -> None:
    one = plan()
    longer = dataclasses.replace(one, rounds=99, target=0.5, stop_at_target=True, method="x")
    assert one.trajectory() == longer.trajectory()
    assert one.trajectory() != dataclasses.replace(one, lr=0.2).trajectory()
