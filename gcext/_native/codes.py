"""Fixed-width codes decoded, csrc/codes.h; see gcext._native.ops."""

from __future__ import annotations

import torch
from torch import Tensor

from gcext._native.ops import fake

TABLES = ("values", "uniform", "dynamic8", "float16", "bfloat16")  # by the number in a packet
POWERS = len(TABLES)  # the table of csrc/natural.h's powers, for operators alone


def code_values(
    bits: Tensor, scales: Tensor, n: int, table: str, width: int, bucket: int
) -> Tensor:
    """Return n float32 of packed codes; the fields are those of gcext._packet.tables.Codes.

    bits: uint8, ceil(n * width / 8) of them. scales: float32, at least what n elements need.
    """
    return torch.ops.gcext.code_values.default(  # type: ignore[no-any-return]
        bits, scales, n, TABLES.index(table), width, bucket
    )


fake("code_values", lambda bits, scales, n, *_: bits.new_empty((n,), dtype=torch.float32))
