"""Methods of federated learning: dense, ternary, projected, lazy, predicted, sketched."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from gcext._codecs.registry import codec
from gcext._links.link import Link
from gcext._links.stages import LastValue
from gcext._recipes.recipe import Recipe, Schedule, link_of, method
from gcext.aggregate import Aggregator, HeavyBall, LastValues, Predicted, Projection

__all__: list[str] = []

DENSE = Link(codec("dense"))
NONZEROS = Link(codec("topk:p=1"))  # a sparse update without loss: zeros are never sent


@method("none", "McMahan et al. 2017", "The baseline, and links that are not slow.", unbiased=True)
def none() -> Recipe:
    """Send everything, both ways: FedAvg, or plain SGD (McMahan et al. 2017, arXiv:1602.05629).

    ``w <- w - mean(g)``

    Travels: 32 bits an element. State: none.
    """
    return Recipe(up=DENSE, down=DENSE)


method("fedavg", "McMahan et al. 2017", "The baseline, by its other name.", unbiased=True)(none)


@method("stc", "Sattler et al. 2019", "The default: few bytes, one pass, and it trains.")
def stc(p: float = 0.01) -> Recipe:
    """Sparse ternary compression both ways, with feedback at both ends (arXiv:1903.02891).

    ``a = g + e;  sent = mean(|a_I|) sign(a_I), I the share p of largest magnitude;  e <- a - sent``

    Travels: positions, a sign each, and one mean; some 0.08 bits an element at p = 0.01. State: a
    residual a client, one at the server. Fails: with few clients drawn of many, residuals are
    stale when they travel.
    """
    link = Link(codec(f"stc:p={p}"), feedback=True)
    return Recipe(up=link, down=link)


@method("pstc", "Tian 2022", "Clients with different data (non-IID).")
def pstc(p: float = 0.01, alpha: float = 0.1, tau: int = 1) -> Recipe:
    """Projected STC: STC both ways, conflicts projected away on the server.

    Updates whose dot product is negative are projected onto each other's normal plane, in order of
    training loss (FedFV, Wang et al. 2021, arXiv:2104.14937), the share alpha of largest loss
    excepted; then the mean against those of the last tau rounds.

    Travels: as stc, and the loss. State: as stc, and every client's last packet at the server.
    Fails: where losses do not say who does badly.
    """
    made = stc(p)
    projection = partial(Projection, alpha=alpha, tau=tau)
    projection()  # refuses alpha and tau out of range now, not at the first round
    return replace(made, up=replace(made.up, combine=projection))


@method("ef21", "Richtarik et al. 2021", "Every client, or most, in every round.")
def ef21(p: float = 0.01, both: bool = False) -> Recipe:
    """Both ends keep the last value, and the difference to it travels (arXiv:2106.05203).

    ``sent = C(g - v);  v <- v + sent;  w <- w - mean(v of all clients)``, C being top-k

    Clients that are not drawn stand with their last v (partial participation, Fatkhullin et al.
    2021, arXiv:2110.03294); with ``both`` the server sends its mean the same way.

    Travels: positions and 32 bits each. State: v a client, its sum at the server (in float64); with
    ``both`` the mean at every end. Fails: with few clients drawn, v is old: what should be an
    average of now is one of long ago.
    """
    compressor = codec(f"topk:p={p}")
    up = Link(compressor, stages=(LastValue,), combine=LastValues)
    down = Link(compressor, stages=(LastValue,), combine=partial(Predicted, 1))
    return Recipe(up=up, down=down if both else DENSE)


@method("doublesqueeze", "Tang et al. 2019", "A slow server link, too.")
def doublesqueeze(codec: str = "sign") -> Recipe:
    """Any codec with error feedback at both ends (arXiv:1905.05957).

    ``sent = C(g + e), e <- g + e - sent`` at each client, and the same of the mean at the server.

    Travels: what the codec sends, both ways. State: a residual a client, one at the server.
    """
    link = replace(link_of(codec), feedback=True)
    return Recipe(up=link, down=link)


@method("catchup", "Sattler et al. 2019, and here", "Fewest bytes, both ways, many clients.")
def catchup(
    p: float = 0.001,
    p_down: float = 0.003,
    alpha: float = 0.1,
    tau: int = 1,
    momentum: float = 0.8,
    lr: float = 0.3,
    average: float = 0.85,
) -> Recipe:
    """Projected STC up; down, each drawn client gets the largest differences of its copy alone.

    Up as pstc. The server's model moves by ``v <- momentum v + update;  w <- w - lr v`` and is not
    broadcast: a drawn client gets ``STC(copy - w)`` at the share p_down, and trains from where
    that leads. What is left out stays in the difference. The model that is tested is the moving
    average of w, ``average`` of the old one. The composition is this project's.

    Travels: as stc, down to the drawn clients alone. State: a residual a client; at the server what
    each client was sent. Fails: copies lag behind, so lr must be small.
    """
    made = pstc(p, alpha, tau)
    combine = partial(_heavy, alpha, tau, momentum, lr)
    combine()
    return Recipe(
        up=replace(made.up, combine=combine),
        down=Link(codec(f"stc:p={p_down}"), catch_up=True),
        schedule=Schedule(average=average),
    )


def _heavy(alpha: float, tau: int, momentum: float, lr: float) -> Aggregator:
    return HeavyBall(Projection(alpha=alpha, tau=tau), momentum, lr)
