"""The race check finds what nothing orders, and nothing in kernels that are right."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterator

import pytest
import torch
from emu import build, race
from test_cuda_gram import test_ternary_packets as gram_of_ternary_packets
from test_cuda_select import PIPELINE
from test_cuda_select import compare as compare_select

pytestmark = pytest.mark.skipif(
    not build.can_instrument(), reason="the compiler has no -fsanitize=thread as GCC 11 has it"
)

# As race_probe.cpp numbers them, and the race that is there without.
PROBES = {
    "__syncthreads": "write by block 0 thread 32 .*, read by block 0 thread 31 ",
    "__syncwarp": "write by block 0 thread 1 .*, read by block 0 thread 0 ",
    "__threadfence before a ticket": "read by block 3 .*, write by block [012] thread 0 ",
    "__threadfence behind a ticket": "read by block 3 .*, write by block [012] thread 0 ",
    "__threadfence by every thread": "read by block 3 .*, write by block [012] thread [1-9]",
    "an atomic": "(read|write) by block 1 thread 0 .*, write by block 0 thread 0 ",
    "shared memory of one block": None,
    "__syncwarp beside a shuffle": "read by block 0 thread 0 at .*, write by block 0 thread 1 ",
    "__threadfence before a flag": "read by block 1 thread 0 .*, write by block 0 thread 0 ",
    "a volatile flag": "volatile read by block 1 thread 0 .*, write by block 0 thread 0 ",
    "bytes of their own": "write by block 0 thread 1 .*, write by block 0 thread 0 ",
}


@pytest.fixture(scope="module")
def probes() -> ctypes.CDLL:
    return ctypes.CDLL(str(build.build("race_probe", "race")))


def run(probes: ctypes.CDLL, what: str, right: bool, reverse: bool = False) -> list[str]:
    words = (ctypes.c_uint32 * 8192)()
    blocks = 1 if what == "bytes of their own" else 4
    probes.emu_reverse(int(reverse))
    probes.emu_race_probe(list(PROBES).index(what), int(right), ctypes.c_int64(blocks), words)
    return race.found(probes)


@pytest.mark.parametrize("what", PROBES)
def test_found_without_and_silent_with(probes: ctypes.CDLL, what: str) -> None:
    assert run(probes, what, True) == []
    if "flag" not in what:  # which waits for a block that would come after it
        assert run(probes, what, True, reverse=True) == []
    wanted = PROBES[what]
    if wanted is not None:
        races = run(probes, what, False)
        assert any(re.search(f"race in race_probe_kernel: {wanted}", line) for line in races), races
        assert all("race_probe.cpp:" in line for line in races)


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let the emulator's libraries be those of the race check."""
    monkeypatch.setenv("GCEXT_EMU_HOOKS", "race")
    build.library.cache_clear()
    before = len(build.loaded)
    yield
    build.library.cache_clear()
    libraries = build.loaded[before:]
    assert libraries
    assert [line for library in libraries for line in race.found(library)] == []


@pytest.mark.usefixtures("checked")
def test_kernels_without_races() -> None:
    """`make cuda-race` runs all of them; here are barriers, a warp and last blocks."""
    gram_of_ternary_packets("emu", 0)
    tensor, memory = torch.randn(20_011), torch.randn(20_011)
    how = PIPELINE._replace(max_blocks=3, reverse=True)
    compare_select("emu", "memory", tensor, memory, 300, 1.0, 0.9, True, how)
