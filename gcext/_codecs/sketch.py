"""The codec that sends a count sketch; csrc/sketch.h."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

from gcext._codecs.base import Codec, register_codec
from gcext._codecs.input import CodecInput
from gcext._native import sketch
from gcext._packet.packet import Packet
from gcext._packet.sketch import Sketch
from gcext._spec import option

__all__ = ["CountSketch"]


@register_codec
@dataclass(frozen=True)
class CountSketch(Codec):
    """A count sketch: random signed sums of the elements (Charikar, Chen & Farach-Colton 2002).

    Each of ``rows`` hashes adds element i, with a random sign, to one of ``cols`` sums, in float32
    of exact range; these and the seed of the hashes travel, ``4*rows*cols`` bytes. An element is
    decoded as the median of its signed sums: unbiased over hash seeds, off by about
    ``|x|_2/sqrt(cols)``, so that only elements far above that are found again. ``p`` is the share
    ``rows*cols/n``, at least one sum a row; cols, where above 0, is their number instead.

    Sketches of one ``hash`` and size add up to the sketch of the sum, which is what FetchSGD is
    made of (Rothchild et al. 2020, arXiv:2007.07682, ``gcext.aggregate.FetchSGD``). So hash is an
    option, the same for all clients, and not a seed for each packet.

    No contraction, and so no residual: of a vector without large elements the estimates' error is
    ``n/cols`` times its squared norm. Known failure: dense updates, of which no element stands
    out, decode to noise; keep what was not found on the server, as FetchSGD does.
    """

    rows: int = option(5, "[1, 64]")
    p: float = option(0.1, "(0, 1]")
    cols: int = option(0, "[0, 2147483647]")
    hash: int = option(0, "[0, 4294967295]")

    name = "sketch"

    def columns(self, n: int) -> int:
        """Return the sums of a row, of a tensor of n elements."""
        return self.cols or min(max(math.floor(self.p * n / self.rows), 1), sketch.MOST_COLS)

    def encode_input(self, acc: CodecInput, seed: int) -> Packet:
        """See Codec."""
        n = acc.tensor.numel()
        if acc.out is not None:
            self.contraction(n)
        kind = self.rows, self.columns(n), self.hash
        table, info = sketch.sketch(acc.tensor, None, *kind)
        finish = partial(Sketch.contents, *kind)
        return Packet.from_kernel("sketch", acc.op, acc.source, info, finish, whole=(table,))
