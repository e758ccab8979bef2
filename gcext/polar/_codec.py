"""The codec of polar codes: signs in less than a bit, of all elements or of selected ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from gcext._codecs.base import Codec, register_codec
from gcext._codecs.input import CodecInput
from gcext._codecs.seeds import derive
from gcext._codecs.topk import count_of, random_support, share, top_support
from gcext._packet.codes import Contents, Random
from gcext._packet.packet import Packet
from gcext._spec import option
from gcext.polar import _code as coder
from gcext.polar._design import expect, tells_apart
from gcext.polar._rotated import code_rotated, fit_scale
from gcext.polar._values import Polar, block_for

__all__ = ["PolarSigns"]

SELECTS = ("all", "topk", "randomk")

# Of least squares' contraction by rotated signs, over K/N. It tends to 2/pi for one bit in long
# blocks of many and for all bits, and is higher between: 0.85 to 0.95 at half of them.
_ROTATED = 0.6


@register_codec
@dataclass(frozen=True)
class PolarSigns(Codec):
    """Signs within ``rate`` bits an element (gcext.polar), wrong where little is lost, and a scale.

    With a residual the scale is that of least squares, so never more is left than there was. By how
    much that contracts is measured, not proved: where ``rotate`` is by at least ``0.6*rate``, times
    k/n of a selection; elsewhere, as ``sign``, by at least ``1/n``. Without rotation a code of few
    bits ties the signs of some elements to each other, and then a residual is refused.

    Attributes:
        rate: bits an element.
        block: of the code; see gcext.polar.encode. Above 2^13, at most the least power of two that
            holds the elements that travel: a longer one costs whoever decodes it, for nothing.
        rotate: code a random rotation of the values, chunk by chunk. Without a residual the scale
            is the one that makes the mean over seeds the tensor (Vargaftik et al. 2022); with one,
            and wherever nothing is rotated, it is that of least squares, which is a contraction.
        select: "all"; "topk", the share p of largest magnitude; or "randomk", a random share p,
            without a residual scaled to be unbiased where ``rotate`` is.
        p: the share that is selected.
    """

    rate: float = option(0.5, "[0, 1]")
    block: int = 1024
    rotate: bool = True
    select: str = "all"
    p: float = option(0.01, "(0, 1]")

    name = "polar"

    def __post_init__(self) -> None:
        super().__post_init__()
        coder.check(self.rate, self.block)
        if round(self.rate * self.block) == 0:
            raise ValueError(
                f"polar: rate*block must be at least 1 bit, got {self.rate * self.block:g}. "
                "Raise the rate."
            )
        if self.select not in SELECTS:
            raise ValueError(
                f"polar: select must be one of {', '.join(SELECTS)}, got {self.select!r}."
            )
        expect(self.block, round(self.rate * self.block))

    @classmethod
    def from_options(cls, options: Mapping[str, str]) -> Codec:
        """See Codec. p belongs to a selection."""
        if "p" in options and options.get("select", "all") == "all":
            raise ValueError("polar: unknown option p where select is all. Add select=topk.")
        return super().from_options(options)

    def options(self) -> dict[str, Any]:
        """See Codec. p belongs to a selection."""
        options = super().options()
        if self.select == "all":
            del options["select"], options["p"]
        return options

    @property
    def stochastic(self) -> bool:
        """See Codec."""
        return self.rotate or self.select == "randomk"

    @property
    def unbiased(self) -> bool:
        """See Codec."""
        return self.rotate and self.select != "topk"

    def contraction(self, n: int) -> float:
        """See Codec."""
        rate, block = self._code_of(n if self.select == "all" else count_of(self.p, n))
        kept = round(rate * block)
        if self.rotate:
            return _ROTATED * kept / block * (1.0 if self.select == "all" else share(self.p, n))
        if not tells_apart(block, kept):
            raise ValueError(
                f"polar: with a residual, without rotation, a code must be able to give any two "
                f"elements different signs, got {kept} bits for a block of {block}. "
                "Raise the rate, or rotate."
            )
        return 1 / max(n, 1)

    def encode_input(self, acc: CodecInput, seed: int) -> Packet:
        """See Codec."""
        if acc.out is not None:
            self.contraction(acc.tensor.numel())
        support: Tensor | Random | None
        index: Tensor | None
        if self.select == "topk":
            index, value, info = top_support(acc, self.p)
            support = index
        elif self.select == "randomk":
            support, index, value, info = random_support(acc, self.p, seed)
        else:
            support = index = None
            value, info = acc.add_deferred()
        n = value.numel()
        if self.rotate:
            key = derive(seed, "rotation")
            coded, symbols = code_rotated(value, *self._code_of(n), key, info)
            acc.check(info)
            if acc.out is not None:
                coded, estimate = fit_scale(value, coded, symbols)
                acc.take(index, estimate, info)
        else:
            coded = self._plain(value)
            acc.check(info)
            if acc.out is not None:
                acc.take(index, coded.decode(n), info)
        acc.restore(info)

        def finish(message: Tensor, scale: Tensor, _: float) -> Contents:
            return Contents(support, replace(coded, message=message, scale=scale))

        arrays = (coded.message, coded.scale)
        return Packet.from_kernel("polar", acc.op, acc.source, info, finish, arrays)

    def _code_of(self, numel: int) -> tuple[float, int]:
        """Return the rate and the block in which so many elements travel, a bit a block or more."""
        block = block_for(self.block, numel)
        return max(self.rate, 1 / block), block

    def _plain(self, value: Tensor) -> Polar:
        n = value.numel()
        rate, block = self._code_of(n)
        kept = round(rate * block)
        message, *_ = coder.code(value, n, block, kept, soft=True)
        signs = Polar(message, block, kept, True, value.new_ones(1))
        scale = _positive(_dot(value, signs.decode(n))) / max(n, 1)
        return replace(signs, scale=scale.float().view(1))


def _positive(x: Tensor) -> Tensor:
    """Return x, or 0 where it is not above that."""
    return torch.where(x > 0, x, torch.zeros_like(x))


def _dot(x: Tensor, y: Tensor) -> Tensor:
    """Return the dot product, in float64 by a fixed tree of additions; of shape ()."""
    products = x.double() * y.double()
    while len(products) > 1:
        half = len(products) // 2
        rest = products[2 * half :]
        products = torch.cat([products[:half] + products[half : 2 * half], rest])
    return products.sum()
