"""Over a whole tensor a sender runs a few fused operators, not the formula's steps one by one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import gcext
from gcext._recipes import about

NAMES = [name for name in gcext.recipes() if about(name).paper]  # other tests register more
SHAPE = (256, 512)
MOST = 5
# laq: two norms for its criterion, a copy of what the server holds. neolithic: selects four times.
# powersgd, lowrank: the product a rank at a time, as a receiver rounds it. sbc, dryden: each side
# of the tensor as an array of its own, to select from.
MORE = {"laq": 9, "neolithic": 7, "powersgd": 11, "lowrank": 11, "sbc": 9, "dryden": 12}
# These move no element.
VIEWS = (
    *("alias", "as_strided", "detach", "empty", "expand", "gcext.pooled_floats", "new_empty"),
    *("permute", "reshape", "select.int", "slice", "split", "t.default", "transpose", "view"),
)


class Passes(TorchDispatchMode):
    """Counts operators by name that take or return at least half as many elements as SHAPE has."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        tensors = [t for t in tree_leaves((args, kwargs, out)) if isinstance(t, torch.Tensor)]
        name = str(func).removeprefix("aten.")
        whole = any(2 * t.numel() >= SHAPE[0] * SHAPE[1] for t in tensors)
        if whole and not name.startswith(VIEWS):
            self.calls[name] += 1
        return out


@pytest.mark.parametrize("name", NAMES)
def test_sender_reads_whole_tensors_a_few_times(name: str) -> None:
    tensor = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    sender = gcext.recipe(name).up.sender(0)
    for _ in range(2):  # steady state: there is a residual
        sender.compress({"weight": tensor})
    with Passes() as passes:
        sender.compress({"weight": tensor})
    assert passes.calls.total() <= MORE.get(name, MOST), passes.calls


def test_counts_a_method_written_in_tensor_operations() -> None:
    tensor = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    with Passes() as passes:
        tensor.abs().mean().mul(tensor.sign()).reshape(-1)
    assert passes.calls == {"abs.default": 1, "mean.default": 1, "sign.default": 1, "mul.Tensor": 1}
