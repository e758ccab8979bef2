"""Recipes: every method as an up link, a down link and a schedule. A new method is a few lines."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from gcext._spec import Spec, parse
from gcext.aggregate import Aggregator, Projection
from gcext.codec import Dense, TopK
from gcext.link import Link

__all__ = ["Recipe", "Schedule", "recipe", "recipes"]


@dataclass(frozen=True)
class Schedule:
    """When a client talks: after ``local_epochs`` passes over its data."""

    local_epochs: int = 1


@dataclass(frozen=True)
class Recipe:
    """A method: how clients send, how the server answers, and when."""

    up: Link
    down: Link
    schedule: Schedule = field(default_factory=Schedule)


def _none(spec: Spec) -> Recipe:
    """FedAvg (McMahan et al. 2017): dense both ways."""
    return Recipe(up=Link(Dense()), down=Link(Dense()))


def _stc(spec: Spec) -> Recipe:
    """STC both ways with error feedback at both ends (Sattler et al. 2019)."""
    codec = TopK(spec.number("p", 0.01), ternary=True)
    return Recipe(up=Link(codec, feedback=True), down=Link(codec, feedback=True))


def _pstc(spec: Spec) -> Recipe:
    """Projected STC: STC both ways, conflicts projected away on the server (Tian 2022)."""
    alpha, tau = spec.number("alpha", 0.1), spec.number("tau", 1)
    if not float(tau).is_integer():
        raise ValueError(f"pstc: tau must be a whole number of rounds, got {tau:g}. Round it.")
    codec = TopK(spec.number("p", 0.01), ternary=True)

    def combine() -> Aggregator:
        return Projection(alpha=alpha, tau=int(tau))

    combine()  # refuses alpha and tau out of range now, not at the first round
    return Recipe(up=Link(codec, feedback=True, combine=combine), down=Link(codec, feedback=True))


_RECIPES: dict[str, Callable[[Spec], Recipe]] = {
    "none": _none,
    "fedavg": _none,
    "stc": _stc,
    "pstc": _pstc,
}


def recipes() -> list[str]:
    """Return the names that ``recipe`` knows."""
    return list(_RECIPES)


def recipe(spec: str) -> Recipe:
    """Return the recipe of a spec such as ``"pstc:p=0.1,alpha=0.1,tau=1"`` or ``"none"``.

    Raises ValueError for an unknown name or option, or an option out of range.

    >>> import gcext
    >>> gcext.recipe("stc:p=0.1").up.codec.spec
    'stc:p=0.1'
    """
    parsed = parse(spec, "recipe", recipes())
    made = _RECIPES[parsed.name](parsed)
    parsed.finish()
    return made
