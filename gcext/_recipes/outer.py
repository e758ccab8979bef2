"""Methods that take many local steps and one outer step."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from gcext._recipes.federated import DENSE
from gcext._recipes.recipe import Recipe, Schedule, link_of, method
from gcext.aggregate import Nesterov

__all__: list[str] = []


@method("localsgd", "Stich 2019", "Fewer rounds, the simplest way.")
def localsgd(every: int = 8, codec: str = "dense") -> Recipe:
    """``every`` local steps, then the mean of the models, by any codec (arXiv:1805.09767).

    Travels: what the codec sends, once in ``every`` steps. State: the codec's.
    """
    return Recipe(up=link_of(codec), down=DENSE, schedule=_steps("localsgd", every))


@method("diloco", "Douillard et al. 2023", "Islands of machines, hundreds of steps apart.")
def diloco(every: int = 30, momentum: float = 0.9, lr: float = 0.7, codec: str = "dense") -> Recipe:
    """``every`` local steps, then Nesterov's step with the mean update (arXiv:2311.08105).

    ``v <- momentum v + mean(g);  w <- w - lr (mean(g) + momentum v)``. The paper's inner optimizer
    is AdamW and ``every`` 500. Travels: what the codec sends. State: v at the server.
    """
    combine = partial(Nesterov, beta=momentum, lr=lr)
    combine()
    up = replace(link_of(codec), combine=combine)
    return Recipe(up=up, down=DENSE, schedule=_steps("diloco", every))


def _steps(name: str, every: int) -> Schedule:
    if every < 1:
        raise ValueError(f"{name}: every must be at least 1, got {every}.")
    return Schedule(local_steps=every)
