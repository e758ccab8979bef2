"""Aggregators that bound what a few clients can do. What each is good for: docs/server.md."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from gcext._native import ops
from gcext._packet.packet import Packet
from gcext.aggregate._aggregator import Aggregator, Keeping, Mean, Stateless
from gcext.aggregate._sums import columns, gram, pairs

__all__ = ["MaxK", "Median", "NormBound", "TrimmedMean"]


class _Guard(Keeping):
    """An aggregator in front of another one, whose state is that one's."""

    def __init__(self, inner: Aggregator | None) -> None:
        self.inner = Mean() if inner is None else inner

    @property
    def _keeper(self) -> Aggregator:
        return self.inner

    def check(
        self, client: int, packet: Packet, loss: float | None = None, weight: float | None = None
    ) -> None:
        """Raise what the inner aggregator does."""
        self.inner.check(client, packet, loss, weight)


class NormBound(_Guard):
    """Scales each update down to a Euclidean norm of at most ``bound``, for another aggregator.

    Update i becomes ``min(1, bound/‖g_i‖) g_i`` (Sun et al. 2019, arXiv:1911.07963). The norm is of
    the whole update, of a group all members together, in float64; scaled values are rounded to
    float32 once.

    Args:
        bound: positive and finite, in the unit of the updates.
        inner: gets the bounded packets; None: ``Mean()``.

    >>> import gcext, torch
    >>> packets = {0: gcext.stc(torch.ones(4), p=1), 1: gcext.stc(torch.full((4,), 1e6), p=1)}
    >>> gcext.aggregate.NormBound(bound=2.0).aggregate(packets)
    tensor([1., 1., 1., 1.])
    """

    def __init__(self, bound: float, inner: Aggregator | None = None) -> None:
        super().__init__(inner)
        if not (math.isfinite(bound) and bound > 0):
            raise ValueError(f"NormBound: bound must be positive and finite, got {bound}.")
        self.bound = float(bound)

    def aggregate(
        self,
        packets_by_client: Mapping[int, Packet],
        losses: Mapping[int, float] | None = None,
        round: int | None = None,
        weights: Mapping[int, float] | None = None,
    ) -> Tensor | Any:
        """Return what the inner aggregator makes of the bounded packets."""
        bounded = {client: self._bounded(p) for client, p in packets_by_client.items()}
        return self.inner.aggregate(bounded, losses, round, weights)

    def _bounded(self, packet: Packet) -> Packet:
        norm = math.sqrt(float(gram([packet])))
        return packet if norm <= self.bound else _scaled(packet, self.bound / norm)


class MaxK(_Guard):
    """Refuses packets with more elements than a client may send, for another aggregator.

    Args:
        k: elements that one client may send in a round, of a group all members together.
        inner: gets the packets; None: ``Mean()``.

    >>> import gcext, torch
    >>> server = gcext.aggregate.MaxK(2)
    >>> server.aggregate({5: gcext.stc(torch.ones(3), p=1)})
    Traceback (most recent call last):
    ValueError: MaxK: a packet may hold 2 elements, got 3 from client 5. ...
    """

    def __init__(self, k: int, inner: Aggregator | None = None) -> None:
        super().__init__(inner)
        if isinstance(k, bool) or not isinstance(k, int) or k < 0:
            raise ValueError(f"MaxK: k must be a whole number from 0 up, got {k}.")
        self.k = k

    def aggregate(
        self,
        packets_by_client: Mapping[int, Packet],
        losses: Mapping[int, float] | None = None,
        round: int | None = None,
        weights: Mapping[int, float] | None = None,
    ) -> Tensor | Any:
        """Return what the inner aggregator does; ValueError where a packet holds too much."""
        self._checked(packets_by_client, losses, weights)
        return self.inner.aggregate(packets_by_client, losses, round, weights)

    def check(
        self, client: int, packet: Packet, loss: float | None = None, weight: float | None = None
    ) -> None:
        """Raise ValueError where the packet holds more than k elements."""
        if packet.k > self.k:
            raise ValueError(
                f"MaxK: a packet may hold {self.k} elements, got {packet.k} from client {client}. "
                "Leave the client out, or allow more."
            )
        super().check(client, packet, loss, weight)


class _Trimmed(Stateless):
    """The mean of each element's values without ``drop(m)`` of them at either end."""

    def aggregate(
        self,
        packets_by_client: Mapping[int, Packet],
        losses: Mapping[int, float] | None = None,
        round: int | None = None,
        weights: Mapping[int, float] | None = None,
    ) -> Tensor | Any:
        """Return the update; ValueError where shapes differ."""
        clients = self._checked(packets_by_client, losses, weights)
        packets = [packets_by_client[client] for client in clients]
        return _trimmed_mean(packets, self._drop(len(packets)))

    @abstractmethod
    def _drop(self, m: int) -> int: ...


class TrimmedMean(_Trimmed):
    """The mean of each element's values without the smallest and the largest of them.

    Of the m values of an element, those that were not sent counting as 0, the ``floor(beta*m)``
    smallest and as many of the largest are left out (Yin et al. 2018, arXiv:1803.01498). Weights
    are not looked at. Sums are float64 in rising order, rounded once.

    Args:
        beta: share that is left out at either end, in [0, 0.5).

    >>> import gcext, torch
    >>> encode = gcext.codec("dense").encode
    >>> packets = {i: encode(torch.tensor([x])) for i, x in enumerate((1.0, 2.0, 3.0, -1e9))}
    >>> gcext.aggregate.TrimmedMean(beta=0.25).aggregate(packets)
    tensor([1.5000])
    """

    def __init__(self, beta: float) -> None:
        if not 0 <= beta < 0.5:
            raise ValueError(f"TrimmedMean: beta must be in [0, 0.5), got {beta}.")
        self.beta = float(beta)

    def _drop(self, m: int) -> int:
        return math.floor(self.beta * m)


class Median(_Trimmed):
    """The median of each element's values, those that were not sent counting as 0.

    Of an even number, the mean of the middle two (Yin et al. 2018, arXiv:1803.01498). An element
    that fewer than half of the clients send is 0. Weights are not looked at.

    >>> import gcext, torch
    >>> encode = gcext.codec("dense").encode
    >>> packets = {i: encode(torch.tensor([x])) for i, x in enumerate((1.0, 2.0, 4.0, -1e9))}
    >>> gcext.aggregate.Median().aggregate(packets)
    tensor([1.5000])
    """

    def _drop(self, m: int) -> int:
        return (m - 1) // 2


def _trimmed_mean(packets: Sequence[Packet], drop: int) -> Tensor | Any:
    if packets[0].method == "group":
        return [_trimmed_mean(members, drop) for members in columns(packets)]
    out = ops.trimmed_mean(*pairs(packets), drop, packets[0].numel)
    return out.view(packets[0].shape)


def _scaled(packet: Packet, factor: float) -> Packet:
    if packet.method == "group":
        return Packet.group([_scaled(member, factor) for member in packet.members])
    (index,), (value,) = pairs([packet])
    value = (value.double() * factor).float()
    if len(index) < len(value):
        return Packet("dense", packet.shape, packet.dtype, None, value)
    there = value != 0  # a zero is not sent
    index, value = index[there], value[there]
    if packet.method != "ternary":
        return Packet("sparse", packet.shape, packet.dtype, index, value)
    scale = float(value[0].abs()) if value.numel() else 0.0
    return Packet("ternary", packet.shape, packet.dtype, index, value, scale)
