"""The codec that sends elements with probabilities of their own: Wangni."""

from __future__ import annotations

from dataclasses import dataclass

from gcext._codecs.base import Codec, register_codec
from gcext._codecs.input import CodecInput
from gcext._native import wangni
from gcext._packet.codes import Contents
from gcext._packet.packet import Packet
from gcext._spec import option

__all__ = ["Wangni"]


@register_codec
@dataclass(frozen=True)
class Wangni(Codec):
    """Element i with probability ``p_i = min(lambda |g_i|, 1)``, and then as ``g_i/p_i``.

    lambda is that of the paper's greedy Algorithm 3 after two iterations, for ``p*n`` elements in
    the mean, 1 at least (Wangni et al. 2018, arXiv:1710.09854). Those with p_i = 1 travel as
    float32, the others as plus or minus ``1/lambda``, rounded to float32 before anything is drawn:
    a packet of method sum, of a sparse and a ternary one, which is the paper's hybrid code. The
    mean over seeds is the tensor, to 2^-52 of 1/lambda. The mean squared error is at most
    ``omega = 1/p`` squared norms: lambda never falls below its first value, p*n over the sum of
    the magnitudes.

    With a residual the drawn elements travel as plus or minus the mean of their magnitudes
    instead, the least squares' scale: a contraction by ``1/(1 + omega)``, as the unbiased packet
    over ``1 + omega`` is (Beznosikov et al. 2020, arXiv:2002.12410).

    A known failure: a few large elements beside very many of almost nothing leave lambda, after
    two iterations, with fewer than p*n elements in the mean.
    """

    p: float = option(0.01, "(0, 1]")

    name = "wangni"
    stochastic = True
    unbiased = True
    reads_half = True

    def _budget(self, n: int) -> float:
        return max(self.p * n, 1.0)

    def contraction(self, n: int) -> float:
        """See Codec."""
        return 1 / (1 + n / self._budget(n)) if n else 1.0

    def encode_input(self, acc: CodecInput, seed: int) -> Packet:
        """See Codec."""
        where = acc.tensor, acc.memory, acc.out, acc.decay
        budget = self._budget(acc.tensor.numel())
        index, value, at, sent, info, drawn = wangni.wangni(*where, budget, seed)
        parts = ("sparse", info, (index, value)), ("ternary", drawn, (at, sent))
        return Packet.sum(
            Packet.from_kernel(method, acc.op, acc.source, its, Contents, cut=pair)
            for method, its, pair in parts
        )
