"""Packets of select whose pairs only the device knows yet: ternary ones are packed there, too."""

from __future__ import annotations

from torch import Tensor

from gcext import _device, wire
from gcext._late import Contents, Late, float_of, narrow
from gcext.packet import DTYPES

__all__ = ["Selected", "pairs", "ternary_pairs"]


class Selected(Late):
    """A packet of select, docs of Late. Its room is select's index and value.

    A ternary one that nobody looked at goes into bytes by finished streams alone, in one copy.
    """

    __slots__ = ()

    def to_bytes(self) -> bytes:
        """See Packet.to_bytes."""
        if not (self._unseen and _device.packs(self)):
            return super().to_bytes()
        if self._captured or self._bytes is None:
            with self._encoding():
                index, value = self._room
                numbers, streams = _device.streams(index, value, self._info, self.numel)
            count, _, _, mean = self._accept(numbers)
            dtype = DTYPES[self.dtype]
            self._bytes = wire.pack_streams(self.shape, dtype, count, float_of(mean), streams)
        return self._bytes


def pairs(numbers: list[int], index: Tensor, value: Tensor) -> Contents:
    """Return the contents of a packet of select, given its info's numbers and its room."""
    index, value = narrow(numbers[0], index, value)
    return index, value, 0.0


def ternary_pairs(numbers: list[int], index: Tensor, value: Tensor) -> Contents:
    """Return those of a ternary one."""
    return *pairs(numbers, index, value)[:2], float_of(numbers[3])
