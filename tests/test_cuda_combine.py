"""The CUDA kernels of combine give the CPU's bytes: emulated, and on a GPU if there is one."""

from __future__ import annotations

import random

import pytest
import torch
from emu.backends import BACKENDS, same_bits
from emu.combine import make
from torch import Tensor

import gcext._native.library  # noqa: F401  loads the CPU operator

Pair = tuple[Tensor, Tensor]


def packet(draw: random.Random, numel: int) -> Pair:
    """A sparse, dense, full or empty packet, with values over many scales."""
    share = draw.choice([0.0, 0.003, 0.1, 0.5, 1.0, None])
    dtype = draw.choice([torch.int32, torch.int64])
    if share is None:  # dense
        return torch.empty(0, dtype=dtype), torch.randn(numel) * 10.0 ** draw.randint(-30, 30)
    index = (torch.rand(numel) < share).nonzero().flatten().to(dtype)
    value = torch.randn(index.numel()) * 10.0 ** torch.randint(-38, 30, (index.numel(),)).float()
    value[: index.numel() // 10] = -0.0
    return index, value


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("numel", [0, 1, 31, 33, 2047, 2048, 2049, 10_007])
@pytest.mark.parametrize("m", [1, 2, 5, 20])
def test_same_bytes(backend: str, numel: int, m: int) -> None:
    draw = random.Random(numel * 100 + m)
    torch.manual_seed(draw.randrange(2**31))
    for reverse in (False, True):
        index, value = map(list, zip(*[packet(draw, numel) for _ in range(m)], strict=True))
        weights = [draw.choice([1.0, -1.0, 0.0, 1 / 3, draw.gauss(0, 1)]) for _ in range(m)]
        want = torch.ops.gcext.combine(index, value, weights, numel)
        run = make(backend, draw.choice([1, 2, 65536]), reverse)
        assert same_bits(run.combine(index, value, weights, numel), want)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("m", [63, 64, 65, 130])
def test_more_packets_than_a_launch_takes(backend: str, m: int) -> None:
    index = [torch.tensor([i, 200], dtype=torch.int32) for i in range(m)]
    value = [torch.tensor([1.0 + i, 10.0 ** (i % 40 - 20)]) for i in range(m)]
    weights = [(-1.0) ** i / (i + 1) for i in range(m)]
    want = torch.ops.gcext.combine(index, value, weights, 201)
    assert same_bits(make(backend).combine(index, value, weights, 201), want)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("numel", [0, 1, 33, 1000, 10_007])
def test_add_same_bytes(backend: str, numel: int) -> None:
    draw = random.Random(numel)
    torch.manual_seed(numel)
    for alpha in (1.0, -1.0, 0.1, 1 / 3, 0.0):
        for reverse in (False, True):
            index, value = packet(draw, numel)
            want = torch.randn(numel)
            got = want.clone()
            torch.ops.gcext.combine_add_(want, index, value, alpha)
            make(backend, draw.choice([1, 2, 65536]), reverse).combine_add_(
                got, index, value, alpha
            )
            assert same_bits(got, want)


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_is_added_where_an_encoder_failed(backend: str) -> None:
    index, value = torch.tensor([0, 2], dtype=torch.int32), torch.tensor([1.0, 2.0])
    for status in (0, 3):
        info = torch.tensor([2, status, 0, 0])
        for add in (make(backend).combine_add_, torch.ops.gcext.combine_add_):
            dense = torch.ones(4)
            add(dense, index, value, -1.0, info)
            assert dense.tolist() == ([1, 1, 1, 1] if status else [0, 1, -1, 1])


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_wrong_index_writes_nowhere(backend: str) -> None:
    """Validating the indices first would wait for the GPU, so the kernels must be safe without."""
    index = torch.tensor([-5, 2, 9, 10, 2**31 - 1], dtype=torch.int32)
    value = torch.ones(5)
    run = make(backend)
    want = torch.zeros(10)
    want[[2, 9]] = 1.0
    assert same_bits(run.combine([index], [value], [1.0], 10), want)
    got = torch.zeros(10)
    run.combine_add_(got, index, value, 1.0)
    assert same_bits(got, want)


@pytest.mark.parametrize("backend", BACKENDS)
def test_unsorted_indices_stay_inside(backend: str) -> None:
    """The sum is not defined, but what is written is: the emulator traps a step out of a tile."""
    index = torch.randperm(10_007)[:5000].int()
    out = make(backend).combine([index], [torch.ones(5000)], [1.0], 10_007)
    assert set(out.unique().tolist()) <= {0.0, 1.0}


@pytest.mark.cuda
def test_combine_is_captured_in_a_graph() -> None:
    index, value = torch.arange(0, 5000, 7).int().cuda(), torch.randn(715).cuda()
    torch.ops.gcext.combine([index], [value], [0.5], 5000)  # loads the kernels
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = torch.ops.gcext.combine([index], [value], [0.5], 5000)
    value.copy_(torch.randn(715))
    graph.replay()
    assert same_bits(got.cpu(), torch.ops.gcext.combine([index.cpu()], [value.cpu()], [0.5], 5000))
