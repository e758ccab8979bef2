"""The CUDA kernels of polar give the CPU's bytes: emulated, and on a GPU if there is one."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from emu.backends import BACKENDS, same_bits
from emu.polar import make

from gcext import polar
from gcext._native import polar as ops
from gcext.polar import _code as _polar_code
from gcext.polar import _design as design

POISON = 249  # what the emulator's outputs hold before


def check(
    backend: str,
    block: int,
    kept: int,
    numel: int,
    soft: bool,
    draw: random.Random,
    values: torch.Tensor | None = None,
) -> None:
    """One source, coded and decoded on the CPU and by the CUDA kernels."""
    frozen = design.frozen_set(block, kept, soft)
    torch.manual_seed(draw.randrange(2**31))
    if soft:
        source = torch.randn(numel) * 10.0 ** draw.randint(-42, 36) if values is None else values
        source[torch.rand(numel) < 0.05] = draw.choice([0.0, -0.0])
    else:
        source = torch.randint(0, 256, ((numel + 7) // 8,), dtype=torch.uint8)
    weight, correction = _polar_code._steps(kept, block, soft, draw.random() < 0.7)
    want, *_ = ops.polar_encode(source, frozen, kept, numel, weight, correction)
    run = make(backend, draw.choice([1, 2, 1024]), draw.random() < 0.3)
    got, bad, symbols = run.polar_encode(source, frozen, kept, numel, weight, correction, True)
    assert int(bad) == -1
    assert same_bits(got, want)
    decoded = ops.polar_decode(want, frozen, numel)
    assert same_bits(run.polar_decode(got, frozen, numel), decoded)
    assert same_bits(symbols, decoded)


def sizes(block: int, draw: random.Random) -> int:
    """Part of a block, odd lanes, exact groups, one past them."""
    return draw.choice(
        [
            0,
            1,
            draw.randint(2, block),
            draw.randint(block, 64 * block),
            64 * block,
            64 * block + 1,
            64 * block + draw.randint(1, 64 * block),
        ]
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize(("block", "cases"), [(32, 50), (64, 30), (256, 20), (1024, 4), (2048, 2)])
def test_same_bytes(backend: str, soft: bool, block: int, cases: int) -> None:
    draw = random.Random(block + soft)
    for _ in range(cases):
        kept = draw.choice([0, 1, block - 1, block, draw.randint(0, block), block // 2])
        check(backend, block, kept, sizes(block, draw), soft, draw)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rate", [0.1, 0.3, 0.5, 0.7, 0.9])
@pytest.mark.parametrize("soft", [False, True])
def test_same_bytes_at_the_shipped_rates(backend: str, rate: float, soft: bool) -> None:
    draw = random.Random(int(10 * rate) + soft)
    check(backend, 1024, round(rate * 1024), 1024 * 3 - 5, soft, draw)
    check(backend, 512, round(rate * 512), 64 * 512 + 700, soft, draw)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_long_block(backend: str) -> None:
    """Beyond what shared memory holds."""
    draw = random.Random(0)
    check(backend, 1 << 14, 1 << 13, (1 << 14) + 77, True, draw)


@pytest.mark.parametrize("backend", BACKENDS)
def test_any_frozen_set(backend: str) -> None:
    """Sets that no design makes, so that every kind of node stands everywhere."""
    for seed in range(30):
        draw = random.Random(seed)
        frozen = torch.from_numpy(
            np.random.default_rng(seed).random(64) < draw.choice([0.1, 0.5, 0.9])
        ).byte()
        free, numel = int((1 - frozen).sum()), 64 * draw.choice([3, 64, 70]) - draw.randint(0, 9)
        source = torch.randint(0, 256, ((numel + 7) // 8,), dtype=torch.uint8)
        want, *_ = ops.polar_encode(source, frozen, free, numel, 3.0, 9)
        got, _, symbols = make(backend, reverse=seed % 2 == 0).polar_encode(
            source, frozen, free, numel, 3.0, 9, True
        )
        assert same_bits(got, want)
        decoded = ops.polar_decode(want, frozen, numel)
        assert same_bits(make(backend).polar_decode(got, frozen, numel), decoded)
        assert same_bits(symbols, decoded)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_first_value_that_is_not_finite(backend: str) -> None:
    frozen = design.frozen_set(32, 16, True)
    source = torch.randn(32 * 64 * 3 + 5)
    for first, value in ((5000, float("nan")), (2100, float("inf")), (7, -float("inf"))):
        source[first] = value
        _, bad, _ = make(backend).polar_encode(source, frozen, 16, len(source), 10.0, 8, True)
        assert int(bad) == first
    source = torch.full((32 * 64,), 3.4e38)
    _, bad, _ = make(backend).polar_encode(source, frozen, 16, len(source), 10.0, 8, True)
    assert int(bad) == -1


def test_what_does_not_fit_the_frozen_set_is_not_written() -> None:
    frozen = design.frozen_set(64, 30)
    source = torch.randint(0, 256, (100,), dtype=torch.uint8)
    message, _, symbols = make("emu").polar_encode(source, frozen, 31, 800, 1.0, 0, True)
    assert (message == POISON).all()
    assert (symbols == POISON).all()
    assert (make("emu").polar_decode(message, frozen, 800) == POISON).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("numel", [0, 1, 7, 8, 9, 2047, 2048, 2049, 10_007])
def test_pack_and_unpack(backend: str, numel: int) -> None:
    symbols = torch.randint(0, 256, (numel,), dtype=torch.uint8) * torch.randint(0, 2, (numel,))
    symbols = symbols.to(torch.uint8)
    packed = ops.polar_pack(symbols)
    assert same_bits(make(backend).polar_pack(symbols), packed)
    assert same_bits(make(backend).polar_unpack(packed, numel), ops.polar_unpack(packed, numel))


@pytest.mark.cuda
def test_polar_api_gives_the_same_bytes_on_cuda() -> None:
    values = torch.randn(200_000)
    for source, soft in ((values, True), (values < 0, False)):
        here, there = (polar.encode(x, 0.5, soft=soft) for x in (source, source.cuda()))
        assert same_bits(there.message.cpu(), here.message)
        assert same_bits(polar.decode(there).cpu(), polar.decode(here))
    rotated, moved = (polar.encode_rotated(x, seed=3) for x in (values, values.cuda()))
    assert same_bits(moved.to_dense().cpu(), rotated.to_dense())
    values[77] = float("nan")
    with pytest.raises(ValueError, match="at index 77"):
        polar.encode(values.cuda(), soft=True)


@pytest.mark.cuda
def test_encode_is_captured_in_a_graph() -> None:
    frozen, source = design.frozen_set(1024, 512, True).cuda(), torch.randn(100_000).cuda()
    ops.polar_encode(source, frozen, 512, 100_000, 20.0, 14)  # loads the kernels
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got, *_ = ops.polar_encode(source, frozen, 512, 100_000, 20.0, 14)
    source.copy_(torch.randn(100_000))
    graph.replay()
    want, *_ = ops.polar_encode(source.cpu(), frozen.cpu(), 512, 100_000, 20.0, 14)
    assert same_bits(got.cpu(), want)
