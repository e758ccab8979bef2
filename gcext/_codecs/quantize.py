"""Codecs that send every element in a bit or a few: sign, QSGD, TernGrad; csrc/quantize.h."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from functools import partial

from gcext._codecs.base import Codec, register_codec
from gcext._codecs.input import CodecInput
from gcext._native import ops
from gcext._packet.codes import Levels, Signs
from gcext._packet.packet import Packet
from gcext._spec import option

__all__ = ["QSGD", "Sign", "TernGrad"]


@register_codec
@dataclass(frozen=True)
class Sign(Codec):
    """One bit an element: plus or minus the mean magnitude of all; a zero counts as positive.

    With feedback EF-signSGD (Karimireddy et al. 2019); without, signSGD with a scale (Bernstein et
    al. 2018). The mean is the exact sum rounded once.
    """

    name = "sign"

    def encode_input(self, acc: CodecInput, seed: int) -> Packet:
        """See Codec."""
        bits, info = ops.sign(acc.tensor, acc.memory, acc.out, acc.decay)
        return Packet.from_kernel("sign", acc.op, acc.source, info, Signs.contents, (bits,))


class _Levels(Codec):
    """Each element as a whole number of steps of its bucket's norm, rounded at random."""

    bucket: int
    stochastic = True

    @abstractmethod
    def _norm(self) -> tuple[int, bool, float]:
        """Return the steps; whether the norm is the largest magnitude; where that is clipped."""

    def encode_input(self, acc: CodecInput, seed: int) -> Packet:
        """See Codec."""
        steps, largest, clip = self._norm()
        norms, at, level, info = ops.levels(
            acc.tensor, acc.memory, acc.out, acc.decay, steps, self.bucket, largest, clip, seed
        )
        bucket = self.bucket if self.bucket < acc.tensor.numel() else 0
        finish = partial(Levels.contents, steps, bucket)
        return Packet.from_kernel(
            "levels", acc.op, acc.source, info, finish, whole=(norms,), cut=(at, level)
        )


@register_codec
@dataclass(frozen=True)
class QSGD(_Levels):
    """Stochastic levels of the 2-norm of ``bucket`` consecutive elements (Alistarh et al. 2017).

    There are ``2^bits - 1`` steps; bucket 0: one for all. The mean over seeds is the tensor.

    The variance is at most ``min(d/s^2, sqrt(d)/s)`` times the squared norm, d being the bucket and
    s the steps. Where it exceeds the squared norm this is no contraction: with error feedback the
    residual grows without bound, so choose a small bucket or more bits there.
    """

    bits: int = option(4, "[1, 15]")
    bucket: int = option(512, "[0, inf)")

    name = "qsgd"

    def _norm(self) -> tuple[int, bool, float]:
        return 2**self.bits - 1, False, 0.0


@register_codec
@dataclass(frozen=True)
class TernGrad(_Levels):
    """-1, 0 or 1 times the largest magnitude of ``bucket`` elements, at random (Wen et al. 2017).

    The mean over seeds is the tensor. clip: where above 0, the tensor is first clipped at so many
    standard deviations from zero (2.5 in the paper); the mean is then that of the clipped tensor.
    bucket 0: one for all. Its variance, as of QSGD, may be too large for error feedback.
    """

    clip: float = option(0.0, "[0, inf)")
    bucket: int = option(0, "[0, inf)")

    name = "terngrad"

    def _norm(self) -> tuple[int, bool, float]:
        return 1, True, self.clip
