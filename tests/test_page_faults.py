"""In steady state the ends of a link work in memory that was in use before."""

from __future__ import annotations

import resource

import pytest
import torch

import gcext
from gcext._recipes import about

NAMES = [name for name in gcext.recipes() if about(name).paper]  # other tests register more
SHAPE = (3072, 3072)  # 36 MiB: what is above 32 malloc always takes fresh from the system
MOST = 9216 // 4  # of a tensor; what malloc does with less than 32 MiB varies


@pytest.mark.skipif(torch.__version__ < "2.11", reason="results are torch's own memory there")
@pytest.mark.parametrize("name", NAMES)
def test_rounds_of_a_recipe_take_no_fresh_memory(name: str) -> None:
    recipe = gcext.recipe(name)
    generator = torch.Generator().manual_seed(0)
    update = torch.randn(SHAPE, generator=generator)
    up, aggregator, down = recipe.up.sender(0), recipe.up.receiver(), recipe.down.sender(0)
    counts = []
    for _ in range(6):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        packet = up.compress(update, "weight")
        mean = aggregator.aggregate({0: packet, 1: packet}, losses={0: 1.0, 1: 2.0})
        assert isinstance(mean, torch.Tensor)
        down.compress(mean, "weight").to_dense()
        counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    assert min(counts[3:]) <= MOST, counts
