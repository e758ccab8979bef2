"""Interleaved timing: every variant once a round, in a new order each round, medians at the end.

A slow spell of the machine then falls on all variants alike, and no variant always runs after the
same neighbour and on what that one left in the caches.
"""

from __future__ import annotations

import gc
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

Clock = Callable[[], float]


@dataclass(frozen=True)
class Variant:
    """One way to do the job. Only ``run`` is timed.

    check: "" where what ``run`` returned (and wrote) is right, else how it differs.
    reset: runs before each measurement, outside the timed part.
    compiled: runs under torch.compile, so its first call takes far longer than the others.
    factor: of a variant that runs on a part of the problem, what its times are multiplied by.
    does: what it does, for the reader, where the name is not enough.
    """

    name: str
    run: Callable[[], Any]
    check: Callable[[Any], str] = field(default=lambda _: "")
    reset: Callable[[], object] = field(default=lambda: None)
    compiled: bool = False
    factor: float = 1.0
    does: str = ""


class Spread(NamedTuple):
    """Milliseconds: the median, the quartiles around it and the shortest."""

    median: float
    low: float
    high: float
    best: float


def default_rounds(n: int) -> int:
    """Return as many rounds as read 2*10^8 elements, within [9, 101]: an odd number."""
    return min(max(200_000_000 // max(n, 1), 9), 101) | 1


def device_clock(device: str) -> Clock:
    """Return the wall clock, read when the device has finished what was enqueued."""

    def clock() -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    return clock if device == "cuda" else time.perf_counter


def interleave(
    variants: Sequence[Variant],
    rounds: int,
    seed: int = 0,
    clock: Clock = time.perf_counter,
    seconds: float = 0.0,
) -> dict[str, Spread]:
    """Return the spread of each variant's times over the rounds, by its name.

    clock: seconds of the wall, of this thread (``time.thread_time``), or of a device.
    seconds: a measurement is as many calls back to back as fill it, after a warm-up; 0: one call,
        whose result is freed after the clock stopped.
    """
    order, shuffle = list(variants), random.Random(seed).shuffle
    times: dict[str, list[float]] = {variant.name: [] for variant in order}
    collecting = gc.isenabled()
    gc.disable()
    try:
        calls = {each.name: _calls(each, clock, seconds) if seconds else 1 for each in order}
        for _ in range(rounds):
            shuffle(order)
            for variant in order:
                times[variant.name].append(_milliseconds(variant, clock, calls[variant.name]))
    finally:
        if collecting:
            gc.enable()
    return {name: _spread(each) for name, each in times.items()}


def _calls(variant: Variant, clock: Clock, seconds: float) -> int:
    _milliseconds(variant, clock, 3)
    return max(1, int(seconds * 1e3 / _milliseconds(variant, clock, 3)))


def _milliseconds(variant: Variant, clock: Clock, calls: int) -> float:
    def repeat() -> None:
        for _ in range(calls):
            variant.run()

    run = variant.run if calls == 1 else repeat
    variant.reset()
    start = clock()
    result = run()
    stop = clock()
    del result
    return (stop - start) * 1e3 / calls * variant.factor


def _spread(times: list[float]) -> Spread:
    if len(times) < 2:
        return Spread(*times * 4)
    low, median, high = statistics.quantiles(times, n=4, method="inclusive")
    return Spread(median, low, high, min(times))
