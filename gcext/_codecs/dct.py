"""The codec of transform coding: the largest cosine coefficients of each block; csrc/dct.h."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from gcext._codecs.base import Codec, register_codec
from gcext._codecs.input import CodecInput
from gcext._native import dct
from gcext._packet.packet import Packet
from gcext._packet.transforms import Dct, dct_view
from gcext._spec import option

__all__ = ["CosineTopK"]


@register_codec
@dataclass(frozen=True)
class CosineTopK(Codec):
    """The k largest coefficients of the cosine transform of each block of up to block x block.

    The transform and the selection of DeMo (Peng, Quesnelle & Kingma 2024, arXiv:2411.19870). The
    tensor is seen as a matrix of its last dimension's length, one of one dimension as one row, and
    each dimension is cut into parts of ``block`` or fewer, as equal as can be; the DCT-II is
    orthonormal, float32 in a fixed order, ties go to the lower frequency and zeros are not sent.
    The paper's code cuts by the largest divisor up to ``block`` instead, which is the same where
    ``block`` divides the dimension, and no transform at all where it is a prime.

    Where up to 8 coefficients of each block are sent, and hardly any block has fewer, their places
    travel as one number a block: 44 bits for 4 of 64 x 64, where gaps take 48.

    signs: send plus or minus the mean magnitude of all that was chosen, a ternary packet of
    coefficients, so a bit beside each index. Without, float32 values, as the paper does.

    With a residual and float32 values this is the paper's momentum: what was chosen leaves it. With
    signs the residual keeps what the packet lacks, as of any codec here: also what a chosen
    coefficient differs from the mean.

    A contraction by ``k/s`` of blocks of s elements, ``s = min(n, block^2)``. With signs by
    ``(sum |c|)^2 / (K |x|^2)`` of the K coefficients c that are sent: with k = 4 on normal values
    .30 in blocks of 1 x 64 and .012 in those of 64 x 64; never by less than ``min(1, k^2/s) / K``,
    where K is at most ``k ceil(n/block)``, as of a matrix one column wide.

    Known failure: gradients without structure along their dimensions, such as those of dense layers
    in no particular order of units, have no energy to compact: each coefficient holds its share and
    no more, and top-k of the elements themselves does as well.
    """

    k: int = option(4, "[1, inf)")
    block: int = option(64, "[1, 64]")
    signs: bool = True

    name = "dct"

    def contraction(self, n: int) -> float:
        """See Codec."""
        size = max(min(n, self.block**2), 1)
        k = min(self.k, size)
        if not self.signs:
            return k / size
        most = min(k * -(-n // self.block), n)
        return min(1.0, k * k / size) / max(most, 1)

    def encode_input(self, acc: CodecInput, seed: int) -> Packet:
        """See Codec."""
        rows, cols = dct_view(acc.source.shape)
        index, value, info = dct.dct_select(
            acc.tensor, acc.memory, acc.out, acc.decay, rows, cols, self.block, self.k, self.signs
        )
        finish = partial(Dct.contents, rows, cols, self.block, self.signs, self.k)
        return Packet.from_kernel("dct", acc.op, acc.source, info, finish, cut=(index, value))
