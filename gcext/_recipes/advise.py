"""Every codec on the user's own gradients: error, bytes, time, and where it pays."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import Module

from gcext._codecs.registry import codec, codecs
from gcext._packet.packet import Packet
from gcext._recipes.recipe import about

__all__ = ["Advice", "advise"]


class Advice(NamedTuple):
    """What one codec does to some tensors.

    Attributes:
        spec: the codec's.
        nbytes: of the message, all tensors in one packet.
        ratio: of float32 to that.
        error: norm of what is lost over norm of the tensors.
        cosine: between what is decoded and the tensors.
        milliseconds: to encode, pack, unpack and decode once.
        megabits: link speed in Mbit/s below which a transfer by this codec is sooner done than
            one of float32; 0 where it never is.
    """

    spec: str
    nbytes: int
    ratio: float
    error: float
    cosine: float
    milliseconds: float
    megabits: float


def advise(
    tensors: Module | Tensor | Mapping[str, Tensor] | Iterable[Tensor],
    specs: Sequence[str] | None = None,
    repeat: int = 3,
) -> list[Advice]:
    """Run codecs on tensors of the user's own, without any residual, least bytes first.

    Inside training, call it after ``backward`` with the model: its gradients are encoded, and stay
    as they are.

    Args:
        tensors: a module (its parameters' gradients), a tensor, or several of any float dtype.
        specs: of the codecs; None: every published one at its defaults.
        repeat: times that each is run; milliseconds is the median.

    Raises ValueError where there is no tensor or gradient, or no element that is not 0, and what
    a codec raises for a tensor that is not finite.

    >>> import gcext, torch
    >>> [each.spec for each in gcext.advise(torch.randn(10_000), ["sign", "topk:p=0.01"])]
    ['topk:p=0.01', 'sign']
    """
    if repeat < 1:
        raise ValueError(f"advise: repeat must be at least 1, got {repeat}.")
    given = _tensors(tensors)
    source = torch.cat([x.reshape(-1).double() for x in given])
    norm = float(torch.linalg.vector_norm(source))
    if not norm:
        raise ValueError("advise: needs an element that is not 0, got none. Call backward first.")
    found = []
    for spec in specs if specs is not None else [name for name in codecs() if about(name).paper]:
        made, times = codec(spec), []
        for _ in range(repeat):
            begun = time.perf_counter()
            packets = made.encode(given, seed=list(range(len(given))))
            message = Packet.group(packets).to_bytes()
            decoded = Packet.from_bytes(message, device=given[0].device).to_dense()
            times.append(time.perf_counter() - begun)
        assert isinstance(decoded, list)
        got = torch.cat([x.reshape(-1).double() for x in decoded])
        length, seconds = float(torch.linalg.vector_norm(got)), median(times)
        saved = 4 * source.numel() - len(message)
        found.append(
            Advice(
                spec=made.spec,
                nbytes=len(message),
                ratio=4 * source.numel() / len(message),
                error=float(torch.linalg.vector_norm(source - got)) / norm,
                cosine=float(source @ got) / (norm * length) if length else 0.0,
                milliseconds=1e3 * seconds,
                megabits=max(0.0, 8 * saved / seconds / 1e6),
            )
        )
    return sorted(found, key=lambda each: each.nbytes)


def _tensors(given: Module | Tensor | Mapping[str, Tensor] | Iterable[Tensor]) -> list[Tensor]:
    if isinstance(given, Module):
        found = [p.grad for p in given.parameters() if p.grad is not None]
    elif isinstance(given, Tensor):
        found = [given]
    else:
        found = list(given.values() if isinstance(given, Mapping) else given)
    for each in found:
        if not isinstance(each, Tensor):
            raise TypeError(
                f"advise: needs a module or tensors, got {type(each).__name__}. "
                "Pass gradients, as [p.grad for p in model.parameters()]."
            )
    found = [each.detach() for each in found if each.is_floating_point() and each.numel()]
    if not found:
        raise ValueError("advise: needs a tensor of floats, got none. Call backward first.")
    return found
