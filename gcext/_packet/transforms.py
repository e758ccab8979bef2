"""Value codes of a whole tensor seen as a matrix: coefficients of a transform, low-rank factors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

import gcext._wire as _wire
from gcext._native import ops
from gcext._native.dct import dct_values
from gcext._packet.codes import Code, Contents, register_code

__all__ = ["Dct", "LowRank", "dct_view", "lowrank_view", "product"]

_CHUNK = 1 << 16  # elements of a product that stay in a CPU's cache


def dct_view(shape: Sequence[int]) -> tuple[int, int]:
    """Return the matrix that Dct sees: all dimensions but the last by the last.

    >>> dct_view((64, 3, 3, 5)), dct_view((7,)), dct_view(())
    ((576, 5), (1, 7), (1, 1))
    """
    return math.prod(shape[:-1]), shape[-1] if shape else 1


def lowrank_view(shape: Sequence[int]) -> tuple[int, int]:
    """Return the matrix that LowRank sees: the first dimension by all others.

    >>> lowrank_view((64, 3, 3, 5)), lowrank_view((7,)), lowrank_view(())
    ((64, 45), (7, 1), (1, 1))
    """
    return shape[0] if shape else 1, math.prod(shape[1:])


@register_code
@dataclass(frozen=True, eq=False)
class Dct(Code):
    """Some coefficients of the cosine transform of a matrix's blocks; csrc/dct.h.

    rows, cols: of the matrix, see ``dct_view``.
    block: the largest block, of either dimension, from 1 to 64.
    ternary: whether all coefficients are plus or minus one scale.
    index: of the coefficients, rising: int32, int64 where there are 2^31 elements or more.
    value: float32, as long; not 0, and at most 2^116 in magnitude.
    scale: where ``ternary``, and there are any, their magnitude; else 0.
    by_block: whether the indices travel as one number a block, the block code of
        docs/wire-format.md.

    >>> Dct(1, 4, 64, False, torch.tensor([0], dtype=torch.int32), torch.tensor([2.0])).decode(4)
    tensor([1., 1., 1., 1.])
    """

    rows: int
    cols: int
    block: int
    ternary: bool
    index: Tensor
    value: Tensor
    scale: float = 0.0
    by_block: bool = False

    method = "dct"

    @staticmethod
    def contents(
        rows: int,
        cols: int,
        block: int,
        ternary: bool,
        most: int,
        index: Tensor,
        value: Tensor,
        scale: float,
    ) -> Contents:
        """Return the contents of a packet of at most ``most`` coefficients a block."""
        by_block = _by_block(rows, cols, block, most, len(index))
        return Contents(None, Dct(rows, cols, block, ternary, index, value, scale, by_block))

    @property
    def device(self) -> torch.device:
        """See Code."""
        return self.value.device

    def decode(self, sent: int) -> Tensor:
        """See Code."""
        return dct_values(self.index, self.value, self.rows, self.cols, self.block)


def _by_block(rows: int, cols: int, block: int, most: int, k: int) -> bool:
    """Return whether k coefficients, ``most`` a block or fewer, are shorter as one number a block.

    A number takes its bits whatever it counts: those of blocks with all their coefficients are half
    a bit each shorter than gaps, so no more than one in 16 may be missing.
    """
    blocks = -(-rows // block) * -(-cols // block)
    whole = min(most * blocks, rows * cols)
    return 0 < 15 * whole <= 16 * k and _wire.fits_blocks(rows, cols, block, most)


@register_code
@dataclass(frozen=True, eq=False)
class LowRank(Code):
    """The product of two thin matrices, left times the transpose of right.

    rows, cols: of the product, see ``lowrank_view``.
    rank: columns of either factor, at most the smaller of rows and cols.
    left, right: float32, flat, row by row; magnitudes at most 2 and 2^95.

    >>> LowRank(2, 2, 1, torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])).decode(4)
    tensor([3., 4., 6., 8.])
    """

    rows: int
    cols: int
    rank: int
    left: Tensor
    right: Tensor

    method = "lowrank"

    @property
    def device(self) -> torch.device:
        """See Code."""
        return self.left.device

    def decode(self, sent: int) -> Tensor:
        """See Code."""
        left = self.left.view(self.rows, self.rank)
        return product(left, self.right.view(self.cols, self.rank)).view(-1)


def product(left: Tensor, right: Tensor) -> Tensor:
    """Return left times the transpose of right, float32: the same bits on every device.

    Each element is the sum over rising r of left[i, r]*right[j, r], all operations rounded. That
    is little work where the rank is low, and a matrix product's order of summation, or its TF32,
    would let two ends decode different values.
    """
    (rows, rank), cols = left.shape, len(right)
    out = ops.new_floats(left, rows * cols).view(rows, cols)
    if rank == 0 or out.numel() == 0:
        return out.zero_()
    columns = right.t().contiguous()
    step = max(_CHUNK // cols, 1) if left.is_cpu else rows
    for first in range(0, rows, step):
        part, factor = out[first : first + step], left[first : first + step]
        torch.mul(factor[:, :1], columns[0], out=part)
        for r in range(1, rank):
            part += factor[:, r : r + 1] * columns[r]
    return out
