"""The CUDA kernels of natural give the CPU's bytes: emulated, and on a GPU if there is one."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
from emu.backends import BACKENDS, same_bits
from emu.natural import make
from source_kit import FORMS, KINDS, SIZES, compare, spoiled
from torch import Tensor

from gcext._native import library as _lib  # noqa: F401  (_lib loads the CPU operators)

FED_BACK = 0.888888955116272


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_natural(backend: str, form: str, kind: Callable[[int], Tensor]) -> None:
    draw = random.Random(f"{form} {kind.__name__}")
    for n in SIZES:
        run = make(backend, draw.choice([1, 3, 1024]), draw.random() < 0.5)
        tensor = kind(n)
        if n > 40:
            tensor[n // 2] = -3.4e38
        options = draw.choice([1.0, 0.5]), draw.choice([1.0, FED_BACK])
        seed = draw.randrange(-(2**63), 2**63)
        assert compare(run, "natural", form, tensor, kind(n), *options, seed) == 0


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("form", FORMS)
def test_refuses_as_the_cpu_does(backend: str, form: str) -> None:
    """And leaves the memory, or a copy of it, bit for bit."""
    statuses = set()
    for tensor, memory in spoiled():
        for max_blocks in (1, 1024):
            run = make(backend, max_blocks)
            statuses.add(compare(run, "natural", form, tensor, memory, 1.0, FED_BACK, 1))
    assert statuses == ({0, 1} if form == "plain" else {0, 1, 2, 3})


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("scale", [1.0, FED_BACK, 2.0**-149, 3e38])
def test_power_values(backend: str, scale: float) -> None:
    for n in [0, *SIZES]:
        power = torch.randint(-278, 279, (n,), dtype=torch.int16)
        run = make(backend, 3, n % 2 == 0)
        assert same_bits(run.power_values(power, scale), torch.ops.gcext.power_values(power, scale))


def test_powers_out_of_range_are_nothing() -> None:
    power = torch.tensor([279, -279, 32767, -32768, 150], dtype=torch.int16)
    assert make("emu").power_values(power, 1.0).tolist() == [0.0, 0.0, 0.0, 0.0, 1.0]
