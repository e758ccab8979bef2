"""Methods that take many local steps and one outer step."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from gcext._codecs.registry import codec as make_codec
from gcext._links.link import Link
from gcext._recipes.federated import DENSE, NONZEROS
from gcext._recipes.recipe import Recipe, Schedule, link_of, method
from gcext.aggregate import Nesterov, SignStep

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


@method("demo", "Peng et al. 2024", "DDP at 1/100 of the bytes, where gradients have structure.")
def demo(k: int = 4, decay: float = 0.999, lr: float = 0.001) -> Recipe:
    """The largest DCT coefficients of the momentum, as signs; then a step by the sign of the mean.

    ``m <- decay m + g;  q = the k largest coefficients of each block of up to 64 x 64 of DCT(m);
    m <- m - IDCT(q);  w <- w - lr sign(mean(IDCT(q)))`` (DeMo, arXiv:2411.19870). The coefficients
    travel as plus or minus their mean magnitude, as its successors' signs do, and m keeps what that
    lacks; the paper sends float32.

    Travels: a position and a sign each. State: the momentum, a tensor a client. Fails: lr is in the
    unit of the model, not of g; tensors without structure.
    """
    combine = partial(SignStep, lr=lr)
    combine()
    up = Link(make_codec(f"dct:k={k}"), feedback=True, decay=decay, combine=combine)
    up.sender()
    return Recipe(up=up, down=Link(make_codec("sign")), by_tensor=True)


def _steps(name: str, every: int) -> Schedule:
    if every < 1:
        raise ValueError(f"{name}: every must be at least 1, got {every}.")
    return Schedule(local_steps=every)
