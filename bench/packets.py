"""The rows combine, gram and vote: what a server does with m packets, ternary or of signs."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from torch import Tensor

import gcext

from . import internals, oracle
from .case import Case, Setting
from .timing import Variant

Pairs = list[tuple[Tensor, Tensor]]


def combine(setting: Setting, compiled: bool) -> Case:
    """The weighted sum of m packets as a new dense tensor; the floor is a new tensor of zeros."""
    packets, pairs = _packets(setting)
    weights = [1.0 / (2 + i) for i in range(setting.m)]
    args = (pairs, weights, setting.n)

    def check(got: Tensor, close: bool = False) -> str:
        right = oracle.combine(_arrays(pairs), weights, setting.n)
        if not close:
            return oracle.differs("sum", got.numpy(), right)
        # float32 sums of either sign may cancel, so the scale is the largest, not each one.
        why = oracle.departs("sum", got.numpy(), right, float(np.abs(right).max()))
        return why or oracle.differs("support", got.numpy() != 0, right != 0)

    close = partial(check, close=True)
    ours = Variant("gcext", partial(gcext.combine, packets, weights), check)
    baselines = (
        Variant("index_add", partial(_index_add, *args), close),
        Variant("index_add-once", partial(_index_add_once, *args), close),
    )
    return Case("combine", setting, ours, baselines, _zeros(setting.n), facts={"m": setting.m})


def gram(setting: Setting, compiled: bool) -> Case:
    """All m*m dot products, from packets; the floor copies the packets' arrays."""
    packets, pairs = _packets(setting)

    def check(got: Tensor, close: bool = False) -> str:
        right = oracle.gram(_arrays(pairs), [packet.scale for packet in packets], setting.n)
        if not close:
            return oracle.differs("dots", got.numpy(), right)
        return oracle.departs("dots", got.numpy(), right, np.diag(right).max())

    # One copy: the packets' arrays one by one would time the starting of threads.
    arrays = torch.cat([each.view(torch.uint8) for pair in pairs for each in pair])
    to = torch.empty_like(arrays)
    floor = Variant(
        "floor",
        partial(to.copy_, arrays),
        lambda _: oracle.differs("copy", to.numpy(), arrays.numpy()),
        does="copy of all indices and values",
    )
    close = partial(check, close=True)
    ours = Variant("gcext", partial(gcext.gram, packets), check)
    baselines = (
        Variant("dense", partial(_gram_dense, pairs, setting.n), close),
        Variant("lookup", partial(_gram_lookup, pairs, setting.n), close),
    )
    return Case("gram", setting, ours, baselines, floor, facts={"m": setting.m})


def vote(setting: Setting, compiled: bool) -> Case:
    """Bit-sliced counters against sums of decoded signs; the floor is a new tensor of zeros."""
    generator = setting.generator()
    encode = gcext.codec("sign").encode
    packets = [encode(torch.randn(setting.n, generator=generator)) for _ in range(setting.m)]
    decoded = [internals.dense(packet).sign() for packet in packets]
    right = torch.stack(decoded).sum(dim=0).sign().numpy() + 0.0  # small integers: exact

    def check(got: Tensor) -> str:
        return oracle.differs("votes", got.numpy() + 0.0, right)

    run = partial(gcext.aggregate.Vote().aggregate, dict(enumerate(packets)))
    ours = Variant("gcext", run, check)
    baselines = (
        Variant("sum of decoded", partial(_sum, decoded), check),
        Variant("decode and sum", partial(_decode_and_sum, packets), check),
    )
    return Case("vote", setting, ours, baselines, _zeros(setting.n), facts={"m": setting.m})


def _packets(setting: Setting) -> tuple[list[gcext.Packet], Pairs]:
    generator = setting.generator()
    # Clients agree in part, so supports overlap more than chance would have it.
    common = torch.randn(setting.n, generator=generator)
    packets = []
    for _ in range(setting.m):
        own = torch.randn(setting.n, generator=generator)
        packets.append(gcext.stc(own.add_(common), setting.p))
    return packets, [internals.pairs(packet) for packet in packets]


def _arrays(pairs: Pairs) -> list[tuple[oracle.Index, oracle.Floats]]:
    return [(index.long().numpy(), value.numpy()) for index, value in pairs]


def _zeros(n: int) -> Variant:
    def check(got: Tensor) -> str:
        return "zeros: not all" if got.any() else ""

    return Variant("floor", partial(torch.zeros, n), check, does="torch.zeros(n)")


def _index_add(pairs: Pairs, weights: list[float], n: int) -> Tensor:
    out = torch.zeros(n)
    for (index, value), weight in zip(pairs, weights, strict=True):
        out.index_add_(0, index, value, alpha=weight)
    return out


def _index_add_once(pairs: Pairs, weights: list[float], n: int) -> Tensor:
    index = torch.cat([index for index, _ in pairs])
    value = torch.cat([value * weight for (_, value), weight in zip(pairs, weights, strict=True)])
    return torch.zeros(n).index_add_(0, index, value)


def _gram_dense(pairs: Pairs, n: int) -> Tensor:
    rows = torch.zeros(len(pairs), n, dtype=torch.float64)
    for row, (index, value) in zip(rows, pairs, strict=True):
        row[index] = value.double()
    return rows @ rows.T


def _gram_lookup(pairs: Pairs, n: int) -> Tensor:
    """One packet at a time made dense, and the others' entries looked up in it."""
    out = torch.empty(len(pairs), len(pairs), dtype=torch.float64)
    dense = torch.zeros(n, dtype=torch.float64)
    for i, (index, value) in enumerate(pairs):
        dense[index] = value.double()
        for j, (other, signs) in enumerate(pairs[: i + 1]):
            out[i, j] = out[j, i] = dense[other] @ signs.double()
        dense[index] = 0.0
    return out


def _sum(decoded: list[Tensor]) -> Tensor:
    """What torch does once the signs are dense float32."""
    out = decoded[0].clone()
    for signs in decoded[1:]:
        out += signs
    return out.sign_()


def _decode_and_sum(packets: list[gcext.Packet]) -> Tensor:
    out = torch.zeros(packets[0].shape)
    for packet in packets:
        out += internals.dense(packet).sign_()
    return out.sign_()
