"""What a codec is given: the sum of tensor and memory, and where its residual goes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from gcext._native import ops
from gcext._native.status import is_ok, raise_for
from gcext._packet.codes import Code, Contents, Random
from gcext._packet.packet import Packet

__all__ = ["CodecInput", "Residual", "Slots"]


class Residual(NamedTuple):
    """A residual, as a codec leaves it: itself, or a sum and what was sent of it.

    A codec need not write the residual where it follows from the sum, which has just been written:
    of what selects the largest, all above a magnitude was sent; of signs, everything. The next
    call subtracts that as it reads; csrc/common/source.h.

    Attributes:
        total: float32, contiguous: the residual, or the whole sum.
        sent: what it lacks to be the residual, int64 of shape (3,); None: nothing.
    """

    total: Tensor
    sent: Tensor | None = None

    @classmethod
    def whole(cls, total: Tensor) -> Residual:
        """Return a residual of which nothing was sent, for codecs that would say what."""
        sent = total.new_zeros(3, dtype=torch.int64)
        sent[:1].fill_(_NONE)  # torch.tensor would synchronize a GPU
        return cls(total, sent)

    def tensor(self) -> Tensor:
        """Return the residual: ``total`` itself where it is that, else a new tensor."""
        if self.sent is None:
            return self.total
        return ops.select_rest(self.total, self.sent).view(self.total.shape)


_NONE = 0x7F800000  # larger than any magnitude's bits


class Slots(NamedTuple):
    """Where the residuals of many tensors are; each is a list of one a tensor, or empty.

    See CodecInput for the attributes.
    """

    memory: Sequence[Tensor] = ()
    out: Sequence[Tensor] = ()
    sent: Sequence[Tensor] = ()
    next: Sequence[Tensor] = ()

    @classmethod
    def of(cls, accs: Sequence[CodecInput]) -> Slots:
        """Return those of inputs."""
        columns = zip(*[(acc.memory, acc.out, acc.sent, acc.next) for acc in accs], strict=True)
        return cls(*[[each for each in column if each is not None] for column in columns])

    @classmethod
    def of_residuals(
        cls, memories: Sequence[Tensor | Residual], outs: Sequence[Tensor | Residual]
    ) -> Slots:
        """Return those of residuals that are read, and of the next ones."""
        parts: list[list[Tensor]] = []
        for kind in (memories, outs):
            held = [each if isinstance(each, Residual) else (each, None) for each in kind]
            parts += [[total for total, _ in held], [sent for _, sent in held if sent is not None]]
        memory, sent, out, next = parts
        return cls(memory, out, sent, next)


class CodecInput(NamedTuple):
    """What is to be encoded: ``acc = tensor + decay*memory``, and where its residual goes.

    Attributes:
        op: names the codec in errors.
        source: the tensor as it was given, for its shape and dtype.
        tensor: the same flat, contiguous and free of autograd; float32, but see Codec.reads_half.
        memory: float32, contiguous, as many elements; None: out, if any, is read too.
        out: likewise, where the residual goes; None: what the packet lacks is lost.
        decay: factor of memory.
        sent: what memory lacks to be the residual; see Residual. Only of codecs that defer it.
        next: where given, ``out`` is to be the sum, and this what was sent of it.
    """

    op: str
    source: Tensor
    tensor: Tensor
    memory: Tensor | None = None
    out: Tensor | None = None
    decay: float = 1.0
    sent: Tensor | None = None
    next: Tensor | None = None

    @classmethod
    def of(
        cls,
        op: str,
        source: Tensor,
        tensor: Tensor,
        memory: Tensor | Residual | None,
        out: Tensor | Residual | None,
        decay: float,
    ) -> CodecInput:
        """Return the input of a codec that reads a residual and leaves the next one in another."""
        sent = next = None
        if isinstance(memory, Residual):
            memory, sent = memory
        if isinstance(out, Residual):
            out, next = out
        return cls(op, source, tensor, memory, out, decay, sent, next)

    def add(self) -> Tensor:
        """Return the sum, finite, flat: out itself, after it was written; without out the tensor.

        Raises what Codec.encode does, so it synchronizes; ``add_deferred`` does not.
        """
        total, info = self.add_deferred()
        if info.is_cuda:  # on the CPU add_deferred has raised
            self.numbers(info)
        return total

    def packet(
        self, method: str, support: Tensor | Random | None, coded: Tensor | Code, scale: float = 0.0
    ) -> Packet:
        """Return a packet of the source's shape and dtype; see Packet and its attributes."""
        contents = Contents(support, coded, scale)
        return Packet(method, tuple(self.source.shape), self.source.dtype, contents)

    def subtract(self, packet: Packet) -> Packet:
        """Return the packet, after subtracting what it decodes to from the sum in ``out``."""
        if self.out is not None:
            packet.add_to_(self.out, -1.0)
        return packet

    def at(self, index: Tensor) -> Tensor:
        """Return elements of the sum, of a rising index; where one is not finite anything."""
        tensor = self.tensor.index_select(0, index)
        if tensor.dtype is not torch.float32:
            tensor = ops.to_float32(tensor)
        memory = self.out if self.memory is None else self.memory
        if memory is None:
            return tensor
        total = memory.view(-1).index_select(0, index)
        if self.sent is not None:
            key, cut, value = self.sent.unbind()
            total = ops.select_rest(total, torch.stack([key, (index < cut).sum(), value]))
        ops.select(tensor, None, total, 0, 1.0, self.decay, False)
        return total

    # Without synchronizing: errors stay in info until the packet is read.

    def add_deferred(self) -> tuple[Tensor, Tensor]:
        """Return the sum as ``add`` does, and select's info: on CUDA only that has the errors.

        Where it has one, out is a copy of memory; in place it is as it was if the tensor is bad.
        """
        info = ops.select(self.tensor, self.memory, self.out, 0, 1.0, self.decay, False)[2]
        if not info.is_cuda and info.tolist()[1]:
            self.check(info)
        return (self.tensor if self.out is None else self.out.view(-1)), info

    def check(self, info: Tensor) -> None:
        """Raise what info reports, on the CPU; on CUDA the packet does."""
        if not info.is_cuda:
            self.numbers(info)

    def numbers(self, info: Tensor) -> list[int]:
        """Return info's numbers, which synchronizes; raises what they report."""
        numbers: list[int] = info.tolist()
        raise_for(self.op, numbers[1], numbers[2], self.source)
        return numbers

    def take(self, index: Tensor | None, value: Tensor, info: Tensor) -> None:
        """Subtract values (at ``index``; None: everywhere) from the sum in ``out``.

        Where info has an error out stays as it is, bit for bit: a product with 0 would not do.
        """
        if self.out is not None:
            where = self.out.new_empty(0, dtype=torch.int32) if index is None else index
            ops.combine_add_(self.out.view(-1), where, value, -1.0, info)

    def take_out(self, index: Tensor, info: Tensor) -> Tensor:
        """Return the elements of the sum in ``out`` at a rising index, and leave zeros there."""
        assert self.out is not None
        total = self.out.view(-1)
        if total.is_cpu:
            return ops.take_out(total, index, info)
        value = total.index_select(0, index)
        self.take(index, value, info)
        return value

    def restore(self, info: Tensor) -> None:
        """Make out a copy of memory where info got an error after ``add_deferred``: status.mark."""
        if self.out is not None and self.memory is not None and info.is_cuda:
            torch.where(is_ok(info), self.out, self.memory, out=self.out)
