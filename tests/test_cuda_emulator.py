"""The emulator itself: it computes what CUDA computes, and refuses what CUDA leaves undefined."""

from __future__ import annotations

import ctypes
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from emu.build import ROOT, library, source

THREADS = range(64)


def probe(what: int, reverse: bool = False) -> list[int]:
    """Run one case of probe_kernel in emu/probe.cpp: two warps, one word a thread."""
    out = (ctypes.c_uint32 * 64)()
    library("probe").emu_reverse(int(reverse))
    library("probe").emu_probe(what, out)
    return list(out)


def lanes(rule: Callable[[int], bool], warp: int) -> int:
    return sum(1 << i for i in range(32) if rule(warp * 32 + i))


@pytest.mark.parametrize("reverse", [False, True])
def test_operations(reverse: bool) -> None:
    assert probe(0, reverse) == [63 - t for t in THREADS]
    assert probe(1, reverse) == [lanes(lambda i: i % 3 == 0, t // 32) for t in THREADS]
    assert probe(2, reverse) == [0x155 if t % 32 < 10 else t // 32 * 32 + 10 for t in THREADS]
    assert probe(3, reverse) == [13 * 4 + 1 * 2 + 0] * 64
    assert probe(4, reverse) == [0x11111111 << t % 4 for t in THREADS]
    assert probe(5, reverse) == [
        (t - 3 if t % 32 >= 3 else t) * 1_000_000 + (t + 3 if t % 32 < 29 else t) * 1000 + (t ^ 1)
        for t in THREADS
    ]


def test_shared_memory_is_poisoned() -> None:
    assert probe(6) == [0xA5A5A5A5] * 64


def test_reversal_shows_a_race() -> None:
    assert probe(7) == [63] * 64
    assert probe(7, reverse=True) == [0] * 64


@pytest.mark.parametrize(
    ("what", "message"),
    [
        (8, "deadlock: a warp operation lacks lanes of its mask, block 0 thread 16"),
        (9, "mask without the calling lane, block 0 thread 1"),
        (10, "lanes of one mask in different operations, block 0"),
        (11, "threads in different barriers, block 0 thread 32"),
    ],
)
def test_aborts(what: int, message: str) -> None:
    code = f"from emu.build import library; library('probe').emu_probe({what}, None)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parent, capture_output=True, text=True
    )
    assert done.returncode < 0
    assert message in done.stderr


def test_every_kernel_is_emulated() -> None:
    """Without a GPU every kernel that nvcc compiles runs in these tests, and has no torch in it."""
    for kernel in ROOT.glob("cuda/*.cu"):
        driver = source(kernel.stem)
        assert driver == kernel or f'#include "../../cuda/{kernel.name}"' in driver.read_text()
        tests = [ROOT / "tests" / f"test_{kind}{kernel.stem}.py" for kind in ("", "cuda_")]
        used = re.compile(rf"^from emu\.{kernel.stem} import", re.MULTILINE)
        assert any(used.search(each.read_text()) for each in tests if each.exists()), kernel
    for kernel in ROOT.glob("cuda/*.cu*"):
        assert "torch" not in "".join(re.findall("#include.*", kernel.read_text()))
