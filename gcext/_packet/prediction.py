"""Predictions that both ends of a link make of what was decoded before, in the same bits."""

from __future__ import annotations

import torch
from torch import Tensor

from gcext._native import ops
from gcext._packet.packet import Packet

__all__ = ["predict", "recover", "subtract"]


def predict(order: int, held: tuple[Tensor, ...]) -> Tensor | None:
    """Return Trajectory's prediction, flat, from the last values, the newest first; None: 0."""
    if order == 0 or not held:
        return None
    if order == 1 or len(held) == 1:
        return held[0].view(-1)
    return subtract(2 * held[0].view(-1), held[1].view(-1))


def recover(order: int, held: tuple[Tensor, ...], packet: Packet) -> Tensor:
    """Return the prediction plus what the packet decodes to, the same bits at both ends."""
    predicted = predict(order, held)
    if predicted is None:
        base = torch.zeros(packet.shape, device=packet.device)
    else:
        base = ops.copy_of(predicted).view(packet.shape)
    return packet.add_to_(base)


def subtract(x: Tensor, y: Tensor | None) -> Tensor:
    """Return ``x - y`` of flat float32 tensors, by the kernel, which keeps denormals."""
    if y is None:
        return x
    difference = ops.new_like(x)
    ops.select(x, y, difference, 0, 1.0, -1.0, False)
    return difference
