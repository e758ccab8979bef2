"""Specs, ``name`` or ``name:key=value,key=value``, and the options that they set.

A spec's options are the parameters of what it builds: the fields of a codec's dataclass, or the
constructor's parameters that have a plain type (float, int, bool or str).
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

__all__ = ["build", "option", "options_of", "parse", "plain", "positive", "validate"]
__all__ += ["write"]

T = TypeVar("T")
_PLAIN = {kind.__name__: kind for kind in (bool, int, float, str)}


def option(default: Any, interval: str, omit: bool = False) -> Any:
    """Declare a codec's option: a dataclass field with its default and the interval it must be in.

    interval: as "(0, 1]" or "[0, inf)"; a bracket includes its end.
    omit: leave the option out of the codec's spec where it has its default.
    """
    return dataclasses.field(default=default, metadata={"interval": interval, "omit": omit})


def validate(codec: Any) -> None:
    """Convert a dataclass's fields to their plain types, and raise where one is out of range."""
    for field in dataclasses.fields(codec):
        value = getattr(codec, field.name)
        kind = _PLAIN.get(str(field.type))
        if kind is not None and type(value) is not kind:
            value = plain(codec.name, field.name, kind, value)
            object.__setattr__(codec, field.name, value)
        interval = field.metadata.get("interval")
        if interval is not None and not _contains(interval, value):
            raise ValueError(
                f"{codec.name}: {field.name} must be {_text(interval)}, got {value:g}."
            )


def plain(owner: str, key: str, kind: type, value: Any) -> Any:
    """Return an option's value as float, int, bool or str.

    Raises ValueError for text and numbers that are none, TypeError for all else; ``owner`` and
    ``key`` name the option in the error.
    """
    try:
        if kind is str:
            return str(value)
        if kind is bool and not isinstance(value, str) and value in (0, 1):
            return bool(value)
        if kind is float and not isinstance(value, bool):
            return float(value)
        if kind is int and not isinstance(value, bool):
            if not isinstance(value, (str, float)):
                return operator.index(value)
            if float(value).is_integer():
                return int(float(value))
    except (TypeError, ValueError):
        pass
    rule = {float: "a number", int: "a whole number", bool: "True or False"}[kind]
    error = ValueError if isinstance(value, (str, int, float)) else TypeError
    raise error(f"{owner}: {key} must be {rule}, got {value!r:.100}.")


def positive(owner: str, key: str, value: Any) -> float:
    """Return an option's value as a float; ValueError where it is not positive and finite."""
    number: float = plain(owner, key, float, value)
    if not 0 < number < float("inf"):
        raise ValueError(f"{owner}: {key} must be positive and finite, got {number}.")
    return number


@functools.cache
def _ends(interval: str) -> tuple[bool, float, float, bool]:
    left, low, high, right = re.fullmatch(r"([\[(])(.+), (.+)([\])])", interval).groups()  # type: ignore[union-attr]
    return left == "[", float(low), float(high), right == "]"


def _contains(interval: str, value: float) -> bool:
    from_low, low, high, to_high = _ends(interval)
    above = value >= low if from_low else value > low
    return above and (value <= high if to_high else value < high)


def _text(interval: str) -> str:
    from_low, low, high, to_high = _ends(interval)
    if high < float("inf") or to_high:
        return f"in {interval}"
    return f"at least {low:g}" if from_low else f"above {low:g} and finite"


def parse(text: str, what: str, known: Sequence[str]) -> tuple[str, dict[str, str]]:
    """Return a spec's name and options; ``what`` and ``known`` name the kind and its names."""
    if not isinstance(text, str):
        raise TypeError(
            f"{what}: needs a spec, name or name:key=value, got {type(text).__name__}. "
            f'Write it as "{known[0]}".'
        )
    name, colon, rest = text.partition(":")
    if name not in known:
        raise ValueError(f"{what}: must be one of {', '.join(known)}, got {name!r}.")
    options: dict[str, str] = {}
    for item in rest.split(",") if colon else []:
        key, equals, value = item.partition("=")
        if not (key and equals and value) or key in options:
            raise ValueError(
                f"{what}: options must be key=value, each once, got {item!r} in {text!r}. "
                f"Write {name}:key=value,key=value."
            )
        options[key] = value
    return name, options


def options_of(factory: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Return the parameters that a spec may set, those of a plain type."""
    parameters = inspect.signature(factory).parameters.values()
    return {each.name: each for each in parameters if _kind(each) is not None}


def _kind(parameter: inspect.Parameter) -> type | None:
    if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
        return None
    if type(parameter.default) in _PLAIN.values():
        return type(parameter.default)
    return _PLAIN.get(str(getattr(parameter.annotation, "__name__", parameter.annotation)))


def build(
    name: str, factory: Callable[..., T], options: Mapping[str, str], also: Sequence[str] = ()
) -> T:
    """Return ``factory`` called with the options; ValueError for those it does not have.

    also: options that the caller takes, to be named in the error.
    """
    known = options_of(factory)
    unknown = [key for key in options if key not in known]
    if unknown:
        takes = ", ".join([*known, *also]) or "none"
        raise ValueError(f"{name}: unknown option {', '.join(unknown)}. It takes {takes}.")
    for key, parameter in known.items():
        if parameter.default is parameter.empty and key not in options:
            raise ValueError(f"{name}: needs {key}. Add {key}=VALUE.")
    return factory(**{key: _value(name, known[key], text) for key, text in options.items()})


def _value(name: str, parameter: inspect.Parameter, text: str) -> Any:
    kind, key = _kind(parameter), parameter.name
    if kind is str:
        return text
    if kind is bool:
        if text not in ("true", "false"):
            raise ValueError(f"{name}: {key} must be one of true, false, got {text!r}.")
        return text == "true"
    try:
        number = float(text)
    except ValueError:
        default = (
            "" if parameter.default is parameter.empty else f" Write {key}={parameter.default}."
        )
        raise ValueError(f"{name}: {key} must be a number, got {text!r}.{default}") from None
    if kind is int and not number.is_integer():
        raise ValueError(f"{name}: {key} must be a whole number, got {number:g}.")
    return int(number) if kind is int else number


def write(name: str, options: Mapping[str, bool | int | float | str]) -> str:
    """Return the spec that sets these options, in their order.

    >>> write("polar", {"rate": 0.5, "rotate": True})
    'polar:rate=0.5,rotate=true'
    """

    def text(value: bool | float | str) -> str:
        return str(value).lower() if isinstance(value, bool) else str(value)

    items = ",".join(f"{key}={text(value)}" for key, value in options.items())
    return f"{name}:{items}" if items else name
