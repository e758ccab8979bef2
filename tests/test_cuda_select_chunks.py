"""The CUDA kernels of select_chunks give the CPU's bytes: emulated, and on a GPU."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from emu.backends import BACKENDS
from emu.select_chunks import make
from source_kit import FORMS, compare, spoiled
from test_select import KINDS, Rng
from test_select_chunks import sizes

from gcext._native import library as _lib  # noqa: F401  (_lib loads the CPU operators)

SIZES = [1, 7, 33, 255, 4095, 4096, 4097, 9001]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_same_as_the_cpu(backend: str, form: str, kind: Callable[[Rng, int], np.ndarray]) -> None:
    draw = random.Random(f"{form} {kind.__name__}")
    rng = np.random.default_rng(draw.randrange(1000))
    for n in SIZES:
        run = make(backend, draw.choice([1, 3, 1024]), draw.random() < 0.5)
        tensor, memory = (torch.from_numpy(kind(rng, n)).float() for _ in range(2))
        chunk = draw.choice([each for each in (1, 50, 1000, 4096, 5000) if each > n // 100])
        rule = (*sizes(n, draw.choice([0.001, 1 / 64, 0.3, 1.0]), chunk), draw.choice([1.0, 0.3]))
        rest = draw.choice([1.0, 0.95]), draw.random() < 0.5
        assert compare(run, "select_chunks", form, tensor, memory, *rule, *rest) == 0


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("form", FORMS)
def test_refuses_as_the_cpu_does(backend: str, form: str) -> None:
    """And leaves the memory, or a copy of it, bit for bit."""
    statuses = set()
    for tensor, memory in spoiled():
        for max_blocks, ternary in ((1, True), (1024, False)):
            rule = (*sizes(5000, 0.1, 512), 1.0, 1.0, ternary)
            run = make(backend, max_blocks)
            statuses.add(compare(run, "select_chunks", form, tensor, memory, *rule))
    assert statuses == (
        {0, 1} if form == "plain" else {0, 1, 3} if form == "in place" else {0, 1, 2, 3}
    )


def test_wide_indices() -> None:
    tensor = torch.randn(3000)
    rule = 512, 9, 9, 1.0, 1.0, True
    assert compare(make("emu"), "select_chunks", "plain", tensor, tensor, *rule, wide=True) == 0
