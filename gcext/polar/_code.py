"""The coder of gcext.polar: sources to messages and back, without a rotation."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gcext._native import polar as ops
from gcext._native.library import DTYPES, require_device
from gcext.polar._design import frozen_set, sign_weight, tenth

__all__ = ["Coded", "check", "code", "decode", "encode"]

# LLR steps by tenths of the rate. With the linear correction a step is 1/8 nat for signs, whose
# weight is ln((1 - D)/D) at the design distortion. The others were found by experiment: the
# mean magnitude of real values, in nats, suits the rate, and few of them are clipped at 127 steps.
_SIGN_WEIGHT = (1, 6, 9, 12, 14, 17, 20, 23, 28, 35, 50)
_SIGN_CORRECTION = 22
_VALUE_WEIGHT = (12, 12, 14, 16, 18, 20, 20, 20, 23, 26, 26)
_VALUE_CORRECTION = (40, 32, 26, 20, 17, 14, 11, 8, 5, 2, 0)
_BLOCKS = frozenset(1 << level for level in range(5, 21))


@dataclass(frozen=True)
class Coded:
    """What ``encode`` returns: a message and what it takes to read it.

    Attributes:
        message: uint8, the ``kept`` bits of every block; rows of 64 blocks, see the wire format.
        shape: of the source, and of what decode returns.
        numel: number of symbols.
        block: N, symbols of a block.
        kept: K, bits of a block; the rate is kept/block.
        soft: the source held real values, for which other indices are free.
        packed: the source held 8 symbols a byte, and so will the decoded one.
    """

    message: Tensor
    shape: tuple[int, ...]
    numel: int
    block: int
    kept: int
    soft: bool
    packed: bool

    @property
    def nbytes(self) -> int:
        """Length of the message in bytes."""
        return self.message.numel()


def encode(
    source: Tensor,
    rate: float = 0.5,
    block: int = 1024,
    soft: bool = False,
    packed: bool = False,
    linear: bool = True,
    list_size: int = 1,
    seed: int | None = None,
) -> Coded:
    """Code a binary source, or the signs of real values by their weight, at ``rate`` bits a symbol.

    K = round(rate*block) bits are kept of each block. The last block is padded with symbols that
    carry no weight. Deterministic: the same message on every processor, any number of threads and
    CUDA. A soft source on a GPU is waited for, as the call must know that it is finite.

    Args:
        source: any shape; bool or integers, where a non-zero is a one. soft: a float dtype, where
            a negative value is a one and its magnitude its weight. packed: uint8, each byte 8
            symbols, lowest bit first.
        rate: K/N in [0, 1].
        block: N, a power of two from 2^5 to 2^20. Longer is better and slower: at rate 0.5 the
            distortion is 0.132 at 256, 0.125 at 1024, 0.1185 at 8192; the bound is 0.110.
        linear: correct min-sum piecewise linearly. Without it the distortion is about 0.001 higher
            and the speed a third to two thirds.
        list_size: follow the L best candidates instead of one, at most 32 (Tal & Vardy 2015), twice
            over, on the CPU only: at rate 0.5 and block 1024 0.119 with 4, 0.116 with 32, some ten
            thousand times slower. A longer block is the better bargain.
        seed: decide at random with the probabilities that the decoder believes in, as the theorem
            of Korada & Urbanke has it, instead of for the likelier value. Always worse; here to
            reproduce published curves. Reproducible: drawn by counter. On the CPU only.

    Raises:
        ValueError: rate, block or list_size out of range, a source of the wrong dtype, a value not
            finite, a seed beside a list, either of them on a GPU.

    >>> import gcext, torch
    >>> source = torch.tensor([0, 1, 1, 0]).repeat(256)
    >>> coded = gcext.polar.encode(source, rate=0.5)
    >>> coded.nbytes, gcext.polar.decode(coded).shape
    (64, torch.Size([1024]))
    """
    check(rate, block)
    if not 1 <= list_size <= 32:
        raise ValueError(f"polar: list_size must be in [1, 32], got {list_size}. Choose a size.")
    if seed is not None and list_size > 1:
        raise ValueError(f"polar: a list of {list_size} takes no seed, got {seed}. Drop one.")
    require_device(source, "polar")
    if (list_size > 1 or seed is not None) and source.device.type != "cpu":
        raise ValueError(
            f"polar: a list or a seed needs a source on the CPU, got {source.device}. Use .cpu()."
        )
    symbols, numel = _prepare(source, soft, packed)
    kept = round(rate * block)
    if list_size > 1 or seed is not None:
        fine, frozen = _fine_weight(kept, block, soft), frozen_set(block, kept, soft)
        message, bad = ops.polar_search(symbols, frozen, kept, numel, fine, list_size, seed)
    else:
        message, bad, _ = code(symbols, numel, block, kept, soft, linear)
    if soft and (where := int(bad)) >= 0:
        got = float(symbols[where])
        raise ValueError(
            f"polar: source must be finite, got {got} at index {where}. "
            "Skip the step or clip the gradient."
        )
    return Coded(message, tuple(source.shape), numel, block, kept, soft, packed)


def check(rate: float, block: int) -> None:
    """Raise ValueError unless there is a code of that rate and block."""
    if not 0 <= rate <= 1:
        raise ValueError(f"polar: rate must be in [0, 1], got {rate:g}. Choose bits a symbol.")
    if block not in _BLOCKS:
        raise ValueError(
            f"polar: block must be a power of two in [2^5, 2^20], got {block}. Round it."
        )


def code(
    source: Tensor,
    numel: int,
    block: int,
    kept: int,
    soft: bool,
    linear: bool = True,
    symbols: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the message of what _prepare gives, where it is not finite, or -1, and the symbols.

    symbols: whether to return what the message decodes to, packed. Waits for nothing.
    """
    frozen = frozen_set(block, kept, soft, source.device)
    weight, correction = _steps(kept, block, soft, linear)
    return ops.polar_encode(source, frozen, kept, numel, weight, correction, symbols)


