"""Codecs that send every element in a bit or a few: sign, QSGD, TernGrad; csrc/quantize.h."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from gcext._codecs.base import Codec
from gcext._codecs.input import Sum
from gcext._native import ops
from gcext._packet.codes import Levels, Signs
from gcext._packet.deferred import Contents, float_of, narrow
from gcext._packet.packet import Packet
from gcext._spec import Spec, write

__all__ = ["Levelled", "Sign", "qsgd", "sign", "terngrad"]


@dataclass(frozen=True)
class Sign(Codec):
    """One bit an element: plus or minus the mean magnitude of all; a zero counts as positive.

    With feedback EF-signSGD (Karimireddy et al. 2019); without, signSGD with a scale (Bernstein et
    al. 2018). The mean is the exact sum rounded once.
    """

    @property
    def spec(self) -> str:
        """See Codec."""
        return "sign"

    def encode_sum(self, acc: Sum, seed: int) -> Packet:
        """See Codec."""
        bits, info = ops.sign(acc.tensor, acc.memory, acc.out, acc.decay)
        return acc.packet_of("sign", "sign", (bits,), info, _signs)


def _signs(numbers: list[int], bits: Tensor) -> Contents:
    """Return the contents of a sign packet."""
    return None, Signs(float_of(numbers[3]), bits), 0.0


@dataclass(frozen=True)
class Levelled(Codec):
    """Each element as a whole number of steps of its bucket's norm, rounded at random.

    The mean over seeds is the tensor. QSGD (Alistarh et al. 2017): ``2^bits - 1`` steps of the
    2-norm of ``bucket`` consecutive elements. TernGrad (Wen et al. 2017) with ``largest``: one step
    of the largest magnitude, which ``clip`` > 0 bounds at so many standard deviations from zero
    (2.5 in the paper; then the mean is that of the clipped tensor). bucket 0: one for all.

    The variance is at most ``min(d/s^2, sqrt(d)/s)`` times the squared norm, d being the bucket and
    s the steps. Where it exceeds the squared norm this is no contraction: with error feedback the
    residual grows without bound, so choose a small bucket or more bits there.
    """

    bits: int
    bucket: int
    largest: bool = False
    clip: float = 0.0

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 15:
            raise ValueError(f"{self.name}: bits must be in [1, 15], got {self.bits}. Choose one.")
        if self.bucket < 0:
            raise ValueError(
                f"{self.name}: bucket must be at least 0, got {self.bucket}. 0 is one for all."
            )
        if not 0 <= self.clip < float("inf"):
            raise ValueError(
                f"{self.name}: clip must be at least 0, got {self.clip:g}. 0 clips nothing."
            )
        object.__setattr__(self, "clip", float(self.clip))

    @property
    def name(self) -> str:
        """See Codec."""
        return "terngrad" if self.largest else "qsgd"

    @property
    def spec(self) -> str:
        """See Codec."""
        if self.largest:
            return write("terngrad", {"clip": self.clip, "bucket": self.bucket})
        return write("qsgd", {"bits": self.bits, "bucket": self.bucket})

    @property
    def stochastic(self) -> bool:
        """See Codec."""
        return True

    def encode_sum(self, acc: Sum, seed: int) -> Packet:
        """See Codec."""
        steps, n = 2**self.bits - 1, acc.tensor.numel()
        norms, at, level, info = ops.levels(
            acc.tensor,
            acc.memory,
            acc.out,
            acc.decay,
            steps,
            self.bucket,
            self.largest,
            self.clip,
            seed,
        )
        bucket = self.bucket if self.bucket < n else 0

        def contents(numbers: list[int], norms: Tensor, at: Tensor, level: Tensor) -> Contents:
            at, level = narrow(numbers[0], at, level)  # on CUDA there is room for all elements
            return None, Levels(steps, bucket, norms, at, level), 0.0

        return acc.packet_of(self.name, "levels", (norms, at, level), info, contents)


def sign(spec: Spec) -> Codec:
    """Return the codec of a sign spec."""
    return Sign()


def qsgd(spec: Spec) -> Codec:
    """Return the codec of a qsgd spec."""
    return Levelled(spec.integer("bits", 4), spec.integer("bucket", 512))


def terngrad(spec: Spec) -> Codec:
    """Return the codec of a terngrad spec."""
    return Levelled(1, spec.integer("bucket", 0), largest=True, clip=spec.number("clip", 0.0))
