"""Weighted sums, means and dot products of packets: the algebra under the aggregators."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gcext._native import ops
from gcext._packet.packet import Packet

__all__ = ["alike", "check_packets", "columns", "combine", "gram", "mean", "pairs"]
__all__ += ["weighted_sum"]


def combine(packets: Sequence[Packet], weights: Sequence[float]) -> Tensor | Any:
    """Return the weighted sum of packets of one shape, whatever their methods.

    Each element is summed in float64 in the packets' order and rounded once, so the result does
    not depend on threads or instruction set.

    Args:
        packets: at least one.
        weights: one finite number a packet.

    Returns:
        float32 of the packets' shape; a list of them, one a member, where the packets are groups.

    Raises ValueError where shapes differ, or weights do not fit or are not finite.

    >>> import gcext, torch
    >>> a, b = (gcext.stc(torch.tensor(t), p=0.5) for t in ([3.0, 0.0], [0.0, -1.0]))
    >>> gcext.combine([a, b], [1.0, 0.5])
    tensor([ 3.0000, -0.5000])
    """
    check_packets("combine", packets)
    if len(weights) != len(packets):
        raise ValueError(
            f"combine: needs a weight for every packet, got {len(weights)} for {len(packets)}."
        )
    numbers = [float(weight) for weight in weights]
    for i, number in enumerate(numbers):
        if not math.isfinite(number):
            raise ValueError(f"combine: weights must be finite, got {number} for packet {i}.")
    return weighted_sum(packets, numbers)


def gram(packets: Sequence[Packet]) -> Tensor:
    """Return all pairwise dot products of packets of one shape, whatever their methods.

    Between ternary packets the product is integer work: the scales' product times (agreements -
    disagreements) of the signs, so its sign is exact. Other pairs are summed in float64 in a fixed
    order. The dot product of two groups is the sum over their members.

    Returns:
        float64 of shape (m, m), symmetric bit for bit.

    Raises ValueError where shapes differ or there is no packet.

    >>> import gcext, torch
    >>> a, b = (gcext.stc(torch.tensor(t), p=1) for t in ([3.0, 3.0], [-1.0, -1.0]))
    >>> gcext.gram([a, b])
    tensor([[18., -6.],
            [-6.,  2.]], dtype=torch.float64)
    """
    check_packets("gram", packets)
    if packets[0].method == "group":
        total = torch.zeros(len(packets), len(packets), dtype=torch.float64)
        for members in columns(packets):
            total += gram(members).to(total.device)
        return total
    scale = [packet.scale if packet.method == "ternary" else 0.0 for packet in packets]
    return ops.gram(*pairs(packets), scale, packets[0].numel)


def mean(packets: Sequence[Packet], weights: Sequence[float] | None = None) -> Tensor | Any:
    """Return the mean of packets of one shape, weighted where weights are given.

    Args:
        packets: at least one.
        weights: one positive, finite number a packet, such as its client's samples; they are
            divided by their sum.

    Returns:
        float32 of the packets' shape; a list of them, one a member, where the packets are groups.

    Raises ValueError where shapes differ, or weights do not fit or are not positive and finite.

    >>> import gcext, torch
    >>> packets = [gcext.codec("dense").encode(torch.tensor([x])) for x in (1.0, 5.0)]
    >>> gcext.aggregate.mean(packets), gcext.aggregate.mean(packets, [3, 1])
    (tensor([3.]), tensor([2.]))
    """
    check_packets("mean", packets)
    if weights is None:
        return weighted_sum(packets, [1.0 / len(packets)] * len(packets))
    if len(weights) != len(packets):
        raise ValueError(
            f"mean: needs a weight for every packet, got {len(weights)} for {len(packets)}."
        )
    numbers = [float(weight) for weight in weights]
    for i, number in enumerate(numbers):
        if not (math.isfinite(number) and number > 0):
            raise ValueError(
                f"mean: weights must be positive and finite, got {number} for packet {i}."
            )
    total = math.fsum(numbers)
    return weighted_sum(packets, [number / total for number in numbers])


def weighted_sum(packets: Sequence[Packet], weights: Sequence[float]) -> Tensor | Any:
    """``combine`` without its checks."""
    if packets[0].method == "group":
        return [weighted_sum(members, weights) for members in columns(packets)]
    out = ops.combine(*pairs(packets), weights, packets[0].numel)
    return out.view(packets[0].shape)


def pairs(packets: Sequence[Packet]) -> tuple[list[Tensor], list[Tensor]]:
    """Indices, none where a packet is dense, and float32 values, as the operators take them."""
    none = torch.empty(0, dtype=torch.int32, device=packets[0].device)
    indices = [packet.index for packet in packets]  # some packets work it out each time
    return [none if index is None else index for index in indices], [p.value for p in packets]


def columns(groups: Sequence[Packet]) -> list[tuple[Packet, ...]]:
    """The packets of each tensor, of groups of one shape."""
    return list(zip(*(group.members for group in groups), strict=True))


def check_packets(op: str, packets: Sequence[Packet]) -> None:
    """Raise ValueError unless there are packets, all of one shape."""
    if not packets:
        raise ValueError(f"{op}: needs at least one packet, got none.")
    first = packets[0]
    for packet in packets[1:]:
        if not alike(packet, first):
            raise ValueError(
                f"{op}: packets must have one shape, got {first.shape} and {packet.shape}."
            )


def alike(one: Packet, other: Packet) -> bool:
    """Whether two packets are of one shape, groups of the same shapes."""
    return one.shape == other.shape and (one.method == "group") == (other.method == "group")
