"""The race check: `make cuda-race` runs the emulator's tests with this as a plugin of pytest.

Every access of a kernel goes through race.cpp, which says what a race is; a test during which one
was found fails, with the two places in the sources.
"""

from __future__ import annotations

import ctypes
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from emu import build


def found(library: ctypes.CDLL) -> list[str]:
    """Return the races in what this library has run since the last call, a sentence each."""
    library.emu_races.restype = ctypes.c_char_p
    lines = library.emu_races().decode().splitlines()
    if not lines:
        return []
    path = Path(library._name)
    places = sorted(set(re.findall(r"\+(0x[0-9a-f]+)", "\n".join(lines))))
    # Where each call returns to; the access is before it.
    before = [hex(int(place, 16) - 1) for place in places]
    done = subprocess.run(["addr2line", "-e", path, *before], capture_output=True, text=True)
    source = dict(zip(places, done.stdout.splitlines(), strict=False))
    return [
        re.sub(r"\+(0x[0-9a-f]+)", lambda m: _short(source.get(m[1], m[0])), line) for line in lines
    ]


def _short(place: str) -> str:
    return re.sub(r"^.*/(\w+/\w+\.\w+:\d+).*", r"\1", place)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Iterator[None]:
    """Fail a test during which a race was found."""
    try:
        yield
    finally:
        races = [race for library in build.loaded for race in found(library)]
        if races:
            pytest.fail("\n".join(races), pytrace=False)
