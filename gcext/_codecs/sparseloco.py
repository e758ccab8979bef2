"""SparseLoCo: the largest elements of every chunk, in two bits; csrc/chunks/."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from gcext._codecs.base import Codec, register_codec
from gcext._codecs.input import CodecInput
from gcext._codecs.topk import Chunks
from gcext._native import chunks
from gcext._packet.codes import Contents
from gcext._packet.packet import Packet
from gcext._packet.tables import Codes
from gcext._spec import option

__all__ = ["SparseLoCo"]


@register_codec
@dataclass(frozen=True, repr=False)
class SparseLoCo(Codec):
    """The share p of largest magnitude of every chunk, each as the mean of its bin of values.

    With error feedback ``e = decay*e + g``, decay .95, this is what a worker of SparseLoCo sends
    (Sarfi et al. 2025, arXiv:2508.15706): chunks of 4096 elements, the 64 largest of each, 2 bits a
    value. The quantizer is that of the authors' code: ``2^bits`` equal bins of
    ``range*s/2^bits``, the middle one around the mean of the values that are sent, s their standard
    deviation, the first and last without end; a value travels as the mean of those of its bin, an
    exact sum rounded once. Differences: ties between bins go up, not to even; at most ``2^bits``
    values travel as they are (by the rule 1 and -1 would share a bin, and 0 be sent).

    A packet holds the indices (Rice code), 2^bits float32, and ``bits`` bits a value.

    A contraction by the least share c/s sent of a chunk, times what of their energy k values keep
    in their bins: with ``h = range/2^(bits+1)`` at least ``h sqrt(k (1 - h^2) - 1)/(k - 1)``, 1
    where k is at most ``2^bits``. Of normal values in 2 bits it is .98. Refused with a residual
    where that is not positive: the values of the middle bin may cancel, and nothing be sent of
    them, forever.

    Known failure: the bins follow the largest values. Where one layer's are 100 times another's,
    and both are one tensor, all of the other's fall into the middle bin and travel as their mean,
    near 0. Encode tensors one by one.
    """

    p: float = option(1 / 64, "(0, 1]")
    chunk: int = option(4096, "[0, 65536]")
    bits: int = option(2, "[2, 8]")
    range: float = option(6.0, "(0, inf)", omit=True)

    name = "sparseloco"

    def __repr__(self) -> str:
        options = ", ".join(f"{key}={value!r}" for key, value in self.options().items())
        return f"{type(self).__name__}({options})"

    def contraction(self, n: int) -> float:
        """See Codec."""
        found = Chunks.of(self.p, n, self.chunk)
        return found.share() * self._kept(found.total)

    def _kept(self, k: int) -> float:
        """Return the least share of the energy of up to k values that their bins' means keep."""
        # Let the deviations d from the mean have the squared sum (k-1)s^2. In the middle bin
        # |d| <= hs, so what is outside has Q >= (k-1)s^2 - k(hs)^2. A bin outside has c deviations
        # of one sign, each at least hs, and keeps (sum d)^2/c, so at least c(hs)^2 and Q_bin/c, and
        # so hs sqrt(Q_bin). As a function of k the bound rises, then falls: least at an end.
        fewest, h = 2**self.bits + 1, self.range / 2 ** (self.bits + 1)
        kept = 1.0
        for each in (fewest, k) if k >= fewest else ():
            left = each * (1 - h * h) - 1
            kept = min(kept, h * math.sqrt(left) / (each - 1) if left > 0 else 0.0)
        if not kept > 0:
            raise ValueError(
                f"{self.name}: with a residual the middle bin must not hold all values, got "
                f"range={self.range:g} for {self.bits} bits. "
                f"Choose a range below {2 ** (self.bits + 1) * math.sqrt(1 - 1 / fewest):.3g}."
            )
        return kept

    def encode_input(self, acc: CodecInput, seed: int) -> Packet:
        """See Codec."""
        found = Chunks.of(self.p, acc.tensor.numel(), self.chunk)
        if acc.out is not None:
            self._kept(found.total)
        index, value, info = found.select(acc, ternary=False)
        table, packed = chunks.bin_means(index, value, info, acc.out, self.bits, self.range)
        finish = partial(_contents, self.bits)
        return Packet.from_kernel(
            "codes", acc.op, acc.source, info, finish, whole=(table, packed), cut=(index,)
        )


def _contents(bits: int, table: Tensor, packed: Tensor, index: Tensor, scale: float) -> Contents:
    k = index.numel()
    size = (k * bits + 7) // 8
    if size < packed.numel():
        packed = packed[:size].clone()
    return Contents(index, Codes("values", bits, 0, table if k else table[:0], packed))
