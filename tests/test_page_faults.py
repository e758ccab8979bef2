"""In steady state the ends of a link work in memory that was in use before.

Counted in a process of its own: what malloc keeps follows from all that a process did before.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys

import pytest
import torch

import gcext
from gcext._recipes import about

SHAPE = (3072, 3072)  # 36 MiB: what is above 32 malloc always takes fresh from the system
MOST = 9216 // 4  # of a tensor; what malloc does with less than 32 MiB varies


@pytest.mark.skipif(torch.__version__ < "2.11", reason="results are torch's own memory there")
def test_rounds_take_no_fresh_memory() -> None:
    done = subprocess.run(
        [sys.executable, __file__], capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    counts: dict[str, list[int]] = json.loads(done.stdout)
    assert set(counts) >= {"stc", "ef21", "powersgd", "many sizes"}
    assert {name: each for name, each in counts.items() if min(each[3:]) > MOST} == {}


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


def main() -> None:
    """Print the counts of each recipe, and of a model of many sizes, as JSON."""
    names = [name for name in gcext.recipes() if about(name).paper]
    counts = {name: page_faults_by_round(name, {"weight": torch.randn(SHAPE)}) for name in names}
    sizes = [int(33_000 * 1.03**i) for i in range(100)]  # 20 million elements
    counts["many sizes"] = page_faults_by_round("ef21", {str(n): torch.randn(n) for n in sizes})
    print(json.dumps(counts))


if __name__ == "__main__":
    main()
