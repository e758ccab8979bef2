"""What a recipe needs of the engine that runs it, beyond sending a tensor and combining packets."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from gcext._recipes.recipe import Recipe
from gcext.aggregate import Aggregator, FetchSGD, Mean

__all__ = ["NEEDS", "refuse"]


def _has(receiver: object, kind: type[Aggregator]) -> bool:
    """Return whether a receiver is of a kind, or is in front of one that is."""
    return isinstance(receiver, kind) or (
        isinstance(receiver, Aggregator) and _has(getattr(receiver, "inner", None), kind)
    )


NEEDS: dict[str, Callable[[Recipe], bool]] = {
    "the ranks' losses": lambda made: made.up.receiver().uses_losses,
    "local steps": lambda made: made.schedule.local_steps > 1 or made.schedule.local_epochs > 1,
    "a server's average of models": lambda made: made.schedule.average > 0,
    "a warm-up by rounds": lambda made: made.schedule.warmup > 0,
    "the steps of the model": lambda made: any(make().lazy for make in made.up.stages),
    "one sketch of the whole model": lambda made: _has(made.up.receiver(), FetchSGD),
    "the tensors' shapes": lambda made: made.by_tensor,
    "packets of its own for each client": lambda made: made.down.catch_up,
    "an aggregator of its own": lambda made: type(made.up.receiver()) is not Mean,
}


def refuse(owner: str, recipe: Recipe, spec: object, unmet: Mapping[str, str]) -> None:
    """Raise ValueError for a recipe that needs what an engine has not.

    unmet: of NEEDS, each with why the engine has it not, and what to use in its place.
    """
    if recipe.schedule.trained:
        raise ValueError(
            f"{owner}: {spec} trains {recipe.schedule.trained} elements of each tensor, which only "
            "gcext.fl's loop chooses. Use a recipe without it, or freeze parameters of the model."
        )
    for need, why in unmet.items():
        if NEEDS[need](recipe):
            raise ValueError(f"{owner}: {spec} needs {need}: {why}.")
