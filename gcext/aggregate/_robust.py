"""Aggregators by element that bound what a few clients can do; see docs/federated-server.md."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gcext._native import ops
from gcext._packet.codes import Signs
from gcext._packet.packet import Packet
from gcext._spec import plain
from gcext.aggregate._aggregator import Aggregator, RoundInput
from gcext.aggregate._finite import LARGEST, check_finite, check_step
from gcext.aggregate._registry import register_aggregator
from gcext.aggregate._sums import is_dense, operands, pairs, per_tensor

__all__ = ["Median", "TrimmedMean", "Vote"]


class _Trimmed(Aggregator):
    """The mean of each element's values without ``drop(m)`` of them at either end.

    It lies between the least and the greatest of them, so it is finite.
    """

    checks_finite = True

    @abstractmethod
    def _drop(self, m: int) -> int: ...

    def _aggregate(self, given: RoundInput) -> Tensor | list[Tensor]:
        drop = self._drop(len(given.packets))

        def trimmed(packets: Sequence[Packet]) -> Tensor:
            index, value, codes = operands(packets)
            return ops.trimmed_mean(index, value, drop, packets[0].numel, codes)

        update = per_tensor(trimmed, given.packets)
        if given.most < LARGEST:
            op = type(self).__name__
            check_finite(op, update, given.packets, None, given.clients, given.most)
        return update


class TrimmedMean(_Trimmed):
    """The mean of each element's values without the smallest and the largest of them.

    Of the m values of an element, those that were not sent counting as 0, the ``floor(beta*m)``
    smallest and as many of the largest are left out (Yin et al. 2018, arXiv:1803.01498). Sums are
    float64 in rising order, rounded once.

    Args:
        beta: share that is left out at either end, in [0, 0.5).

    >>> import gcext, torch
    >>> encode = gcext.codec("dense").encode
    >>> packets = {i: encode(torch.tensor([x])) for i, x in enumerate((1.0, 2.0, 3.0, -1e9))}
    >>> gcext.aggregate.TrimmedMean(beta=0.25).aggregate(packets)
    tensor([1.5000])
    """

    def __init__(self, beta: float) -> None:
        beta = plain("TrimmedMean", "beta", float, beta)
        if not 0 <= beta < 0.5:
            raise ValueError(f"TrimmedMean: beta must be in [0, 0.5), got {beta}.")
        self.beta = beta

    def _drop(self, m: int) -> int:
        return math.floor(self.beta * m)


class Median(_Trimmed):
    """The median of each element's values, those that were not sent counting as 0.

    Of an even number, the mean of the middle two (Yin et al. 2018, arXiv:1803.01498). An element
    that fewer than half of the clients send is 0.

    >>> import gcext, torch
    >>> encode = gcext.codec("dense").encode
    >>> packets = {i: encode(torch.tensor([x])) for i, x in enumerate((1.0, 2.0, 4.0, -1e9))}
    >>> gcext.aggregate.Median().aggregate(packets)
    tensor([1.5000])
    """

    def _drop(self, m: int) -> int:
        return (m - 1) // 2


class Vote(Aggregator):
    """The sign that most clients have at each element, times a scale; 0 where they tie.

    signSGD with majority vote (Bernstein et al. 2018, arXiv:1810.05291): the sum of the signs, and
    of that the sign. "sign" packets vote on every element; other packets vote with the signs of the
    elements that they hold, and abstain from the rest. Every client has one vote, whatever its
    packet's scale. Counting is bitwise, 64 elements at a time.

    Args:
        scale: factor of the signs; finite in float32.

    >>> import gcext, torch
    >>> signs = ([1.0, -1.0, 0.0], [2.0, -1.0, 0.0], [-1.0, 0.0, 1.0])
    >>> packets = {i: gcext.codec("topk:p=1").encode(torch.tensor(t)) for i, t in enumerate(signs)}
    >>> gcext.aggregate.Vote(scale=0.1).aggregate(packets)
    tensor([ 0.1000, -0.1000,  0.1000])
    """

    checks_finite = True

    def __init__(self, scale: float = 1.0) -> None:
        scale = plain("Vote", "scale", float, scale)
        if not abs(scale) <= LARGEST:
            raise ValueError(f"Vote: scale must be finite in float32, got {scale}.")
        self.scale = scale

    def _check(self, client: Any, packet: Packet) -> None:
        for member in packet.members or (packet,):
            if _plane(member) is None and is_dense(member):
                raise ValueError(
                    f"Vote: packets must be of signs or sparse, got {member.method} from client "
                    f"{client}. Encode signs."
                )

    def _aggregate(self, given: RoundInput) -> Tensor | list[Tensor]:
        check_step("Vote", "scale", self.scale, given.most)
        return per_tensor(self._vote, given.packets)

    def _vote(self, packets: Sequence[Packet]) -> Tensor:
        planes, sparse = [], []
        for packet in packets:
            plane = _plane(packet)
            if plane is None:
                sparse.append(packet)
            elif plane.scale > 0:  # zeros have no sign
                planes.append(plane.bits)
        if not (planes or sparse):
            return torch.zeros(packets[0].shape, device=packets[0].device)
        index, value = pairs(sparse) if sparse else ([], [])
        return ops.vote(planes, index, value, self.scale, packets[0].numel)


def _plane(packet: Packet) -> Signs | None:
    """Return the signs of a packet that has one for every element."""
    return packet.coded if packet.support is None and isinstance(packet.coded, Signs) else None


register_aggregator("trimmed", TrimmedMean)
register_aggregator("median", Median)
register_aggregator("vote", Vote)
