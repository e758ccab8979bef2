"""Operators of polar codes and their rotation, csrc/polar and csrc/rotate.h; see _native.ops."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gcext._native.ops import bytes_for, fake, signed

__all__ = ["layout", "polar_decode", "polar_encode", "polar_order", "polar_pack", "polar_search"]
__all__ += ["polar_unpack", "rotate", "rotate_back", "rotate_fit", "rotate_scale"]

_ops = torch.ops.gcext


def polar_encode(
    source: Tensor,
    frozen: Tensor,
    free: int,
    numel: int,
    weight: float,
    correction: int,
    symbols: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the message, packed uint8, the index of the first non-finite value or -1, and symbols.

    source: uint8, 8 symbols each, lowest bit first, or float32 values. frozen: uint8 of shape (N,)
    with ``free`` zeros. weight: LLR steps of a sign, or of the mean magnitude. correction: four
    times the steps of ln 2, or 0 for min-sum. symbols: return what polar_decode does of the
    message, which the encoder knows; else nothing.
    """
    message, bad, packed = _ops.polar_encode.default(
        source, frozen, free, numel, weight, correction, symbols
    )
    return message, bad, packed


def polar_search(
    source: Tensor,
    frozen: Tensor,
    free: int,
    numel: int,
    weight: int,
    list_size: int,
    seed: int | None,
) -> tuple[Tensor, Tensor]:
    """Return what polar_encode does, by a list or (with a seed) by randomised rounding.

    weight: of a sign, or of a block's mean magnitude, in units of 1/128 nat.
    """
    message, bad = _ops.polar_search.default(
        source, frozen, free, numel, weight, list_size, None if seed is None else signed(seed)
    )
    return message, bad


def _fake_message(
    source: Tensor, frozen: Tensor, free: int, numel: int, *_: Any
) -> tuple[Tensor, Tensor]:
    blocks = -(-numel // frozen.numel())
    message = source.new_empty((bytes_for(free * blocks),), dtype=torch.uint8)
    return message, source.new_empty((1,), dtype=torch.int64)


def _fake_encode(
    source: Tensor, frozen: Tensor, free: int, numel: int, weight: float, step: int, symbols: bool
) -> tuple[Tensor, ...]:
    packed = source.new_empty((bytes_for(numel) if symbols else 0,), dtype=torch.uint8)
    return *_fake_message(source, frozen, free, numel), packed


fake("polar_encode", _fake_encode)
fake("polar_search", _fake_message)


def polar_decode(message: Tensor, frozen: Tensor, numel: int) -> Tensor:
    """Return the codewords' first numel symbols, packed uint8."""
    out: Tensor = _ops.polar_decode.default(message, frozen, numel)
    return out


fake("polar_decode", lambda message, frozen, n: message.new_empty((bytes_for(n),)))


def polar_pack(symbols: Tensor) -> Tensor:
    """Return uint8 symbols (any non-zero is a one) as packed uint8, lowest bit first."""
    out: Tensor = _ops.polar_pack.default(symbols)
    return out


fake("polar_pack", lambda symbols: symbols.new_empty((bytes_for(symbols.numel()),)))


def polar_unpack(packed: Tensor, numel: int) -> Tensor:
    """Return numel symbols, uint8 0 or 1, of packed uint8."""
    out: Tensor = _ops.polar_unpack.default(packed, numel)
    return out


fake("polar_unpack", lambda packed, numel: packed.new_empty((numel,)))


def polar_order(density: Tensor, block: int) -> Tensor:
    """Return a block's indices, int32, the most reliable first, for a channel's LLR density."""
    out: Tensor = _ops.polar_order.default(density, block)
    return out


fake("polar_order", lambda x, block: x.new_empty((block,), dtype=torch.int32))


# --- rotate: the randomised Hadamard rotation and the estimate built on it, csrc/rotate.h ---
# size, least: of the chunks, powers of two: each of ``size`` values but the last, which is of
# ``least`` at least. symbols: uint8, a bit for each value of all chunks, their padding included.


def layout(numel: int, size: int, least: int) -> tuple[int, int]:
    """Return how many chunks there are of numel values, and the values of all, with padding."""
    chunks = -(-numel // size)
    if chunks == 0:
        return 0, 0
    rest = numel - (chunks - 1) * size
    last = least
    while last < rest:
        last *= 2
    return chunks, (chunks - 1) * size + last


def rotate(values: Tensor, size: int, least: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return the values rotated, float32, padding included, and each chunk's |x|^2, float64."""
    rotated, norm = _ops.rotate.default(values, size, least, signed(seed))
    return rotated, norm


def _fake_rotate(values: Tensor, size: int, least: int, seed: int) -> tuple[Tensor, Tensor]:
    chunks, symbols = layout(values.numel(), size, least)
    return values.new_empty((symbols,)), values.new_empty((chunks,), dtype=torch.float64)


fake("rotate", _fake_rotate)


def rotate_scale(
    rotated: Tensor, symbols: Tensor, norm: Tensor, bad: Tensor, info: Tensor, size: int
) -> Tensor:
    """Return the scale of each chunk, float32, with which its symbols are an unbiased estimate.

    bad: polar_encode's. info: gets the status ROTATED, where it has none, if values overflowed.
    """
    scale: Tensor = _ops.rotate_scale.default(rotated, symbols, norm, bad, info, size)
    return scale


fake("rotate_scale", lambda rotated, symbols, norm, *_: rotated.new_empty(norm.shape))


def rotate_fit(
    values: Tensor, symbols: Tensor, scale: Tensor, size: int, least: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Return the scales of least squares, float32, and the estimate with them, of values' shape.

    scale: float32, rotate_scale's.
    """
    fitted, estimate = _ops.rotate_fit.default(values, symbols, scale, size, least, signed(seed))
    return fitted, estimate


fake("rotate_fit", lambda values, s, scale, *_: (torch.empty_like(scale), torch.empty_like(values)))


def rotate_back(
    symbols: Tensor, scale: Tensor, numel: int, size: int, least: int, seed: int
) -> Tensor:
    """Return the estimate of numel values, float32: symbols times the scale, turned back."""
    values: Tensor = _ops.rotate_back.default(symbols, scale, numel, size, least, signed(seed))
    return values


fake("rotate_back", lambda symbols, scale, numel, *_: scale.new_empty((numel,)))
