"""The operators of dense codes, typed, and what torch.compile must know of them; quantize.h."""

from __future__ import annotations

import torch
from torch import Tensor

from gcext import _lib  # noqa: F401  (loads the operators)

__all__ = ["levels", "sign"]


def sign(
    tensor: Tensor, memory: Tensor | None, out: Tensor | None, decay: float
) -> tuple[Tensor, Tensor]:
    """Return packed signs (uint8) and info of ``tensor + decay*memory``; out gets the rest.

    All flat, contiguous, float32. Without memory out is both; without either the tensor is coded.
    """
    bits, info = torch.ops.gcext.sign.default(tensor, memory, out, decay)
    return bits, info


def levels(
    tensor: Tensor,
    memory: Tensor | None,
    out: Tensor | None,
    decay: float,
    steps: int,
    bucket: int,
    largest: bool,
    clip: float,
    seed: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return norms, at and level (see gcext.values.Levels) and info; tensors as for ``sign``.

    largest: of the bucket's magnitudes, clipped at ``clip`` root mean squares; else its 2-norm.
    seed: signed, 64 bits.
    """
    norms, at, level, info = torch.ops.gcext.levels.default(
        tensor, memory, out, decay, steps, bucket, largest, clip, seed
    )
    return norms, at, level, info


@torch.library.register_fake("gcext::sign")  # type: ignore[untyped-decorator]
def _sign_fake(
    tensor: Tensor, memory: Tensor | None, out: Tensor | None, decay: float
) -> tuple[Tensor, Tensor]:
    bits = tensor.new_empty(((tensor.numel() + 7) // 8,), dtype=torch.uint8)
    return bits, tensor.new_empty((4,), dtype=torch.int64)


@torch.library.register_fake("gcext::levels")  # type: ignore[untyped-decorator]
def _levels_fake(
    tensor: Tensor,
    memory: Tensor | None,
    out: Tensor | None,
    decay: float,
    steps: int,
    bucket: int,
    largest: bool,
    clip: float,
    seed: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    n = tensor.numel()
    wide = n > 2**31 - 1
    count = torch.library.get_ctx().new_dynamic_size()
    return (
        tensor.new_empty((-(-n // bucket) if bucket else min(n, 1),)),
        tensor.new_empty((count,), dtype=torch.int64 if wide else torch.int32),
        tensor.new_empty((count,), dtype=torch.int16),
        tensor.new_empty((4,), dtype=torch.int64),
    )
