"""Aggregators that take the outer step: by momentum, Nesterov's too, or the sign of the mean."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from gcext._spec import positive
from gcext.aggregate._aggregator import Aggregator, RoundInput, Wrapper
from gcext.aggregate._finite import LARGEST, check_step
from gcext.aggregate._registry import register_aggregator
from gcext.aggregate._wrappers import Momentum, times

__all__ = ["HeavyBall", "Nesterov", "SignStep"]


class Nesterov(Momentum):
    """Takes Nesterov's step instead of another aggregator's: the outer optimizer of DiLoCo.

    ``v <- beta*v + update`` from v = 0, and the result is ``lr * (update + beta*v)`` (Douillard et
    al. 2023, arXiv:2311.08105). Arithmetic is float32, each operation rounded once.

    Args:
        inner: makes the update; None: ``Mean()``.
        beta: share of the velocity that stays, in [0, 1).
        lr: outer learning rate, positive and finite.

    >>> import gcext, torch
    >>> server = gcext.aggregate.Nesterov(beta=0.5, lr=1.0)
    >>> for number in (1, 2):
    ...     server.aggregate({7: gcext.stc(torch.ones(2), p=1)})
    tensor([1.5000, 1.5000])
    tensor([1.7500, 1.7500])
    """

    def __init__(self, inner: Aggregator | None = None, beta: float = 0.9, lr: float = 0.7) -> None:
        super().__init__(inner, beta)
        self.lr = _rate("Nesterov", lr)

    def _most(self, most: float, held: float) -> float:
        # The velocity is at most update + held, and the sum before lr at most update + beta*that.
        before = min(LARGEST, most / self.lr)
        return min(LARGEST - held, (before - self.beta * held) / (1 + self.beta))

    def _step(self, update: Tensor, velocity: Tensor) -> None:
        update.add_(times(velocity, self.beta)).mul_(self.lr)


class HeavyBall(Momentum):
    """Takes a step of momentum instead of another aggregator's: ``v <- beta*v + update``, ``lr*v``.

    As Momentum, with an outer learning rate (Reddi et al. 2021, arXiv:2003.00295). Arithmetic is
    float32, each operation rounded once.

    Args:
        inner: makes the update; None: ``Mean()``.
        beta: share of the velocity that stays, in [0, 1).
        lr: outer learning rate, positive and finite.

    >>> import gcext, torch
    >>> server = gcext.aggregate.HeavyBall(beta=0.5, lr=0.5)
    >>> for number in (1, 2):
    ...     server.aggregate({7: gcext.stc(torch.ones(2), p=1)})
    tensor([0.5000, 0.5000])
    tensor([0.7500, 0.7500])
    """

    def __init__(self, inner: Aggregator | None = None, beta: float = 0.9, lr: float = 1.0) -> None:
        super().__init__(inner, beta)
        self.lr = _rate("HeavyBall", lr)

    def _most(self, most: float, held: float) -> float:
        return min(LARGEST, most / self.lr) - held

    def _step(self, update: Tensor, velocity: Tensor) -> None:
        torch.mul(velocity, self.lr, out=update)


class SignStep(Wrapper):
    """``lr`` times the sign of another aggregator's update, 0 where that is 0.

    The outer step of DeMo (Peng et al. 2024, arXiv:2411.19870) and of Signum.

    Args:
        inner: makes the update; None: ``Mean()``.
        lr: outer learning rate, positive and finite, in the unit of the model.

    >>> import gcext, torch
    >>> server = gcext.aggregate.SignStep(lr=0.5)
    >>> server.aggregate({7: gcext.stc(torch.tensor([3.0, -1.0, 0.0]), p=1)})
    tensor([ 0.5000, -0.5000,  0.0000])
    """

    def __init__(self, inner: Aggregator | None = None, lr: float = 0.001) -> None:
        super().__init__(inner)
        self.lr = _rate("SignStep", lr)

    def _aggregate(self, given: RoundInput) -> Tensor | list[Tensor]:
        check_step("SignStep", "lr", self.lr, given.most)
        update = self.inner._aggregate(replace(given, most=LARGEST))
        for each in update if isinstance(update, list) else [update]:
            each.sign_().mul_(self.lr)
        return update


def _rate(op: str, lr: float) -> float:
    rate = positive(op, "lr", lr)
    if rate > LARGEST:
        raise ValueError(f"{op}: lr must be finite in float32, got {lr}.")
    return rate


register_aggregator("heavyball", HeavyBall)
register_aggregator("nesterov", Nesterov)
register_aggregator("signstep", SignStep)
