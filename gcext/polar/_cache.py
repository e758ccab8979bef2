"""What was computed of polar codes, kept in memory: so many bytes, the oldest use goes first.

Nothing is written to disk. A file of every set that anyone names is a way to fill the disk of
whoever decodes, and a file that others can write to is a way to change what a message decodes to;
computing an order again costs milliseconds, of the longest blocks seconds, once a process.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, Protocol, TypeVar

__all__ = ["Kept"]


class _Sized(Protocol):
    """A tensor, or what holds one."""

    @property
    def nbytes(self) -> int: ...


_Item = TypeVar("_Item", bound=_Sized)


class Kept(Generic[_Item]):
    """Tensors by key, of at most ``most`` bytes together; safe to use from many threads.

    What goes is freed once nobody holds it. On CUDA whoever uses a tensor on another stream
    than it was made on records that with the allocator.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.nbytes = 0
        self._held: OrderedDict[Hashable, _Item] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Return how many tensors are kept."""
        return len(self._held)

    def get(self, key: Hashable, make: Callable[[], _Item]) -> _Item:
        """Return the tensor of a key, made where it is not kept. Not to be written to.

        Two threads that ask for a new one may both make it.
        """
        with self._lock:
            held = self._held.get(key)
            if held is not None:
                self._held.move_to_end(key)
                return held
        made = make()
        with self._lock:
            if key not in self._held and made.nbytes <= self.most:
                self._held[key] = made
                self.nbytes += made.nbytes
                while self.nbytes > self.most:
                    _, oldest = self._held.popitem(last=False)
                    self.nbytes -= oldest.nbytes
        return made

    def clear(self) -> None:
        """Forget all."""
        with self._lock:
            self._held.clear()
            self.nbytes = 0
