"""Recipe, schedule, and the text that names them: ``name:key=value,...,down=SPEC``."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Any

from gcext._codecs.base import Codec, require_contraction
from gcext._codecs.registry import codec_class, codecs
from gcext._codecs.topk import Dense
from gcext._links.link import Link
from gcext._spec import build, options_of, parse
from gcext.aggregate import Aggregator, Momentum
from gcext.aggregate._registry import aggregator_class, aggregators

__all__ = ["About", "Recipe", "Schedule", "about", "link_of", "method", "recipe", "recipes"]
__all__ += ["register_recipe"]


@dataclass(frozen=True)
class Schedule:
    """When a client talks, and with which share of the elements.

    Attributes:
        local_epochs: passes over a client's data before it talks.
        local_steps: H, steps of local SGD before it talks, instead of epochs; 0: by epochs.
        warmup: rounds at first in which p is ``max(p, 4^-round)`` (Lin et al. 2018, section 3.3).
        average: beta of the moving average of the server's models, ``a <- beta*a + (1 - beta)*w``,
            that is tested and in the end used in their place; 0: the model itself.
        trained: of each of the model's tensors at most so many elements are trained and sent, which
            the run's seed draws; the others keep their initial values; 0: all are trained.

    >>> import gcext
    >>> [gcext.Schedule(warmup=2).codec(gcext.codec("topk:p=0.01"), r).p for r in (1, 2, 3)]
    [0.25, 0.0625, 0.01]
    """

    local_epochs: int = 1
    local_steps: int = 0
    warmup: int = 0
    average: float = 0.0
    trained: int = 0

    def __post_init__(self) -> None:
        if self.trained < 0:
            raise ValueError(f"Schedule: trained must be at least 0, got {self.trained}.")

    def codec(self, codec: Codec, round: int) -> Codec:
        """Return the codec of a round, counted from 1."""
        if round > self.warmup or not any(each.name == "p" for each in fields(codec)):  # type: ignore[arg-type]
            return codec
        changed: Codec = replace(codec, p=max(codec.p, 0.25**round))  # type: ignore
        return changed


@dataclass(frozen=True)
class Recipe:
    """A method: how clients send, how the server answers, and when.

    Raises ValueError for one by tensor that trains only some elements of each.

    Attributes:
        up: from clients to server.
        down: from the server to all clients.
        schedule: when.
        by_tensor: whether the method works on a model's tensors, with their shapes, rather than
            on all of them as one flat tensor.
    """

    up: Link
    down: Link
    schedule: Schedule = field(default_factory=Schedule)
    by_tensor: bool = False

    def __post_init__(self) -> None:
        if self.schedule.trained and self.by_tensor:
            raise ValueError(
                "Recipe: a method that works on whole tensors cannot train some elements of each, "
                f"got by_tensor and trained={self.schedule.trained}. Train all of them."
            )


@dataclass(frozen=True)
class About:
    """What the table of methods shows of a method beside its links.

    Attributes:
        paper: authors and year.
        use: when to use it.
        unbiased: whether the mean over seeds of what is decoded is what was encoded.
    """

    paper: str
    use: str
    unbiased: bool = False


_RECIPES: dict[str, Callable[..., Recipe]] = {}
_ABOUT: dict[str, About] = {}


def method(
    name: str, paper: str, use: str, unbiased: bool = False
) -> Callable[[Callable[..., Recipe]], Callable[..., Recipe]]:
    """Return a decorator that makes a function a published method's recipe."""

    def register(make: Callable[..., Recipe]) -> Callable[..., Recipe]:
        _RECIPES[name] = make
        _ABOUT[name] = About(paper, use, unbiased)
        return make

    return register


def about(name: str, paper: str = "", use: str = "", unbiased: bool = False) -> About:
    """Return what is known of a method; with a paper, make it known first (of a codec's recipe)."""
    if paper:
        _ABOUT[name] = About(paper, use, unbiased)
    return _ABOUT.get(name, About("", ""))


