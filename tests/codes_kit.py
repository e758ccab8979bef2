"""What the tests of codes share: codes of every table, and their values by the formulas."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy_values as reference
import torch
from torch import Tensor

TABLES = ("values", "uniform", "dynamic8", "float16", "bfloat16")
WIDTHS = {
    "values": range(9), "uniform": range(1, 9), "dynamic8": [8], "float16": [16], "bfloat16": [16],
}  # fmt: skip


class Case(NamedTuple):
    """The operator's arguments, and the codes that are packed in them."""

    bits: Tensor
    scales: Tensor
    n: int
    table: str
    width: int
    bucket: int
    code: np.ndarray

    @property
    def arguments(self) -> tuple[Tensor, Tensor, int, int, int, int]:
        head = self.bits, self.scales, self.n
        return *head, TABLES.index(self.table), self.width, self.bucket

    def expected(self) -> Tensor:
        """Return the values by docs/wire-format.md, in NumPy."""
        read = {
            "k": self.n, "table": TABLES.index(self.table), "width": self.width,
            "bucket": self.bucket, "codes": self.code, "scales": self.scales.numpy(),
        }  # fmt: skip
        return torch.from_numpy(reference.code_values(read).astype(np.float32))


def case(seed: int, n: int, table: str, width: int, bucket: int) -> Case:
    """Return random codes; scales over all magnitudes, some 0, some denormal."""
    rng = np.random.default_rng([seed, n, width, bucket])
    bucket = 0 if width == 16 else bucket
    each = {"values": 1 << width, "uniform": 1, "dynamic8": 1}.get(table, 0)
    count = each * (-(-n // bucket) if bucket else min(n, 1))
    scales = (rng.standard_normal(count) * 10.0 ** rng.integers(-44, 30, count)).astype("f4")
    scales[rng.random(count) < 0.1] = 0
    if table != "values":
        scales = np.abs(scales)
    top = {"float16": 0x7C00, "bfloat16": 0x7F80}.get(table, 1 << width)
    code = rng.integers(0, top, n) | rng.integers(0, 2, n) * (0x8000 if width == 16 else 0)
    plane = (code[:, None] >> np.arange(width) & 1).astype(np.uint8).reshape(-1)
    packed = torch.tensor([7, *np.packbits(plane, bitorder="little")], dtype=torch.uint8)[1:]
    return Case(packed, torch.from_numpy(scales), n, table, width, bucket, code)
