"""What a polar packet holds, and how a rotation is cut into chunks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gcext._native import polar as ops
from gcext._packet.codes import Code, register_code, signed
from gcext.polar._design import frozen_set

__all__ = ["Polar", "block_for", "chunks_of", "layout_of"]

_CHUNK = 1 << 16
_ANY = 1 << 13  # the longest block that a packet of few symbols may have


def block_for(block: int, numel: int) -> int:
    """Return the block to code ``numel`` symbols of a packet in.

    That is the block which was asked for, but above 2^13 at most the least power of two that holds
    the symbols: whoever decodes a long block works on all of it, and has to design it.

    >>> block_for(1024, 5), block_for(1 << 20, 5), block_for(1 << 20, 100_000)
    (1024, 8192, 131072)
    """
    return min(block, max(_ANY, 1 << max(numel - 1, 0).bit_length()))


def chunks_of(numel: int, block: int) -> list[tuple[int, int]]:
    """Return (start, size) of the chunks: 2^16 or the block, the last one a smaller power of two.

    >>> chunks_of(70_000, 1024)
    [(0, 65536), (65536, 8192)]
    """
    size, least = layout_of(block)
    symbols = ops.layout(numel, size, least)[1]
    return [(start, min(size, symbols - start)) for start in range(0, symbols, size)]


def layout_of(block: int) -> tuple[int, int]:
    """Return the size of a rotation's chunks, and the least that the last one has."""
    return max(block, _CHUNK), max(block, 64)


@register_code
@dataclass(frozen=True, eq=False)
class Polar(Code):
    """Signs within R bits an element, by a polar code (gcext.polar); plus or minus a scale.

    message: uint8, ``kept`` bits for each ``block`` symbols, as gcext.polar.encode gives it.
    block, kept, soft: of the code; see gcext.polar.Coded.
    scale: float32, at least 0, of shape (1,); where rotated one a chunk.
    seed: of the rotation that the values are to be turned back by, any integer; None: no rotation.
    """

    message: Tensor
    block: int
    kept: int
    soft: bool
    scale: Tensor
    seed: int | None = None

    method = "polar"

    def __post_init__(self) -> None:
        if self.seed is not None:
            object.__setattr__(self, "seed", int(self.seed) % 2**64)

    @property
    def device(self) -> torch.device:
        """See Code."""
        return self.message.device

    def decode(self, sent: int) -> Tensor:
        """See Code."""
        if sent == 0:  # no frozen set is needed
            return self.scale.new_zeros(0)
        frozen = frozen_set(self.block, self.kept, self.soft, self.device)
        if self.seed is None:
            symbols = ops.polar_decode(self.message, frozen, sent)
            return signed(symbols, sent, self.scale, run=sent)
        sizes = layout_of(self.block)
        symbols = ops.polar_decode(self.message, frozen, ops.layout(sent, *sizes)[1])
        return ops.rotate_back(symbols, self.scale, sent, *sizes, self.seed)
