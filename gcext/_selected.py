"""Packets whose contents only the device knows yet: the host looks when somebody asks."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from gcext import _device, wire
from gcext.packet import DTYPES, Packet

__all__ = ["Selected", "float_of", "narrow"]


class Selected(Packet):
    """A packet of select. Its number of elements, its scale and its errors are on the device.

    Whoever asks for what depends on them waits for the stream that selects, and gets the ValueError
    then. Contents are safe on every stream after that: the host has waited, and the memory is held
    for the stream that looked.

    Made while a CUDA graph is captured, it is a window: it shows what the last replay wrote, and
    looks anew every time. ``to("cpu")`` and ``to_bytes()`` return what stays.
    """

    __slots__ = ("_captured", "_info", "_refuse", "_room", "_stream")

    def __init__(
        self,
        method: str,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        index: Tensor,
        value: Tensor,
        info: Tensor,
        refuse: Callable[[int, int], None],
    ) -> None:
        """Take select's answer; ``refuse`` raises what a status and a place mean."""
        # Not the base's: support, coded and scale stay unset until somebody looks.
        self.method, self.shape, self.dtype = method, shape, dtype
        self.members, self._parts, self._bytes = (), None, None
        self._room, self._info, self._refuse = (index, value), info, refuse
        on_gpu = info.device.type == "cuda"
        self._captured = on_gpu and torch.cuda.is_current_stream_capturing()
        self._stream = torch.cuda.current_stream(info.device) if on_gpu else None

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
        return dict(zip(("support", "coded", "scale"), contents, strict=True))[name]

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy and pickle what was found, as an ordinary packet."""
        contents = (self.support, self.coded, self.scale)
        return Packet, (self.method, self.shape, self.dtype, *contents)

    def to_bytes(self) -> bytes:
        """See Packet.to_bytes. Of a ternary packet only the finished streams are copied, once."""
        if self._captured:
            self._bytes = None
        if self._bytes is None and _device.packs(self):
            with self._selecting():
                numbers, streams = _device.streams(*self._room, self._info, self.numel)
            count, scale = self._accept(numbers)
            dtype = DTYPES[self.dtype]
            self._bytes = wire.pack_streams(self.shape, dtype, count, scale, streams)
        return super().to_bytes()

    def _look(self) -> tuple[Tensor, Tensor, float]:
        """Wait for the device, and return what it found; raises what it found wrong."""
        with self._selecting():
            numbers = self._info.tolist()
        count, scale = self._accept(numbers)
        if self._captured:
            return self._room[0][:count].clone(), self._room[1][:count].clone(), scale
        if self._stream is not None and self._stream != torch.cuda.current_stream(self.device):
            for tensor in self._room:
                tensor.record_stream(torch.cuda.current_stream(self.device))
        return *narrow(count, *self._room), scale

    def _selecting(self) -> AbstractContextManager[object]:
        """Be on the stream that selects; of a graph, that of whoever replays and looks."""
        if self._stream is None or self._captured:
            return nullcontext()
        return torch.cuda.stream(self._stream)

    def _accept(self, numbers: list[int]) -> tuple[int, float]:
        """Return count and scale of select's info; raises what its status means."""
        count, status, where, mean = numbers
        self._refuse(status, where)
        return count, float_of(mean) if self.method == "ternary" else 0.0


def narrow(count: int, index: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Return the first ``count`` pairs; a copy where that is not all, to free the rest."""
    if count == value.numel():
        return index, value
    return index[:count].clone(), value[:count].clone()


def float_of(bits: int) -> float:
    """Return the non-negative float32 of these bits, also where denormals are being flushed."""
    exponent, mantissa = bits >> 23, bits & 0x7FFFFF
    return math.ldexp(mantissa | (0x800000 if exponent else 0), max(exponent, 1) - 150)
