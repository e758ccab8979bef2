"""Natural compression: every element becomes a power of two; csrc/natural.h."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from gcext._codecs.base import Codec, register_codec
from gcext._codecs.input import CodecInput
from gcext._native import natural
from gcext._packet.packet import Packet
from gcext._packet.powers import Powers

__all__ = ["Natural"]

_OMEGA = 1 / 8
_FED_BACK = float.fromhex("0x1.c71c72p-1")  # 1/(1 + omega) in float32


@register_codec
@dataclass(frozen=True)
class Natural(Codec):
    """Each element as one of the two neighbouring powers of two, at random (Horvath et al. 2019).

    Natural compression, arXiv:1905.10988: ``|x| = 2^e (1 + f)`` becomes ``2^e`` with probability
    ``1 - f`` and ``2^(e+1)`` with f, with the sign of x; zero stays zero, and denormals become
    powers down to 2^-149. The mean over seeds is the tensor, and the mean squared error at most
    ``omega = 1/8`` of the squared norm. 2^128 is no float32: an element above 2^127 becomes 2^127,
    and there alone the mean is not the element.

    What travels is the exponents in a Huffman code and a sign bit for what is not zero: 3.6 bits an
    element of a normal tensor, against 9 in the paper.

    With a residual all is multiplied by ``1/(1 + omega) = 8/9``: a contraction by 8/9 (Beznosikov
    et al. 2020, arXiv:2002.12410). Then 2^128 is not too large.

    The cost is nearly the same for every tensor; where most elements are far below the others, a
    codec that selects sends less.
    """

    name = "natural"
    stochastic = True
    reads_half = True
    unbiased = True

    def contraction(self, n: int) -> float:
        """See Codec."""
        return 1 / (1 + _OMEGA)

    def encode_input(self, acc: CodecInput, seed: int) -> Packet:
        """See Codec."""
        scale = 1.0 if acc.out is None else _FED_BACK
        power, info = natural.natural(acc.tensor, acc.memory, acc.out, acc.decay, scale, seed)
        finish = partial(Powers.contents, scale)
        return Packet.from_kernel("powers", acc.op, acc.source, info, finish, whole=(power,))
