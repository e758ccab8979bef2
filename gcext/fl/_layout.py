"""The flat model and what links make of it: one tensor, or the model's tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gcext._links.sender import Sender
from gcext._packet.packet import Packet
from gcext._packet.prediction import recover

__all__ = ["Held", "Layout", "compress", "held_of", "received"]


class Layout(NamedTuple):
    """How the flat model is cut for a link: into tensors of these shapes; None: not at all."""

    numel: int
    shapes: tuple[tuple[int, ...], ...] | None = None

    @property
    def expect(self) -> Any:
        """What ``Packet.from_bytes`` may expect."""
        return (self.numel,) if self.shapes is None else self.shapes

    def cut(self, flat: Tensor) -> Tensor | list[Tensor]:
        """Return the tensors as views of a flat one, or that itself."""
        if self.shapes is None:
            return flat
        sizes = [torch.Size(shape).numel() for shape in self.shapes]
        parts = flat.split(sizes)  # type: ignore[no-untyped-call]
        return [part.view(shape) for part, shape in zip(parts, self.shapes, strict=True)]

    def join(self, parts: Tensor | Sequence[Tensor]) -> Tensor:
        """Return what ``cut`` was given."""
        if isinstance(parts, Tensor):
            return parts
        return torch.cat([part.reshape(-1) for part in parts])


def compress(sender: Sender, name: str, tensors: Tensor | list[Tensor]) -> bytes:
    """Return the message of one tensor, or of several as ``name/0``, ``name/1`` ..; pending."""
    if isinstance(tensors, Tensor):
        return sender.compress(tensors, name, commit=False).to_bytes()
    named = {f"{name}/{i}": tensor for i, tensor in enumerate(tensors)}
    return sender.compress(named, commit=False).to_bytes()


class Held(NamedTuple):
    """What one end of the way down holds: the model, and the updates that it predicts from.

    trail: the last updates that were decoded, flat, the newest first: as many as the order of the
        down link's prediction.
    """

    weights: Tensor
    trail: tuple[Tensor, ...] = ()


def held_of(owner: str, state: Any, layout: Layout) -> Held:
    """Return what a state holds of a model and its trail; ValueError where it does not fit."""
    weights, trail = state[0], tuple(state[1])
    shapes = [
        (each.dtype, tuple(each.shape)) if isinstance(each, Tensor) else type(each).__name__
        for each in (weights, *trail)
    ]
    if shapes != [(torch.float32, (layout.numel,))] * len(shapes):
        raise ValueError(
            f"{owner}: a model must be float32 of {layout.numel} elements, got {shapes[:3]}."
        )
    return Held(weights, trail)


def received(held: Held, packet: Packet, layout: Layout, order: int) -> Held:
    """Return what an end holds after a broadcast: ``w - update``, in the same bits at every end."""
    weights = held.weights.clone()
    if order == 0:
        packet.add_to_(layout.cut(weights), alpha=-1.0)
        return Held(weights)
    if layout.shapes is None:
        update = recover(order, held.trail, packet)
    else:
        trails = zip(*map(layout.cut, held.trail), strict=True) if held.trail else None
        update = layout.join(
            [recover(order, next(trails) if trails else (), member) for member in packet.members]
        )
    weights -= update
    return Held(weights, (update, *held.trail)[:order])
