"""The CUDA kernels of adacomp give the CPU's bytes: emulated, and on a GPU if there is one."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from emu.adacomp import make
from emu.backends import BACKENDS, same_bits
from test_select import KINDS, Rng
from torch import Tensor

from gcext._native import library as _lib  # noqa: F401  (_lib loads the CPU operators)

FORMS = ["plain", "memory", "in place"]


def compare(
    run: object, form: str, tensor: Tensor, memory: Tensor, *rule: object, wide: bool = False
) -> int:
    """Require the same outputs and memory of the CPU and CUDA kernels; returns the status."""
    outs: list[Tensor | None] = [None, None]
    if form == "memory":
        outs = [torch.full_like(memory, 5.0), torch.full_like(memory, 6.0)]
    elif form == "in place":
        outs = [memory.clone(), memory.clone()]
    given = memory if form == "memory" else None
    want = torch.ops.gcext.adacomp(tensor, given, outs[0], *rule)
    got = run.adacomp(tensor, given, outs[1], *rule, wide=wide)  # type: ignore[attr-defined]
    assert got[2].tolist() == want[2].tolist()
    count, status = want[2].tolist()[:2]
    if outs[0] is not None and outs[1] is not None:  # refused: whoever swaps the two lost nothing
        assert same_bits(outs[1], memory if status else outs[0])
    assert torch.equal(got[0][:count].long(), want[0].long())
    assert same_bits(got[1][:count], want[1])
    return int(status)


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
        assert compare(run, form, tensor, memory, draw.choice([1.0, 0.9]), bin_size) == 0


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("form", FORMS)
def test_refuses_as_the_cpu_does(backend: str, form: str) -> None:
    """And leaves the memory, or a copy of it, bit for bit."""
    statuses = set()
    for who in ("tensor", "memory", "both", "sum", "none"):
        for bad in (float("nan"), -float("inf")):
            tensor, memory = torch.randn(5000), torch.randn(5000)
            if who in ("tensor", "both"):
                tensor[[700, 4000]] = bad
            if who in ("memory", "both"):
                memory[[600, 4999]] = bad
            if who == "sum":
                tensor[800] = memory[800] = 3e38
            for max_blocks in (1, 1024):
                run = make(backend, max_blocks)
                statuses.add(compare(run, form, tensor, memory, 1.0, 50))
    assert statuses == ({0, 1} if form == "plain" else {0, 1, 2, 3})


def test_wide_indices() -> None:
    tensor = torch.randn(3000)
    assert compare(make("emu"), "plain", tensor, tensor, 1.0, 50, wide=True) == 0
