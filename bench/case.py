"""What a row is made of: a problem, the variants that solve it, and the floor under them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from bench import oracle


@dataclass(frozen=True)
class Setting:
    """Elements, share of them that travels, seed of the data, packets at a server."""

    n: int
    p: float
    seed: int = 0
    m: int = 10

    @property
    def k(self) -> int:
        """Elements that travel, as gcext counts them."""
        return max(int(self.p * self.n), 1)

    def generator(self) -> torch.Generator:
        """Return torch's random numbers of this seed."""
        return torch.Generator().manual_seed(self.seed)


@dataclass(frozen=True)
class Variant:
    """One way to do the job. Only ``run`` is timed.

    check: "" where what ``run`` returned (and wrote) is right, else how it differs.
    compiled: runs under torch.compile, so that its first call is nothing like the others.
    """

    name: str
    run: Callable[[], Any]
    check: Callable[[Any], str]
    reset: Callable[[], object] = field(default=lambda: None)
    compiled: bool = False


@dataclass(frozen=True)
class Case:
    """One row to be: gcext against the baselines, the first of which is the usual formulation.

    floor_is: what the floor does, for the reader.
    also: variants timed in the same rounds, each giving a field ``<name>_ms``.
    facts: further fields of the row.
    """

    name: str
    setting: Setting
    gcext: Variant
    baselines: tuple[Variant, ...]
    floor: Variant
    floor_is: str
    also: tuple[Variant, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def variants(self) -> tuple[Variant, ...]:
        """All of them, in the order of the report."""
        return (self.gcext, *self.baselines, *self.also, self.floor)


class Selected(NamedTuple):
    """What a selection gave. Without indices, values are the dense decoded tensor's."""

    indices: Tensor | None
    values: Tensor
    residual: Tensor | None


class Problem:
    """One gradient, one residual, and the top-k of their sum, without ties around the k-th place.

    torch.topk and a threshold mask each break ties in their own way; gcext takes the lower index.
    So that all can be held to one answer, elements that tie with the k-th and lose are zeroed.

    All variants add into one working residual, which ``reset`` refills before every call outside
    the timed part. So each call sees equal data in the same physical pages, with its residual just
    written; residuals that evolve would let each variant meet its own data, and would let that of
    the floor, which sends nothing, grow without end. No cache is flushed: the floor of the same
    run, measured under the same conditions, is what a time must be read against.
    """

    def __init__(self, setting: Setting, feedback: bool = True) -> None:
        generator = setting.generator()
        self.k = setting.k
        self.tensor = torch.randn(setting.n, generator=generator)
        self.start = torch.randn(setting.n, generator=generator)
        self.residual = torch.empty(setting.n)
        self.feedback = feedback
        losers = torch.from_numpy(oracle.tie_losers(self._accumulated(), self.k))
        self.tensor[losers] = 0.0
        self.start[losers] = 0.0

    def reset(self) -> None:
        """Make the working residual what it was at first."""
        self.residual.copy_(self.start)

    @cached_property
    def ternary(self) -> oracle.Answer:
        """The right answer of sparse ternary compression."""
        return oracle.select(self._accumulated(), self.k, ternary=True)

    @cached_property
    def sparse(self) -> oracle.Answer:
        """The right answer of top-k."""
        return oracle.select(self._accumulated(), self.k, ternary=False)

    def _accumulated(self) -> oracle.Floats:
        tensor = self.tensor.numpy()
        total: oracle.Floats = np.add(tensor, self.start.numpy()) if self.feedback else tensor
        return total

    def floor(self) -> Variant:
        """Return the bare streaming pass: read both, write one."""

        def check(_: Any) -> str:
            expected = self.start.numpy() + self.tensor.numpy()
            return oracle.differs("the sum", self.residual.numpy(), expected)

        return Variant("floor", lambda: self.residual.add_(self.tensor), check, self.reset)

    floor_is = "residual.add_(tensor)"
