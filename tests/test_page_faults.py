"""In steady state the ends of a link work in memory that was in use before."""

from __future__ import annotations

import resource

import pytest
import torch

import gcext
from gcext._recipes import about

NAMES = [name for name in gcext.recipes() if about(name).paper]  # other tests register more
SHAPE = (3072, 3072)  # 36 MiB: what is above 32 malloc always takes fresh from the system
NEEDS_POOL = pytest.mark.skipif(
    torch.__version__ < "2.11", reason="results are torch's own memory there"
)
MOST = 9216 // 4  # of a tensor; what malloc does with less than 32 MiB varies


@NEEDS_POOL
@pytest.mark.parametrize("name", NAMES)
def test_rounds_of_a_recipe_take_no_fresh_memory(name: str) -> None:
    counts = page_faults_by_round(name, {"weight": torch.randn(SHAPE)})
    assert min(counts[3:]) <= MOST, counts


@NEEDS_POOL
def test_rounds_of_a_model_of_many_sizes_take_no_fresh_memory() -> None:
    sizes = [int(33_000 * 1.03**i) for i in range(100)]  # 20 million elements
    counts = page_faults_by_round("ef21", {str(n): torch.randn(n) for n in sizes})
    assert min(counts[3:]) <= MOST, counts


def page_faults_by_round(name: str, update: dict[str, torch.Tensor]) -> list[int]:
    """Return how many pages each of six rounds is given: up, the server's update, and down."""
    recipe = gcext.recipe(name)
    up, aggregator, down = recipe.up.sender(0), recipe.up.receiver(), recipe.down.sender(0)
    counts = []
    for _ in range(6):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        packet = up.compress(update)
        means = aggregator.aggregate({0: packet, 1: packet}, losses={0: 1.0, 1: 2.0})
        assert isinstance(means, list)
        down.compress(dict(zip(update, means, strict=True))).to_dense()
        counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    return counts
