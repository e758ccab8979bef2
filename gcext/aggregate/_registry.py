"""Aggregators by name, for a recipe's spec to name the receiver's side."""

from __future__ import annotations

from gcext.aggregate._aggregator import Aggregator, Mean

__all__ = ["aggregator_class", "aggregators", "register_aggregator"]

_CLASSES: dict[str, type[Aggregator]] = {"mean": Mean}  # other modules register their own


def register_aggregator(name: str, cls: type[Aggregator]) -> None:
    """Make an aggregator known by name.

    Args:
        name: a new identifier.
        cls: a subclass of Aggregator. Parameters of its constructor that are annotated as float,
            int, bool or str are options of a spec; all others need a default.

    Raises ValueError for a name that is taken or is no identifier.

    >>> import gcext
    >>> gcext.aggregate.register_aggregator("mean", gcext.aggregate.Mean)
    Traceback (most recent call last):
    ValueError: register_aggregator: name must be a new identifier, got 'mean'. ...
    """
    if name in _CLASSES or not name.isidentifier():
        raise ValueError(
            f"register_aggregator: name must be a new identifier, got {name!r}. Choose another."
        )
    _CLASSES[name] = cls


def aggregators() -> list[str]:
    """Return the names that ``aggregator_class`` knows.

    >>> import gcext
    >>> "median" in gcext.aggregate.aggregators()
    True
    """
    return list(_CLASSES)


def aggregator_class(name: str) -> type[Aggregator]:
    """Return the class registered under a name; ValueError where there is none."""
    if name not in _CLASSES:
        raise ValueError(f"aggregator: must be one of {', '.join(_CLASSES)}, got {name!r}.")
    return _CLASSES[name]
