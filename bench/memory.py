"""Peak memory of one call: how far the resident set rises above what the inputs hold.

tracemalloc does not see what torch allocates, and a peak once reached hides all lower ones; so each
call is measured in a process of its own, by the kernel's account (Linux only).
"""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch

T = TypeVar("T")
Prepare = Callable[[T], Callable[[], object]]


def peak_bytes(prepare: Prepare[T], small: T, full: T) -> int | None:
    """Return the bytes that ``prepare(full)()`` takes beyond what ``prepare`` made for it.

    None where the system does not report it. What a call keeps for later ones counts, for the
    measured one is the first of its size. That of ``small`` runs before: what a library allocates
    once is not the call's. ``prepare`` must be picklable.
    """
    if not Path("/proc/self/clear_refs").exists():
        return None
    # Spawned: OpenMP's threads do not survive a fork.
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_measure, (prepare, small, full, torch.get_num_threads()))


def _measure(prepare: Prepare[T], small: T, full: T, threads: int) -> int | None:
    torch.set_num_threads(threads)
    warm = prepare(small)
    warm()
    run = prepare(full)
    del warm
    gc.collect()
    # Freed pages go back to the system: a call that reused them would seem to need less.
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc
    if trim is not None:
        trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    except OSError:
        return None
    before = _status_bytes("VmRSS")
    result = run()
    peak = _status_bytes("VmHWM")
    del result
    return max(peak - before, 0)


def _status_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"bench: /proc/self/status must hold {field}, got none. Use --no-peak.")
