"""The CUDA kernels of select give the CPU's bytes: emulated, and on a GPU if there is one."""

from __future__ import annotations

import random

import pytest
import torch
from emu.backends import BACKENDS, same_bits
from emu.select import make
from torch import Tensor

import gcext._lib  # noqa: F401  loads the CPU operator

SIZES = [0, 1, 31, 32, 33, 1000, 4097, 20011]
FORMS = ["plain", "memory", "in place"]


def normal(n: int) -> Tensor:
    return torch.randn(n)


def ties(n: int) -> Tensor:
    return torch.randint(-3, 4, (n,)).float()


def all_equal(n: int) -> Tensor:
    return torch.full((n,), -0.37)


def mostly_zero(n: int) -> Tensor:
    return torch.randn(n) * (torch.rand(n) < 0.01) * -1.0  # zeros of both signs


def denormals(n: int) -> Tensor:
    return torch.randint(-(2**20), 2**20, (n,)).float() * 2.0**-149


def layers(n: int) -> Tensor:
    return torch.randn(n) * 10.0 ** ((torch.arange(n) * 9 // max(n, 1)) - 4).float()


def any_bits(n: int) -> Tensor:
    bits = torch.randint(-(2**31), 2**31 - 1, (n,)).int()
    return torch.nan_to_num(bits.view(torch.float32), nan=1.0, posinf=3e38, neginf=-3e38) * 0.25


def last_bits(n: int) -> Tensor:
    return (torch.randint(0, 600, (n,)).int() + 0x3F800000 - 300).view(torch.float32)


KINDS = [normal, ties, all_equal, mostly_zero, denormals, layers, any_bits, last_bits]


def compare(
    backend: str, form: str, tensor: Tensor, memory: Tensor,
    k: int, a: float, b: float, ternary: bool,
    max_blocks: int = 1024, reverse: bool = False, wide: bool = False,
) -> Tensor:  # fmt: skip
    """Run both floors on the same input, hold them to the same bytes, and return info."""
    outs: list[Tensor | None] = [None, None]
    if form == "memory":
        outs = [torch.full_like(tensor, 5.0), torch.full_like(tensor, 6.0)]
    elif form == "in place":
        outs = [memory.clone(), memory.clone()]
    given = memory if form == "memory" else None
    kept = tensor.clone(), memory.clone()
    index, value, info = torch.ops.gcext.select(tensor, given, outs[0], k, a, b, ternary)
    runner = make(backend, max_blocks, reverse)
    got_index, got_value, got_info = runner.select(tensor, given, outs[1], k, a, b, ternary, wide)
    assert same_bits(tensor, kept[0])
    assert same_bits(memory, kept[1])
    assert got_info.tolist() == info.tolist()
    count = int(info[0])
    assert got_index[:count].tolist() == index[:count].tolist()
    assert same_bits(got_value[:count], value[:count])
    if outs[0] is not None and outs[1] is not None:
        if int(info[1]) == 0:
            assert same_bits(outs[1], outs[0])
        else:  # the bits of a NaN are the processor's own
            assert torch.equal(outs[1].isnan(), outs[0].isnan())
            assert same_bits(outs[1].nan_to_num(), outs[0].nan_to_num())
    return info


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("ternary", [True, False])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_same_bytes(backend: str, form: str, kind: object, ternary: bool) -> None:
    draw = random.Random(f"{form} {kind.__name__} {ternary}")
    torch.manual_seed(draw.randrange(2**31))
    for n in SIZES:
        tensor, memory = kind(n), kind(n)[torch.randperm(n)]
        share = draw.choice([0.0, 0.01, 0.1, draw.random(), 1.0])
        k = max(min(n, 1), int(share * n))
        a, b = draw.choice([(1.0, 1.0), (0.1, 0.9), (-1.5, 1.0)])
        compare(
            backend, form, tensor, memory, k, a, b, ternary,
            max_blocks=draw.choice([1, 3, 1024]), reverse=draw.random() < 0.5,
        )  # fmt: skip


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("form", FORMS)
def test_refuses_as_the_cpu_does(backend: str, form: str) -> None:
    statuses = set()
    for n in (33, 5000):
        for bad in (float("nan"), float("inf"), -float("inf")):
            for where in (0, n // 2, n - 1):
                for who in ("tensor", "memory", "both"):
                    tensor, memory = torch.randn(n), torch.randn(n)
                    if who != "memory":
                        tensor[where:] = bad
                    if who != "tensor":
                        memory[where // 2] = bad
                    info = compare(backend, form, tensor, memory, n // 3, 1.0, 1.0, True, 2)
                    statuses.add(int(info[1]))
        tensor, memory = torch.randn(n), torch.randn(n)
        tensor[n // 3] = memory[n // 3] = 3e38
        scale = 2.0 if form == "plain" else 1.0
        statuses.add(int(compare(backend, form, tensor, memory, 1, scale, 1.0, True)[1]))
    # A memory that is gone when the sum is looked at cannot be told from an overflow.
    assert statuses == {"plain": {0, 1, 3}, "memory": {1, 2, 3}, "in place": {1, 3}}[form]


@pytest.mark.parametrize("backend", BACKENDS)
def test_keeps_denormals_where_the_caller_flushes_them(backend: str) -> None:
    tensor = denormals(3000)
    memory = denormals(3000)
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor flushes nothing")
    try:
        info = compare(backend, "memory", tensor, memory, 500, 1.0, 1.0, True)
    finally:
        torch.set_flush_denormal(False)
    assert int(info[0]) == 500
    assert 0 < int(info[3]) < 2**23


@pytest.mark.parametrize("form", FORMS)
def test_the_schedule_is_not_seen(form: str) -> None:
    tensor, memory = ties(30000), ties(30000)
    for max_blocks in (1, 2, 7, 15):
        for reverse in (False, True):
            compare("emu", form, tensor, memory, 9999, 1.0, 1.0, True, max_blocks, reverse)


@pytest.mark.parametrize("reverse", [False, True])
def test_more_blocks_than_the_scan_has_threads(reverse: bool) -> None:
    tensor, memory = ties(600_000), layers(600_000)
    compare("emu", "memory", tensor, memory, 200_000, 1.0, 1.0, True, 1024, reverse)
    compare("emu", "plain", tensor, memory, 290_000, 1.0, 1.0, True, 1024, reverse)


def test_wide_indices() -> None:
    compare("emu", "memory", torch.randn(5000), torch.randn(5000), 500, 1.0, 1.0, True, wide=True)


@pytest.mark.cuda
def test_select_is_captured_in_a_graph() -> None:
    tensor, memory = torch.randn(100_000).cuda(), torch.randn(100_000).cuda()
    out = torch.empty_like(memory)
    torch.ops.gcext.select(tensor, memory, out, 1000, 1.0, 1.0, True)  # loads the kernels
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = torch.ops.gcext.select(tensor, memory, out, 1000, 1.0, 1.0, True)
    for _ in range(2):
        tensor.copy_(torch.randn(100_000))
        graph.replay()
        want_out = torch.empty(100_000)
        want = torch.ops.gcext.select(tensor.cpu(), memory.cpu(), want_out, 1000, 1.0, 1.0, True)
        assert all(same_bits(x.cpu(), y) for x, y in zip(got, want, strict=True))
        assert same_bits(out.cpu(), want_out)


@pytest.mark.cuda
@pytest.mark.parametrize("p", [0.001, 0.1])
def test_many_blocks_on_the_gpu(p: float) -> None:
    n = 5_000_003  # more than a block's least share in every block
    info = compare("cuda", "memory", layers(n), layers(n), int(p * n), 1.0, 0.9, True)
    assert int(info[0]) == int(p * n)
