"""Frozen sets: the tables, the densities and the order behind them."""

import math

import numpy as np
import pytest

from gcext import _polar_design as design


@pytest.mark.parametrize("soft", [False, True])
def test_tables_are_what_the_design_says(soft):
    tables = design._tables()["values" if soft else "signs"]
    assert len(tables) >= 90
    for name in tables:
        kept, block = map(int, name.split("/"))
        stored = design.frozen_set(block, kept, soft)
        assert int((1 - stored).sum()) == kept
        # Short blocks of signs are refined by up to three exchanges.
        moved = int((stored != design.computed_set(block, kept, soft)).sum())
        assert moved <= (6 if block <= 512 and not soft else 0)


def test_gaussian_densities():
    """Each adds up to one, and its rate is that of its place: the mean of 1 - h2."""
    for at, density in enumerate(design._tables()["gaussian"]):
        p = np.array(density) / 2**32
        assert p.sum() == pytest.approx(1, abs=1e-6)
        zero = p / np.maximum(p + p[::-1], 1e-300)  # P(0 | LLR)
        q = np.clip(zero, 1e-300, 1 - 1e-16)
        rate = (p + p[::-1]) / 2 @ (1 + q * np.log2(q) + (1 - q) * np.log2(1 - q))
        assert rate == pytest.approx(min(max(at / 10, 0.05), 0.97), abs=0.01)


def test_crossover_solves_the_rate_distortion_function():
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
def test_order_respects_the_partial_order(block, kept):
    """Where an index is free, so is every other that has its ones (Schuerch 2016)."""
    assert sorted(design.order(block, kept).tolist()) == list(range(block))
    free = design.computed_set(block, kept).numpy() == 0
    index = np.arange(block)
    for bit in range(block.bit_length() - 1):
        assert free[index[free] | 1 << bit].all()
