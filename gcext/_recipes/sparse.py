"""Methods that send few elements: each its own choice of which, and of what they become."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from gcext._codecs.registry import codec
from gcext._links.link import Link
from gcext._links.stages import Clip, MomentumCorrection, Stage
from gcext._recipes.federated import NONZEROS
from gcext._recipes.recipe import Recipe, Schedule, about, method

__all__: list[str] = []

about("topk", "Stich et al. 2018", "The largest elements, exact; with feedback=true.")
about("randomk", "Stich et al. 2018", "No index travels; mask known to both ends.", unbiased=True)


@method("dgc", "Lin et al. 2018", "DDP at p = 0.001 with momentum SGD.")
def dgc(p: float = 0.001, momentum: float = 0.9, clip: float = 0.0, warmup: int = 4) -> Recipe:
    """Deep gradient compression: momentum before the residual, both cleared where sent.

    ``u <- momentum u + g;  v <- v + u;  sent = v at its share p of largest magnitude;
    u, v <- 0 there`` (arXiv:1712.01887), g clipped to norm ``clip`` before (0: not); p falls from
    1/4 by 4 each round of the warm-up.

    Travels: positions and 32 bits each. State: velocity and residual a client. Fails: momentum at
    the server beside it counts twice.
    """
    stages: list[Callable[[], Stage]] = [partial(Clip, clip)] if clip else []
    stages.append(partial(MomentumCorrection, momentum))
    up = Link(codec(f"topk:p={p}"), feedback=True, stages=tuple(stages))
    up.sender()  # refuses options out of range now
    return Recipe(up=up, down=NONZEROS, schedule=Schedule(warmup=warmup))
