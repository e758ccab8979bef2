"""A sum as packed codes into a table, csrc/encode_codes.h; see gcext._native.ops."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gcext._native.codes import TABLES
from gcext._native.ops import fake, signed


def encode_codes(
    tensor: Tensor,
    memory: Tensor | None,
    out: Tensor | None,
    decay: float,
    table: str,
    width: int,
    bucket: int = 0,
    random: bool = False,
    fit: bool = False,
    seed: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return scales and bits (the fields of gcext._packet.tables.Codes) and info.

    random: round uniform codes at random, drawn from ``seed``. fit: by these codes, return least
    squares' scales.
    """
    scales, bits, info = torch.ops.gcext.encode_codes.default(
        tensor, memory, out, decay, TABLES.index(table), width, bucket, random, fit, signed(seed)
    )
    return scales, bits, info


def _fake_encode_codes(
    tensor: Tensor,
    memory: Any,
    out: Any,
    decay: float,
    table: int,
    width: int,
    bucket: int,
    *_: Any,
) -> tuple[Tensor, ...]:
    n, new = tensor.numel(), tensor.new_empty
    buckets = -(-n // bucket) if bucket else min(n, 1)
    each = (2**width, 1, 1, 0, 0)[table]
    bits = new(((n * width + 7) // 8,), dtype=torch.uint8)
    return new((each * buckets,)), bits, new((4,), dtype=torch.int64)


fake("encode_codes", _fake_encode_codes)
