"""The codec of low-rank factors, one step of subspace iteration: PowerSGD without its memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gcext._codecs.base import Codec, register_codec
from gcext._codecs.input import CodecInput
from gcext._codecs.seeds import derive
from gcext._codecs.topk import Dense
from gcext._native.status import TRANSFORMED, is_ok, mark
from gcext._packet.codes import Contents
from gcext._packet.packet import Packet
from gcext._packet.transforms import LowRank, lowrank_view, product
from gcext._spec import option

__all__ = ["LowRankFactors", "factor", "fresh", "next_start", "orthonormal", "project", "rank_of"]

# Of a column's part that is orthogonal to those before it, over the column: below it is what
# float32 products have rounded.
_DEPENDENT = 1e-6
_LARGEST = 2.0**95  # of right, docs/wire-format.md


def rank_of(shape: Sequence[int], rank: int) -> int:
    """Return the rank to factor a tensor of this shape with; 0: send it as it is.

    That is where the factors are no smaller than the tensor, as of one dimension.
    """
    rows, cols = lowrank_view(shape)
    rank = min(rank, rows, cols)
    return rank if rank * (rows + cols) < rows * cols else 0


def fresh(cols: int, rank: int, seed: int, device: torch.device) -> Tensor:
    """Return a random start, float32 of shape (cols, rank), each entry normal."""
    generator = torch.Generator().manual_seed(derive(seed, "start") % 2**63)
    start = torch.randn(cols, rank, generator=generator)
    if device.type == "cuda":  # a copy from pageable memory would synchronize
        return start.pin_memory().to(device, non_blocking=True)
    return start


def project(matrix: Tensor, start: Tensor) -> Tensor:
    """Return P = MQ. Columns of the start are scaled to a largest entry of 1, for their range."""
    largest = start.abs().amax(0)
    return matrix @ (start / torch.where(largest > 0, largest, torch.ones_like(largest)))


def factor(matrix: Tensor, left: Tensor) -> Tensor:
    """Return the transpose of M times P, contiguous."""
    # In this order M is read along its rows: a quarter of the time of matrix.t() @ left. Unlike
    # linear(), neither product depends on where M begins, but with one column.
    return (left.t() @ matrix).t().contiguous()


def orthonormal(columns: Tensor) -> Tensor:
    """Return an orthonormal basis of the columns' span, by Gram-Schmidt in float64, twice over.

    A column that depends on those before it becomes zero, so that the product with the transpose
    is always a projection.
    """
    basis = columns.new_zeros(columns.shape[1], columns.shape[0], dtype=torch.float64)
    for i, column in enumerate(columns.double().unbind(1)):
        before, rest = basis[:i], column
        for _ in range(2):
            rest = rest - before.t() @ (before @ rest)
        norm = torch.linalg.vector_norm(rest)
        new = norm > _DEPENDENT * torch.linalg.vector_norm(column)
        unit = rest / torch.where(new, norm, torch.ones_like(norm))
        # What is not finite must stay so, to be found.
        basis[i] = torch.where(new | norm.isnan(), unit, torch.zeros_like(unit))
    return basis.t().float().contiguous()


def next_start(start: Tensor, right: Tensor) -> Tensor:
    """Return what the next step starts from: right, and of its columns that vanish the old ones."""
    return torch.where(right.any(0), right, start)


@register_codec
@dataclass(frozen=True)
class LowRankFactors(Codec):
    """The product of two thin matrices, ``P = orth(M Q)`` and ``M^T P``, Q drawn from the seed.

    PowerSGD (Vogels, Karimireddy & Jaggi 2019, arXiv:1905.13727, Algorithm 1) for one worker and
    without its warm start, which ``PowerSGD`` has: with it one iteration a step is enough. A tensor
    is a matrix of its first dimension by all others. One whose factors would be no smaller travels
    as float32, as do all of one dimension: 4 rank (rows + cols) bytes of any other.

    The decoded value is ``P P^T M``, a projection, so never more than there was: in the mean over
    seeds a contraction by at least ``rank / min(rows, cols)``, which is reached where all singular
    values are equal, and no less than ``rank / sqrt(n)``.

    torch's matrix products encode: the bytes depend on the processor, the threads and the device
    (and, on CUDA, on whether these products may use TF32). What a packet decodes to does not.

    Known failure: gradients whose singular values decay slowly; embeddings of which a step touches
    a few rows, where top-k is far better.

    Attributes:
        rank: columns of either factor.
        iterations: products with M and its transpose; each brings P nearer to the leading singular
            vectors.
    """

    rank: int = option(2, "[1, inf)")
    iterations: int = option(1, "[1, inf)")

    name = "lowrank"
    stochastic = True

    def contraction(self, n: int) -> float:
        """See Codec."""
        return min(1.0, self.rank / max(math.isqrt(n), 1))

    def encode_input(self, acc: CodecInput, seed: int) -> Packet:
        """See Codec."""
        rank = rank_of(acc.source.shape, self.rank)
        if rank == 0:
            return Dense().encode_input(acc, seed)
        cols = lowrank_view(acc.source.shape)[1]
        return self.encode_from(acc, fresh(cols, rank, seed, acc.tensor.device))[0]

    def encode_from(self, acc: CodecInput, start: Tensor) -> tuple[Packet, Tensor]:
        """Return the packet, and what the next one is to start from."""
        total, info = acc.add_deferred()
        rows, cols = lowrank_view(acc.source.shape)
        matrix, right = total.view(rows, cols), start
        for _ in range(self.iterations):
            left = orthonormal(project(matrix, right))
            right = factor(matrix, left)
        mark(info, ~((right.abs() <= _LARGEST).all() & left.isfinite().all()), TRANSFORMED)
        acc.check(info)
        acc.take(None, product(left, right).view(-1), info)
        acc.restore(info)

        def finish(left: Tensor, right: Tensor, _: float) -> Contents:
            return Contents(None, LowRank(rows, cols, start.shape[1], left, right))

        arrays = (left.view(-1), right.reshape(-1))
        packet = Packet.from_kernel("lowrank", acc.op, acc.source, info, finish, arrays)
        return packet, torch.where(is_ok(info), next_start(start, right), start)
