"""What is sent from a magnitude on: the operator against NumPy, and both backends' bytes."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from emu.backends import BACKENDS
from emu.threshold import make
from isa_kit import at_every_isa
from source_kit import FORMS, KINDS, SIZES, compare, spoiled
from test_quantize import FORMS as OUTS
from test_quantize import draw, slots
from test_select import same_bits
from torch import Tensor

import gcext
from gcext._codecs.input import Residual
from gcext._native import ops
from gcext._native.threshold import threshold

F32 = np.float32


def bits(value: float) -> int:
    return int(F32(value).view(np.int32))


def limit_of(value: float) -> Tensor:
    return torch.tensor([bits(value)], dtype=torch.int32)


@pytest.mark.parametrize("form", OUTS)
@pytest.mark.parametrize("scale", [0.0, 0.5])
def test_matches_numpy(form: str, scale: float) -> None:
    for case in range(90):
        tensor, held = draw(case)
        memory, out = slots(form, held)
        decay = (1.0, 0.7)[case % 2]
        acc = tensor if form == "none" else tensor + F32(decay) * held
        ranks = np.sort(np.abs(acc))
        least = float(ranks[(case * 7919) % len(acc)]) if len(acc) else 1.0
        sent = (np.abs(acc) >= least) & (acc != 0)
        want = np.copysign(F32(scale), acc) if scale else acc
        given = torch.from_numpy(tensor), memory, out, decay, limit_of(least), bits(scale)
        index, value, info = threshold(*given)
        k = int(sent.sum())
        assert info.tolist() == [k, 0, 0, bits(scale) if k else 0], case
        assert np.array_equal(index.numpy(), np.flatnonzero(sent)), case
        assert same_bits(value.numpy(), want[sent]), case
        if out is not None:
            assert same_bits(out.numpy(), np.where(sent, acc - want, acc)), case
        if memory is not None:
            assert same_bits(memory.numpy(), held), case


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bit_floats_give_what_their_float32_gives(dtype: torch.dtype) -> None:
    for n in (1, 63, 64, 65, 4097, 50_001):
        tensor, memory = torch.randn(n).to(dtype), torch.randn(n)
        for outs in ((None, None), (torch.empty(n), torch.empty(n))):
            made = [
                threshold(each, None if out is None else memory, out, 0.9, limit_of(1.5), 0)
                for each, out in zip((tensor, tensor.float()), outs, strict=True)
            ]
            assert all(map(torch.equal, *made))
            assert outs[0] is None or torch.equal(*outs)


def test_from_nothing_to_everything_and_never_a_zero() -> None:
    tensor = torch.tensor([0.0, -0.0, 2.0**-149, -1.0, 3e38])
    for least in (-5, 0, 1):
        found = threshold(tensor, None, None, 1.0, torch.tensor([least], dtype=torch.int32), 0)
        assert found[0].tolist() == [2, 3, 4]
    assert threshold(tensor, None, None, 1.0, limit_of(np.inf), 0)[2].tolist() == [0] * 4
    empty = threshold(tensor[:0], None, None, 1.0, limit_of(1), 0)
    assert [len(each) for each in empty] == [0, 0, 4]


def test_what_is_not_finite_is_refused_and_nothing_written() -> None:
    for bad in (float("nan"), float("-inf")):
        tensor, memory = torch.randn(100_000), torch.randn(100_000)
        tensor[[31_313, 70_000]] = bad
        held = memory.clone()
        for out in (None, memory):
            found = threshold(tensor, None, out, 1.0, limit_of(1), 0)
            assert [each.tolist() for each in found] == [[], [], [0, 1, 31_313, 0]]
        assert torch.equal(memory, held)


class Cpu:
    """The operator on the CPU, as the emulator has it."""

    threshold = staticmethod(threshold)


@pytest.mark.parametrize("backend", ["cpu", *BACKENDS])
@pytest.mark.parametrize("scale", [0.0, 0.7])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_residual_that_is_not_written_gives_the_same_bits(
    backend: str, scale: float, kind: Callable[[int], Tensor]
) -> None:
    """A chain of calls of sums and what was sent of them, against one of residuals."""
    for n in (1, 33, 5000):
        run = Cpu() if backend == "cpu" else make(backend, 3)
        held, total = torch.zeros(n), torch.zeros(n)
        sent = torch.tensor([0x7F800000, 0, 0])
        for step in range(4):
            tensor, limit = kind(n), limit_of((0.2, 0.9, 2.0)[step % 3])
            out, kept, after = torch.empty(n), torch.full((n,), 7.0), torch.full((3,), -7)
            want = threshold(tensor, held, out, 0.9, limit, bits(scale))
            got = run.threshold(tensor, total, kept, 0.9, limit, bits(scale), sent, after)
            assert got[2].tolist() == want[2].tolist()
            for one, two in zip(got, want, strict=True):
                assert torch.equal(one[: len(two)].to(two.dtype), two)
            held, total, sent = out, kept, after
            rest = ops.select_rest(total, sent)
            assert torch.equal(rest.view(torch.int32), held.view(torch.int32))


@pytest.mark.parametrize("backend", ["cpu", *BACKENDS])
def test_refused_what_was_sent_stays_of_the_memory(backend: str) -> None:
    run = Cpu() if backend == "cpu" else make(backend, 3)
    tensor, memory, sent = torch.randn(5000), torch.randn(5000), torch.tensor([0x3F000000, 7, -1])
    tensor[77] = float("nan")
    out, after = torch.empty(5000), torch.full((3,), -7)
    info = run.threshold(tensor, memory, out, 1.0, limit_of(1), 0, sent, after)[2]
    assert info.tolist() == [0, 1, 77, 0]
    if backend != "cpu":  # reported later: whoever swaps the slots has lost nothing
        assert torch.equal(out, memory) and torch.equal(after, sent)


def test_arguments_are_validated() -> None:
    x = torch.ones(3)
    with pytest.raises(RuntimeError, match="next needs memory apart from out"):
        slot = torch.zeros(3, dtype=torch.int64)
        threshold(x, None, x.clone(), 1.0, limit_of(1), 0, None, slot)
    with pytest.raises(RuntimeError, match="limit must be one number, got 2"):
        threshold(x, None, None, 1.0, torch.ones(2, dtype=torch.int32), 0)
    with pytest.raises(RuntimeError, match="threshold: limit"):
        threshold(x, None, None, 1.0, torch.ones(1), 0)
    for scale in (-1, 0x7F800000):
        with pytest.raises(RuntimeError, match="bits of a finite float32"):
            threshold(x, None, None, 1.0, limit_of(1), scale)


CORPUS = """
import hashlib, torch
import test_threshold as t
for threads in (1, 2, 7):
    torch.set_num_threads(threads)
    one = hashlib.sha256()
    for n in (5, 64, 1000, 4097, 300_000):
        torch.manual_seed(n)
        tensor, memory = torch.randn(n), torch.randn(n)
        for out in (None, torch.empty(n), memory):
            given = memory if out is not None and out is not memory else None
            for least, scale in ((0.0, 0.0), (2.0, 0.0), (2.0, 0.3)):
                found = t.threshold(tensor, given, out, 0.9, t.limit_of(least), t.bits(scale))
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
    for n in (*SIZES, 70_001):
        run = make(backend, choose.choice([1, 3, 1024]), choose.random() < 0.5)
        tensor, memory = kind(n), kind(n)
        least = limit_of(
            float((tensor + memory).abs().quantile(choose.random())) if n < 9999 else 2
        )
        options = choose.choice([1.0, 0.9]), least, bits(choose.choice([0.0, 0.3]))
        assert compare(run, "threshold", form, tensor, memory, *options) == 0


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("form", FORMS)
def test_cuda_refuses_as_the_cpu_does(backend: str, form: str) -> None:
    """And leaves the memory, or a copy of it, bit for bit."""
    statuses = set()
    for tensor, memory in spoiled():
        for max_blocks in (1, 1024):
            run = make(backend, max_blocks)
            statuses.add(compare(run, "threshold", form, tensor, memory, 1.0, limit_of(1.5), 0))
    assert statuses == ({0, 1} if form == "plain" else {0, 1, 2, 3})


