"""The CUDA kernels of quantize give the CPU's bytes: emulated, and on a GPU if there is one."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
from emu.backends import BACKENDS, same_bits
from emu.quantize import make
from torch import Tensor

from gcext._native import library as _lib  # noqa: F401  (_lib loads the CPU operators)

SIZES = [1, 7, 31, 32, 33, 255, 257, 1023, 4095, 4096, 4097, 9001]
FORMS = ["plain", "memory", "in place"]


def scales(n: int) -> Tensor:
    return torch.randn(n) * 10.0 ** torch.randint(-44, 18, (n,)).float()


def mostly_zero(n: int) -> Tensor:
    return torch.randn(n) * (torch.rand(n) < 0.05) * -1.0  # zeros of both signs


def denormals(n: int) -> Tensor:
    return torch.randint(-3, 4, (n,)).float() * 2.0**-149


KINDS = [torch.randn, scales, mostly_zero, denormals, torch.zeros]


def compare(
    run: object, op: str, form: str, tensor: Tensor, memory: Tensor, *options: object
) -> int:
    """Require the same outputs and memory of the CPU and CUDA kernels; returns the status."""
    outs: list[Tensor | None] = [None, None]
    if form == "memory":
        outs = [torch.full_like(memory, 5.0), torch.full_like(memory, 6.0)]
    elif form == "in place":
        outs = [memory.clone(), memory.clone()]
    given = memory if form == "memory" else None
    want = getattr(torch.ops.gcext, op)(tensor, given, outs[0], *options)
    got = getattr(run, op)(tensor, given, outs[1], *options)
    assert got[-1].tolist() == want[-1].tolist()
    status = int(want[-1][1])
    if outs[0] is not None and outs[1] is not None:  # refused: whoever swaps the two lost nothing
        assert same_bits(outs[1], memory if status else outs[0])
    if status == 0:
        assert all(same_bits(x, y) for x, y in zip(got, want, strict=True))
    return status


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_sign(backend: str, form: str, kind: Callable[[int], Tensor]) -> None:
    draw = random.Random(f"{form} {kind.__name__}")
    for n in SIZES:
        run = make(backend, draw.choice([1, 3, 1024]), draw.random() < 0.5)
        decay = draw.choice([1.0, 0.9, -0.5])
        assert compare(run, "sign", form, kind(n), kind(n), decay) == 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_scale_that_rounds_to_zero_has_no_signs(backend: str) -> None:
    tensor = torch.zeros(300)
    tensor[70] = -(2.0**-149)
    for max_blocks in (1, 1024):
        assert compare(make(backend, max_blocks), "sign", "plain", tensor, tensor, 1.0) == 0


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_levels(backend: str, form: str, kind: Callable[[int], Tensor]) -> None:
    draw = random.Random(f"{form} {kind.__name__}")
    for n in SIZES:
        for _ in range(3):
            run = make(backend, draw.choice([1, 3, 1024]), draw.random() < 0.5)
            options = (
                draw.choice([1.0, 0.9]),
                draw.choice([1, 2, 15, 2**15 - 1]),
                draw.choice([0, 1, 3, 512, 5000]),
                draw.random() < 0.5,
                draw.choice([0.0, 0.5, 2.5]),
                draw.random() < 0.5,
                draw.randrange(-(2**63), 2**63),
            )
            assert compare(run, "levels", form, kind(n), kind(n), *options) == 0


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("form", FORMS)
def test_refuses_as_the_cpu_does(backend: str, form: str) -> None:
    """And leaves the memory, or a copy of it, bit for bit."""
    statuses = set()
    for op, rule in (("sign", ()), ("levels", (3, 100, False, 0.0, True, 1))):
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
                    statuses.add(compare(run, op, form, tensor, memory, 1.0, *rule))
    assert statuses == ({0, 1} if form == "plain" else {0, 1, 2, 3})


def test_wide_indices() -> None:
    tensor = torch.randn(3000)
    rule = (None, None, 1.0, 3, 512, False, 0.0, True, 5)
    want = torch.ops.gcext.levels(tensor, *rule)
    got = make("emu").levels(tensor, *rule, wide=True)
    assert got[1].tolist() == want[1].tolist()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_level_values(backend: str, kind: Callable[[int], Tensor]) -> None:
    draw = random.Random(kind.__name__)
    for n in [0, *SIZES]:
        run = make(backend, draw.choice([1, 3, 1024]), draw.random() < 0.5)
        steps, bucket = draw.choice([1, 2, 15, 2**15 - 1]), draw.choice([1, 3, 512, 2**40, 0])
        norms = kind(-(-n // bucket) if bucket else 1).abs()
        at = torch.nonzero(torch.rand(n) < 0.5).flatten()
        level = torch.randint(-steps, steps + 1, at.shape, dtype=torch.int16)
        for places in (at, at.int()):
            want = torch.ops.gcext.level_values(norms, places, level, bucket, steps)
            assert same_bits(run.level_values(norms, places, level, bucket, steps), want)


def test_level_values_beyond_the_norms_are_nothing() -> None:
    at, level = torch.tensor([-4, 2, 9], dtype=torch.int32), torch.ones(3, dtype=torch.int16)
    assert make("emu").level_values(torch.ones(2), at, level, 4, 1).tolist() == [0.0, 1.0, 0.0]
