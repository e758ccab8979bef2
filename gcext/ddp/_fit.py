"""Which recipes a hook can do, and the names and gradients of the parameters of a bucket."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import Module

from gcext._links.link import LowRankLink
from gcext._packet.codes import Contents
from gcext._packet.packet import Packet
from gcext._recipes.recipe import Recipe
from gcext.aggregate import Aggregator, FetchSGD, Mean

if TYPE_CHECKING:
    from torch._C._distributed_c10d import GradBucket

__all__ = ["gradients", "names_of", "refuse", "takes_dense"]


def refuse(recipe: Recipe, spec: str) -> None:
    """Raise ValueError for a recipe that a hook cannot do."""
    schedule, receiver = recipe.schedule, recipe.up.receiver()
    problem = ""
    if receiver.uses_losses:
        problem = (
            "needs a loss of every rank, which DDP does not hand over. Use stc, or gcext.fl for "
            "projection"
        )
    elif schedule.local_steps > 1 or schedule.local_epochs > 1:
        problem = "takes many local steps, and DDP averages each. Use gcext.OuterOptimizer"
    elif schedule.average:
        problem = "averages models at a server, and DDP has none. Use a recipe without it"
    elif _has(receiver, FetchSGD):
        problem = (
            "finds elements in one sketch of the whole model, and DDP hands over parameters. Use "
            "stc or topk:feedback=true, whose residuals every rank can keep"
        )
    elif isinstance(recipe.up, LowRankLink) and type(receiver) is not Mean:
        problem = f"all-reduces factors, which {receiver!r} cannot combine. Use combine=mean"
    if problem:
        raise ValueError(f"ddp.State: {spec} {problem}.")


def _has(receiver: Aggregator, kind: type[Aggregator]) -> bool:
    inner = getattr(receiver, "inner", None)
    return isinstance(receiver, kind) or (isinstance(inner, Aggregator) and _has(inner, kind))


def takes_dense(receiver: Aggregator) -> bool:
    """Return whether tensors may be sent exactly; a vote takes signs only."""
    packet = Packet("dense", (1,), torch.float32, Contents(None, torch.zeros(1)))
    try:
        receiver.check(0, packet)
    except ValueError:
        return False
    return True


def names_of(module: Module) -> dict[int, str]:
    """Return the parameters' names by id, without what wrappers put before them."""
    names = {}
    for name, parameter in module.named_parameters():
        parts = [part for part in name.split(".") if part != "_orig_mod"]
        names[id(parameter)] = ".".join(parts)
    if names and all(name.startswith("module.") for name in names.values()):
        names = {key: name.removeprefix("module.") for key, name in names.items()}
    return names


def gradients(bucket: GradBucket) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield each parameter of a bucket, and its gradient: a view of the bucket's buffer."""
    for parameter, gradient in zip(bucket.parameters(), bucket.gradients(), strict=True):
        yield parameter, _view(parameter, gradient)


def _view(parameter: Tensor, gradient: Tensor) -> Tensor:
    """Return a gradient with its parameter's strides, where DDP lays it out by them."""
    if parameter.is_contiguous() or not _is_dense(parameter):
        return gradient
    return gradient.as_strided(parameter.shape, parameter.stride())


def _is_dense(tensor: Tensor) -> bool:
    """Return whether a tensor's elements fill one block of memory, once each."""
    count = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1 and stride != count:
            return False
        count *= size
    return True
