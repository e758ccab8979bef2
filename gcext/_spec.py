"""The grammar of codec and recipe names: ``name`` or ``name:key=value,key=value``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["Spec", "parse", "write"]


class Spec(NamedTuple):
    """A name and its options, as text."""

    name: str
    options: dict[str, str]

    def number(self, key: str, default: float) -> float:
        """Take an option as a number."""
        text = self.options.pop(key, None)
        if text is None:
            return default
        try:
            return float(text)
        except ValueError:
            raise ValueError(
                f"{self.name}: {key} must be a number, got {text!r}. Write {key}={default}."
            ) from None

    def integer(self, key: str, default: int) -> int:
        """Take an option as a whole number."""
        number = self.number(key, default)
        if not float(number).is_integer():
            raise ValueError(
                f"{self.name}: {key} must be a whole number, got {number:g}. Round it."
            )
        return int(number)

    def choice(self, key: str, default: str, known: Sequence[str]) -> str:
        """Take an option as one of the words that are known."""
        text = self.options.pop(key, default)
        if text not in known:
            raise ValueError(
                f"{self.name}: {key} must be one of {', '.join(known)}, got {text!r}. Correct it."
            )
        return text

    def flag(self, key: str, default: bool) -> bool:
        """Take an option as true or false."""
        return self.choice(key, _text(default), ("true", "false")) == "true"

    def finish(self) -> None:
        """Refuse what nobody took."""
        if self.options:
            unknown = ", ".join(self.options)
            raise ValueError(f"{self.name}: unknown option {unknown}. Remove it.")


def parse(text: str, what: str, known: Sequence[str]) -> Spec:
    """Split a spec; ``what`` and ``known`` name the kind and its members in errors."""
    name, colon, rest = text.partition(":")
    if name not in known:
        raise ValueError(f"{what}: must be one of {', '.join(known)}, got {name!r}. Correct it.")
    options: dict[str, str] = {}
    for item in rest.split(",") if colon else []:
        key, equals, value = item.partition("=")
        if not (key and equals and value) or key in options:
            raise ValueError(
                f"{what}: options must be key=value, each once, got {item!r} in {text!r}. "
                f"Write {name}:key=value,key=value."
            )
        options[key] = value
    return Spec(name, options)


def write(name: str, options: dict[str, bool | int | float | str]) -> str:
    """Return the spec that parses to these options, in their order.

    >>> write("polar", {"rate": 0.5, "rotate": True})
    'polar:rate=0.5,rotate=true'
    """
    items = ",".join(f"{key}={_text(value)}" for key, value in options.items())
    return f"{name}:{items}" if items else name


def _text(value: bool | float | str) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return value if isinstance(value, str) else repr(value)
