"""Codecs that send the positive and the negative elements by their means: Dryden, SBC."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from gcext._codecs.base import Codec, register_codec
from gcext._codecs.input import CodecInput
from gcext._codecs.topk import count_of
from gcext._native import ops
from gcext._native.polar import polar_pack
from gcext._native.status import is_ok, require_memory
from gcext._packet.codes import Contents
from gcext._packet.packet import Packet
from gcext._packet.tables import Codes
from gcext._spec import option

__all__ = ["SBC", "Dryden"]

_KEY = 2**31 - 1  # the bits of a float32's magnitude


def _sides(total: Tensor) -> tuple[Tensor, Tensor]:
    """Return the positive elements, and the negative ones; zeros, -0 among the latter, elsewhere.

    As integers, so that no mode of the processor takes a denormal for 0.
    """
    up, down = (ops.new_floats(total, total.numel()) for _ in range(2))
    bits, above, below = (each.view(torch.int32) for each in (total, up, down))
    torch.clamp(bits, min=0, out=above)
    torch.clamp(bits, max=0, out=below)
    return up, down


def _means(up: Tensor, down: Tensor) -> Tensor:
    """Return float32 [up, -down], given the bits of both; 0 is +0."""
    bits = torch.stack([up, torch.where(down > 0, down - 2**31, 0)])
    return bits.to(torch.int32).view(torch.float32)


def _contents(width: int, means: Tensor, bits: Tensor, index: Tensor, scale: float) -> Contents:
    """Return the contents of a packet of these indices; it has no scale of its own."""
    k = index.numel()
    bits = bits[: (k * width + 7) // 8].clone()
    return Contents(index, Codes("values", width, 0, means if k else means[:0], bits))


def _subtract(acc: CodecInput, index: Tensor, value: Tensor, count: Tensor, info: Tensor) -> None:
    """Subtract the first ``count`` values from the sum in ``acc.out``, unless info has an error.

    index: rising as far as they go; what follows may be anything. value: as many, or one for all.
    """
    if acc.out is None:
        return
    value = value.expand(index.shape)
    if not info.is_cuda:
        size = int(count)
        acc.take(index[:size].contiguous(), value[:size].contiguous(), info)
        return
    n = acc.out.numel()
    there = (torch.arange(index.numel(), device=index.device) < count) & is_ok(info)
    sent = value.new_zeros(n + 1)  # the last one takes what is not there
    sent.scatter_(0, torch.where(there, index, n).long(), torch.where(there, value, 0.0))
    acc.take(None, sent[:n], info)


def _exact_mean(values: Tensor) -> Tensor:
    """Return the bits of the mean magnitude of those that are not zero, 0 of none: int64, 0-d.

    The sum is exact and rounded once, as of select.
    """
    return ops.select(values, None, None, values.numel(), 1.0, 1.0, True)[2][3]


@register_codec
@dataclass(frozen=True)
class SBC(Codec):
    """Sparse binary compression (Sattler et al. 2018, arXiv:1805.08768): one side, by its mean.

    The k = max(floor(p*n), 1) largest positive elements and the k of largest negative magnitude
    (ties to the lower index) have a mean each, the exact sum rounded once. The side of the larger
    mean is sent, its elements all as that mean, the positive one where both are equal; the other is
    not. So positions and one number travel, no signs. With a residual the rest waits there.

    A contraction by at least ``1/(n + 2 k^2)``: of a side with mean m no more than
    ``m^2 max(n, k^2)`` is there in all. That is the worst case, for example one large negative
    element beside a positive of 1/k of its size; on normal values it is by about that of stc, but
    one side waits while the other travels. A known failure: gradients of one sign in the main
    leave the other side's elements waiting for many steps.
    """

    p: float = option(0.01, "(0, 1]")

    name = "sbc"

    def contraction(self, n: int) -> float:
        """See Codec."""
        return 1 / (n + 2 * count_of(self.p, n) ** 2) if n else 1.0

    def encode_input(self, acc: CodecInput, seed: int) -> Packet:
        """See Codec."""
        total, info = acc.add_deferred()
        k = count_of(self.p, total.numel())
        (at, _, up), (other, _, down) = (
            ops.select(side, None, None, k, 1.0, 1.0, True) for side in _sides(total)
        )
        for each in (up, down):
            require_memory(acc.op, each)
        positive = up[3] >= down[3]
        index = torch.where(positive, at, other)
        info[0] = torch.where(positive, up[0], down[0])
        means = _means(up[3], down[3])
        mean = torch.where(positive, means[:1], means[1:])
        _subtract(acc, index, mean, info[0], info)
        finish = partial(_contents, 0)
        whole = mean, torch.empty(0, dtype=torch.uint8, device=index.device)
        return Packet.from_kernel("codes", acc.op, acc.source, info, finish, whole, (index,))


@dataclass(frozen=True)
class _Side:
    """What of one side is sent."""

    index: Tensor  # rising; n where the element is not sent
    count: Tensor
    mean: Tensor  # bits of the mean magnitude


@register_codec
@dataclass(frozen=True)
class Dryden(Codec):
    """Of the positive and of the negative elements the share ``p``, each side as its mean.

    Every step finds the thresholds beyond which max(floor(p*m), 1) of a side's m elements lie (ties
    to the lower index), and sends the mean of those, an exact sum rounded once: positions, two
    numbers and a bit an element. With a residual the rest waits there (Dryden et al. 2016,
    "Communication quantization for data-parallel training of deep neural networks", adaptive
    quantization).

    Either side contracts as stc does, so this does by the least of both: at least
    ``min(k/m, 1/k)``. As with stc, a side of one large element and many small ones keeps most of
    the large one waiting.
    """

    p: float = option(0.01, "(0, 1]")

    name = "dryden"

    def contraction(self, n: int) -> float:
        """See Codec."""
        # k/m is least for the largest m of which one element is sent, 1/k for the largest side.
        most = min(n, math.ceil(2 / self.p))
        while most > 1 and count_of(self.p, most) > 1:
            most -= 1
        return min(1 / most, 1 / count_of(self.p, n)) if n else 1.0

    def _side(self, op: str, magnitudes: Tensor, info: Tensor) -> _Side:
        n = magnitudes.numel()
        m = torch.count_nonzero(magnitudes.view(torch.int32))
        if not info.is_cuda:
            k = count_of(self.p, int(m))
            at, _, found = ops.select(magnitudes, None, None, k, 1.0, 1.0, True)
            require_memory(op, found)
            return _Side(at, found[0], found[3])
        # Without synchronizing: of as many as there could be, the largest.
        at, value, found = ops.select(magnitudes, None, None, count_of(self.p, n), 1.0, 1.0, False)
        count = (m.double() * self.p).floor().long().clamp(min=1).minimum(m)
        place = torch.arange(at.numel(), device=at.device)
        there = (place < found[0]) & is_ok(info)
        key = torch.where(there, value.view(torch.int32), -1)
        order = key.sort(descending=True, stable=True)[1]  # equal ones stay in order
        sent = torch.zeros_like(there).scatter_(0, order, place < count) & there
        kept = torch.where(sent, key, 0).view(torch.float32)
        return _Side(torch.where(sent, at, n), count, _exact_mean(kept))

    def encode_input(self, acc: CodecInput, seed: int) -> Packet:
        """See Codec."""
        total, info = acc.add_deferred()
        above, below = _sides(total)
        below.view(torch.int32).bitwise_and_(_KEY)
        up, down = (self._side(acc.op, magnitudes, info) for magnitudes in (above, below))
        index, order = torch.cat([up.index, down.index]).sort()
        info[0] = up.count + down.count
        negative = (order >= up.index.numel()) & (index < total.numel())
        means = _means(up.mean, down.mean)
        _subtract(acc, index, torch.where(negative, means[1], means[0]), info[0], info)
        whole = means, polar_pack(negative.to(torch.uint8))
        finish = partial(_contents, 1)
        return Packet.from_kernel("codes", acc.op, acc.source, info, finish, whole, (index,))
