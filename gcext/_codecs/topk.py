"""Codecs that keep values as they are, or as their mean magnitude: dense, top-k, STC, random-k."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gcext._codecs.base import Codec
from gcext._codecs.input import SCALED, Sum, finite, spoil
from gcext._codecs.seeds import derive
from gcext._native import ops
from gcext._packet import deferred as _late
from gcext._packet.codes import Random
from gcext._packet.deferred import Contents, narrow
from gcext._packet.packet import Packet
from gcext._packet.selected import Selected, pairs, ternary_pairs
from gcext._spec import Spec, write

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
        k = count(self.p, acc.tensor.numel())
        selected = ops.select(
            acc.tensor, acc.memory, acc.out, k, 1.0, acc.decay, self.ternary
        )  # fmt: skip
        return self._packet(acc, *selected)

    def encode_sums(self, sums: Sequence[Sum], seeds: Sequence[int]) -> list[Packet]:
        """See Codec."""
        first = sums[0] if sums else None
        if any(each.tensor.numel() >= 2**31 or not _alike(each, first) for each in sums):
            return super().encode_sums(sums, seeds)
        if first is None:
            return []
        ks = [count(self.p, each.tensor.numel()) for each in sums]
        memory = [each.memory for each in sums if each.memory is not None]
        out = [each.out for each in sums if each.out is not None]
        tensors = [each.tensor for each in sums]
        index, value, info = ops.select_many(
            tensors, memory, out, ks, 1.0, first.decay, self.ternary
        )
        infos = info.unbind()
        for each, its in zip(sums, infos, strict=True):
            each.check(self.name, its)  # before the pairs are taken apart: they may not be there
        indices, values = index.split(ks), value.split(ks)  # type: ignore[no-untyped-call]
        rows = zip(sums, indices, values, infos, strict=True)
        return [self._packet(*row) for row in rows]

    def _packet(self, acc: Sum, index: Tensor, value: Tensor, info: Tensor) -> Packet:
        """Return the packet of what select gave."""
        method = "ternary" if self.ternary else "sparse"
        finish = ternary_pairs if self.ternary else pairs
        return acc.packet_of(self.name, method, (index, value), info, finish, Selected)


def _alike(one: Sum, other: Sum | None) -> bool:
    """Whether both can be selected in one call."""
    assert other is not None
    return (
        one.tensor.device == other.tensor.device
        and one.decay == other.decay
        and (one.memory is None) == (other.memory is None)
        and (one.out is None) == (other.out is None)
    )


def top_support(acc: Sum, p: float, op: str) -> tuple[Tensor, Tensor, Tensor]:
    """Return indices and values of the largest of a sum, and info; all of it is left in ``out``.

    Waits for the device, to know how many there are.
    """
    k = count(p, acc.tensor.numel())
    index, value, info = ops.select(acc.tensor, acc.memory, acc.out, k, 1.0, acc.decay, False)
    index, value = narrow(acc.look(op, info)[0], index, value)
    if acc.out is not None:  # the operator took out what it chose
        ops.combine_add_(acc.out.view(-1), index, value, 1.0)
    return index, value, info


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
        support, index, value, info = random_support(acc, self.p, "randomk", seed)
        acc.take(index, value, info)

        def contents(numbers: list[int], value: Tensor) -> Contents:
            return support, value, 0.0

        return acc.packet_of("randomk", "random", (value,), info, contents)


def random_support(acc: Sum, p: float, op: str, seed: int) -> tuple[Random, Tensor, Tensor, Tensor]:
    """Return a support, its indices, the values to code there, and info.

    All of the sum is left in ``acc.out``. The values are n/k times those of the sum where it has no
    out: see RandomK.
    """
    whole, info = acc.add_late(op)
    n = whole.numel()
    k = count(p, n)
    support = Random(derive(seed, "support"), k)
    index = support.draw(n, whole.device)
    value = whole.index_select(0, index)
    if acc.out is None and k < n:
        value = _times(value, n / k)
        spoil(info, ~torch.isfinite(value).all(), SCALED)
    return support, index, value, info


def _times(value: Tensor, factor: float) -> Tensor:
    """Return ``factor`` (rounded to float32) times the values, denormals kept on the CPU."""
    out = torch.zeros_like(value)
    ops.combine_add_(out, value.new_empty(0, dtype=torch.int32), value, factor)
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
        whole, info = acc.add_late("dense")
        value = whole.clone()
        if acc.out is not None and _late.comes_late(info):
            acc.out.masked_fill_(finite(info), 0.0)
        elif acc.out is not None:
            acc.out.zero_()
        return acc.packet_of("dense", "dense", (value,), info, _all)


def _all(numbers: list[int], value: Tensor) -> Contents:
    """Return the contents of a dense packet."""
    return None, value, 0.0


def topk(spec: Spec) -> Codec:
    """Return the codec of an stc or topk spec."""
    return TopK(spec.number("p", 0.01), ternary=spec.name == "stc")


def randomk(spec: Spec) -> Codec:
    """Return the codec of a randomk spec."""
    return RandomK(spec.number("p", 0.01))


def dense(spec: Spec) -> Codec:
    """Return the codec of a dense spec."""
    return Dense()
