"""Packets as dense tensors: new ones, or the caller's own, overwritten whole or not at all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gcext._native import ops
from gcext._packet.arguments import as_dtype, as_targets

if TYPE_CHECKING:
    from gcext._packet.packet import Packet

__all__ = ["decode", "decode_into", "overwrite"]


def decode(packet: Packet, dtype: torch.dtype | None = None) -> list[Tensor]:
    """Return what a packet decodes to: a new tensor for each of its tensors."""
    dtype = as_dtype("Packet.to_dense", dtype)
    packet.settle()
    return [_new(single).to(dtype) for single in packet.members or (packet,)]


def decode_into(
    packet: Packet, out: Tensor | Sequence[Tensor], dtype: torch.dtype | None = None
) -> None:
    """Overwrite ``out`` with what a packet decodes to; see Packet.to_dense."""
    dtype = None if dtype is None else as_dtype("Packet.to_dense", dtype)
    outs = as_targets("Packet.to_dense", packet, out, dtype)
    singles = packet.members or (packet,)
    # What can raise comes first: deferred errors, and memory for what is not written directly.
    packet.settle()
    entries = [single.entries() for single in singles]
    direct = [each.dtype == torch.float32 and each.is_contiguous() for each in outs]
    rest = [_new(s) for s, written in zip(singles, direct, strict=True) if not written]
    for (index, value), each, written in zip(entries, outs, direct, strict=True):
        if written:
            with torch.inference_mode():  # so that inference tensors may be written to, too
                _fill(each.detach().view(-1), index, value)
    overwrite([each for each, written in zip(outs, direct, strict=True) if not written], rest)


def overwrite(outs: Sequence[Tensor], dense: Sequence[Tensor]) -> None:
    """Write float32 tensors of any shape into as many ``outs``, each value rounded once."""
    with torch.inference_mode():
        for out, whole in zip(outs, dense, strict=True):
            out.detach().copy_(whole.view(out.shape))


def _new(packet: Packet) -> Tensor:
    """Return what a single packet decodes to, in float32."""
    index, value = packet.entries()
    if index is None:
        made = ops.copy_of(value) if value is packet.coded else value
        return made.view(packet.shape)
    dense = ops.new_floats(value, packet.numel)
    _fill(dense, index, value)
    return dense.view(packet.shape)


def _fill(flat: Tensor, index: Tensor | None, value: Tensor) -> None:
    """Overwrite a flat, contiguous float32 tensor with a packet's entries."""
    if index is None:
        flat.copy_(value)
    else:
        flat.zero_()
        ops.combine_add_(flat, index, value, 1.0)
