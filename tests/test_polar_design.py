"""Frozen sets: the tables, the densities and the order behind them."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import torch

import gcext
from gcext.polar import _design as design
from gcext.polar._cache import Kept
from gcext.polar._values import Polar


@pytest.mark.parametrize("soft", [False, True])
def test_tables_are_those_of_the_design(soft: bool) -> None:
    tables = design._tables()["values" if soft else "signs"]
    assert len(tables) >= 90
    for name in tables:
        kept, block = map(int, name.split("/"))
        stored = design.frozen_set(block, kept, soft)
        assert int((1 - stored).sum()) == kept
        # Short blocks of signs are refined by up to three exchanges.
        moved = int((stored != design.computed_set(block, kept, soft)).sum())
        assert moved <= (6 if block <= 512 and not soft else 0)


def test_gaussian_densities() -> None:
    """Each adds up to one, and its rate is that of its place: the mean of 1 - h2."""
    for at, density in enumerate(design._tables()["gaussian"]):
        p = np.array(density) / 2**32
        assert p.sum() == pytest.approx(1, abs=1e-6)
        zero = p / np.maximum(p + p[::-1], 1e-300)  # P(0 | LLR)
        q = np.clip(zero, 1e-300, 1 - 1e-16)
        rate = (p + p[::-1]) / 2 @ (1 + q * np.log2(q) + (1 - q) * np.log2(1 - q))
        assert rate == pytest.approx(min(max(at / 10, 0.05), 0.97), abs=0.01)


def test_crossover_solves_the_rate_distortion_function() -> None:
    for kept, block in (
        (1, 1024),
        (512, 1024),
        (922, 1024),
        (1, 1 << 20),
        ((1 << 20) - 1, 1 << 20),
    ):
        d = design.crossover(kept, block) / 2**32
        entropy = -d * math.log2(d) - (1 - d) * math.log2(1 - d)
        assert entropy == pytest.approx(1 - kept / block, abs=2e-8)
    assert design.crossover(0, 32) == 2**31 and design.crossover(32, 32) == 0


@pytest.mark.parametrize(("block", "kept"), [(64, 20), (1024, 512), (4096, 3000)])
def test_order_respects_the_partial_order(block: int, kept: int) -> None:
    """Where an index is free, so is every other that has its ones (Schuerch 2016)."""
    assert sorted(design.order(block, kept).tolist()) == list(range(block))
    free = design.computed_set(block, kept).numpy() == 0
    index = np.arange(block)
    for bit in range(block.bit_length() - 1):
        assert free[index[free] | 1 << bit].all()


@pytest.fixture(autouse=True)
def nothing_kept() -> Iterator[None]:
    """Each test computes anew."""
    design._ORDERS.clear()
    design._SETS.clear()
    yield
    design._ORDERS.clear()
    design._SETS.clear()


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize(("block", "kept"), [(32, 1), (1024, 333), (8192, 8191), (1 << 16, 7_777)])
def test_a_set_that_is_not_shipped_is_computed_once(
    monkeypatch: pytest.MonkeyPatch, block: int, kept: int, soft: bool
) -> None:
    first = design.frozen_set(block, kept, soft)
    assert int((1 - first).sum()) == kept
    monkeypatch.setattr(design, "evolved", None)  # another computation would fail
    assert torch.equal(design.frozen_set(block, kept, soft), first)
    design._SETS.clear()
    assert torch.equal(design.frozen_set(block, kept, soft), first)


@pytest.mark.parametrize("level", range(5, 14))
def test_shipped_orders_are_those_of_the_design(level: int) -> None:
    block = 1 << level
    for at in range(0, 11, 1 if level < 11 else 5):
        kept = next(k for k in range(block + 1) if design.tenth(k, block) == at)
        made = design.order(block, kept, soft=True)
        assert made.dtype == torch.int32
        assert torch.equal(made, design.evolved(block, kept, soft=True))


def test_sets_of_real_values_need_eleven_orders_a_block() -> None:
    for kept in range(65):
        design.frozen_set(64, kept, soft=True)
    assert len(design._ORDERS) == 11
    for kept in (20, 21, 22):  # signs: one each
        design.frozen_set(64, kept)
    assert len(design._ORDERS) == 14


def test_sets_without_a_choice_and_shipped_ones_need_no_design(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(design, "evolved", None)
    for soft in (False, True):
        assert design.frozen_set(1 << 20, 0, soft).all()
        assert not design.frozen_set(1 << 20, 1 << 20, soft).any()
        design.frozen_set(1024, 512, soft)
    for block in (32, 8192):
        for kept in range(0, block, block // 32 + 1):
            design.frozen_set(block, kept, soft=True)


def test_what_is_kept_is_bounded_and_the_oldest_use_goes_first() -> None:
    kept: Kept[torch.Tensor] = Kept(100)
    made = []

    def make(key: int, size: int = 40) -> torch.Tensor:
        def maker() -> torch.Tensor:
            made.append(key)
            return torch.full((size,), key, dtype=torch.uint8)

        return kept.get(key, maker)

    assert [int(make(key)[0]) for key in (1, 2, 1, 3, 1, 2)] == [1, 2, 1, 3, 1, 2]
    assert made == [1, 2, 3, 2]  # 3 took the place of 2
    assert kept.nbytes == 80 and len(kept) == 2
    make(9, size=101)
    make(9, size=101)
    assert made[-2:] == [9, 9] and kept.nbytes == 80  # too large to be kept
    kept.clear()
    assert kept.nbytes == len(kept) == 0
    threads = [Thread(target=lambda: [make(i % 7) for i in range(500)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert kept.nbytes == 80 and len(kept) == 2


def test_nothing_is_written_to_disk(tmp_path: Path) -> None:
    code = """
