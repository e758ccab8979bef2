"""An update is finite, or an error that names a client: the check."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gcext._packet.packet import Packet

__all__ = ["LARGEST", "check_finite", "check_step", "largest", "normalised"]

LARGEST: float = torch.finfo(torch.float32).max


def largest(tensor: Tensor) -> float:
    """Return the largest magnitude among a tensor's elements; infinity where one is no number."""
    if tensor.numel() == 0:
        return 0.0
    low, high = map(float, torch.aminmax(tensor))
    return math.inf if math.isnan(low) else max(-low, high)


def check_finite(
    op: str,
    update: Tensor | Sequence[Tensor],
    packets: Sequence[Packet],
    weights: Sequence[float] | None = None,
    clients: Sequence[Any] | None = None,
    most: float = LARGEST,
) -> None:
    """Raise ValueError unless every element of an update is finite, and at most ``most``.

    Costs a pass over the update, or less where the packets' scales already tell.

    Args:
        op: who returns it, for errors.
        update: a tensor, of groups one for each member.
        packets: what it is made of.
        weights: of each packet in the update, where that is their weighted sum.
        clients: who sent each, for errors; None: they are numbered.
        most: the largest magnitude that whoever asked for the update can use.
    """
    if weights is not None and _bound(packets, weights) <= most * (1 - 1e-6):
        return
    parts = [update] if isinstance(update, Tensor) else update
    for i, part in enumerate(parts):
        if largest(part) <= most:
            continue
        flat = part.reshape(-1)
        at = int((~(flat.abs() <= most)).nonzero()[0])
        found = _largest_part([_member(packet, i) for packet in packets], weights, at)
        whose = f"packet {found}" if clients is None else f"client {clients[found]}"
        tensor = f" of tensor {i}" if len(parts) > 1 else ""
        rule = "finite in float32" if most == LARGEST else f"at most {most:.4g} in magnitude"
        raise ValueError(
            f"{op}: the update must be {rule}, got {float(flat[at]):.4g} at element {at}{tensor}, "
            f"to which {whose} adds the most. Leave it out, or bound the updates with NormBound."
        )


def check_step(op: str, name: str, size: float, most: float) -> None:
    """Raise ValueError where steps of one size are above what the update may have."""
    if not abs(size) <= most:
        raise ValueError(
            f"{op}: {name} must be at most {most:.4g} in magnitude, for the momentum that it is "
            f"added to, got {size:.4g}."
        )


def normalised(weights: Sequence[float]) -> list[float]:
    """Return positive, finite weights divided by their sum, however large that is."""
    try:
        total = math.fsum(weights)
    except OverflowError:
        total = math.inf
    if math.isinf(total):  # a power of two, so that ratios stay as they are
        weights = [math.ldexp(weight, -64) for weight in weights]
        total = math.fsum(weights)
    return [weight / total for weight in weights]


def _bound(packets: Sequence[Packet], weights: Sequence[float]) -> float:
    """Return what no element of the weighted sum is beyond; infinity where that takes a pass."""
    total = 0.0
    numel = packets[0].numel
    few = numel // (8 * len(packets)) if numel > 1 << 17 else 0  # values looked at sooner than all
    for packet, weight in zip(packets, weights, strict=True):
        total += abs(weight) * max(_magnitude(each, few) for each in packet.members or (packet,))
        if math.isinf(total):
            break
    return total


def _magnitude(packet: Packet, few: int) -> float:
    """Return what no value of a single packet is beyond; infinity where that is not cheap."""
    if scale := packet.magnitude:
        return scale
    coded = packet.coded
    limits = coded if isinstance(coded, Tensor) else coded.limits
    return largest(limits) if limits is not None and limits.numel() <= few else math.inf


def _member(packet: Packet, i: int) -> Packet:
    return packet.members[i] if packet.members else packet


def _largest_part(packets: Sequence[Packet], weights: Sequence[float] | None, at: int) -> int:
    """Return which packet has the largest magnitude in an element, times its weight."""
    parts = []
    for packet, weight in zip(packets, weights or [1.0] * len(packets), strict=True):
        index, value = packet.entries()
        place = at
        if index is not None:
            place = int(torch.searchsorted(index, torch.tensor(at, device=index.device)))
            if place == len(index) or int(index[place]) != at:
                parts.append(0.0)
                continue
        part = abs(weight * float(value[place]))
        parts.append(math.inf if math.isnan(part) else part)
    return parts.index(max(parts))
