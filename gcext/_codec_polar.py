"""The codec of polar codes: signs in less than a bit, of all elements or of selected ones."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gcext import polar as coder
from gcext._codec_base import Codec, Sum
from gcext._codec_topk import random_support, share, top_support
from gcext._polar_rotated import chunks_of
from gcext._seed import derive
from gcext._spec import Spec, write
from gcext.packet import Packet
from gcext.values import Polar, Random

__all__ = ["PolarSigns", "polar"]

SELECTS = ("all", "topk", "randomk")


@dataclass(frozen=True)
class PolarSigns(Codec):
    """Signs within ``rate`` bits an element (gcext.polar), wrong where little is lost, and a scale.

    rotate: code a random rotation of the values, chunk by chunk. Without a residual the scale is
        the one that makes the mean over seeds the tensor (Vargaftik et al. 2022); with one, and
        wherever nothing is rotated, it is that of least squares, which is a contraction.
    block: of the code; see gcext.polar.encode.
    select: "all"; "topk", the share p of largest magnitude; or "randomk", a random share p,
        without a residual scaled to be unbiased where ``rotate`` is.
    """

    rate: float
    block: int = 1024
    rotate: bool = True
    select: str = "all"
    p: float = 0.01

    def __post_init__(self) -> None:
        if not 0 < self.rate <= 1:
            raise ValueError(
                f"polar: rate must be in (0, 1], got {self.rate:g}. Choose bits an element."
            )
        if self.block not in coder.BLOCKS:
            raise ValueError(
                f"polar: block must be a power of two in [2^5, 2^20], got {self.block}. Round it."
            )
        if round(self.rate * self.block) == 0:
            raise ValueError(
                f"polar: rate*block must be at least 1 bit, got {self.rate * self.block:g}. "
                "Raise the rate."
            )
        if self.select not in SELECTS:
            raise ValueError(
                f"polar: select must be one of {', '.join(SELECTS)}, got {self.select!r}."
            )
        object.__setattr__(self, "rate", float(self.rate))
        object.__setattr__(self, "p", share(self.p, "polar"))

    @property
    def spec(self) -> str:
        """See Codec."""
        options: dict[str, bool | int | float | str]
        options = {"rate": self.rate, "block": self.block, "rotate": self.rotate}
        if self.select != "all":
            options |= {"select": self.select, "p": self.p}
        return write("polar", options)

    @property
    def stochastic(self) -> bool:
        """See Codec."""
        return self.rotate or self.select == "randomk"

    def encode_sum(self, acc: Sum, seed: int) -> Packet:
        """See Codec."""
        support: Tensor | Random | None = None
        if self.select == "topk":
            support, value = top_support(acc, self.p, "polar")
        elif self.select == "randomk":
            support, value = random_support(acc, self.p, "polar", seed)
        else:
            value = acc.add("polar")
        if self.rotate:
            coded = self._rotated(value, derive(seed, "rotation"), biased=acc.out is not None)
        else:
            coded = self._plain(value)
        return acc.less(acc.packet("polar", support, coded))

    def _plain(self, value: Tensor) -> Polar:
        made = coder.encode(value, self.rate, self.block, soft=True)
        c = 1.0 - 2.0 * coder.decode(made).double()
        scale = max(_dot(value, c), 0.0) / max(value.numel(), 1)
        return Polar(made.message, self.block, made.kept, True, torch.tensor([scale]).float())

    def _rotated(self, value: Tensor, seed: int, biased: bool) -> Polar:
        made = coder.encode_rotated(value, self.rate, self.block, seed=seed)
        scale = made.scale
        if biased:  # <x, s*c> / <c, c> of each chunk, the estimate being s times a rotated c
            estimate = made.to_dense()
            scale = scale.clone()
            for i, (start, size) in enumerate(chunks_of(value.numel(), self.block)):
                part = slice(start, start + size)
                if s := float(scale[i]):
                    scale[i] = max(_dot(value[part], estimate[part]), 0.0) / (s * size)
        return Polar(made.coded.message, self.block, made.coded.kept, True, scale, seed)


def _dot(x: Tensor, y: Tensor) -> float:
    """Return the dot product, in float64 by a fixed tree of additions."""
    products = x.double() * y.double()
    while len(products) > 1:
        half = len(products) // 2
        rest = products[2 * half :]
        products = torch.cat([products[:half] + products[half : 2 * half], rest])
    return float(products.sum())


def polar(spec: Spec) -> Codec:
    """Return the codec of a polar spec."""
    select = spec.choice("select", "all", SELECTS)
    return PolarSigns(
        rate=spec.number("rate", 0.5),
        block=spec.integer("block", 1024),
        rotate=spec.flag("rotate", True),
        select=select,
        p=0.01 if select == "all" else spec.number("p", 0.01),
    )
