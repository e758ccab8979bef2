"""Builds the CUDA kernels for the CPU: `library(name)` is `<name>.cpp` as a ctypes library."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import re
import shutil
import subprocess
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
FLAGS = [
    "-std=c++17", "-O2", "-fPIC", "-shared", "-Wall", "-Wextra", "-Werror",
    "-Wno-unknown-pragmas", "-ffp-contract=off", "-fvisibility=hidden",
    "-fno-strict-aliasing",  # as nvcc treats device code: 64-bit atomics cast their pointers
    "-fsanitize=alignment,bounds,signed-integer-overflow,shift",
    "-fsanitize-undefined-trap-on-error",
    "-DGCEXT_CUEMU", f"-I{HERE}",
]  # fmt: skip


def compiler() -> str | None:
    """Return the C++ compiler, or None where there is none."""
    names = (os.environ.get("CXX", "c++"), "g++", "clang++")
    return next((name for name in names if shutil.which(name)), None)


def _sources(path: Path, known: set[Path]) -> set[Path]:
    """Add to ``known`` the file and what it includes by quoted names."""
    if path.exists() and path not in known:
        known.add(path)
        for name in re.findall(r'^#include "(.+)"', path.read_text(), re.MULTILINE):
            for folder in (path.parent, HERE):
                _sources((folder / name).resolve(), known)
    return known


@functools.cache
def library(name: str) -> ctypes.CDLL:
    """Compile the file if something that it includes has changed, into build/emu, and load it."""
    cxx = compiler()
    if cxx is None:
        raise RuntimeError("emu: needs a C++17 compiler. Install g++ or clang.")
    source = HERE / f"{name}.cpp"
    digest = hashlib.sha256(" ".join([cxx, *FLAGS]).encode())
    for path in sorted(_sources(source, set())):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    target = ROOT / "build" / "emu" / f"{name}-{digest.hexdigest()[:16]}.so"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        # Renamed when whole, as tests may run in parallel.
        part = target.with_suffix(f".{os.getpid()}")
        done = subprocess.run(
            [cxx, *FLAGS, str(source), "-o", str(part)], capture_output=True, text=True
        )
        if done.returncode != 0:
            raise RuntimeError(f"emu: {cxx} failed.\n{done.stderr}")
        part.rename(target)
    return ctypes.CDLL(str(target))
