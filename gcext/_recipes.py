"""Recipes: every method as an up link, a down link and a schedule. A new method is a few lines."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

from gcext._codecs.base import require_contraction
from gcext._codecs.registry import codec, codec_class, codecs
from gcext._links.link import Link
from gcext._spec import build, parse
from gcext.aggregate import Aggregator, Momentum, Projection
from gcext.aggregate._registry import aggregator_class, aggregators

__all__ = ["Recipe", "Schedule", "recipe", "recipes", "register_recipe"]


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


def _none() -> Recipe:
    """FedAvg (McMahan et al. 2017): dense both ways."""
    return Recipe(up=Link(codec("dense")), down=Link(codec("dense")))


def _stc(p: float = 0.01) -> Recipe:
    """STC both ways with error feedback at both ends (Sattler et al. 2019)."""
    link = Link(codec(f"stc:p={p}"), feedback=True)
    return Recipe(up=link, down=link)


def _pstc(p: float = 0.01, alpha: float = 0.1, tau: int = 1) -> Recipe:
    """Projected STC: STC both ways, conflicts projected away on the server (Tian 2022)."""
    stc = _stc(p)
    projection = partial(Projection, alpha=alpha, tau=tau)
    projection()  # refuses alpha and tau out of range now, not at the first round
    return replace(stc, up=replace(stc.up, combine=projection))


_RECIPES: dict[str, Callable[..., Recipe]] = {
    "none": _none,
    "fedavg": _none,
    "stc": _stc,
    "pstc": _pstc,
}


def register_recipe(name: str, make: Callable[..., Recipe]) -> None:
    """Make a recipe known by name.

    make: its parameters of type float, int, bool or str are the spec's options.

    Raises ValueError for a name that is taken, by a codec too, or that no spec could hold.
    """
    if name in recipes() or not name.isidentifier():
        raise ValueError(f"register_recipe: name must be a new identifier, got {name!r}.")
    _RECIPES[name] = make


def recipes() -> list[str]:
    """Return the names that ``recipe`` knows: published methods, and every codec.

    >>> import gcext
    >>> gcext.recipes()[:4]
    ['none', 'fedavg', 'stc', 'pstc']
    """
    return [*_RECIPES, *(name for name in codecs() if name not in _RECIPES)]


def recipe(spec: str) -> Recipe:
    """Return the recipe of a spec.

    * ``pstc:p=0.1,alpha=0.1,tau=1``, ``stc:p=0.1``, ``fedavg``: the published methods.
    * Any other codec's spec: clients send by that codec, the server answers densely.
      ``feedback=true`` gives the clients a residual.
    * ``combine=NAME`` and the options that follow it name what the server makes of the packets:
      an aggregator of gcext.aggregate, as ``combine=vote`` or ``combine=trimmed,beta=0.1``.
    * ``momentum=0.9``: server momentum on top of it.
    * Last of all options ``down=SPEC`` is how the server answers instead: any codec, again
      with ``feedback=true`` if it is to keep a residual.

    Raises ValueError for an unknown name or option, or an option out of range.

    >>> import gcext
    >>> gcext.recipe("stc:p=0.1").up.codec.spec
    'stc:p=0.1'
    >>> made = gcext.recipe("sign:feedback=true,down=stc:p=0.1,feedback=true")
    >>> made.up.feedback, made.down.codec.spec
    (True, 'stc:p=0.1')
    >>> gcext.recipe("topk:p=0.1,combine=trimmed,beta=0.2,momentum=0.9").up.receiver()
    Momentum(TrimmedMean(0.2), beta=0.9)
    """
    up, *down = re.split("[:,]down=", spec, maxsplit=1) if isinstance(spec, str) else [spec]
    name, options = parse(up, "recipe", recipes())
    combine = _take_combine(name, options)
    momentum = options.pop("momentum", None)
    if name in _RECIPES:
        made = build(name, _RECIPES[name], options, _RECEIVER)
    else:
        made = Recipe(up=_link(name, options), down=Link(codec("dense")))
    if combine is not None:
        made = replace(made, up=replace(made.up, combine=combine))
    if momentum is not None:
        beta = build("recipe", _momentum, {"momentum": momentum})
        made = replace(made, up=replace(made.up, combine=partial(_moving, made.up.combine, beta)))
    for text in down:
        made = replace(made, down=_link(*parse(text, "recipe: down", codecs())))
    return made


def _link(name: str, options: dict[str, str]) -> Link:
    """Return the link of a codec's spec with one option more, ``feedback``."""
    feedback = options.pop("feedback", "false")
    if feedback not in ("true", "false"):
        raise ValueError(f"{name}: feedback must be one of true, false, got {feedback!r}.")
    made = codec_class(name).from_options(options)
    if feedback == "true":
        require_contraction(made)
    return Link(made, feedback == "true")


def _take_combine(name: str, options: dict[str, str]) -> Callable[[], Aggregator] | None:
    """Take ``combine`` and the options that follow it out of the options."""
    if "combine" not in options:
        return None
    keys = list(options)
    after = [key for key in keys[keys.index("combine") + 1 :] if key not in _NOT_COMBINE]
    combine = options.pop("combine")
    if combine not in aggregators():
        known = ", ".join(aggregators())
        raise ValueError(f"{name}: combine must be one of {known}, got {combine!r}.")
    given = {key: options.pop(key) for key in after}
    make = partial(build, combine, aggregator_class(combine), given)
    make()  # refuses options out of range now, not at the first round
    return make


_NOT_COMBINE = ("feedback", "momentum")
_RECEIVER = ("combine", "momentum", "down")


def _momentum(momentum: float) -> float:
    if not 0 <= momentum < 1:
        raise ValueError(f"recipe: momentum must be in [0, 1), got {momentum:g}.")
    return momentum


def _moving(combine: Callable[[], Aggregator], beta: float) -> Aggregator:
    return Momentum(combine(), beta)
