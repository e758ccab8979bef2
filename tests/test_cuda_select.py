"""The CUDA kernels of select give the CPU's bytes: emulated, and on a GPU if there is one."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from emu.backends import BACKENDS, same_bits
from emu.select import Emu, Schedule, make
from torch import Tensor

import gcext._native.library  # noqa: F401  loads the CPU operator

SIZES = [0, 1, 31, 32, 33, 1000, 4097, 20011]
FORMS = ["plain", "memory", "in place"]
PIPELINE = Schedule(tiny=0)
MIXED = Schedule(tiny=1000)
SCHEDULES = [
    Schedule(),  # up to 32,768 elements one block's work
    PIPELINE,
    PIPELINE._replace(max_blocks=3, reverse=True),
    PIPELINE._replace(distrust=True),
    PIPELINE._replace(max_blocks=1, distrust=True, reverse=True),
    PIPELINE._replace(finish_blocks=1),
    PIPELINE._replace(finish_blocks=3, reverse=True),
    MIXED,
]


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


Kind = Callable[[int], Tensor]
KINDS: list[Kind] = [normal, ties, all_equal, mostly_zero, denormals, layers, any_bits, last_bits]


def name_of(kind: Any) -> str:
    return str(kind.__name__)


def compare(
    backend: str, form: str, tensor: Tensor, memory: Tensor,
    k: int, a: float, b: float, ternary: bool,
    how: Schedule = PIPELINE, wide: bool = False,
) -> Tensor:  # fmt: skip
    """Run the CPU and the CUDA kernels on the same input, require the same bytes, return info."""
    outs: list[Tensor | None] = [None, None]
    if form == "memory":
        outs = [torch.full_like(tensor, 5.0), torch.full_like(tensor, 6.0)]
    elif form == "in place":
        outs = [memory.clone(), memory.clone()]
    given = memory if form == "memory" else None
    kept = tensor.clone(), memory.clone()
    index, value, info = torch.ops.gcext.select(tensor, given, outs[0], k, a, b, ternary)
    runner = make(backend, how)
    got_index, got_value, got_info = runner.select(tensor, given, outs[1], k, a, b, ternary, wide)
    assert same_bits(tensor, kept[0])
    assert same_bits(memory, kept[1])
    assert got_info.tolist() == info.tolist()
    count = int(info[0])
    assert got_index[:count].tolist() == index[:count].tolist()
    assert same_bits(got_value[:count], value[:count])
    if outs[0] is not None and outs[1] is not None:
        check_out(form, int(info[1]), outs[1], outs[0], memory)
    return info


def check_out(form: str, status: int, got: Tensor, want: Tensor, memory: Tensor) -> None:
    if status == 0:
        assert same_bits(got, want)
    elif form == "memory":  # restored: whoever swaps the two has lost nothing
        assert same_bits(got, memory)
    else:  # the bits of a NaN are the processor's own
        assert torch.equal(got.isnan(), want.isnan())
        assert same_bits(got.nan_to_num(), want.nan_to_num())


def offset(x: Tensor, by: int) -> Tensor:
    """Return a copy that starts ``by`` elements after a multiple of 16 bytes."""
    return torch.cat([torch.zeros(by), x])[by:]


def draw_case(draw: random.Random, n: int) -> tuple[Tensor, Tensor, int, float, float]:
    torch.manual_seed(draw.randrange(2**31))
    tensor, memory = draw.choice(KINDS)(n), draw.choice(KINDS)(n)[torch.randperm(n)]
    share = draw.choice([0.0, 0.001, 0.01, 0.1, 0.3, draw.random(), 1.0])
    a, b = draw.choice([(1.0, 1.0), (1.0, 0.9), (0.1, 0.9), (-1.5, 1.0)])
    if draw.random() < 0.2:
        tensor = offset(tensor, draw.randrange(1, 4))
    return tensor, memory, max(min(n, 1), int(share * n)), a, b


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("ternary", [True, False])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS, ids=name_of)
def test_same_bytes(backend: str, form: str, kind: Kind, ternary: bool) -> None:
    draw = random.Random(f"{form} {name_of(kind)} {ternary}")
    torch.manual_seed(draw.randrange(2**31))
    for n in SIZES:
        tensor, memory = kind(n), kind(n)[torch.randperm(n)]
        share = draw.choice([0.0, 0.01, 0.1, draw.random(), 1.0])
        k = max(min(n, 1), int(share * n))
        a, b = draw.choice([(1.0, 1.0), (0.1, 0.9), (-1.5, 1.0)])
        for how in SCHEDULES if backend == "emu" else [PIPELINE]:
            compare(backend, form, tensor, memory, k, a, b, ternary, how)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("seed", range(50))
def test_random_cases(backend: str, seed: int) -> None:
    """50 times 40: sizes around a warp, a tile and several blocks, schedules, offsets, ties."""
    draw = random.Random(seed)
    for _ in range(40):
        n = draw.choice([draw.randint(1, 300), draw.randint(4000, 4200), draw.randint(1, 40000)])
        tensor, memory, k, a, b = draw_case(draw, n)
        how = draw.choice(SCHEDULES)._replace(reverse=draw.random() < 0.5)
        form, ternary = draw.choice(FORMS), draw.random() < 0.5
        compare(backend, form, tensor, memory, k, a, b, ternary, how)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("form", FORMS)
def test_refuses_as_the_cpu_does(backend: str, form: str) -> None:
    statuses = set()
    for n, how in itertools.product((33, 5000, 9000), SCHEDULES[:3]):
        for bad in (float("nan"), float("inf"), -float("inf")):
            for where in (0, n // 2, n - 1):
                for who in ("tensor", "memory", "both"):
                    tensor, memory = torch.randn(n), torch.randn(n)
                    if who != "memory":
                        tensor[where:] = bad
                    if who != "tensor":
                        memory[where // 2] = bad
                    info = compare(backend, form, tensor, memory, n // 30, 1.0, 1.0, True, how)
                    statuses.add(int(info[1]))
        tensor, memory = torch.randn(n), torch.randn(n)
        tensor[n // 3] = memory[n // 3] = 3e38
        scale = 2.0 if form == "plain" else 1.0
        info = compare(backend, form, tensor, memory, 1, scale, 1.0, True, how)
        statuses.add(int(info[1]))
    # Where the sum has replaced the memory, a non-finite memory is reported as an overflow.
    assert statuses == {"plain": {0, 1, 3}, "memory": {1, 2, 3}, "in place": {1, 3}}[form]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("n", [0, 1, 5000])
def test_the_sum_alone(backend: str, form: str, n: int) -> None:
    for how in SCHEDULES[:3]:
        compare(backend, form, torch.randn(n), torch.randn(n), 0, 1.0, 0.5, False, how)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("how", SCHEDULES[:3])
def test_keeps_denormals_where_the_caller_flushes_them(backend: str, how: Schedule) -> None:
    tensor = denormals(3000)
    memory = denormals(3000)
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor flushes nothing")
    try:
        info = compare(backend, "memory", tensor, memory, 150, 1.0, 1.0, True, how)
    finally:
        torch.set_flush_denormal(False)
    assert int(info[0]) == 150
    assert 0 < int(info[3]) < 2**23


@pytest.mark.parametrize("form", FORMS)
def test_the_schedule_changes_no_byte(form: str) -> None:
    tensor, memory = ties(30000), ties(30000)
    kinds = [(0, 1), (0, 1024), (2**15, 1)]
    for blocks, reverse, kind in itertools.product((1, 2, 7, 15), (False, True), kinds):
        how = Schedule(blocks, *kind, reverse=reverse)
        compare("emu", form, tensor, memory, 1499, 1.0, 1.0, True, how)


@pytest.mark.parametrize("reverse", [False, True])
def test_more_blocks_than_the_scan_has_threads(reverse: bool) -> None:
    n = 300 * 4096 + 7
    how = PIPELINE._replace(reverse=reverse)
    compare("emu", "memory", ties(n), layers(n), n // 3, 1.0, 1.0, True, how)
    compare("emu", "plain", ties(n), layers(n), n // 50, 1.0, 1.0, True, how)


def test_wide_indices() -> None:
    for how in SCHEDULES[:3]:
        memory = torch.randn(5000)
        compare("emu", "memory", torch.randn(5000), memory, 250, 1.0, 1.0, True, how, wide=True)


def candidates(tensor: Tensor, k: int, how: Schedule = PIPELINE) -> tuple[int, bool]:
    """Return how many were collected, and whether all elements were read instead."""
    run = Emu(how)
    out = torch.zeros_like(tensor)
    run.select(tensor, torch.zeros_like(tensor), out, k)
    return run.collected()


@pytest.mark.parametrize("p", [0.001, 0.01, 0.1])
@pytest.mark.parametrize("kind", [normal, layers, any_bits], ids=name_of)
def test_the_sample_saves_the_later_passes(kind: Kind, p: float) -> None:
    n = 600_011
    collected, all_read = candidates(kind(n), int(p * n))
    assert not all_read
    assert p * n <= collected <= (2.0 if kind is normal else 3.0) * p * n + 0.002 * n


def test_a_concentrated_support_stays_with_its_candidates() -> None:
    """One layer in twenty holds all that travels: its blocks take the slabs of the others."""
    n, k = 600_000, 3000
    tensor = torch.randn(n) * 1e-6
    tensor[300_000:330_000] = 1 + torch.rand(30_000)
    collected, all_read = candidates(tensor, k)
    assert k <= collected <= 30_000
    assert not all_read
    compare("emu", "memory", tensor, torch.zeros(n), k, 1.0, 1.0, True)


def test_a_useless_sample_falls_back() -> None:
    n = 300_000
    equal = all_equal(n)
    assert candidates(equal, 3000)[1]  # all are candidates, more than the pool holds
    compare("emu", "memory", equal, torch.zeros(n), 3000, 1.0, 1.0, True)
    assert candidates(normal(n), 3000, PIPELINE._replace(distrust=True))[1]
    assert candidates(normal(n), n // 2)[1]  # not worth collecting


@pytest.mark.parametrize("where", [0, 30_000, 176_000])
def test_a_concentrated_support(where: int) -> None:
    """Blocks without candidates around one that needs all its slabs; the k-th key far above the
    bound, so that the search begins anew.
    """
    n, k = 200_000, 3000
    tensor = torch.randn(n) * 1e-6
    tensor[where : where + 12_000] = torch.randint(1, 9, (12_000,)).float()
    collected, all_read = candidates(tensor, k)
    assert k <= collected <= 12_000
    assert not all_read
    for how in (PIPELINE, PIPELINE._replace(finish_blocks=2)):
        compare("emu", "memory", tensor, torch.zeros(n), k, 1.0, 1.0, True, how)


@pytest.mark.parametrize(
    ("n", "k", "launches"), [(32_768, 300, 1), (32_769, 1638, 3), (2**21 + 1, 20_000, 3)]
)
def test_launches(n: int, k: int, launches: int) -> None:
    run = Emu(Schedule())
    tensor, out = torch.ones(n), torch.zeros(n)
    for each in (k, 0):
        run.select(tensor, torch.zeros(n), out, each)
        assert run.launches == launches
        run.select(tensor, None, out, each)  # in place: one more, to check tensor
        assert run.launches == launches + (launches > 1)


def test_launches_of_a_list() -> None:
    run = Emu(Schedule(tiny=100))

    def launches(sizes: list[int]) -> int:
        tensors = [normal(n) for n in sizes]
        none = [None] * len(sizes)
        run.select_many(tensors, none, none, [n // 50 for n in sizes])
        return run.launches

    assert launches([100] * 42) == 1
    assert launches([100] * 43) == 2
    assert launches([101] * 35) == 3
    assert launches([101] * 36) == 4
    assert launches([101, 100, 5000]) == 4
    # A model of 160 tensors: at most 8, whatever their sizes.
    assert max(launches([100] * few + [101] * (160 - few)) for few in (0, 1, 43, 85, 127)) == 8


@pytest.mark.parametrize("p", [0.0, 0.001, 0.01, 0.05, 0.1, 0.25, 0.26, 1.0])
def test_scratch_is_at_most_as_large_as_the_tensor(p: float) -> None:
    run = Emu(PIPELINE)
    for n in (32_769, 327_680, 10**6, 2**21, 10**8, 2**31 + 5):
        assert 0 < run.scratch_bytes(n, max(int(p * n), 1)) <= 4 * n + 22 * 1024
    assert run.scratch_bytes(32_768, max(int(p * 32_768), 1)) == 0


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("form", FORMS)
def test_many_are_each_as_alone(backend: str, form: str) -> None:
    draw = random.Random(form)
    for how in (Schedule(), PIPELINE, PIPELINE._replace(distrust=True), MIXED):
        sizes = [draw.choice([0, 1, 33, 1000, 9000, 40_000]) for _ in range(100)]
        cases = [draw_case(draw, n) for n in sizes]
        columns: Any = ([case[i] for case in cases] for i in range(3))
        tensors, memories, ks = columns
        tensors[70] = torch.full((500,), float("nan"))
        memories[70], ks[70] = torch.randn(500), 5
        given = memories if form == "memory" else [None] * 100
        outs: list[Any] = [[None] * 100, [None] * 100]
        if form != "plain":
            outs = [[memory.clone() for memory in memories] for _ in range(2)]
        got = make(backend, how).select_many(tensors, given, outs[0], ks, 1.0, 0.9)
        for i, (index, value, info) in enumerate(got):
            want = torch.ops.gcext.select(tensors[i], given[i], outs[1][i], ks[i], 1.0, 0.9, True)
            assert info.tolist() == want[2].tolist()
            count = int(info[0])
            assert index[:count].tolist() == want[0][:count].tolist()
            assert same_bits(value[:count], want[1][:count])
            if form != "plain":
                check_out(form, int(info[1]), outs[0][i], outs[1][i], memories[i])


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
