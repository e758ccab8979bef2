"""What most rows are made of: a problem, the variants that solve it, and the floor under them."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

import gcext

from . import oracle
from .timing import Variant

KINDS = ("normal", "layered", "sorted", "heavy")


@dataclass(frozen=True)
class Setting:
    """Elements, share of them that is sent, seed of the data, packets at a server, kind of data."""

    n: int
    p: float
    seed: int = 0
    m: int = 10
    data: str = "normal"

    def __post_init__(self) -> None:
        if self.n < 1:
            raise ValueError(f"bench: n must be at least 1, got {self.n}.")
        if not 0 < self.p <= 1:
            raise ValueError(f"bench: p must be in (0, 1], got {self.p:g}.")
        if self.m < 1:
            raise ValueError(f"bench: m must be at least 1, got {self.m}.")
        if self.data not in KINDS:
            raise ValueError(f"bench: data must be of {', '.join(KINDS)}, got {self.data!r}.")

    @property
    def k(self) -> int:
        """Elements that are sent, as gcext counts them."""
        return max(int(self.p * self.n), 1)

    def generator(self) -> torch.Generator:
        """Return torch's random numbers of this seed."""
        return torch.Generator().manual_seed(self.seed)

    def draw(self, generator: torch.Generator) -> Tensor:
        """Return n float32 numbers of the setting's kind.

        "normal"; "layered": normal, in 100 layers whose scales rise from 0.01 to 1, as those of a
        real model differ; "sorted": normal, rising; "heavy": Student's t of 3 degrees of freedom.
        """
        x = torch.randn(self.n, generator=generator)
        if self.data == "layered":
            layer = torch.arange(self.n) * 100 // self.n
            x *= torch.logspace(-2, 0, 100)[layer]
        elif self.data == "sorted":
            x = x.sort().values
        elif self.data == "heavy":
            squares = (torch.randn(self.n, generator=generator).square_() for _ in range(3))
            x /= sum(squares, torch.zeros(self.n)).div_(3).sqrt_()
        return x


@dataclass(frozen=True)
class Case:
    """A row before it is measured: gcext against the baselines, the usual formulation first.

    also: variants timed in the same rounds, each giving a field ``<name>_ms``.
    facts: further fields of the row.
    """

    name: str
    setting: Setting
    gcext: Variant
    baselines: tuple[Variant, ...]
    floor: Variant | None
    also: tuple[Variant, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def variants(self) -> tuple[Variant, ...]:
        """All of them, in the order of the report."""
        floor = () if self.floor is None else (self.floor,)
        return (self.gcext, *self.baselines, *self.also, *floor)


class Selected(NamedTuple):
    """What a baseline selected. Without indices, values are the dense decoded tensor's."""

    indices: Tensor | None
    values: Tensor
    residual: Tensor | None


class Problem:
    """One gradient, one residual, and the top-k of their sum, without ties around the k-th place.

    torch.topk and a threshold mask each break ties in their own way; gcext takes the lower index.
    So that all have one answer, elements that tie with the k-th and are not chosen are zeroed.

    All variants add into one working residual, which ``reset`` refills before every call outside
    the timed part. So each call sees equal data in the same physical pages, with its residual just
    written; residuals that evolve would give each variant its own data, and that of the floor,
    which sends nothing, would grow without end. No cache is flushed: a time must be read against
    the floor of the same run, measured under the same conditions.

    start: the residual before the call; None: as another gradient.
    """

    def __init__(
        self,
        setting: Setting,
        feedback: bool = True,
        ternary: bool = True,
        start: Tensor | None = None,
    ) -> None:
        generator = setting.generator()
        self.setting, self.feedback, self.ternary = setting, feedback, ternary
        self.tensor = setting.draw(generator)
        self.start = setting.draw(generator) if start is None else start
        self.residual = torch.empty(setting.n)
        total = self.tensor + self.start if feedback else self.tensor
        losers = torch.from_numpy(oracle.tie_losers(total.numpy(), setting.k))
        self.tensor[losers] = -self.start[losers] if feedback else 0.0

    def reset(self) -> None:
        """Make the working residual what it was at first."""
        self.residual.copy_(self.start)

    @cached_property
    def answer(self) -> oracle.Answer:
        """The right answer."""
        start = self.start.numpy() if self.feedback else None
        return oracle.stc(self.tensor.numpy(), start, self.setting.k, self.ternary)

    def exact(self, packet: gcext.Packet, residual: Tensor | None = None) -> str:
        """Return how what gcext gave differs from the answer by a bit, or ""."""
        return self.exact_pairs(packet.indices(), packet.values(), residual)

    def exact_pairs(self, indices: Tensor, values: Tensor, residual: Tensor | None) -> str:
        """The same of indices and values."""
        why = oracle.differs("indices", indices.long().numpy(), self.answer.index)
        why = why or oracle.differs("values", values.numpy(), self.answer.value)
        if why or residual is None:
            return why
        return oracle.differs("residual", residual.numpy(), self.answer.residual)

    def close(self, got: Selected) -> str:
        """Return how a baseline differs: in any index, or in values beyond rounding, or ""."""
        answer = self.answer
        if got.indices is None:
            index = got.values.nonzero().squeeze(1)
            value = got.values[index].numpy()
        else:
            index, order = got.indices.sort()
            value = got.values[order].numpy()
        why = oracle.differs("indices", index.long().numpy(), answer.index)
        why = why or oracle.departs("values", value, answer.value, answer.value)
        if why or got.residual is None:
            return why
        # Where nothing was chosen the residual is the sum; elsewhere the mean's rounding shows.
        scale = np.zeros_like(answer.residual)
        scale[answer.index] = np.abs(answer.value) + np.abs(answer.residual[answer.index])
        return oracle.departs("residual", got.residual.numpy(), answer.residual, scale)

    def floor(self, decay: float = 1.0) -> Variant:
        """Return the bare streaming pass: read both, write one. With a decay, another before it."""

        def check(_: Tensor) -> str:
            expected = self.start.numpy() * np.float32(decay) + self.tensor.numpy()
            return oracle.differs("the sum", self.residual.numpy(), expected)

        def decayed() -> Tensor:
            return self.residual.mul_(decay).add_(self.tensor)

        if decay != 1:
            does = "residual.mul_(decay).add_(tensor)"
            return Variant("floor", decayed, check, self.reset, does=does)
        run = partial(self.residual.add_, self.tensor)
        return Variant("floor", run, check, self.reset, does="residual.add_(tensor)")
