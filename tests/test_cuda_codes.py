"""The CUDA kernel of codes gives the CPU's bytes: emulated, and on a GPU if there is one."""

from __future__ import annotations

import random

import pytest
from codes_kit import TABLES, WIDTHS, case
from emu.backends import BACKENDS, same_bits
from emu.codes import make

from gcext._native.codes import code_values


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("table", TABLES)
def test_same_bytes(backend: str, table: str) -> None:
    draw = random.Random(table)
    for width in WIDTHS[table]:
        for n in (0, 1, 3, 4, 5, 1023, 1024, 1025, 4097):
            each = case(0, n, table, width, draw.choice([0, 1, 2, 7, 100, 1024]))
            run = make(backend, draw.choice([1, 2, 1024]), draw.random() < 0.5)
            want = code_values(each.bits, each.scales, n, table, width, each.bucket)
            assert same_bits(run.code_values(*each.arguments), want)
