"""The CUDA kernels of encode_codes give the CPU's bytes: emulated, and on a GPU if there is one."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
from emu.backends import BACKENDS, same_bits
from emu.encode_codes import make
from source_kit import FORMS, KINDS, compare
from torch import Tensor

import gcext  # noqa: F401  (loads the CPU operators)

SIZES = [1, 7, 31, 33, 255, 257, 1023, 4095, 4097, 9001]
TABLES = {"values": 0, "uniform": 1, "dynamic8": 2, "float16": 3, "bfloat16": 4}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("table", TABLES)
def test_same_bytes(backend: str, form: str, kind: Callable[[int], Tensor], table: str) -> None:
    draw = random.Random(f"{form} {kind.__name__} {table}")
    for n in SIZES:
        run = make(backend, draw.choice([1, 3, 1024]), draw.random() < 0.5)
        width = {"values": 1, "uniform": draw.randint(1, 8), "dynamic8": 8}.get(table, 16)
        options = (
            draw.choice([1.0, 0.9]),
            TABLES[table],
            width,
            draw.choice([0, 1, 3, 512, 4096, 5000]),
            table == "uniform" and draw.random() < 0.5,
            table == "uniform" and draw.random() < 0.5,
            draw.randrange(-(2**63), 2**63),
        )
        assert compare(run, "encode_codes", form, kind(n), kind(n), *options) == 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_midpoints_of_the_dynamic_tree(backend: str) -> None:
    size = torch.tensor([0.0, 1.0, 0.55e-6, 3.25e-6, 0.10703125, 0.12109375, 0.99296875])
    near = torch.cat([size.nextafter(torch.tensor(0.0)), size, size.nextafter(torch.tensor(2.0))])
    every = torch.linspace(-1, 1, 20_001)
    x = torch.cat([near, -near, (near + near.flip(0)) / 2, every, every**7, every**21]).clamp(-1, 1)
    assert compare(make(backend), "encode_codes", "plain", x, x, 1.0, 2, 8, 0, False, False, 0) == 0


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("form", FORMS)
def test_refuses_as_the_cpu_does(backend: str, form: str) -> None:
    """And leaves the memory, or a copy of it, bit for bit."""
    statuses = set()
    for table, width in zip(TABLES.values(), (1, 3, 8, 16, 16), strict=True):
        for who in ("tensor", "memory", "both", "sum", "none"):
            tensor, memory = torch.randn(5000), torch.randn(5000)
            if who in ("tensor", "both"):
                tensor[4100:4103] = float("nan")
            if who in ("memory", "both"):
                memory[37:] = -float("inf")
            if who == "sum":
                tensor[4500] = memory[4500] = 3e38
            run = make(backend, random.choice([1, 3, 1024]), random.random() < 0.5)
            for bucket in (0, 100):
                options = (1.0, table, width, bucket, False, False, 0)
                statuses.add(compare(run, "encode_codes", form, tensor, memory, *options))
    assert statuses == ({0, 1} if form == "plain" else {0, 1, 2, 3})


def test_fitted_and_random_refusals_keep_the_memory() -> None:
    tensor, memory, out = torch.randn(5000), torch.randn(5000), torch.zeros(5000)
    tensor[17] = float("inf")
    info = make("emu").encode_codes(tensor, memory, out, 1.0, 1, 3, 64, True, True, 1)[-1]
    assert info.tolist()[1:3] == [1, 17]
    assert same_bits(out, memory)
