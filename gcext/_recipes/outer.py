"""Methods that take many local steps and one outer step."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from gcext._codecs.registry import codec as make_codec
from gcext._links.link import Link
from gcext._recipes.federated import DENSE, NONZEROS
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


@method("sparseloco", "Sarfi et al. 2025", "Large models over the internet.")
def sparseloco(
    p: float = 0.015625, chunk: int = 4096, bits: int = 2, decay: float = 0.95, every: int = 30
) -> Recipe:
    """Top-k of chunks in 2 bits each, a decayed residual, an outer step every H = 30 steps.

    ``a = decay e + g;  sent = Q(top share p of each chunk of a);  e <- a - sent;
    w <- w - mean(sent)`` (arXiv:2508.15706). Travels: some 9.6 bits for each element kept. State: a
    residual a client.
    """
    up = Link(make_codec(f"sparseloco:p={p},chunk={chunk},bits={bits}"), feedback=True, decay=decay)
    up.sender()
    return Recipe(up=up, down=NONZEROS, schedule=_steps("sparseloco", every))


def _steps(name: str, every: int) -> Schedule:
    if every < 1:
        raise ValueError(f"{name}: every must be at least 1, got {every}.")
    return Schedule(local_steps=every)
