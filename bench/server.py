"""The rows combine and gram: what a server does with m ternary packets."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from torch import Tensor

import gcext
from bench import oracle
from bench.case import Case, Setting, Variant

Pairs = list[tuple[Tensor, Tensor]]


def combine(setting: Setting, compiled: bool) -> Case:
    """The weighted sum of m packets as a new dense tensor; the floor is a new tensor of zeros."""
    packets, pairs = _packets(setting)
    weights = [1.0 / (2 + i) for i in range(setting.m)]

    def expected() -> oracle.Floats:
        arrays = [(index.long().numpy(), value.numpy()) for index, value in pairs]
        return oracle.combine(arrays, weights, setting.n)

    def check(got: Tensor) -> str:
        return oracle.differs("sum", got.numpy(), expected())

    def close(got: Tensor) -> str:
        right = expected()
        # float32 sums of either sign may cancel, so the yardstick is the largest, not each one.
        why = oracle.departs("sum", got.numpy(), right, float(np.abs(right).max()))
        return why or oracle.differs("support", got.numpy() != 0, right != 0)

    return Case(
        "combine",
        setting,
        Variant("gcext", partial(gcext.combine, packets, weights), check),
        (
            Variant("index_add", partial(_index_add, pairs, weights, setting.n), close),
            Variant("index_add-once", partial(_index_add_once, pairs, weights, setting.n), close),
        ),
        Variant(
            "floor",
            partial(torch.zeros, setting.n),
            lambda got: "zeros: not all" if got.any() else "",
        ),
        "torch.zeros(n)",
        facts={"m": setting.m},
    )


def gram(setting: Setting, compiled: bool) -> Case:
    """All m*m dot products, from packets; the floor copies the packets' arrays."""
    packets, pairs = _packets(setting)

    def expected() -> oracle.Doubles:
        arrays = [(index.long().numpy(), value.numpy()) for index, value in pairs]
        return oracle.gram(arrays, [packet.scale for packet in packets])

    def check(got: Tensor) -> str:
        return oracle.differs("dots", got.numpy(), expected())

    def close(got: Tensor) -> str:
        right = expected()
        return oracle.departs("dots", got.numpy(), right, np.diag(right).max())

    # One copy: the packets' arrays one by one would time the starting of threads.
    arrays = torch.cat([each.view(torch.uint8) for pair in pairs for each in pair])
    to = torch.empty_like(arrays)

    def copied(_: Tensor) -> str:
        return "" if torch.equal(to, arrays) else "copy: differs"

    return Case(
        "gram",
        setting,
        Variant("gcext", partial(gcext.gram, packets), check),
        (
            Variant("dense", partial(_gram_dense, pairs, setting.n), close),
            Variant("lookup", partial(_gram_lookup, pairs, setting.n), close),
        ),
        Variant("floor", partial(to.copy_, arrays), copied),
        "copy of all indices and values",
        facts={"m": setting.m},
    )


def _packets(setting: Setting) -> tuple[list[gcext.Packet], Pairs]:
    generator = setting.generator()
    # Clients agree on some of what matters, so supports overlap more than chance would have it.
    common = torch.randn(setting.n, generator=generator)
    packets, pairs = [], []
    for _ in range(setting.m):
        own = torch.randn(setting.n, generator=generator)
        packet = gcext.stc(own.add_(common), setting.p)
        assert packet.index is not None
        packets.append(packet)
        pairs.append((packet.index, packet.value))
    return packets, pairs


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
