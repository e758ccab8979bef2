"""Recipes: every method as an up link, a down link and a schedule. A new method is a few lines."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from gcext._codecs.registry import Dense, TopK, codecs, make
from gcext._links import Link
from gcext._spec import Spec, parse
from gcext.aggregate import Aggregator, Projection

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
    alpha, tau = spec.number("alpha", 0.1), spec.integer("tau", 1)
    codec = TopK(spec.number("p", 0.01), ternary=True)

    def combine() -> Aggregator:
        return Projection(alpha=alpha, tau=tau)

    combine()  # refuses alpha and tau out of range now, not at the first round
    return Recipe(up=Link(codec, feedback=True, combine=combine), down=Link(codec, feedback=True))


def _link(spec: Spec) -> Link:
    """A codec's spec with one option more, ``feedback``."""
    feedback = spec.flag("feedback", False)
    return Link(make(spec), feedback)


def _one_way(spec: Spec) -> Recipe:
    """Any codec up, dense down."""
    return Recipe(up=_link(spec), down=Link(Dense()))


_RECIPES: dict[str, Callable[[Spec], Recipe]] = {
    "none": _none,
    "fedavg": _none,
    "stc": _stc,
    "pstc": _pstc,
}


def recipes() -> list[str]:
    """Return the names that ``recipe`` knows: published methods, and every codec."""
    return [*_RECIPES, *(name for name in codecs() if name not in _RECIPES)]


def recipe(spec: str) -> Recipe:
    """Return the recipe of a spec.

    * ``pstc:p=0.1,alpha=0.1,tau=1``, ``stc:p=0.1``, ``fedavg``: the published methods.
    * Any other codec's spec: clients send by that codec, the server answers densely.
      ``feedback=true`` gives the clients a residual.
    * Last of all options ``down=SPEC`` says how the server answers instead: by any codec, again
      with ``feedback=true`` if it is to keep a residual.

    Raises ValueError for an unknown name or option, or an option out of range.

    >>> import gcext
    >>> gcext.recipe("stc:p=0.1").up.codec.spec
    'stc:p=0.1'
    >>> made = gcext.recipe("sign:feedback=true,down=stc:p=0.1,feedback=true")
    >>> made.up.feedback, made.down.codec.spec
    (True, 'stc:p=0.1')
    """
    up, *down = re.split("[:,]down=", spec, maxsplit=1)
    parsed = parse(up, "recipe", recipes())
    made = _RECIPES.get(parsed.name, _one_way)(parsed)
    parsed.finish()
    for text in down:
        parsed = parse(text, "recipe: down", codecs())
        made = replace(made, down=_link(parsed))
        parsed.finish()
    return made
