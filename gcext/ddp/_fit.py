"""Which recipes a hook can do, and the gradients of the parameters of a bucket."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from torch import Tensor

from gcext._links.link import LowRankLink
from gcext._recipes import fit
from gcext._recipes.recipe import Recipe
from gcext.aggregate import Mean

if TYPE_CHECKING:
    from torch._C._distributed_c10d import GradBucket

__all__ = ["gradients", "refuse"]

_UNMET = {
    "the ranks' losses": "DDP hands over none. Use stc, or gcext.fl for projection",
    "local steps": "DDP averages each step. Use gcext.OuterOptimizer",
    "a server's average of models": "DDP has no server. Use a recipe without it",
    "the steps of the model": "DDP hands over gradients only. Use qsgd, or gcext.fl for laq",
    "one sketch of the whole model": "DDP hands over parameters. Use stc or topk:feedback=true",
}


def refuse(recipe: Recipe, spec: str) -> None:
    """Raise ValueError for a recipe that a hook cannot do."""
    fit.refuse("ddp.State", recipe, spec, _UNMET)
    receiver = recipe.up.receiver()
    if isinstance(recipe.up, LowRankLink) and type(receiver) is not Mean:
        raise ValueError(
            f"ddp.State: {spec} all-reduces factors, which {receiver!r} cannot combine. Use "
            "combine=mean."
        )


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