import gcext, torch
packet = gcext.codec("polar:rate=0.37,block=64,rotate=false").encode(torch.randn(100))
message = packet.to_bytes()
gcext.Packet.from_bytes(message, expect=(100,)).to_dense()
"""
    names = ("HOME", "XDG_CACHE_HOME", "GCEXT_CACHE_DIR", "TMPDIR")
    subprocess.run(
        [sys.executable, "-B", "-c", code],
        check=True,
        env={**os.environ, **dict.fromkeys(names, str(tmp_path))},
    )
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("rotate", ["true", "false"])
def test_a_packet_has_no_block_beyond_its_elements(rotate: str) -> None:
    x = torch.randn(70_000)
    for numel, block, used in (
        (5, 1024, 1024),
        (5, 8192, 8192),
        (5, 1 << 16, 8192),
        (9000, 1 << 20, 1 << 14),
        (70_000, 1 << 16, 1 << 16),
    ):
        codec = gcext.codec(f"polar:rate=0.5,block={block},rotate={rotate}")
        packet = codec.encode(x[:numel], seed=1 if rotate == "true" else None)
        code = packet.coded
        assert isinstance(code, Polar)
        assert (code.block, code.kept) == (used, used // 2)
        message = packet.to_bytes()
        back = gcext.Packet.from_bytes(message, expect=(numel,)).to_dense()
        assert torch.equal(torch.as_tensor(back), torch.as_tensor(packet.to_dense()))
    tiny = gcext.codec(f"polar:rate=1e-6,block={1 << 20},rotate={rotate}")  # a bit, whatever N is
    code = tiny.encode(x[:9], seed=1 if rotate == "true" else None).coded
    assert isinstance(code, Polar) and (code.block, code.kept) == (8192, 1)


@pytest.mark.parametrize("block", [32, 64, 1024, 1 << 15])
def test_a_set_reaches_a_device_as_arguments_of_kernels(block: int) -> None:
    """Bit for bit; here the device is the CPU."""
    for kept in (0, 1, block // 3, block - 1, block):
        frozen = design.frozen_set(block, kept, soft=True)
        assert torch.equal(design._sent(frozen, torch.device("cpu")), frozen)


@pytest.mark.cuda
def test_sets_are_kept_for_the_streams_that_use_them() -> None:
    """One goes while another stream has yet to read it, and its memory is used again."""
    one, other = torch.cuda.Stream(), torch.cuda.Stream()
    key = 1024, 300, True
    design._THERE.clear()
    with torch.cuda.stream(one):
        design.frozen_set(*key, "cuda:0")
    with torch.cuda.stream(other):
        copied = design.frozen_set(*key, "cuda:0").clone()
    design._THERE.clear()
    with torch.cuda.stream(one):
        for size in (1024, 128, 16) * 8:  # would be given the set's memory
            torch.full((size,), 7, dtype=torch.uint8, device="cuda")
    one.synchronize()
    other.synchronize()
    assert torch.equal(copied.cpu(), design.frozen_set(*key))


@pytest.mark.cuda
def test_a_graph_may_hold_the_first_use_of_a_set() -> None:
    codec, tensor = gcext.codec("polar:rate=0.40625,block=64,rotate=false"), torch.randn(300)
    there = tensor.cuda()
    gcext.codec("polar:rate=0.5,block=64,rotate=false").encode(there)  # loads the kernels
    design._THERE.clear()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        packet = codec.encode(there)
    assert len(design._THERE) == 0
    for _ in range(3):
        tensor = torch.randn(300)
        there.copy_(tensor)
        graph.replay()
        assert packet.to_bytes() == codec.encode(tensor).to_bytes()
        other = gcext.codec("polar:rate=0.25,block=64,rotate=false")
        assert other.encode(there).to_bytes() == other.encode(tensor).to_bytes()
        design._THERE.clear()
