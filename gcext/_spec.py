"""The grammar of codec and recipe names: ``name`` or ``name:key=value,key=value``."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Spec", "parse"]


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

    def finish(self) -> None:
        """Refuse what nobody took."""
        if self.options:
            unknown = ", ".join(self.options)
            raise ValueError(f"{self.name}: unknown option {unknown}. Remove it.")


def parse(text: str, what: str, known: list[str]) -> Spec:
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
