"""Elements sent with probabilities of their own: the operator against NumPy, and both backends.

What the codec promises in the mean, and the paper's probabilities: test_thresholds.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import pytest
import torch
from emu.backends import BACKENDS
from emu.wangni import make
from isa_kit import at_every_isa
from numpy_reader import round_to_f32
from source_kit import FORMS, KINDS, SIZES, compare, spoiled
from test_quantize import FORMS as OUTS
from test_quantize import draw, drawn, slots
from test_select import same_bits
from torch import Tensor

from gcext._native.wangni import wangni

F32 = np.float32
Floats = npt.NDArray[np.float32]


def mean(x: Floats, n: int) -> float:
    """The exact sum of magnitudes over n, rounded once to float32."""
    return float(round_to_f32(sum(map(Fraction, map(float, np.abs(x))), Fraction(0)) / n))


def limit_of(x: Floats, budget: float) -> np.float32:
    """Algorithm 3 of Wangni et al. (2018): 1/lambda after two iterations."""
    n, limit = len(x), F32(mean(x, len(x)) * len(x) / budget)
    for _ in range(2):
        below = np.abs(x) < max(limit, F32(2.0**-149))
        left = budget - float((~below).sum())
        if left > 0:
            limit = min(limit, F32(mean(x[below], n) * n / left))
    return limit


@pytest.mark.parametrize("form", OUTS)
def test_matches_numpy(form: str) -> None:
    for case in range(60):
        tensor, held = draw(case)
        tensor, held = tensor[:5000], held[:5000]
        n = len(tensor)
        memory, out = slots(form, held)
        decay = (1.0, 0.7)[case % 2]
        seed = int(np.random.default_rng(case).integers(-(2**63), 2**63))
        acc = tensor if form == "none" else tensor + F32(decay) * held
        budget = max((0.003, 0.05, 0.6, 1.0)[case % 4] * n, 1.0)
        found = wangni(torch.from_numpy(tensor), memory, out, decay, budget, seed)
        index, value, at, sent = (each.numpy() for each in found[:4])
        limit = limit_of(acc, budget)
        sure = np.abs(acc) >= max(limit, F32(2.0**-149))
        share = np.abs(acc).astype(np.float64) * (1 / np.float64(limit) if limit else 0)
        chosen = ~sure & (share + np.float64(2.0**-32) * drawn(n, seed) >= 1)
        scale = (
            F32(mean(acc[chosen], int(chosen.sum()))) if out is not None and chosen.any() else limit
        )
        assert np.array_equal(index, np.flatnonzero(sure)), case
        assert same_bits(value, acc[sure]), case
        assert np.array_equal(at, np.flatnonzero(chosen)), case
        assert same_bits(sent, np.copysign(scale, acc[chosen])), case
        assert found[4].tolist() == [sure.sum(), 0, 0, 0], case
        own = scale.view(np.int32) if chosen.any() else 0
        assert found[5].tolist() == [chosen.sum(), 0, 0, own], case
        if out is not None:
            left = np.where(sure, acc - acc, np.where(chosen, acc - np.copysign(scale, acc), acc))
            assert same_bits(out.numpy(), left), case
        if memory is not None:
            assert same_bits(memory.numpy(), held), case


def test_no_more_are_sure_than_the_budget_and_about_as_many_are_sent() -> None:
    for n, budget in ((100_000, 1000.0), (100_000, 30_000.0), (1000, 1.0)):
        index, _, at, *_ = wangni(torch.randn(n) ** 3, None, None, 1.0, budget, 5)
        assert len(index) <= budget
        assert len(index) + len(at) <= 1.2 * budget + 3


def test_what_is_not_finite_is_refused_and_nothing_written() -> None:
    for bad in (float("nan"), float("-inf")):
        tensor, memory = torch.randn(100_000), torch.randn(100_000)
        tensor[[31_313, 70_000]] = bad
        held = memory.clone()
        for out in (None, memory):
            found = wangni(tensor, None, out, 1.0, 10.0, 1)
            assert [each.tolist() for each in found] == [[]] * 4 + [[0, 1, 31_313, 0]] * 2
        assert torch.equal(memory, held)
    large = torch.full((1000,), 3e38)
    assert wangni(large, None, held[:1000], 1.0, 10.0, 1)[4].tolist() == [0, 5, 0, 0]
    assert torch.equal(memory, held)


def test_of_nothing_nothing_is_sent() -> None:
    found = wangni(torch.empty(0), None, None, 1.0, 1.0, 5)
    assert [each.tolist() for each in found] == [[]] * 4 + [[0] * 4] * 2


def test_arguments_are_validated() -> None:
    for budget in (0.0, 3.5, float("nan")):
        with pytest.raises(RuntimeError, match=r"budget must be in \(0, numel\]"):
            wangni(torch.ones(3), None, None, 1.0, budget, 1)


CORPUS = """
import hashlib, torch
import test_wangni as t
for threads in (1, 2, 7):
    torch.set_num_threads(threads)
    one = hashlib.sha256()
    for n in (5, 64, 1000, 4097, 300_000):
        torch.manual_seed(n)
        tensor, memory = torch.randn(n) ** 3, torch.randn(n)
        for out in (None, torch.empty(n), memory):
            given = memory if out is not None and out is not memory else None
            found = t.wangni(tensor, given, out, 0.9, max(n / 50, 1), n)
            for each in (*found, *(() if out is None else (out,))):
                one.update(each.numpy().tobytes())
    print(one.hexdigest())
"""


def test_same_bytes_for_every_isa_and_thread_count() -> None:
    digests = {digest for printed in at_every_isa(CORPUS).values() for digest in printed}
    assert len(digests) == 1, digests


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_cuda_gives_the_cpus_bytes(backend: str, form: str, kind: Callable[[int], Tensor]) -> None:
    choose = random.Random(f"{form} {kind.__name__}")
    for n in (*SIZES, 20_001):
        run = make(backend, choose.choice([1, 3, 1024]), choose.random() < 0.5)
        budget = max(choose.choice([0.001, 0.05, 0.5, 1.0]) * n, 1.0)
        options = choose.choice([1.0, 0.9]), budget, choose.randrange(-(2**63), 2**63)
        assert compare(run, "wangni", form, kind(n), kind(n), *options) == 0


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("form", FORMS)
def test_cuda_refuses_as_the_cpu_does(backend: str, form: str) -> None:
    """And leaves the memory, or a copy of it, bit for bit."""
    statuses = set()
    large = torch.full((5000,), 3e37), torch.zeros(5000)
    for tensor, memory in (*spoiled(), large):
        for max_blocks in (1, 1024):
            run = make(backend, max_blocks)
            statuses.add(compare(run, "wangni", form, tensor, memory, 1.0, 50.0, 3))
    assert statuses == ({0, 1, 5} if form == "plain" else {0, 1, 2, 3, 5})


def test_cuda_has_wide_indices() -> None:
    tensor = torch.randn(3000)
    assert compare(make("emu"), "wangni", "plain", tensor, tensor, 1.0, 60.0, 9, wide=True) == 0


def test_op_passes_opcheck() -> None:
    tensor, memory, out = torch.randn(1000), torch.randn(1000), torch.empty(1000)
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    given: list[tuple[Tensor, Tensor | None, Tensor | None]] = [
        (tensor, None, None), (tensor, memory, out), (tensor, None, out.zero_()),
    ]  # fmt: skip
    for each in given:
        operator = torch.ops.gcext.wangni.default
        torch.library.opcheck(operator, (*each, 0.5, 20.0, 7), test_utils=tests)
