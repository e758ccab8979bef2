"""The CUDA kernels of gram give the CPU's bytes: emulated, and on a GPU if there is one."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from emu.backends import BACKENDS, same_bits
from emu.gram import make
from torch import Tensor

import gcext._native.library  # noqa: F401  loads the CPU operator

Packet = tuple[Tensor, Tensor, float]
SIZES = [0, 1, 31, 33, 2047, 2048, 2049, 5003]


def packet(draw: random.Random, numel: int, ternary: bool, shares: list[float]) -> Packet:
    """Draw a packet: (index, value, scale); sparse, dense, full or empty."""
    dtype = draw.choice([torch.int32, torch.int64])
    magnitudes = 10.0 ** torch.randint(-20, 18, (numel,)).float()
    if not ternary and draw.random() < 0.4:
        return torch.empty(0, dtype=dtype), torch.randn(numel) * magnitudes, 0.0
    share = draw.choice(shares)
    index = (torch.rand(numel) < share).nonzero().flatten().to(dtype)
    if not ternary:
        value = torch.randn(index.numel()) * magnitudes[: index.numel()]
        return index, torch.where(value == 0, 1.0, value), 0.0
    scale = draw.choice([1.0, 0.1, 3e-42, 2e38])
    value = torch.where(torch.rand(index.numel()) < 0.5, -scale, scale)
    return index, value.float(), float(torch.tensor(scale)) if index.numel() else 0.0


def compare(
    backend: str, packets: list[Packet], numel: int, max_blocks: int = 1024, reverse: bool = False
) -> None:
    index, value, scale = map(list, zip(*packets, strict=True))
    want = torch.ops.gcext.gram(index, value, scale, numel)
    got = make(backend, max_blocks, reverse).gram(index, value, scale, numel)
    assert same_bits(got.view(torch.int64), want.view(torch.int64))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("seed", range(10))
def test_ternary_packets(backend: str, seed: int) -> None:
    draw = random.Random(seed)
    torch.manual_seed(seed)
    for _ in range(20):
        numel = draw.choice([*SIZES, draw.randrange(1, 3000)])
        shares = draw.choice([[0.0, 0.01, 0.1], [0.5, 1.0], [0.02], [0.0, 1.0]])
        packets = [packet(draw, numel, True, shares) for _ in range(draw.choice([1, 2, 3, 9]))]
        compare(backend, packets, numel, draw.choice([1, 2, 1024]), draw.random() < 0.5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("seed", range(10))
def test_any_mixture(backend: str, seed: int) -> None:
    draw = random.Random(seed)
    torch.manual_seed(seed)
    for _ in range(10):
        numel = draw.choice([*SIZES, 16_383, 16_385, 40_000])
        shares = draw.choice([[0.0, 0.003, 0.05], [0.3, 1.0]])
        m = draw.choice([1, 2, 4, 6])
        packets = [packet(draw, numel, draw.random() < 0.5, shares) for _ in range(m)]
        compare(backend, packets, numel, draw.choice([1, 2, 1024]), draw.random() < 0.5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_more_pairs_than_shared_memory_holds(backend: str) -> None:
    draw = random.Random(1)
    compare(backend, [packet(draw, 700, True, [0.05, 0.3]) for _ in range(100)], 700)
    compare(backend, [packet(draw, 700, True, [0.05, 0.3]) for _ in range(101)], 700)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("m", [4, 5, 31, 32, 33, 36, 65, 200])
def test_packets_around_what_a_warp_and_a_block_take(backend: str, m: int) -> None:
    draw = random.Random(m)
    torch.manual_seed(m)
    packets = [packet(draw, 3000, draw.random() < 0.9, [0.0, 0.012, 0.04]) for _ in range(m)]
    for reverse in (False, True):
        compare(backend, packets, 3000, draw.choice([1, 2, 1024]), reverse)


@pytest.mark.parametrize("backend", BACKENDS)
def test_entries_that_crowd_into_a_few_elements(backend: str) -> None:
    """The window is halved in the middle of a block's range, and links of all depths are met."""
    draw = random.Random(5)
    packets = [packet(draw, 7000, True, [0.02]) for _ in range(100)]
    crowd = torch.arange(3000, 3060)
    for i, (index, _, scale) in enumerate(packets):
        index = torch.cat([index, crowd.to(index.dtype)]).unique()
        value = torch.where(torch.rand(index.numel()) < 0.5, -scale, scale).float()
        packets[i] = index, value, scale
    for max_blocks in (1, 3):
        compare(backend, packets, 7000, max_blocks)


