"""The rows batch and batch-wire (``bench batch``): a model's tensors, against one flat tensor."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

import gcext

from . import oracle
from .case import Case, Setting
from .timing import Variant

Packets = list[gcext.Packet]


def model_sizes(n: int, m: int) -> list[int]:
    """Return the sizes of m tensors of n elements in all, spread as those of a ResNet are.

    Every third is a weight, 64 times as large at the end as at the beginning; two vectors follow
    each, of as many elements as a 3x3 convolution of that size has channels.
    """
    raw = [64.0 ** (i / m) for i in range(0, m, 3)]
    sizes: list[int] = []
    for each in raw:
        weight = int(n * each / sum(raw))
        sizes += [weight, math.isqrt(weight // 9), math.isqrt(weight // 9)]
    sizes = sizes[:m]
    largest = (m - 1) // 3 * 3
    sizes[largest] += n - sum(sizes)
    if sizes[largest] < 0:
        raise ValueError(f"bench: n must be at least some 100 m, got {n} for {m} tensors.")
    return sizes


class Model:
    """Gradients, residuals and what is added to, as lists of tensors and flat."""

    def __init__(self, setting: Setting) -> None:
        generator = setting.generator()
        self.setting, self.sizes = setting, model_sizes(setting.n, setting.m)
        self.flat = torch.randn(setting.n, generator=generator)
        self.start = torch.randn(setting.n, generator=generator)
        self.tensors = [each.clone() for each in torch.split(self.flat, self.sizes)]
        self.residual = torch.empty(setting.n)
        self.residuals = [torch.empty(size) for size in self.sizes]
        self.total = torch.empty(setting.n)  # what received packets are added to
        self.totals = [torch.empty(size) for size in self.sizes]

    def reset(self) -> None:
        """Make residuals and sums what they were at first."""
        self.residual.copy_(self.start)
        self.total.zero_()
        for residual, start in zip(
            self.residuals, torch.split(self.start, self.sizes), strict=True
        ):
            residual.copy_(start)
        for total in self.totals:
            total.zero_()

    def answers(self) -> list[oracle.Answer]:
        """Return the right answer of each tensor."""
        k = [max(int(self.setting.p * size), 1) if size else 0 for size in self.sizes]
        start = torch.split(self.start, self.sizes)
        return [
            oracle.stc(tensor.numpy(), its.numpy(), count)
            for tensor, its, count in zip(self.tensors, start, k, strict=True)
        ]

    def answer_of_all(self, k: int) -> list[oracle.Answer]:
        """Return that of a selection over the model."""
        start = [each.numpy() for each in torch.split(self.start, self.sizes)]
        return oracle.stc_model([each.numpy() for each in self.tensors], start, k)

    def answer_flat(self, k: int) -> oracle.Answer:
        """Return that of the flat tensor."""
        return oracle.stc(self.flat.numpy(), self.start.numpy(), k)


def batch(setting: Setting, _: bool) -> Case:
    """A list in one call, against calls one by one, one flat tensor, and torch.cat first."""
    return _case("batch", setting, wire=False)


def batch_wire(setting: Setting, _: bool) -> Case:
    """The same, then to bytes (a group), back, and added to tensors."""
    return _case("batch-wire", setting, wire=True)


def _case(name: str, setting: Setting, wire: bool) -> Case:
    model, p = Model(setting), setting.p

    def one_by_one() -> Packets:
        pairs = zip(model.tensors, model.residuals, strict=True)
        return [gcext.stc(tensor, p, residual) for tensor, residual in pairs]

    def together(scope: str) -> Packets:
        return gcext.stc(model.tensors, p, model.residuals, scope=scope)  # type: ignore[call-overload, no-any-return]

    def flat() -> Packets:
        return [gcext.stc(model.flat, p, model.residual)]

    def cat() -> Packets:
        return [gcext.stc(torch.cat(model.tensors), p, model.residual)]

    def variant(
        name: str, run: Callable[[], Packets], answers: Sequence[oracle.Answer], does: str = ""
    ) -> Variant:
        whole = len(answers) == 1
        residuals, totals = model.residuals, model.totals
        if whole:
            residuals, totals = [model.residual], [model.total]

        def trip() -> Packets:
            packets = run()
            if whole:
                gcext.Packet.from_bytes(packets[0].to_bytes()).add_to_(model.total)
            else:
                message = gcext.Packet.group(packets).to_bytes()
                gcext.Packet.from_bytes(message).add_to_(model.totals)
            return packets

        check = partial(_differs, answers, residuals, totals if wire else None)
        return Variant(name, trip if wire else run, check, model.reset, does=does)

    answers, k = model.answers(), setting.k
    of_flat = [model.answer_flat(k)]
    return Case(
        name,
        setting,
        variant("gcext", partial(together, "tensor"), answers),
        (variant("one by one", one_by_one, answers),),
        variant("floor", flat, of_flat, "gcext.stc of one flat tensor"),
        also=(
            variant("model", partial(together, "model"), model.answer_of_all(k)),
            variant("cat", cat, of_flat),
        ),
        facts={"tensors": setting.m, "largest": max(model.sizes)},
    )


def _differs(
    answers: Sequence[oracle.Answer],
    residuals: Sequence[Tensor],
    totals: Sequence[Tensor] | None,
    packets: Packets,
) -> str:
    """Return how packets, residuals and sums differ from the answers, or ""."""
    for i, (answer, packet) in enumerate(zip(answers, packets, strict=True)):
        why = oracle.differs(f"indices {i}", packet.indices().numpy(), answer.index)
        why = why or oracle.differs(f"values {i}", packet.values().numpy(), answer.value)
        why = why or oracle.differs(f"residual {i}", residuals[i].numpy(), answer.residual)
        if not why and totals is not None:
            want = np.zeros_like(answer.residual)
            want[answer.index] = answer.value
            why = oracle.differs(f"sum {i}", totals[i].numpy(), want)
        if why:
            return why
    return ""
