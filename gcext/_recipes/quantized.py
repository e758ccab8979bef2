"""Methods that send every element, in a few bits or of low rank."""

from __future__ import annotations

from functools import partial

from gcext._codecs.registry import codec
from gcext._links.link import Link, LowRankLink
from gcext._recipes.federated import DENSE
from gcext._recipes.recipe import Recipe, about, method
from gcext.aggregate import Aggregator, SignStep, Vote

__all__: list[str] = []

about("dense", "McMahan et al. 2017", "As none.", unbiased=True)
about("qsgd", "Alistarh et al. 2017", "Unbiased at 2 to 5 bits, no state.", unbiased=True)
about("terngrad", "Wen et al. 2017", "Unbiased at about a bit, no state.", unbiased=True)
about("sign", "Bernstein et al. 2018", "One bit; with feedback=true, see efsign.")
about("dorefa", "Zhou et al. 2016", "Few levels of the largest magnitude.", unbiased=True)
about("uniform", "Sun et al. 2019", "As dorefa, to the nearest level.")
about("lowrank", "Vogels et al. 2019", "One matrix, once; see powersgd.")
about("dct", "Peng et al. 2024", "Structure along dimensions; see demo.")
about("polar", "Korada & Urbanke 2010", "Less than a bit an element.")


def _both(spec: str, feedback: bool = False) -> Recipe:
    """Return the recipe of one link in both directions."""
    link = Link(codec(spec), feedback)
    return Recipe(up=link, down=link)


@method("fp16", "Micikevicius et al. 2018", "Half the bytes at no risk, of moderate gradients.")
def fp16() -> Recipe:
    """float16 both ways. Travels: 16 bits an element. State: none.

    Fails: below 6e-8 all is lost, above 65,504 it saturates.
    """
    return _both("fp16")


@method("bf16", "Kalamkar et al. 2019", "Half the bytes at any scale.")
def bf16() -> Recipe:
    """bfloat16 both ways: float32's range, 8 bits of precision. Travels: 16 bits. State: none."""
    return _both("bf16")


@method("int8", "Dettmers 2015", "A quarter of the bytes, no state, no tuning.")
def int8(bucket: int = 4096) -> Recipe:
    """An 8-bit code of a dynamic exponent, scaled by the largest of ``bucket`` elements, both ways.

    arXiv:1511.04561. Travels: 8.01 bits an element. State: none.
    """
    return _both(f"int8:bucket={bucket}")


@method("natural", "Horvath et al. 2019", "Unbiased at 3.6 bits, variance of 1/8.", unbiased=True)
def natural() -> Recipe:
    """Random rounding to a neighbouring power of two, both ways (arXiv:1905.10988).

    Travels: the exponent by a prefix code, and the sign. State: none.
    """
    return _both("natural")


@method("onebit", "Seide et al. 2014", "One bit, where a layer's columns differ in scale.")
def onebit(bucket: int = 0) -> Recipe:
    """One bit an element, decoded as the mean of its column's positive or negative side.

    ``sent = mean of a >= 0, or of a < 0, in the column;  e <- a - sent``, both ways. Travels: a bit
    an element, two means a column, which has ``bucket`` elements (0: one row of a tensor's first
    dimension). State: a residual a client, one at the server. Fails: columns of
    few elements, whose means cost more than their bits.
    """
    link = Link(codec(f"onebit:bucket={bucket}"), feedback=True)
    return Recipe(up=link, down=link, by_tensor=True)


@method("efsign", "Karimireddy et al. 2019", "One bit an element that converges as SGD does.")
def efsign() -> Recipe:
    """``sent = mean|a| sign(a), a = g + e;  e <- a - sent`` (arXiv:1901.09847).

    Travels: up a bit an element and one scale a tensor. State: a residual a client.
    """
    return Recipe(up=Link(codec("sign"), feedback=True), down=DENSE, by_tensor=True)


@method("powersgd", "Vogels et al. 2019", "Matrices, DDP: all-reduce instead of gather.")
def powersgd(rank: int = 2) -> Recipe:
    """Each matrix as the product of two thin ones, with a warm start (arXiv:1905.13727).

    ``P = orth(M Q), Q <- M^T P, sent = P Q^T, e <- M - sent``, M being g + e and Q that of the last
    step. Tensors whose factors would be no smaller travel as they are.

    Travels: 32 rank (rows + cols) bits a matrix. State: a residual and Q a client. Among workers
    that all-reduce, gcext.PowerSGD averages P and Q themselves in two collectives; packets to a
    server are factored one by one, and their mean is no longer of low rank. torch's products are
    not the same bytes on every machine. Fails: gradients whose spectrum is flat.
    """
    up = LowRankLink(codec(f"lowrank:rank={rank}"), feedback=True)
    return Recipe(up=up, down=DENSE, by_tensor=True)


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
