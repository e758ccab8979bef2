"""What a codec is given, and what it says of it: the sum of tensor and memory, and the refusals."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from gcext._native import ops
from gcext._packet import deferred as _late
from gcext._packet.codes import Code, Random
from gcext._packet.deferred import Finish, Late
from gcext._packet.packet import Packet

__all__ = ["ROTATED", "SCALED", "Sum", "finite", "refuse", "spoil"]

_OK, _TENSOR, _MEMORY, _OVERFLOW, _NO_MEMORY = range(5)  # SelectStatus of csrc/select.h
SCALED, ROTATED = 5, 6  # what a codec adds by ``spoil``


def finite(info: Tensor) -> Tensor:
    """Return whether info has no error: a bool on its device."""
    return info[1] == _OK


def spoil(info: Tensor, bad: Tensor, status: int) -> None:
    """Give info a status where ``bad`` (a bool on its device) and it has none yet."""
    info[1].masked_fill_(bad & finite(info), status)


def refuse(op: str, status: int, where: int, tensor: Tensor | None = None) -> None:
    """Raise what an operator's status means; nothing where it is 0. Later the tensor is gone."""
    if status == _NO_MEMORY:
        assert tensor is not None  # only the CPU's
        raise MemoryError(f"{op}: no memory for {tensor.numel()} elements. Encode in parts.")
    if status == _TENSOR:
        got = "NaN or Inf" if tensor is None else float(tensor.detach().flatten()[where])
        raise ValueError(
            f"{op}: tensor must be finite in float32, got {got} at index {where}. "
            "Skip the step or clip the gradient."
        )
    if status == _MEMORY:
        raise ValueError(
            f"{op}: residual must be finite, got another value at index {where}. Reset it."
        )
    if status == _OVERFLOW:
        raise ValueError(
            f"{op}: tensor plus residual must be finite in float32, "
            f"got an overflow or a bad residual at index {where}. Scale the tensor down."
        )
    if status == SCALED:
        raise ValueError(
            f"{op}: tensor times n/k must be finite in float32, got an overflow. "
            "Scale the tensor down, or keep a residual."
        )
    if status == ROTATED:
        raise ValueError(
            f"{op}: tensor must be finite in float32 when rotated, got an overflow. "
            "Scale the tensor down."
        )


class Sum(NamedTuple):
    """What is to be coded: ``acc = tensor + decay*memory``, and where the rest of it goes.

    source: the tensor as it was given, for its shape and dtype.
    tensor: the same flat, contiguous, float32 and free of autograd.
    memory, out: float32, contiguous, as many elements. Out without memory is both; without either
        the sum is the tensor, and what the packet lacks is lost.
    which: of a list, for errors: "[3]".
    """

    source: Tensor
    tensor: Tensor
    memory: Tensor | None = None
    out: Tensor | None = None
    decay: float = 1.0
    which: str = ""

    def add(self, op: str) -> Tensor:
        """Return the sum, finite, flat: out itself, after it was written; without out the tensor.

        Raises what Codec.encode does, so it waits for the device; ``add_late`` does not.
        """
        whole, info = self.add_late(op)
        if _late.comes_late(info):  # on the CPU add_late has looked
            self.look(op, info)
        return whole

    def add_late(self, op: str) -> tuple[Tensor, Tensor]:
        """Return the sum as ``add`` does, and select's info: on CUDA only that knows of errors.

        Where it has one, out is a copy of memory; in place it is as it was if the tensor is bad.
        """
        info = ops.select(self.tensor, self.memory, self.out, 0, 1.0, self.decay, False)[2]
        self.check(op, info)
        return (self.tensor if self.out is None else self.out.view(-1)), info

    def packet_of(
        self,
        op: str,
        method: str,
        room: tuple[Tensor, ...],
        info: Tensor,
        finish: Finish,
        kind: type[Late] = Late,
    ) -> Packet:
        """Return the packet that an operator left; on CUDA nobody looks before he must.

        Args:
            op: names the codec in errors.
            room, info, finish: as of Late, and ``kind`` what becomes of them on CUDA.
        """
        shape, dtype = tuple(self.source.shape), self.source.dtype
        if _late.comes_late(info):
            return kind(method, shape, dtype, room, info, partial(refuse, op + self.which), finish)
        return Packet(method, shape, dtype, *finish(self.look(op, info), *room))

    def check(self, op: str, info: Tensor) -> None:
        """Raise what info has wrong, on the CPU; on CUDA that is the packet's to tell."""
        if not _late.comes_late(info):
            self.look(op, info)

    def look(self, op: str, info: Tensor) -> list[int]:
        """Return info's numbers, which waits for the device; raises what they have wrong."""
        numbers: list[int] = info.tolist()
        _, status, where, _ = numbers
        refuse(op + self.which, status, where, self.source)
        return numbers

    def packet(
        self, method: str, support: Tensor | Random | None, coded: Tensor | Code, scale: float = 0.0
    ) -> Packet:
        """Return a packet of the source's shape and dtype; arguments as of gcext.Packet."""
        shape, dtype = tuple(self.source.shape), self.source.dtype
        return Packet(method, shape, dtype, support, coded, scale)

    def less(self, packet: Packet) -> Packet:
        """Return the packet, after taking what it decodes to from the sum that ``add`` left."""
        if self.out is not None:
            packet.add_to_(self.out, -1.0)
        return packet

    def take(self, index: Tensor | None, value: Tensor, info: Tensor) -> None:
        """Take values (at ``index``; None: everywhere) from the sum that ``add_late`` left in out.

        Where info has an error out stays as it is, bit for bit: a product with 0 would not do.
        """
        if self.out is None:
            return
        out, everywhere = self.out.view(-1), self.out.new_empty(0, dtype=torch.int32)
        if not _late.comes_late(info):
            ops.combine_add_(out, everywhere if index is None else index, value, -1.0)
            return
        held = out if index is None else out.index_select(0, index)
        rest = held.clone()
        ops.combine_add_(rest, everywhere, value, -1.0)
        torch.where(finite(info), rest, held, out=held)
        if index is not None:
            out.index_copy_(0, index.long(), held)

    def restore(self, info: Tensor) -> None:
        """Make out a copy of memory where info, after ``add_late``, got an error: see ``spoil``."""
        if self.out is not None and self.memory is not None and _late.comes_late(info):
            torch.where(finite(info), self.out, self.memory, out=self.out)
