"""Majority vote on signs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gcext._native import ops
from gcext._packet.codes import Signs
from gcext._packet.packet import Packet
from gcext.aggregate._aggregator import Stateless
from gcext.aggregate._sums import columns, pairs

__all__ = ["Vote"]


class Vote(Stateless):
    """The sign that most clients have at each element, times a scale; 0 where they tie.

    signSGD with majority vote (Bernstein et al. 2018, arXiv:1810.05291): the sum of the signs, and
    of that the sign. "sign" packets vote on every element; other packets vote with the signs of the
    elements that they hold, and abstain from the rest. Every client has one vote: the packets'
    scales and the weights are not looked at. Counting is bitwise, 64 elements at a time.

    Args:
        scale: what the signs are multiplied with; finite.

    >>> import gcext, torch
    >>> signs = ([1.0, -1.0, 0.0], [2.0, -1.0, 0.0], [-1.0, 0.0, 1.0])
    >>> packets = {i: gcext.codec("topk:p=1").encode(torch.tensor(t)) for i, t in enumerate(signs)}
    >>> gcext.aggregate.Vote(scale=0.1).aggregate(packets)
    tensor([ 0.1000, -0.1000,  0.1000])
    """

    def __init__(self, scale: float = 1.0) -> None:
        if not math.isfinite(scale):
            raise ValueError(f"Vote: scale must be finite, got {scale}.")
        self.scale = float(scale)

    def aggregate(
        self,
        packets_by_client: Mapping[int, Packet],
        losses: Mapping[int, float] | None = None,
        round: int | None = None,
        weights: Mapping[int, float] | None = None,
    ) -> Tensor | Any:
        """Return -scale, 0 or scale for each element; ValueError where shapes differ."""
        clients = self._checked(packets_by_client, losses, weights)
        return _vote([packets_by_client[client] for client in clients], self.scale)

    def check(
        self, client: int, packet: Packet, loss: float | None = None, weight: float | None = None
    ) -> None:
        """Raise ValueError for a packet of all elements' values: it has no sign bits."""
        for member in packet.members or (packet,):
            if _plane(member) is None and member.index is None:
                raise ValueError(
                    f"Vote: packets must be of signs or sparse, got {member.method} from client "
                    f"{client}. Encode signs."
                )


def _vote(packets: Sequence[Packet], scale: float) -> Tensor | Any:
    if packets[0].method == "group":
        return [_vote(members, scale) for members in columns(packets)]
    planes, sparse = [], []
    for packet in packets:
        plane = _plane(packet)
        if plane is None:
            sparse.append(packet)
        elif plane.scale > 0:  # zeros have no sign
            planes.append(plane.bits)
    if not (planes or sparse):
        return torch.zeros(packets[0].shape, device=packets[0].device)
    entries = pairs(sparse) if sparse else ([], [])
    return ops.vote(planes, *entries, scale, packets[0].numel).view(packets[0].shape)


def _plane(packet: Packet) -> Signs | None:
    """The signs of a packet that has one for every element."""
    return packet.coded if packet.support is None and isinstance(packet.coded, Signs) else None
