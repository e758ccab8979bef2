"""Peak memory of one call: how far the resident set rises above what the inputs hold.

tracemalloc does not see what torch allocates, and a peak once reached hides all lower ones; so each
variant runs in a process of its own, and the kernel is asked (Linux only).
"""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from bench.case import Case, Setting, Variant

# Enough elements for threads to start, so that their stacks are there before the measurement.
_WARM = 1 << 18


def peak_bytes(row: str, setting: Setting, variant: str, threads: int) -> int | None:
    """Return the bytes a call takes beyond its inputs, or None where the system cannot tell.

    What a variant keeps between calls counts, for the measured call is its first of that size
    (a compiled one's second, as compiling takes far more than running).
    """
    if not Path("/proc/self/clear_refs").exists():
        return None
    # Spawned: OpenMP's threads do not survive a fork.
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_measure, (row, setting, variant, threads))


def _measure(row: str, setting: Setting, name: str, threads: int) -> int | None:
    from bench.rows import ROWS

    torch.set_num_threads(threads)

    def make(at: Setting) -> tuple[Case, Variant]:
        case = ROWS[row](at, name.startswith("compiled-"))
        return case, next(each for each in case.variants if each.name == name)

    # A small problem first: what a library allocates once is not the call's.
    _, small = make(replace(setting, n=min(setting.n, _WARM)))
    small.reset()
    small.run()
    _, variant = make(setting)
    variant.reset()
    if variant.compiled:
        variant.run()
        variant.reset()
    del small
    return growth(variant.run)


def growth(run: Callable[[], object]) -> int | None:
    """Return how far the resident set rises while ``run`` runs, None where it cannot be told."""
    gc.collect()
    _return_free_pages()
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    except OSError:
        return None
    before = _status_bytes("VmRSS")
    result = run()
    peak = _status_bytes("VmHWM")
    del result
    return max(peak - before, 0)


def _return_free_pages() -> None:
    """Give what was freed back to the system: a call that reused it would look frugal."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc
    if trim is not None:
        trim(0)


def _status_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"bench: /proc/self/status must hold {field}, got none. Use --no-peak.")
