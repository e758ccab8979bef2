"""Methods that send every element, in a few bits."""

from __future__ import annotations

from functools import partial

from gcext._codecs.registry import codec
from gcext._links.link import Link
from gcext._recipes.federated import DENSE
from gcext._recipes.recipe import Recipe, about, method
from gcext.aggregate import Aggregator, SignStep, Vote

__all__: list[str] = []

about("dense", "McMahan et al. 2017", "As none.", unbiased=True)
about("qsgd", "Alistarh et al. 2017", "Unbiased at 2 to 5 bits, no state.", unbiased=True)
about("terngrad", "Wen et al. 2017", "Unbiased at about a bit, no state.", unbiased=True)
about("sign", "Bernstein et al. 2018", "One bit; with feedback=true, see efsign.")
about("polar", "Korada & Urbanke 2010", "Less than a bit an element.")


def _both(spec: str, feedback: bool = False) -> Recipe:
    """Return the recipe of one link in both directions."""
    link = Link(codec(spec), feedback)
    return Recipe(up=link, down=link)


@method("efsign", "Karimireddy et al. 2019", "One bit an element that converges as SGD does.")
def efsign() -> Recipe:
    """``sent = mean|a| sign(a), a = g + e;  e <- a - sent`` (arXiv:1901.09847).

    Travels: up a bit an element and one scale a tensor. State: a residual a client.
    """
    return Recipe(up=Link(codec("sign"), feedback=True), down=DENSE, by_tensor=True)


@method("signvote", "Bernstein et al. 2018", "One bit both ways that outliers cannot move.")
def signvote(lr: float = 0.001) -> Recipe:
    """Signs up, majority vote, signs down (arXiv:1802.04434, arXiv:1810.05291).

    ``w <- w - lr sign(sum of sign(g_i))``. Travels: a bit an element, both ways. State: none.
    Fails: biased, so where most clients disagree with the mean it goes the wrong way; lr is in the
    unit of the model, not of g.
    """
    combine = partial(_vote, lr)
    combine()
    return Recipe(up=Link(codec("sign"), combine=combine), down=Link(codec("sign")))


def _vote(lr: float) -> Aggregator:
    return SignStep(Vote(), lr)
