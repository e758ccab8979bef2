"""Builds the CUDA kernels for the CPU: `library(name)` has those of cuda/<name>.cu, for ctypes.

It is made of <name>.cpp, whose functions take what ctypes has; where there is none the launchers
themselves do (GCEXT_LAUNCHER in cuda/launch.h).
"""

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
TREE = Path(os.environ.get("GCEXT_EMU_TREE", ROOT))  # whose kernels are built: removal.py
FLAGS = [
    "-std=c++17", "-O2", "-fPIC", "-shared", "-Wall", "-Wextra", "-Werror",
    "-Wno-unknown-pragmas", "-ffp-contract=off", "-fvisibility=hidden",
    "-fno-strict-aliasing",  # as nvcc treats device code: 64-bit atomics cast their pointers
    "-fsanitize=alignment,bounds,signed-integer-overflow,shift",
    "-fsanitize-undefined-trap-on-error",
    "-DGCEXT_CUEMU", f"-I{TREE / 'tests' / 'emu'}",
]  # fmt: skip

# GCC 11 or later. A static's guard would be an access of its own.
INSTRUMENT = [
    "-fsanitize=thread", "--param=tsan-distinguish-volatile=1", "-fno-threadsafe-statics",
]  # fmt: skip

loaded: list[ctypes.CDLL] = []


def compiler() -> str | None:
    """Return the C++ compiler, or None where there is none."""
    names = (os.environ.get("CXX", "c++"), "g++", "clang++")
    return next((name for name in names if shutil.which(name)), None)


@functools.cache
def can_instrument() -> bool:
    """Return whether the compiler instruments accesses as hooks need it."""
    cxx = compiler()
    if cxx is None:
        return False
    command = [cxx, *INSTRUMENT, "-x", "c++", "-c", os.devnull, "-o", os.devnull]
    return subprocess.run(command, capture_output=True).returncode == 0


def _sources(path: Path, known: set[Path]) -> set[Path]:
    """Add to ``known`` the file and what it includes by quoted names."""
    if path.exists() and path not in known:
        known.add(path)
        text = path.read_text(errors="ignore")  # of an object there is nothing to find
        for name in re.findall(r'^#include "(.+)"', text, re.MULTILINE):
            for folder in (path.parent, TREE / "tests" / "emu"):
                _sources((folder / name).resolve(), known)
    return known


@functools.cache
def library(name: str) -> ctypes.CDLL:
    """Compile the file if something that it includes has changed, into build/emu, and load it.

    With GCEXT_EMU_HOOKS=race the kernels are instrumented, and race.cpp is told of what they do.
    """
    loaded.append(ctypes.CDLL(str(build(name, os.environ.get("GCEXT_EMU_HOOKS")))))
    return loaded[-1]


def build(name: str, hooks: str | None = None) -> Path:
    """Return the library of the file, with what <hooks>.cpp does at the hooks of cuemu.h."""
    here = TREE / "tests" / "emu"
    if hooks is None:
        return _make(name, FLAGS, [source(name)], ".so")
    flags = [flag for flag in FLAGS if flag != "-shared"]
    flags += ["-c", "-g1", f'-DCUEMU_HOOKS="{hooks}.h"']
    header = here / f"{hooks}.h"  # which is included by the macro alone
    # Linked without the sanitizer: its runtime is <hooks>.cpp.
    objects = [
        _make(hooks, flags, [here / f"{hooks}.cpp"], ".o", header),
        _make(name, [*flags, *INSTRUMENT], [source(name)], ".o", header),
    ]
    return _make(f"{name}-{hooks}", ["-shared"], objects, ".so")


def source(name: str) -> Path:
    """Return the file that becomes the library."""
    driver = TREE / "tests" / "emu" / f"{name}.cpp"
    return driver if driver.exists() else TREE / "cuda" / f"{name}.cu"


def arguments(path: Path) -> list[str]:
    """Return what the compiler is to be given for a source."""
    if path.suffix != ".cu":
        return [str(path)]
    return ["-include", "emu.h", "-x", "c++", str(path), "-x", "none"]


def _make(name: str, flags: list[str], sources: list[Path], suffix: str, *more: Path) -> Path:
    """Return what the compiler makes of the sources, which is kept until one of them changes."""
    cxx = compiler()
    if cxx is None:
        raise RuntimeError("emu: needs a C++17 compiler. Install g++ or clang.")
    digest = hashlib.sha256(" ".join([cxx, *flags]).encode())
    for each in [TREE / "tests" / "emu" / "emu.h", *sources, *more]:
        for path in sorted(_sources(each, set())):
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
    target = TREE / "build" / "emu" / f"{name}-{digest.hexdigest()[:16]}{suffix}"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        # Renamed when whole, as tests may run in parallel.
        part = target.with_suffix(f".{os.getpid()}")
        given = [argument for each in sources for argument in arguments(each)]
        command = [cxx, *flags, *given, "-o", str(part)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"emu: {cxx} failed.\n{done.stderr}")
        part.rename(target)
    return target
