"""The contents of a packet that holds a count sketch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gcext._native.sketch import sketch_query
from gcext._packet.codes import Code, Contents, register_code

__all__ = ["Sketch"]


@register_code
@dataclass(frozen=True, eq=False)
class Sketch(Code):
    """The count sketch of all elements (Charikar, Chen & Farach-Colton 2002); csrc/sketch.h.

    rows: how many buckets an element is added to, from 1 to 64; its estimate is their median.
    cols: buckets of a row, from 1 to 2^31 - 1.
    seed: of the hashes, any integer. Tables of one seed and size may be added.
    table: float32, rows * cols.

    >>> table = torch.tensor([0.5, 2.0, 0.0, -1.5])
    >>> Sketch(rows=1, cols=4, seed=0, table=table).decode(3)
    tensor([-0.5000,  0.5000,  0.0000])
    """

    rows: int
    cols: int
    seed: int
    table: Tensor

    method = "sketch"

    def __post_init__(self) -> None:
        object.__setattr__(self, "seed", int(self.seed) % 2**64)

    @staticmethod
    def contents(rows: int, cols: int, seed: int, table: Tensor, scale: float) -> Contents:
        """Return the contents of a packet; it has no scale."""
        return Contents(None, Sketch(rows, cols, seed, table))

    @property
    def device(self) -> torch.device:
        """See Code."""
        return self.table.device

    @property
    def kind(self) -> tuple[int, int, int]:
        """What tables that may be added have in common: rows, cols and seed."""
        return self.rows, self.cols, self.seed

    def decode(self, sent: int) -> Tensor:
        """See Code. The estimate of each element."""
        return sketch_query(self.table, None, sent, *self.kind)
