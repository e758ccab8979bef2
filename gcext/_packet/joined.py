"""What the members of a group lie in: one array of indices and one of values for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

from gcext._native.library import DTYPES
from gcext._packet.codes import Contents

if TYPE_CHECKING:
    from gcext._packet.packet import Packet

__all__ = ["DTYPE_OF", "Head", "Joined"]

Head: TypeAlias = "tuple[str, tuple[int, ...], torch.dtype | str, int, float]"

DTYPE_OF: dict[Any, Any] = {name: dtype for dtype, name in DTYPES.items()}


class Joined:
    """The packets of one call or of one message, on the CPU, before anyone asks for one of them.

    What goes through all of them, as to_bytes and add_to_ of their group do, takes the arrays: so a
    model of many small tensors takes little longer than one flat tensor.

    Attributes:
        heads: of each packet, in order, its method ("sparse" or "ternary"), shape, dtype (or its
            name), number of elements and scale: its elements are the next ones of the arrays. Or a
            packet that has arrays of its own.
        index: int32, rising within each packet.
        value: float32, as long.
    """

    __slots__ = ("_ends", "heads", "index", "value")

    def __init__(self, heads: Sequence[Head | Packet], index: Tensor, value: Tensor) -> None:
        self.heads = heads
        self.index = index
        self.value = value
        self._ends: list[int] | None = None

    def packets(self, kind: type[Packet]) -> tuple[Packet, ...]:
        """Return the packets."""
        made = []
        for place, head in enumerate(self.heads):
            if isinstance(head, tuple):
                method, shape, dtype, _, _ = head
                dtype = DTYPE_OF.get(dtype, dtype)
                # Positional arguments: names take a third longer.
                head = kind(method, shape, dtype, None, (), None, None, None, self, place)
            made.append(head)
        return tuple(made)

    def contents(self, place: int) -> Contents:
        """Return the contents of the packet at a place; they share the arrays' memory."""
        if self._ends is None:
            sizes = (head[3] if isinstance(head, tuple) else 0 for head in self.heads)
            self._ends = list(accumulate(sizes))
        head, end = self.heads[place], self._ends[place]
        assert isinstance(head, tuple)
        first = end - head[3]
        return Contents(self.index[first:end], self.value[first:end], head[4])

    @classmethod
    def of(cls, packets: Sequence[Packet]) -> Joined | None:
        """Return the packets of a group, as far as all that lie in one Joined are among them.

        None where there are none, or where others are not on the CPU.
        """
        whole = next((each.joined for each in packets if each.joined is not None), None)
        if whole is None:
            return None
        heads: list[Head | Packet] = []
        places = []
        for each in packets:
            if each.joined is whole:
                places.append(each.place)
                heads.append(whole.heads[each.place])
            elif each.is_resident:
                heads.append(each)
            else:
                return None
        mine = [i for i, head in enumerate(whole.heads) if isinstance(head, tuple)]
        return cls(heads, whole.index, whole.value) if places == mine else None
