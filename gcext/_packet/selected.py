"""Packets of select whose pairs only the device knows yet: ternary ones are packed there, too."""

from __future__ import annotations

from torch import Tensor

from gcext._packet.deferred import Contents, Late, float_of, narrow
from gcext._packet.device import Pairs

__all__ = ["Selected", "pairs", "ternary_pairs"]


class Selected(Late):
    """A packet of select, docs of Late. Its room is select's index and value.

    A ternary one that nobody looked at goes into bytes by finished streams alone, in one copy.
    """

    __slots__ = ()

    def _pairs(self) -> Pairs:
        if not self._room:  # somebody has looked
            return super()._pairs()
        index, value = self._room
        return Pairs(index, value, self._info, self.numel, self._maker())

    def _told(self, info: list[int]) -> tuple[int, float]:
        if not self._room:
            return super()._told(info)
        count, _, _, mean = self._accept(info)
        return count, float_of(mean)


def pairs(numbers: list[int], index: Tensor, value: Tensor) -> Contents:
    """Return the contents of a packet of select, given its info's numbers and its room."""
    index, value = narrow(numbers[0], index, value)
    return index, value, 0.0


def ternary_pairs(numbers: list[int], index: Tensor, value: Tensor) -> Contents:
    """Return those of a ternary one."""
    return *pairs(numbers, index, value)[:2], float_of(numbers[3])
