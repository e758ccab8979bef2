"""The CUDA kernels of adacomp give the CPU's bytes: emulated, and on a GPU if there is one."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from emu.adacomp import make
from emu.backends import BACKENDS
from source_kit import FORMS, compare, spoiled
from test_select import KINDS, Rng

from gcext._native import library as _lib  # noqa: F401  (_lib loads the CPU operators)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_same_as_the_cpu(backend: str, form: str, kind: Callable[[Rng, int], np.ndarray]) -> None:
    draw = random.Random(f"{form} {kind.__name__}")
    rng = np.random.default_rng(draw.randrange(1000))
    for n in (1, 7, 33, 255, 4096, 4097, 9001):
        run = make(backend, draw.choice([1, 3, 1024]), draw.random() < 0.5)
        tensor, memory = (torch.from_numpy(kind(rng, n)).float() for _ in range(2))
        bin_size = draw.choice([1, 7, 50, 500, 5000])
        assert compare(run, "adacomp", form, tensor, memory, draw.choice([1.0, 0.9]), bin_size) == 0


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("form", FORMS)
def test_refuses_as_the_cpu_does(backend: str, form: str) -> None:
    """And leaves the memory, or a copy of it, bit for bit."""
    statuses = set()
    for tensor, memory in spoiled():
        for max_blocks in (1, 1024):
            run = make(backend, max_blocks)
            statuses.add(compare(run, "adacomp", form, tensor, memory, 1.0, 50))
    assert statuses == ({0, 1} if form == "plain" else {0, 1, 2, 3})


def test_wide_indices() -> None:
    tensor = torch.randn(3000)
    assert compare(make("emu"), "adacomp", "plain", tensor, tensor, 1.0, 50, wide=True) == 0
