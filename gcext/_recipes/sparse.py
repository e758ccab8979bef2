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
about("repeat", "Huang et al. 2022", "Any codec, again on what it left; see neolithic.")
about("sketch", "Charikar et al. 2002", "Sums that add up; see fetchsgd.", unbiased=True)
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


@method("sbc", "Sattler et al. 2018", "Fewest bits an element kept: no signs travel.")
def sbc(p: float = 0.01) -> Recipe:
    """Sparse binary compression: one side of the largest elements, as its mean.

    ``sent = mu+ on the share p of largest a, or -mu- on that of the smallest, whichever mean is
    larger;  e <- a - sent`` (arXiv:1805.08768).

    Travels: positions and one mean. State: a residual a client. Fails: it needs twice the rounds
    of stc at the same p, one side at a time.
    """
    return Recipe(up=Link(codec(f"sbc:p={p}"), feedback=True), down=NONZEROS)


@method("wangni", "Wangni et al. 2018", "Unbiased sparsity without any state.", unbiased=True)
def wangni(p: float = 0.01) -> Recipe:
    """Elements sent with probability ``min(lambda |g_i|, 1)``, divided by it (arXiv:1710.09854).

    lambda gives a share p on average. Travels: large elements in 32 bits, the rest as a sign of
    1/lambda, and positions. State: none. Fails: its variance grows as 1/p.
    """
    return Recipe(up=Link(codec(f"wangni:p={p}")), down=NONZEROS)


@method("strom", "Strom 2015", "Gradients of a known scale; the rate adapts itself.")
def strom(tau: float = 0.01) -> Recipe:
    """``+-tau`` wherever the residual is beyond tau: ``sent = tau sign(a) where |a| > tau``.

    ``e <- a - sent``. Travels: positions and signs. State: a residual a client. Fails: tau is in
    the unit of g: too small, and what is left grows without bound; too large, and nothing travels.
    """
    return Recipe(up=Link(codec(f"strom:tau={tau}"), feedback=True), down=NONZEROS)


@method("dryden", "Dryden et al. 2016", "As stc, where the two sides differ in scale.")
def dryden(p: float = 0.01) -> Recipe:
    """The share p of positive and of negative elements, each side as its mean, with a residual.

    ``sent = mu+ on the largest positive, -mu- on the largest negative;  e <- a - sent`` (MLHPC
    2016). Travels: positions, signs, two means. State: a residual a client.
    """
    return Recipe(up=Link(codec(f"dryden:p={p}"), feedback=True), down=NONZEROS)


@method("ajiheafield", "Aji & Heafield 2017", "As topk, by a cheap threshold.")
def ajiheafield(drop: float = 0.99) -> Recipe:
    """The share ``drop`` of smallest magnitude waits in a residual (arXiv:1704.05021).

    The threshold is that of a random sample of 0.1 %, so the share sent varies. Travels: positions
    and 32 bits each. State: a residual a client.
    """
    return Recipe(up=Link(codec(f"ajiheafield:drop={drop}"), feedback=True), down=NONZEROS)


@method("adacomp", "Chen et al. 2018", "Layers of very different activity.")
def adacomp(bin: int = 500) -> Recipe:
    """By bins: elements that would be the largest after one more such step.

    ``a = e + g;  sent where |a + g| >= max|a| of the bin, as sign(a) times the mean of the bins'
    maxima;  e <- a - sent`` (arXiv:1712.02679). The paper's bins: 50 for convolutions, 500
    for others.

    Travels: positions, signs, one scale. State: a residual a client. Fails: no bound on the share.
    """
    return Recipe(
        up=Link(codec(f"adacomp:bin={bin}"), feedback=True), down=NONZEROS, by_tensor=True
    )
