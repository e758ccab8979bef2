"""Interleaved timing: every variant once a round, in a new order each round, medians at the end.

A slow spell of the machine then falls on all variants alike, and no variant always runs after the
same neighbour, whose leavings in the caches it would profit or suffer from.
"""

from __future__ import annotations

import gc
import random
import statistics
import time
from collections.abc import Sequence
from typing import NamedTuple

from bench.case import Variant


class Spread(NamedTuple):
    """Milliseconds: the median and the quartiles around it."""

    median: float
    low: float
    high: float


def default_rounds(n: int) -> int:
    """Return as many rounds as read 2*10^8 elements, within [9, 101]: an odd number."""
    return min(max(200_000_000 // max(n, 1), 9), 101) | 1


def interleave(variants: Sequence[Variant], rounds: int, seed: int = 0) -> dict[str, Spread]:
    """Return the spread of each variant's times over the rounds, by its name.

    ``reset`` runs before the clock starts, and results are freed after it stopped.
    """
    order = list(variants)
    shuffle = random.Random(seed).shuffle
    times: dict[str, list[float]] = {variant.name: [] for variant in variants}
    collecting = gc.isenabled()
    gc.disable()
    try:
        for _ in range(rounds):
            shuffle(order)
            for variant in order:
                variant.reset()
                start = time.perf_counter()
                result = variant.run()
                stop = time.perf_counter()
                del result
                times[variant.name].append((stop - start) * 1e3)
    finally:
        if collecting:
            gc.enable()
    return {name: _spread(each) for name, each in times.items()}


def _spread(times: list[float]) -> Spread:
    if len(times) < 2:
        return Spread(times[0], times[0], times[0])
    low, median, high = statistics.quantiles(times, n=4, method="inclusive")
    return Spread(median, low, high)