def decode(coded: Coded) -> Tensor:
    """Return the symbols that a coded source stands for: 0/1 uint8 in the source's shape.

    For a packed source the bytes of eight symbols each.

    >>> import gcext, torch
    >>> source = torch.tensor([3.0, -1.0, 2.0])
    >>> gcext.polar.decode(gcext.polar.encode(source, rate=1.0, soft=True))
    tensor([0, 1, 0], dtype=torch.uint8)
    """
    frozen = frozen_set(coded.block, coded.kept, coded.soft, coded.message.device)
    symbols = ops.polar_decode(coded.message, frozen, coded.numel)
    if not coded.packed:
        symbols = ops.polar_unpack(symbols, coded.numel)
    return symbols.view(coded.shape)


def _steps(kept: int, block: int, soft: bool, linear: bool) -> tuple[float, int]:
    """Return the weight of a sign or of the mean magnitude, and the correction, in LLR steps."""
    at = tenth(kept, block)
    if soft:
        return _VALUE_WEIGHT[at], _VALUE_CORRECTION[at] if linear else 0
    return (_SIGN_WEIGHT[at], _SIGN_CORRECTION) if linear else (1, 0)


def _fine_weight(kept: int, block: int, soft: bool) -> int:
    """Return the weight of a sign or of the mean magnitude in units of 1/128 nat."""
    if not soft:
        return sign_weight(block, kept, 128)
    weight, correction = _steps(kept, block, True, True)
    # c steps are 4 ln 2 nats: 128 * 4 * ln 2 = 355.
    return int(355 * weight) // max(correction, 2)


def _prepare(source: Tensor, soft: bool, packed: bool) -> tuple[Tensor, int]:
    """Return float32 values, or packed symbols, flat and contiguous; and the number of symbols."""
    if soft and packed:
        raise ValueError("polar: a soft source must not be packed, got both. Choose one.")
    flat = source.detach().reshape(-1)
    if soft:
        if source.dtype not in DTYPES:
            raise ValueError(f"polar: a soft source must be float, got {source.dtype}. Convert it.")
        return flat.to(torch.float32).contiguous(), flat.numel()
    if source.dtype.is_floating_point or source.dtype.is_complex:
        raise ValueError(
            f"polar: source must be bool or integers, got {source.dtype}. Or pass soft=True."
        )
    if packed:
        if source.dtype != torch.uint8:
            raise ValueError(f"polar: packed must be uint8, got {source.dtype}. View it as such.")
        return flat.contiguous(), 8 * flat.numel()
    symbols = flat if flat.dtype == torch.uint8 else (flat != 0).view(torch.uint8)
    return ops.polar_pack(symbols.contiguous()), flat.numel()
