"""A residual that is not written: the sum and what was sent of it give the same bits."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from emu import quantize
from emu.backends import BACKENDS, same_bits
from emu.select import Schedule, make
from isa_kit import at_every_isa
from test_cuda_select import KINDS, Kind, draw_case, name_of, normal, ties
from torch import Tensor

import gcext
from bench.rows import page_faults
from bench.timing import Variant
from gcext._native import lists, ops

INF = 0x7F800000


def nothing() -> Tensor:
    return torch.tensor([INF, 0, 0])


def zeros(n: int) -> Tensor:
    return torch.where(torch.randn(n) < 0, 0.0, -0.0)


def anything() -> Tensor:
    return torch.full((3,), -7)


class Cpu:
    """The operators on the CPU, as the emulator has them."""

    def select(self, tensor: Tensor, memory: Tensor | None, out: Tensor, k: int, *rest: Any) -> Any:
        a, b, ternary, _, sent, next = rest
        return ops.select(tensor, memory, out, k, a, b, ternary, sent, next)

    def select_rest(self, memory: Tensor, sent: Tensor) -> Tensor:
        return ops.select_rest(memory, sent)


SCHEDULES = {
    "tiny": Schedule(tiny=10**9),
    "large": Schedule(tiny=0),
    "few": Schedule(tiny=0, max_blocks=3, finish_blocks=2),
    "all": Schedule(tiny=0, distrust=True, reverse=True),
}


def check_steps(run: Any, gradients: list[Tensor], ks: list[int], b: float, ternary: bool) -> None:
    """Compare a chain of selects with one whose residuals are written, by the CPU."""
    memory, total, sent = torch.zeros_like(gradients[0]), torch.zeros_like(gradients[0]), nothing()
    for step, (tensor, k) in enumerate(zip(gradients, ks, strict=True)):
        written = torch.empty_like(memory)
        index, value, info = ops.select(tensor, memory, written, k, 1.0, b, ternary)
        if step % 3 == 2:  # in place, and what was sent too
            got = run.select(tensor, None, total, k, 1.0, b, ternary, False, sent, sent)
        else:
            out, next = torch.full_like(total, 5.0), anything()
            got = run.select(tensor, total, out, k, 1.0, b, ternary, False, sent, next)
            total, sent = out, next
        count = int(info[0])
        assert got[2].tolist() == info.tolist()
        assert torch.equal(got[0][:count], index[:count])
        assert same_bits(got[1][:count], value[:count])
        assert same_bits(run.select_rest(total, sent), written), step
        memory = written


@pytest.mark.parametrize("ternary", [True, False])
@pytest.mark.parametrize("kind", KINDS, ids=name_of)
def test_same_bits_as_a_written_residual(kind: Kind, ternary: bool) -> None:
    draw = random.Random(name_of(kind))
    for _ in range(40):
        n = draw.choice([1, 5, 300, 4097, 9000, 70_001, 200_000])
        gradients = [kind(n) * 0.25 for _ in range(4)]
        ks = [draw.choice([0, 1, n // 100, n // 10, n // 2, n]) for _ in gradients]
        check_steps(Cpu(), gradients, ks, draw.choice([1.0, 0.9]), ternary)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("ternary", [True, False])
@pytest.mark.parametrize("how", SCHEDULES)
def test_cuda_gives_the_same_bits(backend: str, how: str, ternary: bool) -> None:
    draw = random.Random(how)
    for kind in KINDS:
        n = draw.choice([1, 33, 4096, 9001])
        gradients = [kind(n) * 0.25 for _ in range(3)]
        ks = [draw.choice([0, 1, n // 50, n // 3, n]) for _ in gradients]
        check_steps(make(backend, SCHEDULES[how]), gradients, ks, draw.choice([1.0, 0.9]), ternary)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("how", SCHEDULES)
@pytest.mark.parametrize("bad", ["tensor", "sum"])
def test_cuda_restores_what_was_sent(backend: str, how: str, bad: str) -> None:
    tensor, memory, k, _, b = draw_case(random.Random(how), 9000)
    memory, sent = torch.randn(9000), torch.tensor([0x3F800000, 4000, 0x3F000000])
    tensor[5] = 3e38 if bad == "sum" else float("nan")
    memory[5] = 3e38
    out, next = torch.zeros(9000), anything()
    run = make(backend, SCHEDULES[how])
    info = run.select(tensor, memory, out, k, 1.0, b, True, False, sent, next)[2]
    assert info[1] != 0
    assert same_bits(out, memory)
    assert torch.equal(next, sent)


@pytest.mark.parametrize("kind", [normal, ties], ids=name_of)
@pytest.mark.parametrize("ternary", [True, False])
@pytest.mark.parametrize("scope", ["tensor", "model"])
def test_many(kind: Kind, ternary: bool, scope: str) -> None:
    sizes = [1000, 0, 70_000, 3, 300_000]
    memories = [torch.zeros(n) for n in sizes]
    totals, sents = [torch.zeros(n) for n in sizes], [nothing() for _ in sizes]
    for _ in range(4):
        tensors = [kind(n) for n in sizes]
        outs, sums = ([torch.empty(n) for n in sizes] for _ in range(2))
        nexts = [anything() for _ in sizes]
        call: Callable[..., Any] = lists.select_many
        k: Any = [n // 20 for n in sizes]
        if scope == "model":
            call, k = lists.select_model, sum(k)
        want = call(tensors, memories, outs, k, 1.0, 1.0, ternary)
        got = call(tensors, totals, sums, k, 1.0, 1.0, ternary, sents, nexts)
        assert torch.equal(got[2], want[2])
        memories, totals, sents = outs, sums, nexts
        for memory, total, sent in zip(memories, totals, sents, strict=True):
            assert same_bits(ops.select_rest(total, sent), memory)


def check_signs(run: Any, gradients: list[Tensor], b: float) -> None:
    """Compare a chain of signs with one whose residuals are written, by the CPU."""
    memory, total, sent = torch.zeros_like(gradients[0]), torch.zeros_like(gradients[0]), nothing()
    for tensor in gradients:
        written, out, next = torch.empty_like(memory), torch.full_like(total, 5.0), anything()
        bits, info = ops.sign(tensor, memory, written, b)
        got = run(tensor, total, out, b, sent, next)
        assert torch.equal(got[0], bits)
        assert got[1].tolist() == info.tolist()
        memory, total, sent = written, out, next
        assert same_bits(ops.select_rest(total, sent), memory)


@pytest.mark.parametrize("backend", ["cpu", *BACKENDS])
@pytest.mark.parametrize("kind", [*KINDS, zeros], ids=name_of)
def test_sign(backend: str, kind: Kind) -> None:
    draw = random.Random(name_of(kind))
    run = ops.sign if backend == "cpu" else quantize.make(backend).sign
    for n in (1, 9, 4097, 9001) if backend != "cpu" else (1, 9, 4097, 70_001):
        gradients = [kind(n) * 0.25 for _ in range(3)]
        check_signs(run, gradients, draw.choice([1.0, 0.9]))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bad", ["tensor", "sum"])
def test_cuda_restores_what_signs_were_sent(backend: str, bad: str) -> None:
    tensor, memory = torch.randn(9000), torch.randn(9000)
    tensor[5] = 3e38 if bad == "sum" else float("nan")
    memory[5] = 3e38
    out, next, sent = torch.zeros(9000), anything(), torch.tensor([INF, 0, 0])
    info = quantize.make(backend).sign(tensor, memory, out, 1.0, sent, next)[1]
    assert info[1] != 0
    assert same_bits(out, memory)
    assert torch.equal(next, sent)


def test_sign_in_place_cannot_defer() -> None:
    with pytest.raises(RuntimeError, match="next needs memory apart from out"):
        ops.sign(torch.zeros(3), None, torch.zeros(3), 1.0, None, nothing())


CORPUS = """
import hashlib
import torch
from gcext._native import ops
digest = hashlib.sha256()
for n in (1, 100, 5000, 150_001):
    total, sent = torch.zeros(n), torch.tensor([0x7F800000, 0, 0])
    torch.manual_seed(n)
    for step in range(6):
        tensor = torch.randn(n) if step % 2 else torch.randint(-3, 4, (n,)).float()
        ternary = step % 3 != 0
        out, next = torch.empty(n), torch.empty(3, dtype=torch.int64)
        _, _, info = ops.select(tensor, total, out, n // 7, 1.0, 0.9, ternary, sent, next)
        digest.update(ops.select_rest(out, next).numpy().tobytes() + info.numpy().tobytes())
        total, sent = out, next
print(digest.hexdigest())
"""


def test_same_bytes_for_every_isa_and_thread_count() -> None:
    assert len({digest for printed in at_every_isa(CORPUS).values() for digest in printed}) == 1


def test_the_operators_are_sound() -> None:
    total, out, sent = torch.randn(100), torch.empty(100), nothing()
    torch.library.opcheck(
        torch.ops.gcext.sign.default, (torch.randn(100), total, out, 0.5, sent, nothing())
    )
    args = torch.randn(100), total, out, 10, 1.0, 0.5, False, sent, nothing()
    torch.library.opcheck(torch.ops.gcext.select.default, args)
    torch.library.opcheck(torch.ops.gcext.select_rest.default, (total, sent))
    with pytest.raises(RuntimeError, match="sent and next need out"):
        ops.select(total, None, None, 1, 1.0, 1.0, True, sent, None)
    with pytest.raises(RuntimeError, match="sent and next must have 3 elements, got 2"):
        ops.select(total, total, out, 1, 1.0, 1.0, True, sent[:2], None)


@pytest.mark.parametrize("spec", ["stc:p=0.1", "topk:p=0.01", "sign"])
def test_feedback_resumes_from_a_sum_as_from_a_residual(spec: str) -> None:
    """Committed, pending and rolled back; state_dict holds plain residuals."""
    straight, other = gcext.ErrorFeedback(spec), gcext.ErrorFeedback(spec)
    for step in range(6):
        tensor = torch.randn(30, 40)
        want = straight.compress(tensor, "w").to_bytes()
        other.compress(torch.randn(30, 40), "w", commit=False)
        if step % 2:
            resumed = gcext.ErrorFeedback(spec)
            resumed.load_state_dict(other.state_dict())
            other = resumed
        other.rollback()
        assert other.compress(tensor, "w").to_bytes() == want
        assert torch.equal(other.residual("w"), straight.residual("w"))
        held = other.state_dict()["residuals"]["w"]
        assert held.shape == (30, 40)
        assert torch.equal(held, straight.residual("w"))


@pytest.mark.parametrize("p", [0.001, 0.01, 0.1])
def test_a_call_in_steady_state_has_few_page_faults(p: float) -> None:
    compressor, tensor = gcext.ErrorFeedback(f"stc:p={p}"), torch.randn(3_000_000)

    for _ in range(8):
        compressor.compress(tensor, "w")
    assert page_faults(Variant("", partial(compressor.compress, tensor, "w"))) <= 100


def test_memory_is_kept_and_released() -> None:
    gcext.release_memory()
    compressor = gcext.ErrorFeedback("topk:p=0.5")
    packet = compressor.compress(torch.randn(500_000), "w")
    values = packet.values().clone()
    assert torch.ops.gcext.kept_memory() > 0
    for wrong in (-1.0, float("nan")):
        with pytest.raises(ValueError, match="idle must be at least 0"):
            gcext.release_memory(wrong)
    assert gcext.release_memory(idle=3600) == 0
    time.sleep(0.01)
    assert gcext.release_memory(idle=0.01) > 0
    assert torch.ops.gcext.kept_memory() == 0
    assert torch.equal(packet.values(), values)  # what is in use is nobody else's
    del packet
    if torch.__version__ >= "2.11":
        assert torch.ops.gcext.kept_memory() > 0
    del compressor  # the last that would use it
    assert torch.ops.gcext.kept_memory() == 0
