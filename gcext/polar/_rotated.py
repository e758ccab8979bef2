"""Unbiased estimates by polar codes: rotate, code the signs by weight, scale.

    y = R x            R: two rounds of random signs and Hadamard transform, chunk by chunk
    c = +-1            the codeword of y, R bits a value, drawn to agree where |y| is large
    estimate of x      s R^-1 c,  s = |x|^2 / <y, c>

With a uniformly random rotation the estimate is unbiased whatever the coder (Vargaftik et al. 2022,
EDEN, arXiv:2108.08842). Two rounds of Hadamard are measured to be as good, on dense vectors and on
those of two or three non-zeros; that is not proved. One round is biased there. docs/polar.md has
the figures.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gcext._native import polar as ops
from gcext._native.library import DTYPES, require_device
from gcext._native.status import is_ok
from gcext.polar import _code as coder
from gcext.polar._values import Polar, layout_of

__all__ = ["Rotated", "code_rotated", "encode_rotated", "fit_scale"]


@dataclass(frozen=True)
class Rotated:
    """What ``encode_rotated`` returns.

    Attributes:
        coded: the message of the rotated values.
        scale: float32 on the CPU, s of each chunk.
        seed: of the rotation.
        shape: of the tensor.
    """

    coded: coder.Coded
    scale: Tensor
    seed: int
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes that must travel, of the message, the scales (four each) and the seed (eight)."""
        return self.coded.nbytes + 4 * self.scale.numel() + 8

    def to_dense(self) -> Tensor:
        """Return the estimate, float32 in the tensor's shape."""
        made = self.coded
        scale = self.scale.to(made.message.device)
        code = Polar(made.message, made.block, made.kept, made.soft, scale, self.seed)
        return code.decode(math.prod(self.shape)).view(self.shape)


def encode_rotated(tensor: Tensor, rate: float = 0.5, block: int = 1024, *, seed: int) -> Rotated:
    """Code a tensor at ``rate`` bits an element so that its estimate is unbiased over seeds.

    For senders that keep no residual. The variance is about 0.54 to 0.57 of that of signs of a
    random share of the rotated elements at equal bytes. Under error feedback sparse ternary
    compression trains better.

    Args:
        tensor: any shape and float dtype; converted to float32 first.
        rate, block: see ``encode``. Chunks of 2^16 elements (or a block, if longer) are rotated
            for themselves; the last one is padded to a power of two.
        seed: of the rotation; a new one every time, or the estimates' errors add up.

    Raises:
        ValueError: rate or block out of range, a dtype that is not a float, a value not finite.

    >>> import gcext, torch
    >>> x = torch.tensor([1.0, 0.5] + [0.0] * 1022)
    >>> mean = sum(gcext.polar.encode_rotated(x, seed=s).to_dense() for s in range(400)) / 400
    >>> bool((mean - x).norm() < 0.1)
    True
    """
    coder.check(rate, block)
    if tensor.dtype not in DTYPES:
        raise ValueError(f"polar: tensor must be float, got {tensor.dtype}. Convert it.")
    require_device(tensor, "polar")
    flat = tensor.detach().reshape(-1).to(torch.float32)
    if not bool(torch.isfinite(flat).all()):
        where = int(torch.nonzero(~torch.isfinite(flat))[0, 0])
        raise ValueError(
            f"polar: tensor must be finite in float32, got {float(flat[where])} at index {where}. "
            "Skip the step or clip the gradient."
        )
    info = torch.zeros(4, dtype=torch.int64, device=flat.device)
    code, _ = code_rotated(flat, rate, block, seed, info)
    if not bool(is_ok(info)):
        raise ValueError(
            "polar: tensor must be finite in float32 when rotated, got an overflow. "
            "Scale the tensor down."
        )
    symbols = ops.layout(len(flat), *layout_of(block))[1]
    coded = coder.Coded(code.message, (symbols,), symbols, block, code.kept, True, False)
    return Rotated(coded, code.scale.cpu(), seed, tuple(tensor.shape))


def code_rotated(
    flat: Tensor, rate: float, block: int, seed: int, info: Tensor
) -> tuple[Polar, Tensor]:
    """Return the code of flat, finite, float32 values, and its symbols.

    Where rotating made a value infinite, ``info`` gets the status ROTATED: this waits for nothing.
    """
    size, least = layout_of(block)
    y, norm = ops.rotate(flat, size, least, seed)
    kept = round(rate * block)
    message, bad, symbols = coder.code(y, len(y), block, kept, soft=True, symbols=True)
    scale = ops.rotate_scale(y, symbols, norm, bad, info, size)
    return Polar(message, block, kept, True, scale, seed), symbols


def fit_scale(flat: Tensor, code: Polar, symbols: Tensor) -> tuple[Polar, Tensor]:
    """Return the code with the scales of least squares, and what it decodes to."""
    assert code.seed is not None
    scale, estimate = ops.rotate_fit(flat, symbols, code.scale, *layout_of(code.block), code.seed)
    return replace(code, scale=scale), estimate
