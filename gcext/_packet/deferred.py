"""Packets whose contents only the device knows yet: the host looks when somebody asks."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeAlias

import torch
from torch import Tensor

from gcext._native.library import current_stream
from gcext._packet.codes import Code, Random
from gcext._packet.packet import Packet

__all__ = ["Contents", "Finish", "Late", "capturing", "comes_late", "float_of", "narrow"]

Contents: TypeAlias = tuple[Tensor | Random | None, Tensor | Code, float]
Finish: TypeAlias = Callable[..., Contents]


def comes_late(info: Tensor) -> bool:
    """Whether an operator's info would have to be waited for."""
    return info.is_cuda


def capturing() -> bool:
    """Whether a CUDA graph is being captured on the current stream."""
    initialized: bool = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return initialized and torch.cuda.is_current_stream_capturing()


class Late(Packet):
    """A packet of an operator whose info, and with it the packet's size and errors, is on a device.

    Whoever asks for what depends on them waits for the stream that encodes, and gets the ValueError
    then. Contents are safe on every stream after that: the host has waited, and the memory is held
    for the stream that looked.

    Made while a CUDA graph is captured, it is a window: it shows what the last replay wrote, and
    looks anew every time. ``to("cpu")`` and ``to_bytes()`` return what stays.
    """

    __slots__ = ("_captured", "_finish", "_info", "_refuse", "_room", "_stream")

    def __init__(
        self,
        method: str,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        room: tuple[Tensor, ...],
        info: Tensor,
        refuse: Callable[[int, int], None],
        finish: Finish,
    ) -> None:
        """Take what an operator left.

        Args:
            method, shape, dtype: as of Packet.
            room: the operator's tensors; only info says how much of them was written.
            info: select's four numbers, csrc/select.h.
            refuse: raises what a status and a place mean.
            finish: returns support, coded and scale, given info's numbers and the room.
        """
        # Not the base's: support, coded and scale stay unset until somebody looks.
        self.method, self.shape, self.dtype = method, shape, dtype
        self.members, self._parts, self._bytes = (), None, None
        self._room, self._info, self._refuse, self._finish = room, info, refuse, finish
        self._stream = current_stream(info.device)
        self._captured = self._stream is not None and capturing()

    @property
    def device(self) -> torch.device:
        """Where the contents are."""
        return self._info.device

    def __getattr__(self, name: str) -> Any:
        if name not in ("support", "coded", "scale"):
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        contents = self._look()
        if not self._captured:
            self.support, self.coded, self.scale = contents
            self._room = ()  # what is not among the contents may go
        return dict(zip(("support", "coded", "scale"), contents, strict=True))[name]

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy and pickle what was found, as an ordinary packet."""
        contents = (self.support, self.coded, self.scale)
        return Packet, (self.method, self.shape, self.dtype, *contents)

    @property
    def _lasts(self) -> bool:
        return not self._captured

    def _maker(self) -> torch.Stream | None:
        return super()._maker() if self._captured else self._stream

    def _look(self) -> Contents:
        """Wait for the device, and return what it found; raises what it found wrong."""
        with self._encoding():
            numbers = self._accept(self._info.tolist())
            if self._captured:  # the next replay writes into the room
                return self._finish(numbers, *(each.clone() for each in self._room))
            contents = self._finish(numbers, *self._room)
        if self._stream is not None:
            self._stream.synchronize()  # finish may have copied
            here = current_stream(self.device)
            assert here is not None
            for tensor in _tensors(*contents) if here != self._stream else ():
                tensor.record_stream(here)
        return contents

    def _encoding(self) -> AbstractContextManager[object]:
        """Be on the stream that encodes; of a graph, that of whoever replays and looks."""
        maker = self._maker()
        return nullcontext() if maker is None else maker

    def _accept(self, numbers: list[int]) -> list[int]:
        """Return info's numbers; raises what its status means."""
        _, status, where, _ = numbers
        self._refuse(status, where)
        return numbers


def _tensors(support: Tensor | Random | None, coded: Tensor | Code, scale: float) -> list[Tensor]:
    """Return all tensors among a packet's contents."""
    fields = coded.fields() if isinstance(coded, Code) else (coded,)
    return [each for each in (support, *fields) if isinstance(each, Tensor)]


def narrow(count: int, *room: Tensor) -> tuple[Tensor, ...]:
    """Return the first ``count`` of each; copies where that is not all, to free the rest."""
    return tuple(each if count == each.numel() else each[:count].clone() for each in room)


def float_of(bits: int) -> float:
    """Return the non-negative float32 of these bits, also where denormals are being flushed."""
    exponent, mantissa = bits >> 23, bits & 0x7FFFFF
    return math.ldexp(mantissa | (0x800000 if exponent else 0), max(exponent, 1) - 150)
