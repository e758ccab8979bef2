"""No memory at any allocation of an encode: an error, and everything is as it was."""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from emu.build import compiler

import gcext

ROOT = Path(__file__).parent.parent
SOURCE = Path(__file__).parent / "fuzz" / "no_memory.cpp"

# Fails allocation 1, 2, 3 .. of an encode until one passes without a failure.
PROGRAM = """
import ctypes, gc, sys
import torch
import gcext

least, threads, specs = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
library = ctypes.CDLL(None)
library.no_memory_arm.argtypes = [ctypes.c_long, ctypes.c_size_t]
library.no_memory_disarm.restype = ctypes.c_long
torch.set_num_threads(threads)
x = torch.randn(300, 400, generator=torch.Generator().manual_seed(1))
failures = 0
for spec in specs:
    comp = gcext.ErrorFeedback(spec, seed=5)
    for _ in range(2):
        comp.compress(x, "w")  # there is a residual, and what is made once is there
    before = comp.residual("w").clone()
    same = gcext.ErrorFeedback(spec, seed=5)
    same.load_state_dict(comp.state_dict())
    gc.collect()
    gc.disable()
    n = 0
    while True:
        n += 1
        error = packet = None
        library.no_memory_arm(n, least)
        try:
            packet = comp.compress(x, "w", commit=False)
        except (MemoryError, RuntimeError) as caught:
            error = caught
            # Of small objects torch's own code says in its own words that it failed.
            assert least == 0 or isinstance(error, MemoryError), (spec, n, repr(error))
        left = library.no_memory_disarm()
        if packet is not None:
            comp.rollback()
        assert comp.pending == (), (spec, n)
        assert torch.equal(comp.residual("w"), before), (spec, n, error)
        failures += error is not None
        if left > 0:
            break
    gc.enable()
    # What failed has changed nothing: the next packet is that of one where nothing did.
    assert comp.compress(x, "w").to_bytes() == same.compress(x, "w").to_bytes(), spec
print(failures)
"""


@pytest.fixture(scope="module")
def failing_memory() -> Path:
    """The library that fails allocations, built."""
    cxx = compiler()
    if cxx is None or sys.platform != "linux":
        pytest.skip("needs a C++ compiler and glibc")
    digest = hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:16]
    target = ROOT / "build" / "fuzz" / f"no_memory-{digest}.so"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_suffix(f".{os.getpid()}")
        command = [cxx, "-shared", "-fPIC", "-O1", str(SOURCE), "-o", str(part)]
        subprocess.run(command, check=True)
        part.rename(target)
    return target


def failures(library: Path, least: int, threads: int, specs: list[str]) -> int:
    """How many allocations failed; what the program raises ends the test."""
    environment = {**os.environ, "LD_PRELOAD": str(library)}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(least), str(threads), *specs],
        env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    return int(done.stdout)


def contractions() -> list[str]:
    """A codec of every kind that keeps a residual."""
    found = []
    for name in gcext.codecs():
        with contextlib.suppress(ValueError):
            gcext.ErrorFeedback(name, seed=1)
            found.append(name)
    return found


def test_residuals_stay_where_arrays_cannot_be_made(failing_memory: Path) -> None:
    assert failures(failing_memory, 4096, 1, contractions()) > 100


def test_residuals_stay_where_a_thread_has_no_memory(failing_memory: Path) -> None:
    assert failures(failing_memory, 4096, 2, ["stc:p=0.01", "qsgd", "sbc", "dct"]) > 20


def test_residuals_stay_where_any_native_allocation_fails(failing_memory: Path) -> None:
    assert failures(failing_memory, 0, 1, contractions()) > 100