def test_cuda_has_wide_indices() -> None:
    tensor = torch.randn(3000)
    given = tensor, tensor, 1.0, limit_of(1), 0
    assert compare(make("emu"), "threshold", "plain", *given, wide=True) == 0


def test_op_passes_opcheck() -> None:
    tensor, memory, out = torch.randn(1000), torch.randn(1000), torch.empty(1000)
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    given: list[tuple[Tensor, Tensor | None, Tensor | None]] = [
        (tensor, None, None), (tensor, memory, out), (tensor, None, out.zero_()),
    ]  # fmt: skip
    for each in given:
        operator = torch.ops.gcext.threshold.default
        torch.library.opcheck(operator, (*each, 0.5, limit_of(1.0), 0), test_utils=tests)


@pytest.mark.parametrize("spec", ["strom:tau=1.0", "ajiheafield:drop=0.9"])
def test_codecs_with_a_residual_that_is_not_written(spec: str) -> None:
    """Also where another codec left it, by a cut among equal magnitudes."""
    n = 4000
    held, slot = torch.zeros(n), Residual.whole(torch.zeros(n))
    for step, codec in enumerate(map(gcext.codec, ["stc:p=0.3", spec, spec, "stc:p=0.1", spec])):
        tensor = torch.randint(-3, 4, (n,)).float()
        out = torch.empty(n)
        after = Residual(torch.empty(n), torch.zeros(3, dtype=torch.int64))
        written = codec.advance(tensor, held, out, 1.0, seed=step)
        assert codec.advance(tensor, slot, after, 1.0, seed=step) == written
        held, slot = out, after
        assert torch.equal(slot.tensor(), held)
