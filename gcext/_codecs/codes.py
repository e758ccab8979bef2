"""Codecs that send every element as a code of fixed width; csrc/encode_codes.h.

16-bit floats, grids of 2^bits values (DoReFa, LAQ), the 8-bit dynamic tree, 1-bit SGD.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from gcext._codecs.base import Codec, register_codec
from gcext._codecs.input import CodecInput
from gcext._codecs.quantize import contraction_of
from gcext._native import encode_codes as kernel
from gcext._packet.packet import Packet
from gcext._packet.tables import Codes
from gcext._spec import option

__all__ = ["Bfloat16", "Dorefa", "Float16", "Int8", "OneBit", "Uniform"]


def _encode(
    acc: CodecInput,
    table: str,
    width: int,
    bucket: int = 0,
    random: bool = False,
    fit: bool = False,
    seed: int = 0,
) -> Packet:
    """Return the packet of every element's code; see gcext._native.encode_codes."""
    bucket = bucket if bucket < acc.tensor.numel() else 0
    scales, bits, info = kernel.encode_codes(
        acc.tensor, acc.memory, acc.out, acc.decay, table, width, bucket, random, fit, seed
    )
    finish = partial(Codes.contents, table, width, bucket)
    return Packet.from_kernel("codes", acc.op, acc.source, info, finish, whole=(scales, bits))


@register_codec
@dataclass(frozen=True)
class Float16(Codec):
    """Every element as the nearest float16, ties to even; 16 bits each.

    What is beyond 65504 in magnitude travels as plus or minus 65504, and what is at most 2^-25 as a
    zero: without a residual both are lost.

    No contraction, as a sum of such elements alone is not shortened by any share. Of an element up
    to 65504 a packet lacks at most 2^-11 of it or 2^-25. So with gradients up to a G of 65000 no
    element of the residual exceeds ``max(2^-11 G, 2^-25)`` by more than 0.1 %; beyond, an element
    waits until 65504 a packet have drained it.
    """

    name = "fp16"
    reads_half = True
    contracts = False

    def encode_input(self, acc: CodecInput, seed: int) -> Packet:
        """See Codec."""
        return _encode(acc, "float16", 16)


@register_codec
@dataclass(frozen=True)
class Bfloat16(Codec):
    """Every element as the nearest bfloat16, ties to even; 16 bits each.

    What would round to infinity travels as the greatest finite one, plus or minus 3.39e38.

    A contraction by ``1 - 2^-16``: of an element a packet lacks at most 2^-8 of it, by rounding and
    beyond the greatest one. (Below 2^-126, where bfloat16 is subnormal, up to 2^-134 of it.)
    """

    name = "bf16"
    reads_half = True

    def contraction(self, n: int) -> float:
        """See Codec."""
        return 1 - 2.0**-16

    def encode_input(self, acc: CodecInput, seed: int) -> Packet:
        """See Codec."""
        return _encode(acc, "bfloat16", 16)


class _Grid(Codec):
    """2^bits equidistant values from minus to plus each bucket's largest magnitude.

    With s = 2^bits - 1 and y = s x / max|x| they are the odd integers L up to s. Rounding leaves
    |y - L| <= 1 (at random: (y - L)^2 <= 1 in the mean). Let D = d - 1, a = s^2/(s^2 + D) and
    one element have |y| = s = |L|. The others each leave

        (y - aL)^2 - (1 - a) y^2 = a (y - L)^2 - a (1 - a) L^2 <= a^2,    as L^2 >= 1

    (in the mean), and that one s^2 (1 - a)^2. So all of them leave

        |y - aL|^2 <= (1 - a) |y|^2 - s^2 a (1 - a) + D a^2,

    where the last two cancel: scaled by a, and all the more by least squares, the levels are a
    contraction by a = 1/(1 + omega), omega = (d - 1)/s^2. One element and zeros reach it.
    """

    bits: int
    bucket: int

    reads_half = True

    def contraction(self, n: int) -> float:
        """See Codec. Refuses buckets whose omega is above 10^4."""
        size = max(min(self.bucket or n, n), 1)
        return contraction_of(self.name, (size - 1) / (2**self.bits - 1) ** 2, size)

    def encode_input(self, acc: CodecInput, seed: int) -> Packet:
        """See Codec."""
        fit = acc.out is not None
        if fit:
            self.contraction(acc.tensor.numel())
        return _encode(acc, "uniform", self.bits, self.bucket, self.stochastic, fit, seed)


