"""The CUDA kernels of dct give the CPU's bytes: emulated, and on a GPU if there is one."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
from emu.backends import BACKENDS, same_bits
from emu.dct import make
from source_kit import FORMS, KINDS, compare
from torch import Tensor

from gcext._native import library as _lib  # noqa: F401  (_lib loads the CPU operators)

SHAPES = [(1, 1), (1, 70), (70, 1), (5, 7), (64, 64), (65, 130), (150, 33), (3, 200)]


def ties(n: int) -> Tensor:
    """So that magnitudes of coefficients are equal: DCTs of single elements, and of nothing."""
    x = torch.zeros(n)
    x[:: max(n // 3, 1)] = 1.0
    return x


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", [*KINDS, ties], ids=lambda kind: kind.__name__)
def test_select(backend: str, form: str, kind: Callable[[int], Tensor]) -> None:
    draw = random.Random(f"{form} {kind.__name__}")
    for rows, cols in SHAPES if backend == "cuda" else draw.sample(SHAPES, 2):
        n = rows * cols
        run = make(backend, draw.choice([1, 3, 1024]), draw.random() < 0.5)
        options = (
            draw.choice([1.0, 0.9]), rows, cols, draw.choice([1, 8, 33, 64]),
            draw.choice([1, 4, 33, 5000]), draw.random() < 0.5,
        )  # fmt: skip
        assert compare(run, "dct_select", form, kind(n), kind(n), *options) == 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_values(backend: str) -> None:
    draw = random.Random(0)
    for rows, cols in SHAPES:
        for share in (0.0, 0.01, 1.0):
            block = draw.choice([1, 7, 64])
            index = torch.nonzero(torch.rand(rows * cols) < share).flatten()
            value = torch.randn(len(index))
            run = make(backend, draw.choice([1, 3, 1024]), draw.random() < 0.5)
            for at in (index, index.int()):
                want = torch.ops.gcext.dct_values(at, value, rows, cols, block)
                assert same_bits(run.dct_values(at, value, rows, cols, block), want)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("form", FORMS)
def test_refuses_as_the_cpu_does(backend: str, form: str) -> None:
    """And leaves the memory, or a copy of it, bit for bit."""
    statuses = set()
    for who in ("tensor", "memory", "both", "sum", "large", "none"):
        tensor, memory = torch.randn(5000), torch.randn(5000)
        if who in ("tensor", "both"):
            tensor[[700, 4000]] = float("nan")
        if who in ("memory", "both"):
            memory[[600, 4999]] = -float("inf")
        if who == "sum":
            tensor[800] = memory[800] = 3e38
        if who == "large":
            tensor[800:900] = 2e38
        for max_blocks in (1, 1024):
            run = make(backend, max_blocks)
            options = (1.0, 50, 100, 64, 4, True)
            statuses.add(compare(run, "dct_select", form, tensor, memory, *options))
    assert statuses == ({0, 1, 16} if form == "plain" else {0, 1, 2, 3, 16})


def test_wide_indices() -> None:
    tensor = torch.randn(3000)
    rule = (None, None, 1.0, 30, 100, 64, 9, False)
    want = torch.ops.gcext.dct_select(tensor, *rule)
    got = make("emu").dct_select(tensor, *rule, wide=True)
    assert torch.equal(got[0], want[0].long()) and same_bits(got[1], want[1])


def test_indices_out_of_order_write_nothing_outside() -> None:
    index = torch.tensor([5, 3, -1, 2**40, 7])
    assert make("emu").dct_values(index, torch.ones(5), 4, 5, 64).shape == (20,)
