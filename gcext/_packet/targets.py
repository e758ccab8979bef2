"""Tensors that packets are added to: any strides that do not overlap, any float dtype."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from gcext._native import lists, ops
from gcext._native.library import DTYPE_NAMES, DTYPES, touched
from gcext._packet.arguments import overlaps

if TYPE_CHECKING:
    from gcext._packet.joined import Joined
    from gcext._packet.packet import Packet

__all__ = ["ALL", "HARMLESS", "add", "add_finite"]

# Less than half the distance between the largest float32 and the one before: adding it to any
# finite float32 leaves that finite. Half the distance of bfloat16 is larger, of float16 it is 16.
HARMLESS = 2.0**102
ALL = torch.empty(0, dtype=torch.int32)  # the indices of all elements, as operators take them
# Elements that are converted at a time on the CPU: what is in between stays in the cache.
_PIECE = 1 << 18
_HARMLESS_TO = {torch.float32: HARMLESS, torch.bfloat16: HARMLESS, torch.float16: 8.0}


def add(packet: Packet, into: Tensor | Sequence[Tensor], alpha: float) -> None:
    """Add alpha times what a packet decodes to to a tensor, of a group to one a member.

    Raises ValueError, and nothing is changed, where a tensor does not fit.
    """
    if packet.joined is not None and _add_joined(packet.joined, packet.shape, into, alpha):
        return
    members = packet.members or (packet,)
    if not isinstance(into, (Tensor, list, tuple)):
        raise TypeError(
            f"Packet.add_to_: tensor must be a torch.Tensor, or a list of them for a group, "
            f"got {type(into).__name__}."
        )
    single = isinstance(into, Tensor)
    tensors: Sequence[Tensor] = (into,) if isinstance(into, Tensor) else into
    if single == bool(packet.members) or len(tensors) != len(members):
        got = "a tensor" if single else f"{len(tensors)} tensors"
        want = f"a group of {len(members)}" if packet.members else "a single packet"
        raise ValueError(f"Packet.add_to_: needs a tensor a member, got {got} for {want}.")
    numels = [math.prod(member.shape) for member in members]
    packet.settle()
    entries = [member.entries() for member in members]
    index, value = [each[0] for each in entries], [each[1] for each in entries]
    plain = [_validate(*each) for each in zip(tensors, numels, value, strict=True)]
    fast = [i for i, each in enumerate(plain) if each]
    rest = [i for i, each in enumerate(plain) if not each and numels[i]]
    for i in rest:
        _check_converted(tensors[i].detach(), index[i], value[i], alpha)
    if fast:
        whole = torch.empty(0, dtype=torch.int32, device=value[fast[0]].device)
        dense = [tensors[i].detach() if tensors[i].requires_grad else tensors[i] for i in fast]
        at = [whole if (its := index[i]) is None else its for i in fast]
        values = [value[i] for i in fast]
        small = all(0 < members[i].magnitude * abs(alpha) < HARMLESS for i in fast)
        add_all = add_finite if dense[0].is_cpu and not small else lists.combine_add_many_
        add_all(dense, at, values, alpha)
    with torch.inference_mode():  # so that inference tensors may be written to, too
        for i in rest:
            _add_converted(tensors[i].detach(), index[i], value[i], alpha)
    touched([tensor for tensor in tensors if tensor.numel()])


def _add_joined(joined: Joined, shapes: Any, into: Any, alpha: float) -> bool:
    """Add a group's packets to plain tensors; False, and nothing is done, where one is not."""
    heads = joined.heads
    if (
        not isinstance(into, (list, tuple))
        or len(into) != len(heads)
        or not lists.are_plain(into)
        or [each.numel() for each in into] != [*map(math.prod, shapes)]
    ):
        return False
    split = [head[3] if isinstance(head, tuple) else -1 for head in heads]
    entries = [head.entries() for head in heads if not isinstance(head, tuple)]
    index = [joined.index, *(ALL if at is None else at for at, _ in entries)]
    try:
        with torch.no_grad():
            add_finite(into, index, [joined.value, *(value for _, value in entries)], alpha, split)
    except RuntimeError:  # of what has to be converted first, or is refused
        return False
    touched(into)
    return True


