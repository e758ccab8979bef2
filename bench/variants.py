"""Top-k with error feedback in PyTorch: the usual formulation, and the best ones we could find.

Each takes the flat gradient, the residual (None: without memory), k, and whether the elements
become plus or minus their mean magnitude. They may overwrite the residual they are given, and
return the new one. None of them sorts its indices, which a packet needs: the comparison is in their
favour.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .case import Selected

Formulation = Callable[[Tensor, Tensor | None, int, bool], Selected]


class Named(NamedTuple):
    """A formulation, and the name that its figures carry."""

    name: str
    run: Formulation
    compiled: bool = False


def topk(tensor: Tensor, residual: Tensor | None, k: int, ternary: bool) -> Selected:
    """What most users write, line by line from the paper."""
    acc = tensor if residual is None else tensor + residual
    magnitude, index = torch.topk(acc.abs(), k)
    chosen = acc[index]
    value = chosen.sign() * magnitude.mean() if ternary else chosen
    if residual is None:
        return Selected(index, value, None)
    decoded = torch.zeros_like(acc).scatter_(0, index, value)
    return Selected(index, value, acc - decoded)


def topk_inplace(tensor: Tensor, residual: Tensor | None, k: int, ternary: bool) -> Selected:
    """The same with no dense temporary but the magnitudes, and nothing sorted."""
    acc = tensor if residual is None else residual.add_(tensor)
    index = torch.topk(acc.abs(), k, sorted=False).indices
    return _finish(acc, index, residual, ternary)


def mask(tensor: Tensor, residual: Tensor | None, k: int, ternary: bool) -> Selected:
    """A threshold mask by kthvalue. Ties with the threshold are sent too, so it is not exact."""
    rank = tensor.numel() - k + 1
    return _masked(tensor, residual, ternary, lambda each: each.kthvalue(rank).values)


def mask_topk(tensor: Tensor, residual: Tensor | None, k: int, ternary: bool) -> Selected:
    """A threshold mask by topk. Ties with the threshold are sent too, so it is not exact."""
    return _masked(
        tensor, residual, ternary, lambda each: torch.topk(each, k, sorted=False).values.min()
    )


def sampled(tensor: Tensor, residual: Tensor | None, k: int, ternary: bool) -> Selected:
    """What gcext does, in PyTorch: a safe threshold from a sample, topk of what passes it."""
    acc = tensor if residual is None else residual.add_(tensor)
    magnitude = acc.abs()
    sample = magnitude[:: max(acc.numel() >> 17, 1)]
    rank = sample.numel() * k / acc.numel()
    # Five standard deviations of the k-th element's rank within the sample.
    rank = math.ceil(rank + 5 * math.sqrt(rank) + 1)
    if rank >= sample.numel():
        return _finish(acc, torch.topk(magnitude, k, sorted=False).indices, residual, ternary)
    low = torch.topk(sample, rank, sorted=False).values.min()
    candidate = (magnitude >= low).nonzero().squeeze(1)
    if candidate.numel() < k:
        candidate = torch.arange(acc.numel(), device=acc.device)
    index = candidate[torch.topk(magnitude[candidate], k, sorted=False).indices]
    return _finish(acc, index, residual, ternary)


def formulations(compiled: bool) -> list[Named]:
    """Return them all, the usual one first; ``compiled``: the compiled ones as well."""
    eager = (topk, topk_inplace, mask, mask_topk, sampled)
    found = [Named(each.__name__.replace("_", "-"), each) for each in eager]
    for each in (topk, mask) if compiled else ():
        # Compiled by the first call, which is never timed.
        whole = torch.compile(each, fullgraph=True, dynamic=False)
        found.append(Named(f"compiled-{each.__name__}", whole, compiled=True))
    return found


def _finish(acc: Tensor, index: Tensor, residual: Tensor | None, ternary: bool) -> Selected:
    """Emit the pairs at index; acc, where it is the residual, loses them."""
    chosen = acc[index]
    value = chosen.sign() * chosen.abs().mean() if ternary else chosen
    if residual is not None:
        acc.scatter_(0, index, chosen - value)
    return Selected(index, value, None if residual is None else acc)


def _masked(
    tensor: Tensor,
    residual: Tensor | None,
    ternary: bool,
    threshold: Callable[[Tensor], Tensor],
) -> Selected:
    """Decode every element whose magnitude reaches the threshold of all magnitudes, densely."""
    acc = tensor if residual is None else tensor + residual
    magnitude = acc.abs()
    chosen = magnitude >= threshold(magnitude)
    value = acc
    if ternary:
        value = acc.sign() * ((magnitude * chosen).sum() / chosen.sum())
    decoded = torch.where(chosen, value, 0.0)
    return Selected(None, decoded, None if residual is None else acc - decoded)
