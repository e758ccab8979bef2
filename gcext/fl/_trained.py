"""The part of a model that clients train and both sides send: all of it, or a seeded choice."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from gcext.fl._data import Data
from gcext.fl._models import initial, shapes
from gcext.fl._settings import Stream, generator

__all__ = ["Trained"]


class Trained:
    """Of each tensor at most ``most`` elements, drawn by the seed; 0: all.

    So small tensors, as biases and first layers, are trained whole, and of large ones a share. The
    other elements keep their initial values, which everyone derives from the seed.

    Attributes:
        start: the initial values of the elements that are trained, float32 (d,), in the order of
            the flat weights.
        mask: float32 (numel,), 1 where an element is trained; None: all are.
    """

    def __init__(self, data: str | Data, seed: int, most: int = 0) -> None:
        self._initial = initial(data, seed)
        self._index: Tensor | None = None
        self.mask: Tensor | None = None
        if most > 0:
            rng = generator(seed, Stream.PART)
            chosen, first = [], 0
            for shape in shapes(data):
                size = torch.Size(shape).numel()
                chosen.append(first + np.sort(rng.choice(size, min(size, most), replace=False)))
                first += size
            self._index = torch.from_numpy(np.concatenate(chosen))
            self.mask = torch.zeros(first).index_fill_(0, self._index, 1.0)
        self.start = self.part(self._initial)

    def part(self, flat: Tensor) -> Tensor:
        """Return the elements that are trained, of flat weights or of their update."""
        return flat if self._index is None else flat[self._index]

    def whole(self, part: Tensor) -> Tensor:
        """Return the flat weights of the model whose trained elements these are."""
        return part if self._index is None else self._initial.index_copy(0, self._index, part)
