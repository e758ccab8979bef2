"""The CUDA kernels of quantize give the CPU's bytes: emulated, and on a GPU if there is one."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
from emu.backends import BACKENDS, same_bits
from emu.quantize import make
from source_kit import FORMS, KINDS, SIZES, compare, spoiled
from torch import Tensor

from gcext._native import library as _lib  # noqa: F401  (_lib loads the CPU operators)


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
        for tensor, memory in spoiled():
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
