"""The operators of csrc/natural.h; see gcext._native.ops."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gcext._native.ops import fake, signed

_ops = torch.ops.gcext

__all__ = ["natural", "power_values"]


def natural(
    tensor: Tensor,
    memory: Tensor | None,
    out: Tensor | None,
    decay: float,
    scale: float,
    seed: int,
) -> tuple[Tensor, Tensor]:
    """Return the powers (int16, the field of powers.Powers) and info; drawn from ``seed``.

    scale: of the values that travel, in (0, 1].
    """
    power, info = _ops.natural.default(tensor, memory, out, decay, scale, signed(seed))
    return power, info


def _fake_natural(tensor: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    new = tensor.new_empty
    return new((tensor.numel(),), dtype=torch.int16), new((4,), dtype=torch.int64)


fake("natural", _fake_natural)


def power_values(power: Tensor, scale: float) -> Tensor:
    """Return float32 scale times power, as powers.Powers has them."""
    value: Tensor = _ops.power_values.default(power, scale)
    return value


fake("power_values", lambda power, scale: torch.empty_like(power, dtype=torch.float32))
