"""Builds the CUDA kernels for the CPU: `library()` is emu.cpp as a ctypes library."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
FLAGS = [
    "-std=c++17", "-O2", "-fPIC", "-shared", "-Wall", "-Wextra", "-Werror",
    "-Wno-unknown-pragmas", "-ffp-contract=off", "-fvisibility=hidden",
    "-fno-strict-aliasing",  # as nvcc treats device code: 64-bit atomics cast their pointers
    "-fsanitize=bounds,signed-integer-overflow,shift", "-fsanitize-undefined-trap-on-error",
    "-DGCEXT_CUEMU", f"-I{HERE}",
]  # fmt: skip


def compiler() -> str | None:
    """Return the C++ compiler, or None where there is none."""
    names = (os.environ.get("CXX", "c++"), "g++", "clang++")
    return next((name for name in names if shutil.which(name)), None)


@functools.cache
def library() -> ctypes.CDLL:
    """Compile what has changed since the last run, into build/emu, and load it."""
    cxx = compiler()
    if cxx is None:
        raise RuntimeError("emu: needs a C++17 compiler. Install g++ or clang.")
    digest = hashlib.sha256(" ".join([cxx, *FLAGS]).encode())
    for folder, pattern in ((ROOT / "cuda", "*"), (ROOT / "csrc", "*.h"), (HERE, "*.[hc]*")):
        for path in sorted(p for p in folder.glob(pattern) if p.is_file()):
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
    target = ROOT / "build" / "emu" / f"emu-{digest.hexdigest()[:16]}.so"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        # Renamed when whole, as tests may run in parallel.
        part = target.with_suffix(f".{os.getpid()}")
        done = subprocess.run(
            [cxx, *FLAGS, str(HERE / "emu.cpp"), "-o", str(part)], capture_output=True, text=True
        )
        if done.returncode != 0:
            raise RuntimeError(f"emu: {cxx} failed.\n{done.stderr}")
        part.rename(target)
    loaded = ctypes.CDLL(str(target))
    loaded.emu_select_scratch_bytes.restype = ctypes.c_int64
    return loaded
