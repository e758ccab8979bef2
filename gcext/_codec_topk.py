"""Codecs that keep values as they are, or as their mean magnitude: dense, top-k, STC, random-k."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gcext import _lib, _server_ops
from gcext._codec_base import Codec, Sum, refuse
from gcext._seed import derive
from gcext._spec import Spec, write
from gcext.packet import Packet
from gcext.values import Random

__all__ = ["Dense", "RandomK", "TopK", "count", "dense", "random_support", "randomk", "share"]
__all__ += ["top_support", "topk"]


def share(p: float, op: str) -> float:
    """Return p as a float; ValueError unless it is a share."""
    if not 0 < p <= 1:
        raise ValueError(f"{op}: p must be in (0, 1], got {p:g}. Choose a share.")
    return float(p)


def count(p: float, n: int) -> int:
    """Return how many of n elements the share p is: max(floor(p*n), 1)."""
    return max(math.floor(p * n), 1) if n else 0


@dataclass(frozen=True)
class TopK(Codec):
    """The ``max(floor(p*n), 1)`` elements of largest magnitude; ties to the lower index.

    ternary: each becomes plus or minus their mean magnitude, sparse ternary compression (Sattler
    et al. 2019). Otherwise they keep their float32 value, top-k (Stich et al. 2018). Zeros are
    never sent, so a packet may hold fewer.
    """

    p: float
    ternary: bool

    def __post_init__(self) -> None:
        object.__setattr__(self, "p", share(self.p, self.name))

    @property
    def name(self) -> str:
        """See Codec."""
        return "stc" if self.ternary else "topk"

    @property
    def spec(self) -> str:
        """See Codec."""
        return write(self.name, {"p": self.p})

    def encode_sum(self, acc: Sum, seed: int) -> Packet:
        """See Codec."""
        index, value, mean = _select(acc, self.p, self.ternary, self.name)
        if self.ternary:
            return acc.packet("ternary", index, value, mean)
        return acc.packet("sparse", index, value)


def _select(acc: Sum, p: float, ternary: bool, op: str) -> tuple[Tensor, Tensor, float]:
    """Return indices and values of the largest of a sum, and their mean magnitude."""
    k = count(p, acc.tensor.numel())
    index, value, info = _lib.select(acc.tensor, acc.memory, acc.out, k, 1.0, acc.decay, ternary)
    found, status, where, mean = info.tolist()
    refuse(op, status, where, acc.source)
    if found < k:
        index, value = index[:found].clone(), value[:found].clone()
    return index, value, float_of(mean)


def top_support(acc: Sum, p: float, op: str) -> tuple[Tensor, Tensor]:
    """Return indices and values of the largest of a sum; all of the sum is left in ``acc.out``."""
    index, value, _ = _select(acc, p, False, op)
    if acc.out is not None:  # the operator took out what it chose
        _server_ops.combine_add_(acc.out.view(-1), index, value, 1.0)
    return index, value


@dataclass(frozen=True)
class RandomK(Codec):
    """``max(floor(p*n), 1)`` elements drawn at random, each equally likely; float32 values.

    Without a residual they are scaled by n/k, so that the mean over seeds is the tensor (Wangni et
    al. 2018; Stich et al. 2018, "random-k"). With one they travel as they are: the scaled operator
    is no contraction, and error feedback would diverge. Only the seed travels, not the indices.
    """

    p: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "p", share(self.p, "randomk"))

    @property
    def spec(self) -> str:
        """See Codec."""
        return write("randomk", {"p": self.p})

    @property
    def stochastic(self) -> bool:
        """See Codec."""
        return True

    def encode_sum(self, acc: Sum, seed: int) -> Packet:
        """See Codec."""
        support, value = random_support(acc, self.p, "randomk", seed)
        return acc.less(acc.packet("random", support, value))


def random_support(acc: Sum, p: float, op: str, seed: int) -> tuple[Random, Tensor]:
    """Return a support and the values to code there; all of the sum is left in ``acc.out``.

    The values are n/k times those of the sum where it has no out: see RandomK.
    """
    whole = acc.add(op)
    n = whole.numel()
    k = count(p, n)
    support = Random(derive(seed, "support"), k)
    value = whole[support.draw(n, whole.device).long()]
    if acc.out is None and k < n:
        value = _times(value, n / k)
        if not torch.isfinite(value).all():
            raise ValueError(
                f"{op}: tensor times {n / k:g} must be finite in float32, got an overflow. "
                "Scale the tensor down, or keep a residual."
            )
    return support, value


def _times(value: Tensor, factor: float) -> Tensor:
    """Return ``factor`` (rounded to float32) times the values, denormals kept on the CPU."""
    out = torch.zeros_like(value)
    _server_ops.combine_add_(out, value.new_empty(0, dtype=torch.int32), value, factor)
    return out


@dataclass(frozen=True)
class Dense(Codec):
    """Every element as float32: no compression, the baseline of every comparison."""

    @property
    def spec(self) -> str:
        """See Codec."""
        return "dense"

    def encode_sum(self, acc: Sum, seed: int) -> Packet:
        """See Codec."""
        value = acc.add("dense").clone()
        if acc.out is not None:
            acc.out.zero_()
        return acc.packet("dense", None, value)


def float_of(bits: int) -> float:
    """Return the non-negative float32 of these bits, also where denormals are being flushed."""
    exponent, mantissa = bits >> 23, bits & 0x7FFFFF
    return math.ldexp(mantissa | (0x800000 if exponent else 0), max(exponent, 1) - 150)


def topk(spec: Spec) -> Codec:
    """Return the codec of an stc or topk spec."""
    return TopK(spec.number("p", 0.01), ternary=spec.name == "stc")


def randomk(spec: Spec) -> Codec:
    """Return the codec of a randomk spec."""
    return RandomK(spec.number("p", 0.01))


def dense(spec: Spec) -> Codec:
    """Return the codec of a dense spec."""
    return Dense()
