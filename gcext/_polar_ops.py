"""The polar operators, typed, and what torch.compile must know of them; csrc/polar.h."""

from __future__ import annotations

import torch
from torch import Tensor

from gcext import _lib  # noqa: F401  (loads the operators)

__all__ = ["chunks_of", "decode", "encode", "hadamard", "pack", "search", "seed_of", "unpack"]

_CHUNK = 1 << 16


def encode(
    source: Tensor, frozen: Tensor, free: int, numel: int, weight: float, correction: int
) -> tuple[Tensor, Tensor]:
    """Return the message, packed uint8, and the index of the first value that is not finite or -1.

    source: uint8, 8 symbols each, lowest bit first, or float32 values. frozen: uint8 of shape (N,)
    with ``free`` zeros. weight: LLR steps of a sign, or of the mean magnitude. correction: four
    times the steps of ln 2, or 0 for min-sum.
    """
    message, bad = torch.ops.gcext.polar_encode.default(
        source, frozen, free, numel, weight, correction
    )
    return message, bad


def search(
    source: Tensor,
    frozen: Tensor,
    free: int,
    numel: int,
    weight: int,
    list_size: int,
    seed: int | None,
) -> tuple[Tensor, Tensor]:
    """Return what encode does, by a list or (with a seed) by randomised rounding.

    weight: of a sign, or of a block's mean magnitude, in units of 1/128 nat.
    """
    message, bad = torch.ops.gcext.polar_search.default(
        source, frozen, free, numel, weight, list_size, seed
    )
    return message, bad


def decode(message: Tensor, frozen: Tensor, numel: int) -> Tensor:
    """Return the codewords' first numel symbols, packed uint8."""
    out: Tensor = torch.ops.gcext.polar_decode.default(message, frozen, numel)
    return out


def pack(symbols: Tensor) -> Tensor:
    """Return uint8 symbols (any non-zero is a one) as packed uint8, lowest bit first."""
    out: Tensor = torch.ops.gcext.polar_pack.default(symbols)
    return out


def unpack(packed: Tensor, numel: int) -> Tensor:
    """Return numel symbols, uint8 0 or 1, of packed uint8."""
    out: Tensor = torch.ops.gcext.polar_unpack.default(packed, numel)
    return out


def hadamard(values: Tensor, size: int, seed: int, inverse: bool) -> Tensor:
    """Return float32 values rotated in chunks of ``size``, or rotated back; csrc/hadamard.h."""
    out: Tensor = torch.ops.gcext.hadamard.default(values, size, seed, inverse)
    return out


def _bytes(bits: int) -> int:
    return (bits + 7) // 8


def _message_fake(source: Tensor, frozen: Tensor, free: int, numel: int) -> tuple[Tensor, Tensor]:
    blocks = (numel + frozen.numel() - 1) // frozen.numel()
    message = source.new_empty((_bytes(free * blocks),), dtype=torch.uint8)
    return message, source.new_empty((1,), dtype=torch.int64)


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
    """Return the seed of a chunk's rotation, a signed 64-bit integer."""
    return (seed + 0x9E3779B97F4A7C15 * chunk + 2**63) % 2**64 - 2**63


@torch.library.register_fake("gcext::polar_encode")  # type: ignore[untyped-decorator]
def _encode_fake(
    source: Tensor, frozen: Tensor, free: int, numel: int, weight: float, correction: int
) -> tuple[Tensor, Tensor]:
    return _message_fake(source, frozen, free, numel)


@torch.library.register_fake("gcext::polar_search")  # type: ignore[untyped-decorator]
def _search_fake(
    source: Tensor,
    frozen: Tensor,
    free: int,
    numel: int,
    weight: int,
    list_size: int,
    seed: int | None,
) -> tuple[Tensor, Tensor]:
    return _message_fake(source, frozen, free, numel)


@torch.library.register_fake("gcext::polar_decode")  # type: ignore[untyped-decorator]
def _decode_fake(message: Tensor, frozen: Tensor, numel: int) -> Tensor:
    return message.new_empty((_bytes(numel),))


@torch.library.register_fake("gcext::polar_pack")  # type: ignore[untyped-decorator]
def _pack_fake(symbols: Tensor) -> Tensor:
    return symbols.new_empty((_bytes(symbols.numel()),))


@torch.library.register_fake("gcext::polar_unpack")  # type: ignore[untyped-decorator]
def _unpack_fake(packed: Tensor, numel: int) -> Tensor:
    return packed.new_empty((numel,))


@torch.library.register_fake("gcext::polar_order")  # type: ignore[untyped-decorator]
def _order_fake(source: Tensor, block: int) -> Tensor:
    return source.new_empty((block,), dtype=torch.int32)


@torch.library.register_fake("gcext::hadamard")  # type: ignore[untyped-decorator]
def _hadamard_fake(values: Tensor, size: int, seed: int, inverse: bool) -> Tensor:
    return torch.empty_like(values)
