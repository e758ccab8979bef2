"""The memory that error feedback keeps residuals in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from gcext._codecs.input import Residual
from gcext._native.library import current_stream
from gcext._native.status import COMPANION, is_ok, mark
from gcext._packet.packet import Packet
from gcext._packet.streams import Ready

__all__ = ["Slot", "all_or_nothing", "assign", "copy_of", "empty_like", "parts"]


@dataclass(eq=False, slots=True)
class Slot:
    """The memory of a residual.

    Attributes:
        residual: in that memory.
        stream: the stream that last encoded with it; None on the CPU. What is released after a
            commit on another stream may still be read there.
        captured: whether the memory is a graph's own.
        shape: of the residual.
        on_cpu: whether the memory is on the CPU.
    """

    residual: Residual
    stream: torch.Stream | None = None
    captured: bool = False
    shape: torch.Size = field(init=False)  # kept: a tensor makes its shape anew each time
    on_cpu: bool = field(init=False)

    def __post_init__(self) -> None:
        self.shape = self.residual.total.shape
        self.on_cpu = self.residual.total.is_cpu

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy the memory; a copy has been used on no stream."""
        return Slot, (self.residual,)

    def tensor(self) -> Tensor:
        """Return the residual; see Residual."""
        return self.residual.tensor()

    def key(self) -> object:
        """Return what the slot may serve as a spare one: a shape, and on CUDA its stream."""
        if self.on_cpu:
            return self.shape
        return self.shape, self.residual.total.device, self.stream

    def use(self, stream: torch.Stream | None) -> None:
        """Keep the memory for a stream that it is read on or written to."""
        if stream is not None and stream != self.stream:
            for part in parts([self.residual]):
                part.record_stream(stream)

    def copy(self) -> Tensor:
        """Return the residual as a contiguous tensor of its own."""
        total = self.residual.total
        self.use(None if total.is_cpu else current_stream(total.device))
        return copy_of(self.residual)


def copy_of(residual: Residual) -> Tensor:
    """Return a residual as a contiguous tensor of its own."""
    with torch.inference_mode(False):  # later calls may be outside of it
        if residual.sent is not None:
            return residual.tensor()
        return residual.total.detach().clone(memory_format=torch.contiguous_format)


def empty_like(residual: Residual) -> Residual:
    """Return memory for another residual."""
    sent = residual.sent
    return Residual(
        torch.empty_like(residual.total), None if sent is None else torch.empty_like(sent)
    )


def assign(held: Sequence[Slot], slots: Sequence[Slot]) -> None:
    """Copy what slots hold to those that are held, on the current streams."""
    for pair in zip(held, slots, strict=True):
        total = pair[0].residual.total
        stream = None if total.is_cpu else current_stream(total.device)
        if stream is None or pair[1].captured:  # there all is on the stream that captures
            continue
        for each in pair:
            if each.residual.total.is_cpu:  # of a state that was loaded to there
                continue
            if each.stream is not None and each.stream != stream:
                stream.wait_stream(each.stream)
            each.use(stream)
            each.stream = stream
    for kind in Residual._fields:
        to = [part for slot in held if (part := getattr(slot.residual, kind)) is not None]
        if to:
            torch._foreach_copy_(to, [getattr(slot.residual, kind) for slot in slots])


def parts(residuals: Sequence[Residual]) -> list[Tensor]:
    """Return the tensors that residuals consist of."""
    return [part for each in residuals for part in each if part is not None]


def all_or_nothing(
    packets: Sequence[Packet], memories: Sequence[Tensor], outs: Sequence[Tensor]
) -> None:
    """Where one of the deferred packets has an error, give it to all, and outs their memories."""
    infos = [packet.deferred.info for packet in packets if packet.deferred is not None]
    if not infos:
        return
    good = torch.stack([is_ok(info) for info in infos])
    every, first = good.all(), good.int().argmin()  # of equal ones the first
    for info in infos:
        torch.where(is_ok(info) & ~every, first, info[2], out=info[2])
        mark(info, ~every, COMPANION)
    for memory, out in zip(memories, outs, strict=True):
        torch.where(every, out, memory, out=out)
    ready = Ready.here(infos[0].device)  # infos have changed
    for packet in packets:
        if packet.deferred is not None:
            packet.deferred.ready = ready
