"""What a polar packet holds, and how a rotation is cut into chunks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gcext._native import ops
from gcext._packet.codes import Code, register_code, signed
from gcext.polar._design import frozen_set

__all__ = ["Polar", "block_for", "chunks_of", "seed_of"]

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
    result, start = [], 0
    largest, least = max(block, _CHUNK), max(block, 64)
    while start < numel:
        rest = min(numel - start, largest)
        size = max(least, 1 << (rest - 1).bit_length())
        result.append((start, size))
        start += size
    return result


def seed_of(seed: int, chunk: int) -> int:
    """Return the seed of a chunk's rotation."""
    return seed + 0x9E3779B97F4A7C15 * chunk


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
        chunks = chunks_of(sent, self.block) if self.seed is not None else [(0, sent)]
        symbols = sum(size for _, size in chunks)
        frozen = frozen_set(self.block, self.kept, self.soft, self.device)
        bits = ops.polar_decode(self.message, frozen, symbols)
        value = signed(bits, symbols, self.scale, run=chunks[0][1])
        if self.seed is None:
            return value
        for chunk, (start, size) in enumerate(chunks):
            y = value[start : start + size]
            y.copy_(ops.hadamard(y, size, seed_of(self.seed, chunk), True))
        return value[:sent].clone()
