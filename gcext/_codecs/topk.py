"""Codecs that keep float32 values, or their mean magnitude: dense, top-k, STC, random-k."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import repeat
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from gcext._codecs.base import Codec, Scope, register_codec
from gcext._codecs.input import CodecInput, Slots
from gcext._codecs.seeds import derive
from gcext._native import chunks, lists, ops
from gcext._native.status import SCALED, is_ok, mark, raise_for
from gcext._packet.codes import Contents, Random
from gcext._packet.joined import Joined
from gcext._packet.packet import Packet
from gcext._packet.streams import Ready
from gcext._spec import option

__all__ = ["STC", "Chunks", "Dense", "RandomK", "TopK", "count_of", "random_support", "share"]
__all__ += ["top_support"]


def share(p: float, n: int) -> float:
    """Return k/n of the k that ``count_of`` returns."""
    return count_of(p, n) / n if n else 1.0


def count_of(p: float, n: int) -> int:
    """Return how many of n elements the share p is: max(floor(p*n), 1)."""
    return max(math.floor(p * n), 1) if n else 0


class Chunks(NamedTuple):
    """How many are chosen of the chunks of a tensor: see csrc/chunks/select_chunks.h.

    size: elements of a chunk, 0 of an empty tensor. rest: of the last one. k, last: chosen of a
    chunk and of the last one. total: of all.
    """

    size: int
    rest: int
    k: int
    last: int
    total: int

    @classmethod
    def of(cls, p: float, n: int, chunk: int) -> Chunks:
        """Return those of n elements; chunk 0 is one for all."""
        size = min(chunk or n, n)
        rest = n % size or size if n else 0
        k, last = count_of(p, size), count_of(p, rest)
        return cls(size, rest, k, last, (-(-n // size) - 1) * k + last if n else 0)

    def select(self, acc: CodecInput, ternary: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Return index, value and info of a sum; see ops.select."""
        rest = 1.0, acc.decay, ternary
        if self.size == acc.tensor.numel():
            slots = acc.sent, acc.next
            return ops.select(acc.tensor, acc.memory, acc.out, self.k, *rest, *slots)
        per_chunk = self.size, self.k, self.last
        tensor = acc.tensor if acc.tensor.dtype is torch.float32 else ops.to_float32(acc.tensor)
        return chunks.select_chunks(tensor, acc.memory, acc.out, *per_chunk, *rest)

    def share(self) -> float:
        """Return the least share that is chosen of a chunk."""
        return min(self.k / self.size, self.last / self.rest) if self.size else 1.0


