"""Codecs that send every element in a bit or a few: sign, QSGD, TernGrad; csrc/quantize.h."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from functools import partial

from gcext._codecs.base import Codec, register_codec
from gcext._codecs.input import CodecInput
from gcext._native import ops
from gcext._packet.codes import Levels, Levels2, Signs
from gcext._packet.packet import Packet
from gcext._spec import option

__all__ = ["QSGD", "Sign", "TernGrad", "contraction_of"]

# What is held back may have to wait for 1 + omega packets, as with random-k of p = 1/(1 + omega).
_MOST_VARIANCE = 1e4


def contraction_of(name: str, omega: float, size: int) -> float:
    """Return the constant of levels by least squares, of buckets of ``size`` elements.

    omega: bounds the squared error of the levels, scaled by their norm, in squared norms.
    Raises ValueError where it is above 10^4.
    """
    if omega > _MOST_VARIANCE:
        raise ValueError(
            f"{name}: with a residual the variance must be at most {_MOST_VARIANCE:.0f} "
            f"squared norms, got {omega:.0f} for a bucket of {size} elements. "
            "Choose smaller buckets or more levels, or keep no residual."
        )
    return 1 / (1 + omega)


@register_codec
@dataclass(frozen=True)
class Sign(Codec):
    """One bit an element: plus or minus the mean magnitude of all; a zero counts as positive.

    With feedback EF-signSGD (Karimireddy et al. 2019); without, signSGD with a scale (Bernstein et
    al. 2018). The mean is the exact sum rounded once.

    A contraction by ``|x|_1^2 / (n |x|_2^2)`` of the sum x, .64 where it is normal, and never by
    less than ``1/n`` (Karimireddy et al. 2019, arXiv:1901.09847).
    """

    name = "sign"
    reads_half = True

    def contraction(self, n: int) -> float:
        """See Codec."""
        return 1 / max(n, 1)

    @property
    def defers_residual(self) -> bool:
        """See Codec."""
        return True

    def encode_input(self, acc: CodecInput, seed: int) -> Packet:
        """See Codec."""
        bits, info = ops.sign(acc.tensor, acc.memory, acc.out, acc.decay, acc.sent, acc.next)
        return Packet.from_kernel("sign", acc.op, acc.source, info, Signs.contents, (bits,))


class _Levels(Codec):
    """Each element as a whole number of steps of its bucket's norm, rounded at random."""

    bucket: int
    stochastic = True
    reads_half = True

    @abstractmethod
    def _variance(self, size: int) -> float:
        """Return omega of ``size`` elements: a bound on the squared error in squared norms."""

    def contraction(self, n: int) -> float:
        """See Codec. Refuses buckets whose omega is above 10^4."""
        size = max(min(self.bucket or n, n), 1)
        return contraction_of(self.name, self._variance(size), size)

    @abstractmethod
    def _norm(self) -> tuple[int, bool, float]:
        """Return the steps; whether the norm is the largest magnitude; where that is clipped."""

    def encode_input(self, acc: CodecInput, seed: int) -> Packet:
        """See Codec."""
        steps, largest, clip = self._norm()
        fit = acc.out is not None
        if fit:
            self.contraction(acc.tensor.numel())
        source = acc.tensor, acc.memory, acc.out, acc.decay
        norms, at, level, info = ops.levels(*source, steps, self.bucket, largest, clip, fit, seed)
        bucket = self.bucket if self.bucket < acc.tensor.numel() else 0
        code = Levels if steps == 1 else Levels2
        finish = partial(code.contents, steps, bucket)
        return Packet.from_kernel(
            code.method, acc.op, acc.source, info, finish, whole=(norms,), cut=(at, level)
        )


@register_codec
@dataclass(frozen=True)
class QSGD(_Levels):
    """Stochastic levels of the 2-norm of ``bucket`` consecutive elements (Alistarh et al. 2017).

    There are ``s = 2^bits - 1`` steps; bucket 0: one for all. Without a residual the mean over
    seeds is the tensor, and the mean squared error at most omega squared norms: with buckets of d
    elements ``omega = sqrt(d)/s - 1``, or ``d/(4 s^2)`` where ``sqrt(d)/s`` is below 2. That is
    the worst case itself, or nearly; Lemma 3.1 of the paper has ``min(d/s^2, sqrt(d)/s)``.

    With a residual the levels of each bucket are scaled by least squares instead: a contraction by
    at least ``1/(1 + omega)``, as the unbiased levels over ``1 + omega`` are (Beznosikov et al.
    2020, arXiv:2002.12410, after Horvath et al. 2019). An omega above 10^4 is refused there.
    """

    bits: int = option(4, "[1, 15]")
    bucket: int = option(512, "[0, inf)")

    name = "qsgd"
    unbiased = True

    def _variance(self, size: int) -> float:
        # r = s|x|/norm has squares of sum s^2, and errs by frac(r)(1 - frac(r)). As a function of
        # t = r^2 that is at most sqrt(t) - t up to t = 1/4, from there on 1/4: a concave bound, so
        # all t being s^2/d is the worst case.
        ratio = math.sqrt(size) / self._norm()[0]
        return ratio - 1 if ratio >= 2 else ratio * ratio / 4

    def _norm(self) -> tuple[int, bool, float]:
        return 2**self.bits - 1, False, 0.0


@register_codec
@dataclass(frozen=True)
class TernGrad(_Levels):
    """-1, 0 or 1 times the largest magnitude of ``bucket`` elements, at random (Wen et al. 2017).

    The mean over seeds is the tensor. clip: where above 0, the tensor is first clipped at so many
    standard deviations from zero (2.5 in the paper); the mean is then that of the clipped tensor.
    bucket 0: one for all. The mean squared error is at most ``omega = (sqrt(d) - 1)/2`` squared
    norms, d being the bucket.

    With a residual, as QSGD, levels by least squares: a contraction by at least ``1/(1 + omega)``,
    times ``clip/sqrt(d)`` where that is below 1. An omega above 10^4 is refused.
    """

    clip: float = option(0.0, "[0, inf)")
    bucket: int = option(0, "[0, inf)")

    name = "terngrad"

    @property
    def unbiased(self) -> bool:
        """See Codec."""
        return not self.clip

    def contraction(self, n: int) -> float:
        """See Codec."""
        size = max(min(self.bucket or n, n), 1)
        # No element is above the 2-norm, so clipping leaves at least the share clip/sqrt(d) of it.
        kept = min(1.0, self.clip / math.sqrt(size)) if self.clip else 1.0
        return kept * super().contraction(n)

    def _variance(self, size: int) -> float:
        # |Q(x)|^2 is max|x| |x|_1 in the mean; worst with one element 1, the rest 1/(1 + sqrt(d)).
        return (math.sqrt(size) - 1) / 2

    def _norm(self) -> tuple[int, bool, float]:
        return 1, True, self.clip
