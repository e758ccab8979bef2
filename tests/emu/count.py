"""What the kernels of cuda/ do to memory, counted under the emulator: count.cpp says how.

    with counting() as counted:
        hadamard.make("emu").hadamard(values, 4096, 1, False)
    counted.launches()  # in order, with their kernels' names

Counts are no times: they say what a kernel asks of memory, not how long that takes.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from emu.backends import Emulated
from emu.build import HERE, ROOT, _sources, arguments, source

COMMON = ["-std=c++17", "-O2", "-fPIC", "-Wall", "-Wextra", "-Werror", "-fvisibility=hidden"]
# As in build.py; nothing that joins or splits accesses otherwise than the source does: a float4 is
# one, and so is a struct that a register pair holds.
KERNEL = [
    *COMMON, "-g1", "-Wno-unknown-pragmas", "-ffp-contract=off", "-fno-strict-aliasing",
    "-fno-tree-sra", "-fno-tree-vectorize", "-fno-store-merging",
    "-fno-tree-loop-distribute-patterns", "-fsanitize=thread", "-fno-threadsafe-statics",
    "--param=tsan-instrument-func-entry-exit=0",
    "-DGCEXT_CUEMU", '-DCUEMU_HOOKS="count.h"', f"-I{HERE}",
]  # fmt: skip


# What count.cpp has in their place.
RENAMED = {
    "memcpy": "memcpy", "memset": "memset",
    "_Znwm": "new", "_ZdlPv": "delete", "_ZdlPvm": "delete_sized",
}  # fmt: skip


class Launch(ctypes.Structure):
    """CountedLaunch of count.cpp: one launch."""

    FIELDS = (
        "kernel", "blocks", "threads", "stream", "reads", "writes", "read_bytes", "write_bytes",
        "read_sectors", "write_sectors", "block_reads", "block_writes", "once_reads",
        "once_writes", "once", "atomics", "atomic_warps", "atomic_sectors", "atomic_addresses",
        "atomic_most", "shared", "wavefronts", "conflicts", "shared_atomics", "shared_atomic_warps",
        "shared_atomic_addresses", "shared_atomic_most", "barriers", "barriers_most", "warp_ops",
    )  # fmt: skip
    _fields_ = [(name, ctypes.c_int64) for name in FIELDS]
    name = ""  # of the kernel


class Place(ctypes.Structure):
    """CountedPlace of count.cpp: one place in the code of one kernel."""

    _fields_ = [
        (name, ctypes.c_int64)
        for name in (
            "kernel", "kind", "code", "warps", "lanes", "sectors", "wavefronts", "conflicts",
            "addresses", "most",
        )
    ]  # fmt: skip
    KINDS = ("read", "write", "shared read", "shared write", "atomic", "shared atomic")
    name = ""  # of the kernel
    line = ""  # file:line, the innermost first


def gxx() -> str | None:
    """Return GCC's C++ compiler, or None: clang's instrumentation leaves accesses out."""
    return next((name for name in (os.environ.get("CXX", "g++"), "g++") if _is_gcc(name)), None)


@functools.cache
def _is_gcc(name: str) -> bool:
    if shutil.which(name) is None or shutil.which("objcopy") is None:
        return False
    text = subprocess.run([name, "--version"], capture_output=True, text=True).stdout
    return "clang" not in text and "Free Software Foundation" in text


def _made(
    name: str, kind: str, sources: list[Path],
    commands: Callable[[str, Path], list[list[str]]],
) -> Path:  # fmt: skip
    """Return the file that the commands write, in build/emu, made if its sources have changed."""
    cxx = gxx()
    if cxx is None:
        raise RuntimeError("emu: counting needs g++ and objcopy. Install GCC.")
    known: set[Path] = set()
    for each in [HERE / "emu.h", *sources]:
        _sources(each, known)
    digest = hashlib.sha256(" ".join([cxx, *KERNEL]).encode())
    for path in sorted(known):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    target = ROOT / "build" / "emu" / f"{name}-{digest.hexdigest()[:16]}{kind}"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_suffix(f".{os.getpid()}.o")
        for command in commands(cxx, part):
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode != 0:
                raise RuntimeError(f"emu: {command[0]} failed.\n{done.stderr}")
        part.rename(target)  # when whole, as tests may run in parallel
    return target


@functools.cache
def counted_library(name: str) -> ctypes.CDLL:
    """Compile the kernels with counters, if something that it includes has changed."""
    kernels, counters = source(name), HERE / "count.cpp"

    def compile_counters(cxx: str, part: Path) -> list[list[str]]:
        return [[cxx, *COMMON, "-c", str(counters), "-o", str(part)]]

    counting = _made("count", ".o", [counters], compile_counters)

    def compile_kernels(cxx: str, part: Path) -> list[list[str]]:
        made = str(part.with_suffix(".kernels.o"))
        renames = [f"--redefine-sym={old}=count_{new}" for old, new in RENAMED.items()]
        return [
            [cxx, *KERNEL, "-c", *arguments(kernels), "-o", made],
            ["objcopy", *renames, made],
            [cxx, "-shared", made, str(counting), "-o", str(part)],
            ["rm", made],
        ]

    return ctypes.CDLL(str(_made(f"{name}-count", ".so", [kernels, counters, HERE / "count.h"],
                                 compile_kernels)))  # fmt: skip


class Counted:
    """The counters of the libraries that were used."""

    def __init__(self, dry: bool) -> None:
        self.dry = dry
        self._libraries: list[ctypes.CDLL] = []

    def load(self, name: str) -> ctypes.CDLL:
        """Return the library of that base name, counted from now on."""
        library = counted_library(name)
        if library not in self._libraries:
            library.count_reset()
            library.emu_dry(int(self.dry))
            library.count_name.restype = ctypes.c_char_p
            self._libraries.append(library)
        return library

    def reset(self) -> None:
        """Forget what was counted."""
        for library in self._libraries:
            library.count_reset()

    def launches(self) -> list[Launch]:
        """Return every launch, in order within a library."""
        found = []
        for library in self._libraries:
            launches = (Launch * library.count_launches(None))()
            library.count_launches(launches)
            for launch in launches:
                launch.name = _name(library, launch.kernel)
                found.append(launch)
        return found

    def places(self) -> list[Place]:
        """Return what was counted at each place in the code."""
        found = []
        for library in self._libraries:
            places = (Place * library.count_places(None))()
            library.count_places(places)
            lines = _lines(library, [place.code for place in places])
            for place, line in zip(places, lines, strict=True):
                place.name, place.line = _name(library, place.kernel), line
                found.append(place)
        return found


def _name(library: ctypes.CDLL, kernel: int) -> str:
    return re.sub(r"\(.*", "", library.count_name(ctypes.c_int64(kernel)).decode())


def _lines(library: ctypes.CDLL, codes: list[int]) -> list[str]:
    """Return where in cuda/ and csrc/ the calls that return to these places are."""
    asked = [hex(code - 1) for code in codes]
    command = ["addr2line", "-a", "-i", "-e", library._name, *asked]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    lines = []
    for block in re.split(r"^0x[0-9a-f]+\n", text, flags=re.MULTILINE)[1:]:
        frames = [frame.split(" ")[0] for frame in block.split("\n") if "/" in frame]
        paths = [Path(frame) for frame in frames if "/emu/" not in os.path.normpath(frame)]
        lines.append(" < ".join(path.name for path in paths))
    return lines


@contextmanager
def counting(dry: bool = False) -> Iterator[Counted]:
    """Count what emulated kernels do whose adapter is made within.

    dry: launches are listed and run nothing, so that no memory of theirs is touched.
    """
    counted, before = Counted(dry), Emulated.load
    Emulated.load = staticmethod(counted.load)
    try:
        yield counted
    finally:
        Emulated.load = before