def register_recipe(name: str, make: Callable[..., Recipe]) -> None:
    """Make a recipe known by name.

    make: its parameters of type float, int, bool or str are the spec's options. One called
        ``codec`` gets the text of a codec's spec, which must come last in the recipe's.

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


def recipe(spec: str | Recipe) -> Recipe:
    """Return the recipe of a spec; a recipe is returned as it is.

    * ``pstc:p=0.1,alpha=0.1,tau=1``, ``stc:p=0.1``, ``fedavg``: the published methods.
    * Any other codec's spec: clients send by that codec, the server answers densely.
      ``feedback=true`` gives the clients a residual; of a method too, ``feedback=false`` takes it.
    * ``combine=NAME`` and the options that follow it name what the server makes of the packets:
      an aggregator of gcext.aggregate, as ``combine=vote`` or ``combine=trimmed,beta=0.1``.
    * ``momentum=0.9``: server momentum on top of it, of methods that have no such option.
    * ``codec=SPEC`` after these, of methods that work with any codec: ``localsgd:codec=stc:p=0.1``.
    * Last of all options ``down=SPEC`` is how the server answers instead: any codec, again
      with ``feedback=true`` if it is to keep a residual; or with ``catchup=true``, which sends the
      drawn clients alone what their copies lack, by no more than that codec.

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
    if isinstance(spec, Recipe):
        return spec
    up, *down = re.split("[:,]down=", spec, maxsplit=1) if isinstance(spec, str) else [spec]
    inner: list[str] = []
    if isinstance(up, str) and "codec" in _options(up.partition(":")[0]):
        up, *inner = re.split("[:,]codec=", up, maxsplit=1)
    name, options = parse(up, "recipe", recipes())
    mine = _options(name)
    combine = _take_combine(name, options)
    momentum = None if "momentum" in mine else options.pop("momentum", None)
    if name in _RECIPES:
        feedback = None
        if "feedback" in options and "feedback" not in mine:
            feedback = _flag(name, "feedback", options)
        given: dict[str, Any] = dict(options)
        if inner:
            given["codec"] = inner[0]
        made = build(name, _RECIPES[name], given, _RECEIVER)
        if feedback is not None:
            made = replace(made, up=replace(made.up, feedback=feedback))
            made.up.sender(0)  # refuses now what takes no residual
    else:
        made = Recipe(up=_link(name, options), down=Link(Dense()))
    if combine is not None:
        made = replace(made, up=replace(made.up, combine=combine))
    if momentum is not None:
        beta = build("recipe", _momentum, {"momentum": momentum})
        made = replace(made, up=replace(made.up, combine=partial(_moving, made.up.combine, beta)))
    for text in down:
        made = replace(made, down=_link(*parse(text, "recipe: down", codecs()), down=True))
    return made


def _options(name: str) -> set[str]:
    """Return the options of a method; none of a codec's."""
    return set(options_of(_RECIPES[name])) if name in _RECIPES else set()


def _link(name: str, options: dict[str, str], down: bool = False) -> Link:
    """Return the link of a codec's spec with one option more, ``feedback``; down: ``catchup``."""
    feedback = _flag(name, "feedback", options)
    catch_up = down and _flag(name, "catchup", options)
    made = codec_class(name).from_options(options)
    if feedback:
        require_contraction(made)
    return Link(made, feedback, catch_up=catch_up)


def _flag(name: str, key: str, options: dict[str, str]) -> bool:
    """Take an option that is true or false out of the options; false where it is not there."""
    text = options.pop(key, "false")
    if text not in ("true", "false"):
        raise ValueError(f"{name}: {key} must be one of true, false, got {text!r}.")
    return text == "true"


def link_of(spec: str) -> Link:
    """Return the link of a codec's spec, which may end in ``feedback=true``."""
    return _link(*parse(spec, "recipe: codec", codecs()))


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
_RECEIVER = ("feedback", "combine", "momentum", "down")


def _momentum(momentum: float) -> float:
    if not 0 <= momentum < 1:
        raise ValueError(f"recipe: momentum must be in [0, 1), got {momentum:g}.")
    return momentum


def _moving(combine: Callable[[], Aggregator], beta: float) -> Aggregator:
    return Momentum(combine(), beta)