@dataclass(frozen=True, repr=False)
class _Largest(Codec):
    """The ``max(floor(p*n), 1)`` elements of largest magnitude; ties to the lower index.

    chunk: where above 0, so of every chunk of as many consecutive elements (the last may be
    shorter).
    """

    p: float = option(0.01, "(0, 1]")
    chunk: int = option(0, "[0, 65536]", omit=True)

    scopes = ("tensor", "model")
    reads_half = True
    _method: ClassVar[str]

    def __repr__(self) -> str:
        options = ", ".join(f"{key}={value!r}" for key, value in self.options().items())
        return f"{type(self).__name__}({options})"

    @property
    def defers_residual(self) -> bool:
        """See Codec."""
        return self.chunk == 0

    def encode_input(self, acc: CodecInput, seed: int) -> Packet:
        """See Codec."""
        found = Chunks.of(self.p, acc.tensor.numel(), self.chunk)
        index, value, info = found.select(acc, self._method == "ternary")
        return Packet.from_kernel(
            self._method, acc.op, acc.source, info, Contents, cut=(index, value)
        )

    def encode_inputs(
        self, accs: Sequence[CodecInput], seeds: Sequence[int], scope: Scope = "tensor"
    ) -> list[Packet]:
        """See Codec. One call of the kernel for all."""
        if scope not in self.scopes:
            raise self.scope_error(scope)
        if self.chunk and scope == "model":
            raise ValueError(
                f"{self.name}: scope must be 'tensor' where chunk is above 0, got 'model'."
            )
        if self.chunk:
            return super().encode_inputs(accs, seeds)
        if not accs:
            return []
        tensors, decay, slots = [acc.tensor for acc in accs], accs[0].decay, Slots.of(accs)
        numels = [tensor.numel() for tensor in tensors]
        alike = (
            max(numels) < 2**31
            and {*map(len, slots)} <= {0, len(accs)}
            and all(acc.decay == decay for acc in accs)
            and len({tensor.device for tensor in tensors}) == 1
        )
        if scope == "model" and (tensors[0].is_cuda or not alike):
            raise ValueError(
                f"{self.name}: scope='model' needs tensors on the CPU of less than 2^31 elements "
                "each, all with a residual or none. Or encode their torch.cat as one tensor."
            )
        if not alike:
            return super().encode_inputs(accs, seeds)
        ks = self._shares(numels, scope)
        index, value, info = self._select(tensors, slots, ks, decay, scope)
        if not info.is_cuda:
            sources = [acc.source for acc in accs]
            return self._packets(sources, index, value, info, ks, lambda i: accs[i].op)
        pairs = zip(index.split(ks), value.split(ks), strict=True)  # type: ignore[no-untyped-call]
        ready = Ready.here(info.device)  # an event for all
        return [
            Packet.from_kernel(self._method, acc.op, acc.source, its, Contents, (), pair, ready)
            for acc, its, pair in zip(accs, info.unbind(), pairs, strict=True)
        ]

    def _encode_plain(
        self,
        tensors: Sequence[Tensor],
        slots: Slots,
        decay: float,
        scope: Scope,
        name: Callable[[int], str],
    ) -> list[Packet] | None:
        """See Codec."""
        numels = [each.numel() for each in tensors]
        alike = {*map(len, slots)} <= {0, len(tensors)}
        large = max(numels, default=2**31) >= 2**31
        if self.chunk or scope not in self.scopes or large or not alike:
            return None
        ks = self._shares(numels, scope)
        try:
            index, value, info = self._select(tensors, slots, ks, decay, scope)
        except RuntimeError:  # of what has to be converted first, or is refused: nothing was done
            return None
        return self._packets(tensors, index, value, info, ks, name)

    def _shares(self, numels: Sequence[int], scope: Scope) -> list[int]:
        """Return how many are selected of each tensor, or of all in all."""
        if scope == "model":
            return [count_of(self.p, sum(numels))]
        return [count_of(self.p, numel) for numel in numels]

    def _select(
        self, tensors: Sequence[Tensor], slots: Slots, ks: Sequence[int], decay: float, scope: Scope
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return index, value and info of all tensors, one after another."""
        memory, out, sent, next = slots
        rest = 1.0, decay, self._method == "ternary", sent, next
        if scope == "model":
            return lists.select_model(tensors, memory, out, ks[0], *rest)
        return lists.select_many(tensors, memory, out, ks, *rest)

    def _packets(
        self,
        sources: Sequence[Tensor],
        index: Tensor,
        value: Tensor,
        info: Tensor,
        ks: Sequence[int],
        name: Callable[[int], str],
    ) -> list[Packet]:
        """Return the packets of what the operator left on the CPU; raises what info reports.

        ks: see ``_shares``. name: of a tensor, for errors.
        """
        counts, status, where, bits = info.t().tolist()
        for i in range(len(status)) if any(status) else ():
            raise_for(name(i), status[i], where[i], sources[i])
        index, value = _closed_up(index, ks, counts), _closed_up(value, ks, counts)
        ternary = self._method == "ternary"
        scales = [*map(Packet.scale_of, bits)] if ternary else [0.0] * len(bits)
        shapes = [tuple(each.shape) for each in sources]
        dtypes = [each.dtype for each in sources]
        heads = [*zip(repeat(self._method), shapes, dtypes, counts, scales)]
        return list(Joined(heads, index, value).packets(Packet))


def _closed_up(array: Tensor, ks: Sequence[int], counts: Sequence[int]) -> Tensor:
    """Return what was selected of each tensor, one after another; where that is not all, a copy.

    ks: the capacities; a single one is that of all, which the operator closes up itself.
    """
    size = sum(counts)
    if size == array.numel():
        return array
    if len(ks) == 1:
        return ops.copy_of(array[:size])
    parts = array.split(ks)  # type: ignore[no-untyped-call]
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


@register_codec
class STC(_Largest):
    """Sparse ternary compression: the share p of largest magnitude, as plus or minus its mean.

    The mean is the exact sum rounded once; ties go to the lower index. Zeros are never sent, so a
    packet may hold fewer elements (Sattler et al. 2019, arXiv:1903.02891).

    chunk: where above 0, the largest are taken of every chunk of as many consecutive elements (the
    last may be shorter); the mean is that of all that are sent.

    A contraction by ``|x_I|_1^2 / (k |x|_2^2)`` of the sum x, I being what is sent, and never by
    less than ``min(k/n, 1/k)``: the least is where all are equal, or all but one vanish. With
    chunks of s elements, of which c are sent: ``min(c^2/s, 1)/k``.
    """

    name = "stc"
    _method = "ternary"

    def contraction(self, n: int) -> float:
        """See Codec."""
        # Of one chunk the ratio is quasi-concave: least at some (1, .., 1, 0, .., 0). Of many, the
        # squared sum of norms is at least the sum of squares, so the worst is one with all of x.
        found = Chunks.of(self.p, n, self.chunk)
        ends = (found.k, found.size), (found.last, found.rest)
        return min(min(k * k / size, 1.0) for k, size in ends) / found.total if n else 1.0


@register_codec
class TopK(_Largest):
    """The share p of largest magnitude in float32; ties to the lower index.

    Zeros are never sent, so a packet may hold fewer elements. A contraction by ``k/n`` (Stich et
    al. 2018, arXiv:1809.07599).

    chunk: where above 0, the largest are taken of every chunk of as many consecutive elements (the
    last may be shorter), as by Peng et al. (2024, arXiv:2411.19870, DeMo) and Sarfi et al. (2025,
    arXiv:2508.15706, SparseLoCo). A contraction by the least share sent of a chunk.
    """

    name = "topk"
    _method = "sparse"

    def contraction(self, n: int) -> float:
        """See Codec."""
        return Chunks.of(self.p, n, self.chunk).share()


def top_support(acc: CodecInput, p: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return indices and values of the largest of a sum, and info; all of it is left in ``out``.

    Synchronizes, to know how many there are.
    """
    k = count_of(p, acc.tensor.numel())
    index, value, info = ops.select(acc.tensor, acc.memory, acc.out, k, 1.0, acc.decay, False)
    count = acc.numbers(info)[0]
    index, value = index[:count], value[:count]
    if acc.out is not None:  # the kernel subtracted what it selected
        ops.combine_add_(acc.out.view(-1), index, value, 1.0)
    return index, value, info


@register_codec
@dataclass(frozen=True)
class RandomK(Codec):
    """``max(floor(p*n), 1)`` elements drawn at random, each equally likely; float32 values.

    Without a residual they are scaled by n/k, so that the mean over seeds is the tensor (Wangni et
    al. 2018; Stich et al. 2018, "random-k"). With one they travel as they are: the scaled operator
    is no contraction, and error feedback would diverge. So they contract by ``k/n``, in the mean
    over seeds (Stich et al. 2018). Only the seed travels, not the indices.
    """

    p: float = option(0.01, "(0, 1]")

    name = "randomk"
    stochastic = True
    unbiased = True

    def contraction(self, n: int) -> float:
        """See Codec."""
        return share(self.p, n)

    def encode_input(self, acc: CodecInput, seed: int) -> Packet:
        """See Codec."""
        support, _, value, info = random_support(acc, self.p, seed, take_out=True)
        finish = partial(Contents, support)
        return Packet.from_kernel("random", acc.op, acc.source, info, finish, (value,))


def random_support(
    acc: CodecInput, p: float, seed: int, take_out: bool = False
) -> tuple[Random, Tensor, Tensor, Tensor]:
    """Return a support, its indices, the values to encode there, and info.

    The sum is left in ``acc.out``, all of it or (``take_out``) without these values. They are n/k
    times those of the sum where it has no out: see RandomK.
    """
    total, info = acc.add_deferred()
    n = total.numel()
    k = count_of(p, n)
    support = Random(derive(seed, "support"), k)
    index = support.draw(n, total.device)
    if take_out and acc.out is not None:
        return support, index, acc.take_out(index, info), info
    value = total.index_select(0, index)
    if acc.out is None and k < n:  # by the kernel, which keeps denormals
        scaled = torch.zeros_like(value)
        ops.combine_add_(scaled, value.new_empty(0, dtype=torch.int32), value, n / k)
        value = scaled
        top = torch.linalg.vector_norm(value, math.inf)  # one kernel, isfinite().all() is six
        mark(info, top == math.inf, SCALED)
    return support, index, value, info


@register_codec
@dataclass(frozen=True)
class Dense(Codec):
    """Every element as float32: no compression, the baseline of every comparison.

    A contraction by 1: nothing is left behind.
    """

    name = "dense"
    unbiased = True

    def contraction(self, n: int) -> float:
        """See Codec."""
        return 1.0

    def _encode_plain(
        self,
        tensors: Sequence[Tensor],
        slots: Slots,
        decay: float,
        scope: Scope,
        name: Callable[[int], str],
    ) -> list[Packet] | None:
        """See Codec. Without residuals alone: what is small is sent so."""
        if not tensors or any(slots) or scope != "tensor":
            return None
        sizes = [each.numel() for each in tensors]
        if any(x.dtype != torch.float32 or x.layout != torch.strided for x in tensors):
            return None
        value = ops.new_floats(tensors[0], sum(sizes))
        torch.cat([each.reshape(-1) for each in tensors], out=value)
        info = ops.select(value, None, None, 0, 1.0, 1.0, False)[2]  # looks for what is not finite
        if info.tolist()[1]:  # the caller says where
            return None
        parts = value.split(sizes)  # type: ignore[no-untyped-call]
        return [
            Packet("dense", tuple(each.shape), each.dtype, Contents(None, part))
            for each, part in zip(tensors, parts, strict=True)
        ]

    def encode_input(self, acc: CodecInput, seed: int) -> Packet:
        """See Codec."""
        numel = acc.tensor.numel()
        value = ops.new_floats(acc.tensor, numel)
        if acc.out is None:
            total, info = acc.add_deferred()
            value.copy_(total)
        else:
            memory = acc.out if acc.memory is None else acc.memory
            info = ops.select(acc.tensor, memory, value, 0, 1.0, acc.decay, False)[2]
            if not info.is_cuda and info.tolist()[1]:
                acc.check(info)
            inside = torch.inference_mode if acc.out.is_inference() else nullcontext
            with inside():  # only there an inference tensor may be written to
                if info.is_cuda:
                    acc.out.copy_(memory).masked_fill_(is_ok(info), 0.0)
                else:
                    acc.out.zero_()
        return Packet.from_kernel(
            "dense", acc.op, acc.source, info, partial(Contents, None), (value,)
        )
