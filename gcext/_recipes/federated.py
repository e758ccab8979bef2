"""Methods of federated learning: dense, ternary, projected, lazy, predicted, sketched."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from gcext._codecs.registry import codec
from gcext._codecs.registry import codec as make_codec  # where a parameter has its name
from gcext._links.link import Link
from gcext._links.stages import LastValue, Lazy, Trajectory
from gcext._recipes.recipe import Recipe, Schedule, link_of, method
from gcext.aggregate import Aggregator, FetchSGD, HeavyBall, LastValues, Predicted, Projection

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


@method("laq", "Sun et al. 2019", "Clients whose gradients change slowly: large batches.")
def laq(bits: int = 4, clients: int = 10, depth: int = 10, xi: float = 0.08) -> Recipe:
    """Lazily aggregated quantized gradients: quantized differences, and only large ones.

    ``sent = Q(g - v), v <- v + sent``, Q being 2^bits levels of max|g - v|, or nothing where
    ``|Q|^2 <= xi/M^2 sum of the last depth |w^t - w^(t-1)|^2 + 3(|error|^2 + |last error|^2)``
    (arXiv:1909.07588); the server reuses v.

    Travels: bits an element, or some 20 bytes. State: v a client, its sum at the server. clients:
    M. Fails: with stochastic gradients of small batches every difference is large.
    """
    stage = partial(Lazy, clients=clients, depth=depth, xi=xi)
    stage()
    up = Link(codec(f"uniform:bits={bits},bucket=0"), stages=(stage,), combine=LastValues)
    return Recipe(up=up, down=DENSE)


@method("resfed", "Song et al. 2022", "Extreme ratios, where clients can hold the last values.")
def resfed(p: float = 0.01, bits: int = 2, order: int = 0, feedback: bool = True) -> Recipe:
    """Residuals against a shared prediction; sparsified, quantized, entropy-coded, both ways.

    ``sent = C(g - predicted)``, where both ends predict from what was decoded before: nothing
    (order 0), the last value v1 (1), or ``2 v1 - v2`` (2) (arXiv:2212.05602). C keeps the share p
    of largest magnitude, as one of 2^bits means; positions are Rice-coded.

    Travels: some 10 bits for each element kept. State: ``order`` tensors a client, at both ends;
    with ``feedback`` a residual too (the paper has none, and is worse for it at a small p). Fails:
    orders 1 and 2 need clients that come back soon. Where few of many clients are drawn, what they
    missed costs most: ``down=sparseloco:p=0.01,chunk=0,bits=2,catchup=true`` sends less.
    """
    compressor = codec(f"sparseloco:p={p},chunk=0,bits={bits}")
    made = Link(
        compressor,
        feedback,
        partial(Predicted, order),
        stages=(partial(Trajectory, order),) if order else (),
    )
    made.receiver()  # refuses an order that there is not
    return Recipe(up=made, down=made)


@method("fetchsgd", "Rothchild et al. 2020", "Stateless clients that are drawn once.")
def fetchsgd(
    p: float = 0.01, size: float = 0.5, rows: int = 5, momentum: float = 0.9, clear: bool = False
) -> Recipe:
    """Clients send count sketches; momentum and error feedback live in the server's sketch.

    ``S_u <- momentum S_u + mean(S);  S_e <- S_e + S_u;  sent = top share p of unsketch(S_e);
    S_e <- S_e - sketch(sent)`` (arXiv:2007.07682). With ``clear`` S_e is set to 0 there instead.

    Travels: up ``size`` times 32 bits an element; down positions and values. State: two sketches at
    the server, none at clients. Fails: where gradients have no large elements to find: the sketch
    must then be nearly as large as the model.
    """
    combine = partial(FetchSGD, share=p, rho=momentum, clear=clear)
    combine()
    return Recipe(up=Link(codec(f"sketch:rows={rows},p={size}"), combine=combine), down=NONZEROS)


@method("doublesqueeze", "Tang et al. 2019", "A slow server link, too.")
def doublesqueeze(codec: str = "sign") -> Recipe:
    """Any codec with error feedback at both ends (arXiv:1905.05957).

    ``sent = C(g + e), e <- g + e - sent`` at each client, and the same of the mean at the server.

    Travels: what the codec sends, both ways. State: a residual a client, one at the server.
    """
    link = replace(link_of(codec), feedback=True)
    return Recipe(up=link, down=link)


@method("neolithic", "Huang et al. 2022", "Compression where every round must be accurate.")
def neolithic(rounds: int = 4, codec: str = "topk:p=0.01") -> Recipe:
    """The remainder is compressed again, ``rounds`` times, both ways (arXiv:2206.03665).

    ``c_r = C(x - c_1 - .. - c_(r-1));  sent = c_1 + .. + c_R``

    The error falls geometrically in R. Travels: R packets in one. State: none.
    """
    link = Link(make_codec(f"repeat:rounds={rounds},codec={codec}"))
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


@method("subset", "Konečný et al. 2016, and here", "Fewest bytes of all: few weights are trained.")
def subset(
    trained: int = 2500,
    p: float = 0.025,
    p_down: float = 0.1,
    momentum: float = 0.8,
    lr: float = 0.5,
    average: float = 0.88,
) -> Recipe:
    """A seeded part of the weights is trained, unbiased up, and each drawn client caught up.

    Of each tensor at most ``trained`` elements are trained, which the run's seed draws: an update
    with a random mask (arXiv:1610.05492, section 2), drawn once, so that neither side ever sends
    the others. Up: of these, wangni at the share p, no residual. The server's model moves by
    ``v <- momentum v + mean;  w <- w - lr v``, and a drawn client gets the STC at the share p_down
    of what its copy lacks, as with catchup. Tested is the moving average of w. The composition is
    this project's.

    Travels: as wangni and stc, of the trained elements. State: none at clients; at the server what
    each was sent. Fails: a part of the weights ends below the accuracy of all. gcext.fl only.
    """
    combine = partial(HeavyBall, None, momentum, lr)
    combine()
    return Recipe(
        up=Link(codec(f"wangni:p={p}"), combine=combine),
        down=Link(codec(f"stc:p={p_down}"), catch_up=True),
        schedule=Schedule(average=average, trained=trained),
    )


def _heavy(alpha: float, tau: int, momentum: float, lr: float) -> Aggregator:
    return HeavyBall(Projection(alpha=alpha, tau=tau), momentum, lr)
