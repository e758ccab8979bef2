"""The value code of fixed-width codes into a table: 8-bit types, 16-bit floats, a few means."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

import gcext._wire as _wire
from gcext._native.codes import TABLES, code_values
from gcext._packet.codes import Code, Contents, register_code

__all__ = ["Codes"]


@register_code
@dataclass(frozen=True, eq=False)
class Codes(Code):
    """One code of ``width`` bits an element, into a table; csrc/codes.h has the formulas.

    table: what a code means: "values" (the bucket's own 2^width values), "uniform" (steps between
        minus and plus the bucket's scale), "dynamic8" (the bucket's scale times the dynamic tree
        data type of Dettmers 2015, arXiv:1511.04561), "float16" or "bfloat16" (itself).
    width: 0 to 8 for values, 1 to 8 for uniform, 8 for dynamic8, 16 for the floats.
    bucket: elements that share a scale or values, in the order sent; 0 where one serves all.
    scales: float32 and finite; of "values" 2^width a bucket, of "uniform" and "dynamic8" one, at
        least 0; of the floats none. None of no element. A bucket of scale 0 has the code of 0
        alone: 2^(width-1), of dynamic8 127.
    bits: uint8, code i is bits i*width to (i+1)*width - 1, bit j being bit j & 7 of byte j >> 3;
        zeros after the last. These are the bytes that travel.

    >>> scales = torch.tensor([1.0, 4.0])
    >>> code = Codes.of(torch.tensor([0, 3, 2, 1]), "uniform", 2, bucket=2, scales=scales)
    >>> code.bits, code.decode(4)
    (tensor([108], dtype=torch.uint8), tensor([-1.0000,  1.0000,  1.3333, -1.3333]))
    """

    table: str
    width: int
    bucket: int
    scales: Tensor
    bits: Tensor

    method = "codes"

    @classmethod
    def of(
        cls, codes: Tensor, table: str, width: int, bucket: int = 0, scales: Tensor | None = None
    ) -> Codes:
        """Return the code of ``codes``, one integer below 2^width an element.

        scales: float32; None where the table has none. A bucket that all elements fit into is the
        same as none. Synchronizes on CUDA: a kernel emits packed codes instead.
        Raises ValueError where a code does not fit, or the table is unknown.
        """
        if table not in TABLES:
            raise ValueError(f"Codes.of: table must be one of {', '.join(TABLES)}, got {table}.")
        flat = codes.detach().flatten().cpu().numpy()
        if flat.size and not 0 <= flat.min() <= flat.max() < 1 << width:
            raise ValueError(f"Codes.of: codes must be in [0, 2^{width}).")
        packed = np.frombuffer(_wire.bits_pack(flat.astype(np.uint32), width), np.uint8)
        if scales is None:
            scales = torch.empty(0, dtype=torch.float32, device=codes.device)
        bits = torch.from_numpy(packed.copy()).to(codes.device)
        return cls(table, width, bucket if bucket < flat.size else 0, scales, bits)

    @staticmethod
    def contents(
        table: str, width: int, bucket: int, scales: Tensor, bits: Tensor, scale: float = 0.0
    ) -> Contents:
        """Return the contents of a packet of all elements' codes; it has no scale of its own."""
        return Contents(None, Codes(table, width, bucket, scales, bits))

    @property
    def limits(self) -> Tensor | None:
        """See Code."""
        return None if self.table in ("float16", "bfloat16") else self.scales

    @property
    def device(self) -> torch.device:
        """See Code."""
        return self.bits.device

    def decode(self, sent: int) -> Tensor:
        """See Code."""
        return code_values(self.bits, self.scales, sent, self.table, self.width, self.bucket)
