"""AdaComp: what is about to be the largest of its bin; csrc/chunks/adacomp.h."""

from __future__ import annotations

from dataclasses import dataclass

from gcext._codecs.base import Codec, register_codec
from gcext._codecs.input import CodecInput
from gcext._native import chunks
from gcext._packet.codes import Contents
from gcext._packet.packet import Packet
from gcext._spec import option

__all__ = ["AdaComp"]


@register_codec
@dataclass(frozen=True)
class AdaComp(Codec):
    """Per bin what one more step like this would make the largest, as plus or minus one scale.

    AdaComp (Chen et al. 2018, arXiv:1712.02679): with the residual r and the tensor d, let
    ``G = r + d`` and ``H = G + d``. Of every bin of consecutive elements those travel for which
    ``|H|`` is at least ``gmax``, the bin's largest ``|G|``, as ``sign(G)`` times the mean of gmax
    over all bins, an exact sum rounded once. The residual keeps ``G`` less what was sent. So how
    many travel adapts to the tensor. A packet holds their indices, signs and the scale. Elements
    where G is 0 are not sent.

    bin: 50 for convolutional layers and 500 for others, in the paper.

    No contraction (``contracts`` is False): of a bin of small elements many may be sent as the
    scale, which is too large for them. The largest magnitude of the residual grows by at most that
    of the tensor a step. For noise and for one gradient over and over it stays bounded, by about m
    times the tensor's largest magnitude where there are m bins (measured; one bin far above the
    others sends but 1/m of it). It does not for every bounded sequence.

    Known failure: where the tensor pulls the largest element of a bin back by a little every step,
    ``|H|`` stays below gmax, and nothing of the bin is sent, however large the others become.
    """

    bin: int = option(50, "[1, 65536]")

    name = "adacomp"
    contracts = False

    def encode_input(self, acc: CodecInput, seed: int) -> Packet:
        """See Codec."""
        index, value, info = chunks.adacomp(acc.tensor, acc.memory, acc.out, acc.decay, self.bin)
        return Packet.from_kernel("ternary", acc.op, acc.source, info, Contents, cut=(index, value))
