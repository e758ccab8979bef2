"""Codecs that send what is beyond a threshold: Strom, and Aji and Heafield."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from gcext._codecs.base import Codec, register_codec
from gcext._codecs.input import CodecInput
from gcext._codecs.seeds import derive
from gcext._native import ops, threshold
from gcext._packet.codes import Contents, Random
from gcext._packet.packet import Packet
from gcext._spec import option

__all__ = ["AjiHeafield", "Strom"]


@register_codec
@dataclass(frozen=True)
class Strom(Codec):
    """Every element whose magnitude is above ``tau``, as plus or minus ``tau``, rounded to float32.

    With a residual what is not sent waits there: ``r = g + r; r -= sent`` (Strom 2015, "Scalable
    distributed DNN training using commodity GPU cloud computing"). An element sends one tau a
    packet at most, so this is no contraction. The residual stays within tau as long as no element
    of a tensor is beyond tau; where some are, by a mean of more than tau, theirs grows without
    bound: choose tau by the largest gradients, not the typical one.

    On CUDA the packet has a capacity of all elements until it is first read.
    """

    tau: float = option(0.01, "(0, inf)")

    name = "strom"
    contracts = False
    reads_half = True

    @property
    def defers_residual(self) -> bool:
        """See Codec."""
        return True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self._key or self._key >= 0x7F800000:
            raise ValueError(f"strom: tau must be positive in float32, got {self.tau:g}.")

    @cached_property
    def _key(self) -> int:
        tau = torch.tensor([self.tau], dtype=torch.float64)
        return int(ops.to_float32(tau).view(torch.int32))  # denormals kept

    def encode_input(self, acc: CodecInput, seed: int) -> Packet:
        """See Codec."""
        limit = acc.tensor.new_full((1,), self._key + 1, dtype=torch.int32)
        return _packet("ternary", acc, limit, self._key)


def _packet(method: str, acc: CodecInput, limit: Tensor, scale: int) -> Packet:
    """Return the packet of what is at least as large as a limit; see threshold."""
    where, slots = (acc.tensor, acc.memory, acc.out, acc.decay), (acc.sent, acc.next)
    index, value, info = threshold.threshold(*where, limit, scale, *slots)
    return Packet.from_kernel(method, acc.op, acc.source, info, Contents, cut=(index, value))


_SHARE, _LEAST = 1000, 256  # a sample is 1/1000 of all elements, and as many at least


@register_codec
@dataclass(frozen=True)
class AjiHeafield(Codec):
    """All but the share ``drop`` of least magnitude, by the threshold of a sample; float32 values.

    A sample of 0.1 % of the elements, 256 at least, is drawn by the seed. What is at least as large
    as the sample's element of rank ``drop`` is sent, zeros never; with a residual the rest waits
    there (Aji & Heafield 2017, arXiv:1704.05021, "gradient dropping"). How many are sent varies
    with the sample, and all may be: where the threshold is 0, because so many elements are, every
    other one travels. The paper sends what is above the threshold; equal magnitudes, which would
    then wait forever, travel here.

    A contraction, in the mean over seeds, by the number of the sample that is sent over n: that
    share of the sample's energy travels at least, and in the mean the sample has its share of all.
    It is usually about 1 - drop or better.
    """

    drop: float = option(0.99, "[0, 1)")

    name = "ajiheafield"
    stochastic = True
    reads_half = True

    @property
    def defers_residual(self) -> bool:
        """See Codec."""
        return True

    def _sample(self, n: int) -> tuple[int, int]:
        """Return the sample's size, and how many of it are below the threshold."""
        size = min(n, max(n // _SHARE, _LEAST))
        return size, min(math.floor(self.drop * size), max(size - 1, 0))

    def contraction(self, n: int) -> float:
        """See Codec."""
        size, below = self._sample(n)
        return (size - below) / n if n else 1.0

    def encode_input(self, acc: CodecInput, seed: int) -> Packet:
        """See Codec."""
        n = acc.tensor.numel()
        size, below = self._sample(n)
        place = Random(derive(seed, "sample"), size).draw(n, acc.tensor.device)
        rising = (acc.at(place).view(torch.int32) & 0x7FFFFFFF).sort()[0]  # bits of magnitudes
        limit = rising[below : below + 1] if n else rising.new_ones(1)
        return _packet("sparse", acc, limit, 0)
