"""Frozen sets: the tables, the densities and the order behind them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from gcext.polar import _design as design


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


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache directory; what a process has in memory is forgotten."""
    monkeypatch.setenv("GCEXT_CACHE_DIR", str(tmp_path / "deep" / "cache"))
    design.frozen_set.cache_clear()
    yield tmp_path / "deep" / "cache"
    design.frozen_set.cache_clear()


def again(block: int, kept: int, soft: bool = False) -> torch.Tensor:
    design.frozen_set.cache_clear()
    return design.frozen_set(block, kept, soft)


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize(("block", "kept"), [(32, 1), (1024, 333), (8192, 8191), (1 << 16, 7_777)])
def test_a_set_that_is_not_shipped_is_computed_once(
    cache: Path, monkeypatch: pytest.MonkeyPatch, block: int, kept: int, soft: bool
) -> None:
    first = design.frozen_set(block, kept, soft)
    assert int((1 - first).sum()) == kept
    (file,) = cache.iterdir()
    assert file.stat().st_size == 32 + block // 8
    monkeypatch.setattr(design, "computed_set", None)  # another computation would fail
    assert torch.equal(again(block, kept, soft), first)


def test_shipped_sets_are_not_cached(cache: Path) -> None:
    design.frozen_set(1024, 512)
    assert not cache.exists()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: data[:-1],
        lambda data: data + b"x",
        lambda data: b"",
        lambda data: data[:40] + bytes([data[40] ^ 1]) + data[41:],
        lambda data: bytes(len(data)),
        lambda data: b"#!/bin/sh",
    ],
)
def test_a_damaged_cache_is_computed_again_and_replaced(
    cache: Path, spoil: Callable[[bytes], bytes]
) -> None:
    first = design.frozen_set(1024, 333)
    (file,) = cache.iterdir()
    good = file.read_bytes()
    file.write_bytes(spoil(good))
    assert torch.equal(again(1024, 333), first)
    assert file.read_bytes() == good


def test_the_set_of_another_code_is_rejected(cache: Path) -> None:
    first, other = design.frozen_set(1024, 333), design.frozen_set(1024, 334)
    one, two = sorted(cache.iterdir())
    two.write_bytes(one.read_bytes())
    assert torch.equal(again(1024, 334), other) and not torch.equal(first, other)


def test_where_the_cache_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    design.frozen_set.cache_clear()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    again(64, 5)  # conftest.py has switched it off
    assert not any(tmp_path.iterdir())
    monkeypatch.delenv("GCEXT_CACHE_DIR")
    again(64, 5)
    assert len(list((tmp_path / "xdg" / "gcext").iterdir())) == 1
    monkeypatch.setenv("XDG_CACHE_HOME", "not/absolute")
    again(64, 5)
    assert len(list((tmp_path / "home" / ".cache" / "gcext").iterdir())) == 1


def test_a_cache_that_cannot_be_written_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GCEXT_CACHE_DIR", str(tmp_path / "file" / "below"))
    assert int(again(64, 7).sum()) == 64 - 7
    design.frozen_set.cache_clear()
