"""The CUDA kernels of hadamard give the CPU's bytes: emulated, and on a GPU if there is one."""

from __future__ import annotations

import random

import pytest
import torch
from emu.backends import BACKENDS, same_bits
from emu.hadamard import make

from gcext._native import ops


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("level", [6, 7, 8, 9, 10, 12, 13, 14, 16, 17])
def test_same_bytes(backend: str, level: int, inverse: bool) -> None:
    size = 1 << level
    draw = random.Random(size + inverse)
    for _ in range(12 if level < 12 else 2):
        chunks = draw.choice([0, 1, 2, 3, 130 if level < 10 else 1])
        torch.manual_seed(draw.randrange(2**31))
        values = torch.randn(chunks * size) * 10.0 ** draw.randint(-42, 30)
        values[::7] = draw.choice([0.0, -0.0])
        seed = draw.randrange(-(2**63), 2**63)
        run = make(backend, draw.choice([1, 2, 1024]), draw.random() < 0.3)
        want = ops.hadamard(values, size, seed, inverse)
        assert same_bits(run.hadamard(values, size, seed, inverse), want)
