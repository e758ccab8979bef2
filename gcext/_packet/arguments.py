"""Validation of what callers pass: lists of packets, dtypes, tensors to overwrite."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from gcext._native.library import DTYPE_NAMES, DTYPES

if TYPE_CHECKING:
    from gcext._packet.packet import Packet

__all__ = ["as_dtype", "as_packets", "as_targets", "overlaps"]

_Kind = TypeVar("_Kind")


def as_packets(
    kind: type[_Kind], op: str, packets: Iterable[_Kind], clients: Sequence[Any] | None = None
) -> Sequence[_Kind]:
    """Return the packets as a list or tuple.

    Args:
        kind: the class of a packet.
        op: what was called, for errors.
        packets: any iterable but a packet, a tensor or a mapping.
        clients: who sent each, for errors.

    Raises TypeError for anything else, and for elements that are no packets.
    """
    if not isinstance(packets, (list, tuple)):
        single = isinstance(packets, (kind, Tensor, Mapping, str, bytes))
        if single or not isinstance(packets, Iterable):
            remedy = " Pass [packet]." if isinstance(packets, kind) else ""
            if isinstance(packets, Mapping):
                remedy = " Pass list(packets.values())."
            name = type(packets).__name__
            raise TypeError(f"{op}: needs a list of packets, got {name}.{remedy}")
        packets = tuple(packets)
    for i, each in enumerate(packets):
        if not isinstance(each, kind):
            name = type(each).__name__
            place = f"as number {i}" if clients is None else f"from client {clients[i]}"
            raise TypeError(f"{op}: needs packets, got {name} {place}.{_remedy(each)}")
    return packets


def _remedy(given: Any) -> str:
    """Return how what was given becomes a packet, as the end of an error."""
    if isinstance(given, Tensor):
        return " Encode it with a codec."
    if isinstance(given, (bytes, bytearray, memoryview)):
        return " Decode it with Packet.from_bytes."
    if isinstance(given, (list, tuple)):
        return " Make one packet of many with Packet.group."
    return ""


def as_dtype(op: str, dtype: torch.dtype | None) -> torch.dtype:
    """Return a float dtype, float32 by default; raises ValueError for others."""
    if dtype is None:
        return torch.float32
    if dtype not in DTYPES:
        raise ValueError(f"{op}: dtype must be one of {DTYPE_NAMES}, got {dtype}.")
    return dtype


def as_targets(
    op: str, packet: Packet, out: Tensor | Sequence[Tensor], dtype: torch.dtype | None = None
) -> list[Tensor]:
    """Return the tensors to overwrite with what a packet decodes to, one for each of its tensors.

    Args:
        op: what was called, for errors.
        packet: decides the shapes and the device.
        out: what the caller passed: a tensor, of a group a list of tensors.
        dtype: which they must have; None: any float dtype.

    Raises TypeError or ValueError where a tensor does not fit, before any is changed.
    """
    singles = packet.members or (packet,)
    if packet.members and not isinstance(out, (list, tuple)):
        raise TypeError(
            f"{op}: out must be a list of {len(singles)} tensors, one for each member of the "
            f"group, got {type(out).__name__}."
        )
    outs: list[Any] = list(out) if packet.members else [out]
    if len(outs) != len(singles):
        raise ValueError(
            f"{op}: out must be a list of {len(singles)} tensors, one for each member of the "
            f"group, got {len(outs)}."
        )
    for i, (single, each) in enumerate(zip(singles, outs, strict=True)):
        _check_target(op, f"out[{i}]" if packet.members else "out", single, each, dtype)
    used = sorted((each.data_ptr(), each.nbytes, each.is_contiguous()) for each in outs)
    for (at, size, dense), (after, more, also) in pairwise(used):
        if size and more and (at == after or (dense and also and after < at + size)):
            raise ValueError(
                f"{op}: the tensors of out must not share memory. Pass one for each member."
            )
    return outs


def _check_target(op: str, name: str, packet: Packet, out: Any, dtype: torch.dtype | None) -> None:
    if not isinstance(out, Tensor):
        raise TypeError(f"{op}: {name} must be a torch.Tensor, got {type(out).__name__}.")
    if out.dtype not in DTYPES or out.layout is not torch.strided:
        raise ValueError(
            f"{op}: {name} must be strided and one of {DTYPE_NAMES}, got {out.dtype}, {out.layout}."
        )
    if dtype is not None and out.dtype != dtype:
        raise ValueError(
            f"{op}: dtype must be that of {name}, {out.dtype}, got {dtype}. Leave it out."
        )
    flat = (packet.numel,)
    if tuple(out.shape) not in (packet.shape, flat) or out.device != packet.device:
        raise ValueError(
            f"{op}: {name} must have the shape {packet.shape} or {flat} on {packet.device}, "
            f"got {tuple(out.shape)} on {out.device}."
        )
    if overlaps(out):
        raise ValueError(
            f"{op}: {name} must not overlap itself, got {tuple(out.shape)} with strides "
            f"{out.stride()}. Pass a tensor that was not expanded."
        )


def overlaps(tensor: Tensor) -> bool:
    """Return whether elements may share memory: a stride does not step over what smaller ones span.

    True for all tensors that were expanded; False for all views by slices, steps and transposition.
    """
    reach = 0
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1 and stride <= reach:
            return tensor.numel() > 0
        reach += stride * (size - 1)
    return False
