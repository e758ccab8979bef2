"""The table of methods, behind ``python -m gcext methods``: what each sends and keeps."""

from __future__ import annotations

from typing import NamedTuple

import torch

from gcext._codecs.topk import Dense, TopK
from gcext._links.link import Link
from gcext._links.stages import Clip
from gcext._recipes.recipe import Recipe, about, recipe, recipes

__all__ = ["MethodRow", "methods"]

_NUMEL = 2**18  # normal elements, as a matrix of 512 columns


class MethodRow(NamedTuple):
    """One method at its defaults.

    Attributes:
        name: in specs.
        bits: an element, of the first packet up of 2^18 normal elements.
        direction: "up" where the server answers with all of its update, or "both".
        state: what the sending end of a client keeps from one packet to the next.
        unbiased: whether the mean over seeds of what is decoded is what was encoded.
        paper: authors and year.
        use: when to use it.
    """

    name: str
    bits: float
    direction: str
    state: str
    unbiased: bool
    paper: str
    use: str


def methods() -> list[MethodRow]:
    """Return a row for each published method; those registered by others are left out.

    >>> import gcext
    >>> row = next(row for row in gcext.methods() if row.name == "sign")
    >>> round(row.bits, 2), row.direction, row.paper
    (1.0, 'up', 'Bernstein et al. 2018')
    """
    tensor = torch.randn(512, _NUMEL // 512, generator=torch.Generator().manual_seed(0))
    rows = []
    for name in recipes():
        its = about(name)
        if not its.paper:
            continue
        made = recipe(name)
        packet = made.up.sender(0).compress(tensor if made.by_tensor else tensor.view(-1), "w")
        rows.append(
            MethodRow(
                name,
                8 * packet.nbytes / _NUMEL,
                _direction(made),
                _state(made.up),
                its.unbiased,
                its.paper,
                its.use,
            )
        )
    return rows


def _direction(made: Recipe) -> str:
    return "up" if made.down.codec in (Dense(), TopK(1.0)) else "both"


def _state(link: Link) -> str:
    """Return the names of what a sender keeps."""
    kept = [
        {"MomentumCorrection": "velocity"}.get(type(each).__name__, "last values")
        for each in (make() for make in link.stages)
        if not isinstance(each, Clip)
    ]
    return ", ".join([*kept, *(["residual"] if link.feedback else [])]) or "none"