@pytest.mark.parametrize("backend", BACKENDS)
def test_indices_out_of_place_are_passed_over(backend: str) -> None:
    """Below the first element, and behind the last one, also where 32 bits see one inside."""
    ones = torch.ones(4)
    far = torch.tensor([-5, 3, 2**32 + 4, 2**40]), ones, 1.0
    near = torch.tensor([3, 4, 5, 4999]), ones, 1.0
    packets = [far, near, (torch.tensor([-1, 0, 3, 6000], dtype=torch.int32), ones, 1.0)]
    index, value, scale = map(list, zip(*packets, strict=True))
    got = make(backend).gram(index, value, scale, 5000)
    assert got.tolist() == [[4, 1, 1], [1, 4, 1], [1, 1, 4]]


@pytest.mark.parametrize("backend", BACKENDS)
def test_lists_that_do_not_fit_a_window(backend: str) -> None:
    draw = random.Random(2)
    packets = [packet(draw, 4100, True, [1.0]) for _ in range(9)]  # 9 * 2048 entries a tile
    for reverse in (False, True):
        compare(backend, packets, 4100, 2, reverse)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("m", [7, 10])
def test_chunks_and_tiles_are_added_in_order(backend: str, m: int) -> None:
    """More tiles than chunks, and than one launch takes: 2048 sums for every block.

    A chunk is three tiles. With one block, launches of 41 end within a chunk; of 20, a third one
    ends with it. All terms are about as large, so that every other order rounds to other bits.
    """
    draw = random.Random(3)
    torch.manual_seed(3)
    numel = 70 * 16_384 + 5
    packets = [packet(draw, numel, i == 0, [0.001]) for i in range(m)]
    for i, (index, value, scale) in enumerate(packets[1:], 1):
        packets[i] = index, torch.randn(value.numel()), scale
    for max_blocks in (1, 2, 1024):
        compare(backend, packets, numel, max_blocks)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("m", [3, 10, 16, 17, 20, 37])
def test_dense_packets(backend: str, m: int) -> None:
    """Blocks of pairs of one side and of two, whole and not; rows on any address; one not dense."""
    draw = random.Random(m)
    torch.manual_seed(m)
    for numel in (1, 127, 129, 1000, 16_384 + 130):
        packets: list[Packet] = []
        for i in range(m):
            value = torch.randn(numel + 4) * 10.0 ** draw.randrange(-20, 18)
            packets.append((torch.empty(0, dtype=torch.int64), value[i % 4 :][:numel], 0.0))
        packets[m // 2][1][-1] = torch.inf
        packets[1] = packet(draw, numel, False, [0.1])
        compare(backend, packets, numel, draw.choice([1, 3, 1024]), draw.random() < 0.5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_wrong_indices_stay_inside(backend: str) -> None:
    """Validating them first would wait for the GPU; the emulator traps a step out of a tile."""
    for index in (
        torch.randperm(5000),
        torch.tensor([-5, 2, 2, 2, 9000, 2**40]),
        torch.zeros(9000),
    ):
        value = torch.ones(index.numel())
        pairs = [(index.long(), value, 1.0), (index.long(), value, 0.0)] * 2
        columns: Any = map(list, zip(*pairs, strict=True))
        indices, values, scales = columns
        make(backend, 2).gram(indices, values, scales, 5000)


@pytest.mark.cuda
def test_gram_is_captured_in_a_graph() -> None:
    draw = random.Random(4)
    packets = [packet(draw, 5000, i % 2 == 0, [0.1]) for i in range(6)]
    index, value, scale = map(list, zip(*packets, strict=True))
    there = [t.cuda() for t in index], [t.cuda() for t in value]
    torch.ops.gcext.gram(*there, scale, 5000)  # loads the kernels
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = torch.ops.gcext.gram(*there, scale, 5000)
    graph.replay()
    assert torch.equal(got.cpu(), torch.ops.gcext.gram(index, value, scale, 5000))