@register_codec
@dataclass(frozen=True)
class Dorefa(_Grid):
    """2^bits levels of ``bucket`` elements' largest magnitude m, drawn at random.

    DoReFa (Zhou et al. 2016, arXiv:1606.06160): ``2m [quant_k(g/2m + 1/2 + N) - 1/2]``, where
    quant_k rounds to multiples of 1/(2^k - 1) and N is uniform in plus or minus half of one.
    bucket 0: one m for all (the paper has one a sample). What travels is m and the codes; a zero
    becomes plus or minus ``m/(2^k - 1)``.

    Without a residual the mean over seeds is the tensor, at the grid's ends too: as nothing exceeds
    m, the noise never leads out of the grid. The mean squared error is at most
    ``omega = (d - 1)/(2^k - 1)^2`` squared norms, with buckets of d elements.

    With a residual each bucket is scaled by least squares instead of m: a contraction by at least
    ``1/(1 + omega)``. An omega above 10^4 is refused.
    """

    bits: int = option(4, "[1, 8]")
    bucket: int = option(512, "[0, inf)")

    name = "dorefa"
    stochastic = True
    unbiased = True


@register_codec
@dataclass(frozen=True)
class Uniform(_Grid):
    """The nearest of 2^bits levels of ``bucket`` elements' largest magnitude m.

    As LAQ quantizes (Sun et al. 2019, arXiv:1909.07588): ``m (2q - s)/s`` with
    ``q = floor((g + m) s/2m + 1/2)`` and ``s = 2^bits - 1``. bucket 0: one m for all, as there.
    What travels is m and the codes q. Zero is no level: it becomes ``m/s``.

    Without a residual the error is up to ``(d - 1)/s^2`` squared norms in buckets of d elements, so
    that above ``s^2`` elements sending nothing can be better. With one each bucket is scaled by
    least squares instead of m: a contraction by ``1/(1 + (d - 1)/s^2)``, never less. Buckets in
    which it is below 10^-4 are refused.
    """

    bits: int = option(4, "[1, 8]")
    bucket: int = option(512, "[0, inf)")

    name = "uniform"


def _magnitude(t: int) -> float:
    """Return the magnitude of rank t of the dynamic tree, csrc/codes.h."""
    if t in (0, 128):
        return t / 128
    i = t.bit_length() - 1
    return float((0.1 + 0.9 * (t - 2**i + 0.5) / 2**i) * 10.0 ** (i - 6))


@register_codec
@dataclass(frozen=True)
class Int8(Codec):
    """The 8-bit dynamic tree data type, scaled by ``bucket`` elements' largest magnitude m.

    Dettmers 2015, arXiv:1511.04561: a sign, a decimal exponent of variable length, and a linear
    fraction in the bits left: 64 steps from 0.1 m to m, 32 in the decade below, down to 1e-6 m.
    The nearest code travels, of two that of smaller magnitude, and m. bucket 0: one for all. -m,
    which the data type lacks, becomes -0.993 m; below 2.8e-7 m all is zero.

    A contraction, .97 with buckets of 4096: errors are at most r of an element, or, of small ones,
    a times m, so ``|x - C(x)|^2 <= r^2 |x|^2 + d a^2 m^2 <= (r^2 + d a^2) |x|^2`` for buckets of d
    elements; each decade's start has such an r and a, and the best one counts.
    """

    bucket: int = option(4096, "[0, inf)")

    name = "int8"
    reads_half = True

    def contraction(self, n: int) -> float:
        """See Codec."""
        size = max(min(self.bucket or n, n), 1)
        left, relative = 1.0, 1 - _magnitude(127)  # of -m
        for t in range(127, 0, -1):
            # Numbers nearest to one of ranks up to t by absolute errors, the others by relative.
            half = (_magnitude(t) - _magnitude(t - 1)) / 2
            left = min(left, relative**2 + size * half**2)
            relative = max(relative, half / (_magnitude(t) - half))
        return 1 - left

    def encode_input(self, acc: CodecInput, seed: int) -> Packet:
        """See Codec."""
        return _encode(acc, "dynamic8", 8, self.bucket)


@register_codec
@dataclass(frozen=True)
class OneBit(Codec):
    """Two means a column: that of its elements from zero up, and that of its negative ones.

    1-bit SGD (Seide et al. 2014, Interspeech): a sign an element, a zero counting as positive, and
    two float32 a column. bucket: elements of a column; 0: numel/shape[0], as the weights of one
    output are in torch's layers, and all of a tensor of fewer than two dimensions. The means are
    exact sums, rounded once.

    The projection onto what is constant on either side. A side of n elements keeps
    ``|x|_1^2/n >= |x|_2^2/n``, so it is a contraction by ``1/d`` of columns of d elements, which
    one element among zeros reaches; of normal ones by .64. Few elements in a column (a bias of
    shape (n, 1)) make the means cost more than the bits.
    """

    bucket: int = option(0, "[0, inf)")

    name = "onebit"
    reads_half = True

    def contraction(self, n: int) -> float:
        """See Codec; of bucket 0 that of a single column."""
        return 1 / max(min(self.bucket or n, n), 1)

    def encode_input(self, acc: CodecInput, seed: int) -> Packet:
        """See Codec."""
        shape, n = acc.source.shape, acc.tensor.numel()
        rows = shape[0] if len(shape) > 1 and n else 1
        return _encode(acc, "values", 1, self.bucket or n // rows)