def _validate(tensor: Tensor, numel: int, value: Tensor) -> bool:
    """Return whether the tensor is float32 and contiguous; ValueError where it does not fit."""
    fits = isinstance(tensor, Tensor) and tensor.numel() == numel and tensor.device == value.device
    strided = fits and tensor.layout is torch.strided
    if strided and tensor.dtype == torch.float32 and tensor.is_contiguous():
        return True
    if not strided or tensor.dtype not in DTYPES:
        got = type(tensor).__name__
        if isinstance(tensor, Tensor):
            got = f"{tensor.dtype} {tuple(tensor.shape)} on {tensor.device}"
        raise ValueError(
            f"Packet.add_to_: tensor must be of {DTYPE_NAMES}, strided, of {numel} "
            f"elements on {value.device}, got {got}."
        )
    if overlaps(tensor):
        raise ValueError(
            "Packet.add_to_: elements of tensor must not share memory, got shape "
            f"{tuple(tensor.shape)} with strides {tensor.stride()}. Pass a copy, as of .clone()."
        )
    return False


def add_finite(
    dense: Sequence[Tensor],
    index: Sequence[Tensor],
    value: Sequence[Tensor],
    alpha: float,
    split: Sequence[int] = (),
) -> None:
    """Add packets to contiguous float32 tensors on the CPU; ValueError where that overflows."""
    if lists.combine_add_finite_(dense, index, value, alpha, split) >= 0:
        raise ValueError(_OVERFLOW.format("float32"))


_OVERFLOW = (
    "Packet.add_to_: sums must be finite in {}, got an overflow. Leave the packet out, or scale it "
    "down."
)


def _check_converted(dense: Tensor, index: Tensor | None, value: Tensor, alpha: float) -> None:
    """Raise ValueError where adding to a tensor of any dtype would overflow; on the CPU."""
    if not dense.is_cpu or dense.dtype == torch.float64 or value.numel() == 0:
        return
    low, high = torch.aminmax(value)
    if abs(alpha) * max(-float(low), float(high)) < _HARMLESS_TO[dense.dtype]:
        return
    if index is None:
        held = dense.flatten()
    else:
        flat, at = _places(dense, index)
        held = flat.index_select(0, at)
    sums = _add_flat(held.clone(), value, alpha)
    if bool((held.isfinite() & ~sums.isfinite()).any()):
        raise ValueError(_OVERFLOW.format(dense.dtype))


def _places(dense: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Return a flat view of a tensor, and where in it the elements of ``index`` are."""
    at = index.long()
    if dense.is_contiguous():
        return dense.view(-1), at
    left, at, last = at, torch.zeros_like(at), 0
    for size, stride in reversed([*zip(dense.shape, dense.stride(), strict=True)]):
        at += left % size * stride
        left = left // size
        last += (size - 1) * stride
    return dense.as_strided((last + 1,), (1,)), at


def _add_converted(dense: Tensor, index: Tensor | None, value: Tensor, alpha: float) -> None:
    """Add to a tensor of any dtype and strides, that has elements: those of ``index`` alone."""
    if index is not None:
        flat, at = _places(dense, index)
        flat.index_copy_(0, at, _add_flat(flat.index_select(0, at), value, alpha))
    elif dense.is_contiguous():
        _add_flat(dense.view(-1), value, alpha)
    else:
        dense.copy_(_add_flat(dense.flatten(), value, alpha).view(dense.shape))


def _add_flat(flat: Tensor, value: Tensor, alpha: float) -> Tensor:
    """Add alpha times as many values to a contiguous tensor, and return it.

    On the CPU piece by piece; all memory is taken before the first piece is changed.
    """
    piece = _PIECE if flat.is_cpu else flat.numel()
    double = flat.dtype == torch.float64
    wide = value.new_empty(min(piece, flat.numel()), dtype=torch.float64 if double else None)
    whole = value.new_empty(0, dtype=torch.int32)
    for at in range(0, flat.numel(), max(piece, 1)):
        held, part = flat[at : at + piece], value[at : at + piece]
        own = wide[: part.numel()]
        if double:
            held.add_(own.copy_(part).mul_(float(np.float32(alpha))))
        else:
            ops.combine_add_(own.copy_(held), whole, part, alpha)
            held.copy_(own)
    return flat
