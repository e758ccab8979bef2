"""The codec that sends elements with probabilities of their own: Wangni."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gcext._codecs.base import Codec, register_codec
from gcext._codecs.input import CodecInput
from gcext._codecs.keys import (
    as_float32,
    as_float64,
    below,
    exact_mean,
    find,
    keys,
    signed_bits,
    subtract,
)
from gcext._native import ops
from gcext._native.status import SCALED, is_ok, mark
from gcext._packet.codes import Contents
from gcext._packet.packet import Packet
from gcext._spec import option

__all__ = ["Wangni"]

_ITERATIONS = 2  # of the greedy algorithm; more change little
_OVERFLOW = 2.0**128 - 2.0**103  # what float32 rounds to infinity, from here on


@register_codec
@dataclass(frozen=True)
class Wangni(Codec):
    """Element i with probability ``p_i = min(lambda |g_i|, 1)``, and then as ``g_i/p_i``.

    lambda is that of the paper's greedy Algorithm 3 after two iterations, for ``p*n`` elements in
    the mean, 1 at least (Wangni et al. 2018, arXiv:1710.09854). Those with p_i = 1 travel as
    float32, the others as plus or minus ``1/lambda``, rounded to float32 before anything is drawn:
    a packet of method sum, of a sparse and a ternary one, which is the paper's hybrid code. The
    mean over seeds is the tensor, to 2^-52 of 1/lambda. The mean squared error is at most
    ``omega = 1/p`` squared norms: lambda never falls below its first value, p*n over the sum of
    the magnitudes.

    With a residual the drawn elements travel as plus or minus the mean of their magnitudes
    instead, the least squares' scale: a contraction by ``1/(1 + omega)``, as the unbiased packet
    over ``1 + omega`` is (Beznosikov et al. 2020, arXiv:2002.12410).

    A known failure: a few large elements beside very many of almost nothing leave lambda, after
    two iterations, with fewer than p*n elements in the mean.
    """

    p: float = option(0.01, "(0, 1]")

    name = "wangni"
    stochastic = True
    unbiased = True

    def _budget(self, n: int) -> float:
        return max(self.p * n, 1.0)

    def contraction(self, n: int) -> float:
        """See Codec."""
        return 1 / (1 + n / self._budget(n)) if n else 1.0

    def encode_input(self, acc: CodecInput, seed: int) -> Packet:
        """See Codec."""
        total, info = acc.add_deferred()
        n, key = total.numel(), keys(total)
        limit = self._limit(total)  # 1/lambda
        if n:
            beyond = as_float64(key.amax()) + as_float64(limit) >= _OVERFLOW
            mark(info, beyond, SCALED)
            acc.check(info)
            acc.restore(info)
        certain = key >= limit.clamp(min=1)
        sure, drawn = info.clone(), info.clone()
        # No more than the budget, but for the roundings of the means.
        most = min(n, int(self._budget(n) * (1 + 1e-6)) + 1)
        index = find(certain, most, sure)
        value = total.index_select(0, index)

        rest = torch.cat([below(total, limit.clamp(min=1))[0], limit.view(1).view(torch.float32)])
        at, signs = self._draw(rest, seed, drawn)
        if acc.out is not None:
            place = torch.arange(at.numel(), device=at.device)
            there = (place < drawn[0]) & is_ok(info)
            magnitude = rest.index_select(0, torch.where(there, at, 0)).view(torch.int32)
            limit = exact_mean(torch.where(there, magnitude, 0).view(torch.float32))
        drawn[3] = (drawn[0] > 0) * limit.long()
        sent = signed_bits(signs, limit.to(torch.int32))

        subtract(acc, index, value, sure[0], info)
        subtract(acc, at, sent, drawn[0], info)
        exact = Packet.from_kernel("sparse", acc.op, acc.source, sure, Contents, cut=(index, value))
        rounded = Packet.from_kernel("ternary", acc.op, acc.source, drawn, Contents, cut=(at, sent))
        return Packet.sum([exact, rounded])

    def _limit(self, total: Tensor) -> Tensor:
        """Return the bits of 1/lambda, int32 of shape ()."""
        n = total.numel()
        limit = torch.zeros((), dtype=torch.int32, device=total.device)
        rest, left = total, limit.double() + self._budget(n)
        for step in range(1 + _ITERATIONS if n else 0):
            if step:
                rest, count = below(total, limit.clamp(min=1))
                left = self._budget(n) - (n - count).double()
            # n times a mean: an exact sum, rounded to float32.
            mass = as_float64(ops.sign(rest, None, None, 1.0)[1][3]) * n
            made = as_float32((mass / left.clamp(min=1e-300)).clamp(max=2.0**128))
            lower = (left > 0) & (made < limit) if step else left > 0
            limit = torch.where(lower, made, limit)
        return limit

    @staticmethod
    def _draw(rest: Tensor, seed: int, info: Tensor) -> tuple[Tensor, Tensor]:
        """Return which elements are drawn, and float32 of their signs; their number is in info.

        rest: float32 elements of magnitudes below 1/lambda, and after them that: TernGrad's draw is
        by the largest magnitude.
        """
        n = rest.numel() - 1
        _, at, level, found = ops.levels(rest, None, None, 1.0, 1, 0, True, 0.0, False, seed)
        place = torch.arange(at.numel(), device=at.device)
        info[0] = torch.count_nonzero((place < found[0]) & (at < n))
        return at if n >= 2**31 else at.to(torch.int32), level.to(torch.float32)
