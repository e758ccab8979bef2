"""Named tensors as a caller gives them: a mapping, pairs, or a module's parameters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias, cast

from torch import Tensor
from torch.nn import Module, Parameter

__all__ = ["Named", "named_tensors"]

Named: TypeAlias = "Mapping[str, Tensor | None] | Iterable[tuple[str, Tensor | None]]"


def named_tensors(owner: str, given: Named) -> tuple[dict[str, Tensor], list[str]]:
    """Return the tensors by name, gradients for parameters, and the names without one.

    Raises TypeError for what has no names or no tensors, ValueError for tensors of several devices
    or none at all.
    """
    pairs = list(given.items() if isinstance(given, Mapping) else _pairs(given, owner))
    tensors: dict[str, Tensor] = {}
    skipped = []
    for name, value in pairs:
        tensor = value
        if type(value) is not Tensor and isinstance(value, Parameter):
            tensor = value.grad
        if tensor is None:
            skipped.append(name)
            continue
        if not isinstance(name, str) or not isinstance(tensor, Tensor) or name in tensors:
            what = f"{name!r:.60}: {type(tensor).__name__}"
            raise TypeError(
                f"{owner}.compress: tensors must have names of their own, got {what}. "
                "Pass {name: tensor}."
            )
        tensors[name] = tensor
    devices = {tensor.device for tensor in tensors.values()}
    if len(devices) > 1:
        raise ValueError(
            f"{owner}.compress: tensors of one call must be on one device, got "
            f"{', '.join(sorted(map(str, devices)))}. Call once for each device."
        )
    if not tensors:
        raise ValueError(
            f"{owner}.compress: needs at least one tensor, got {len(skipped)} names without "
            "a gradient. Call backward first."
        )
    return tensors, skipped


def _pairs(given: Any, owner: str) -> list[tuple[str, Tensor | None]]:
    """Return an iterable's pairs; TypeError where it has none."""
    if isinstance(given, Iterable) and not isinstance(given, Module):
        pairs = list(given)  # what it raises is the caller's
        if all(isinstance(each, tuple) and len(each) == 2 for each in pairs):
            return cast("list[tuple[str, Tensor | None]]", pairs)
    remedy = "Convert it with torch.as_tensor."
    if isinstance(given, Module):
        remedy = "Pass its named_parameters()."
    raise TypeError(
        f"{owner}.compress: tensor must be a torch.Tensor with its name, or {{name: tensor}}, "
        f"got {type(given).__name__}. {remedy}"
    )
