"""Aggregators in front of another one: a bound on norms, one on elements, server momentum."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from gcext._native import ops
from gcext._packet.budget import Budget, as_pair
from gcext._packet.codes import Contents, Random
from gcext._packet.packet import Packet
from gcext._packet.state import loading
from gcext._packet.sums import Sum
from gcext._spec import plain, positive
from gcext.aggregate._aggregator import Aggregator, RoundInput, Wrapper
from gcext.aggregate._finite import largest
from gcext.aggregate._registry import register_aggregator
from gcext.aggregate._sums import check_cost, gram, pairs

__all__ = ["MaxK", "Momentum", "NormBound", "shapes", "times"]

_MEDIANS = 3  # a bound that is not given, in medians of the norms


class NormBound(Wrapper):
    """Scales each update down to a Euclidean norm of at most ``bound``, for another aggregator.

    Update i becomes ``min(1, bound/‖g_i‖) g_i`` (Sun et al. 2019, arXiv:1911.07963). The norm is of
    the whole update, of a group all members together, in float64; scaled values are rounded to
    float32 once.

    Args:
        bound: positive and finite, in the unit of the updates; 0: three times the median norm of
            the round's updates that are not zero (of an even number the lower of the middle two).
            While fewer than half of these come from attackers, that is at most three times the
            largest honest norm.
        inner: gets the bounded packets; None: ``Mean()``.

    >>> import gcext, torch
    >>> packets = {0: gcext.stc(torch.ones(4), p=1), 1: gcext.stc(torch.full((4,), 1e6), p=1)}
    >>> gcext.aggregate.NormBound(bound=2.0).aggregate(packets)
    tensor([1., 1., 1., 1.])
    >>> gcext.aggregate.NormBound().aggregate(packets)
    tensor([2., 2., 2., 2.])
    """

    def __init__(self, bound: float = 0.0, inner: Aggregator | None = None) -> None:
        super().__init__(inner)
        self.bound = positive("NormBound", "bound", bound) if bound != 0 else 0.0

    def _aggregate(self, given: RoundInput) -> Tensor | list[Tensor]:
        norms = [math.sqrt(float(gram([packet]))) for packet in given.packets]
        bound = self.bound
        if not bound and any(norms):
            bound = _MEDIANS * statistics.median_low(norm for norm in norms if norm > 0)
        bounded = [
            packet if norm <= bound else _scaled(packet, bound / norm)
            for packet, norm in zip(given.packets, norms, strict=True)
        ]
        return self.inner._aggregate(replace(given, packets=bounded))


class MaxK(Wrapper):
    """Refuses packets with more elements than a client may send, for another aggregator.

    Of levels over a random support all elements of the support count, zeros too: each is drawn.

    Args:
        k: elements that one client may send in a round, of a group all members together.
        inner: gets the packets; None: ``Mean()``.
        budget: the most that a packet may cost to decode; None: only ``k`` counts. Packets that
            arrive as bytes are better given to a ``Round`` with that budget: it is then checked
            before they are decoded.

    >>> import gcext, torch
    >>> server = gcext.aggregate.MaxK(2)
    >>> server.aggregate({5: gcext.stc(torch.ones(3), p=1)})
    Traceback (most recent call last):
    ValueError: MaxK: a packet may hold 2 elements, got 3 from client 5. ...
    """

    def __init__(
        self, k: int, inner: Aggregator | None = None, budget: Budget | None = None
    ) -> None:
        super().__init__(inner)
        if isinstance(k, bool) or not isinstance(k, int) or k < 0:
            raise ValueError(f"MaxK: k must be a whole number from 0 up, got {k}.")
        self.k = k
        if budget is not None:
            as_pair(budget)
        self.budget = budget

    def _check(self, client: Any, packet: Packet) -> None:
        if self.budget is not None:
            check_cost("MaxK", self.budget, client, packet)
        if (k := _elements(packet)) > self.k:
            raise ValueError(
                f"MaxK: a packet may hold {self.k} elements, got {k} from client {client}. "
                "Leave the client out, or allow more."
            )
        super()._check(client, packet)

    def _aggregate(self, given: RoundInput) -> Tensor | list[Tensor]:
        return self.inner._aggregate(given)


class Momentum(Wrapper):
    """Adds a share of the earlier updates to another aggregator's: server momentum, FedAvgM.

    ``v <- beta*v + update``, from v = 0, and v is the result (Hsu et al. 2019, arXiv:1909.06335).
    Arithmetic is float32; product and sum are rounded once each. Where an element would not be
    finite, the round is refused.

    Args:
        inner: makes the update; None: ``Mean()``.
        beta: share of the velocity that stays, in [0, 1).

    >>> import gcext, torch
    >>> server = gcext.aggregate.Momentum(beta=0.5)
    >>> for number in (1, 2, 3):
    ...     server.aggregate({7: gcext.stc(torch.ones(2), p=1)})
    tensor([1., 1.])
    tensor([1.5000, 1.5000])
    tensor([1.7500, 1.7500])
    """

    def __init__(self, inner: Aggregator | None = None, beta: float = 0.9) -> None:
        super().__init__(inner)
        beta = plain("Momentum", "beta", float, beta)
        if not 0 <= beta < 1:
            raise ValueError(f"Momentum: beta must be in [0, 1), got {beta}.")
        self.beta = beta
        # One tensor for each of the update's; before the first round none. A round replaces them
        # and never writes to them, so that snapshots share them.
        self._velocity: list[Tensor] = []

    def _check(self, client: Any, packet: Packet) -> None:
        velocity = tuple(tuple(each.shape) for each in self._velocity)
        if velocity and velocity != shapes(packet):
            raise ValueError(
                f"Momentum: packets must have the velocity's shape {velocity}, got {packet.shape} "
                f"from client {client}."
            )
        super()._check(client, packet)

    def _aggregate(self, given: RoundInput) -> Tensor | list[Tensor]:
        first = given.packets[0]
        # Allocated before the inner aggregator's state moves on.
        velocity = [times(each, self.beta).to(first.device) for each in self._velocity]
        velocity = velocity or [torch.zeros(s, device=first.device) for s in shapes(first)]
        most = self._most(given.most, max(map(largest, velocity))) * (1 - 1e-6)
        update = self.inner._aggregate(replace(given, most=most))
        parts = update if isinstance(update, list) else [update]
        for mine, part in zip(velocity, parts, strict=True):
            self._step(part, mine.add_(part))
        self._velocity = velocity
        return update

    def _most(self, most: float, held: float) -> float:
        """Return up to what magnitude of the inner update the result is at most ``most``.

        held: the largest magnitude of ``beta*v``.
        """
        return most - held

    def _step(self, update: Tensor, velocity: Tensor) -> None:
        """Make the result of the inner update, which holds it, and of the new velocity."""
        update.copy_(velocity)

    def state_dict(self) -> dict[str, Any]:
        velocity = [each.clone() for each in self._velocity]
        return {"inner": self.inner.state_dict(), "velocity": velocity}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        with loading("Momentum", state):
            if set(state) != {"inner", "velocity"} or not all(
                isinstance(each, Tensor) and each.dtype == torch.float32
                for each in state["velocity"]
            ):
                raise ValueError(
                    "Momentum: its state holds inner and velocity, a list of float32 tensors, got "
                    f"{sorted(map(str, state))}."
                )
            velocity = [each.clone() for each in state["velocity"]]
            self.inner.load_state_dict(state["inner"])
            self._velocity = velocity

    def snapshot(self) -> Any:
        return self.inner.snapshot(), self._velocity

    def restore(self, snapshot: Any) -> None:
        inner, velocity = snapshot
        self.inner.restore(inner)
        self._velocity = velocity


def shapes(packet: Packet) -> tuple[tuple[int, ...], ...]:
    """Return the shape of each tensor that a packet is of."""
    return tuple(tuple(each.shape) for each in packet.members or (packet,))


def times(tensor: Tensor, factor: float) -> Tensor:
    """Return a float32 tensor times a factor, in memory that was in use before."""
    return torch.mul(tensor, factor, out=ops.new_like(tensor))


def _elements(packet: Packet) -> int:
    """Return how many elements a packet makes whoever decodes it compute."""
    if packet.members:
        return sum(map(_elements, packet.members))
    if isinstance(packet.support, Random):
        return packet.support.k
    if isinstance(packet.coded, Sum) and any(
        isinstance(term.support, Random) for term in packet.coded.terms
    ):  # counted without drawing them
        return sum(map(_elements, packet.coded.terms))
    return packet.k


def _scaled(packet: Packet, factor: float) -> Packet:
    if packet.method == "group":
        return Packet.group([_scaled(member, factor) for member in packet.members])
    (index,), (value,) = pairs([packet])
    value = (value.double() * factor).float()
    if len(index) < len(value):
        return Packet("dense", packet.shape, packet.dtype, Contents(None, value))
    there = value != 0  # a zero is not sent
    index, value = index[there], value[there]
    if packet.method != "ternary":
        return Packet("sparse", packet.shape, packet.dtype, Contents(index, value))
    scale = float(value[0].abs()) if value.numel() else 0.0
    return Packet("ternary", packet.shape, packet.dtype, Contents(index, value, scale))


register_aggregator("normbound", NormBound)
register_aggregator("maxk", MaxK)
