"""What the CUDA kernels ask of memory, counted under the emulator: the counter, then the kernels."""

from __future__ import annotations

import ctypes

import pytest
import torch
from emu.backends import pointer
from emu.count import Launch, counting, gxx

pytestmark = pytest.mark.skipif(gxx() is None, reason="counting needs g++ and objcopy")


def traffic(what: int, warps: int = 1) -> Launch:
    """Count one case of traffic_kernel in emu/traffic.cpp."""
    memory = torch.zeros(4096)
    with counting() as counted:
        counted.load("traffic").emu_traffic(what, pointer(memory), ctypes.c_int64(warps))
        (launch,) = counted.launches()
    assert launch.name == "traffic_kernel"
    return launch


@pytest.mark.parametrize(
    ("what", "reads", "read_sectors", "writes", "write_sectors"),
    [
        (0, 1, 4, 0, 0),
        (1, 1, 8, 0, 0),
        (2, 1, 1, 0, 0),
        (3, 1, 16, 1, 16),
        (4, 1, 5, 0, 0),
        (5, 0, 0, 1, 8),
        (6, 0, 0, 8, 8 * 32),
        (7, 3, 3 * 4, 0, 0),
        (17, 0, 0, 0, 0),
        (18, 2, 2 * 4, 0, 0),
    ],
)
@pytest.mark.parametrize("warps", [1, 3])
def test_sectors(
    what: int, reads: int, read_sectors: int, writes: int, write_sectors: int, warps: int
) -> None:
    found = traffic(what, warps)
    assert (found.reads, found.read_sectors) == (warps * reads, warps * read_sectors)
    assert (found.writes, found.write_sectors) == (warps * writes, warps * write_sectors)
    assert found.atomics == found.shared == found.shared_atomics == 0


def test_distinct_sectors_of_blocks_and_launches() -> None:
    found = traffic(2, 3)
    assert (found.read_sectors, found.block_reads, found.once_reads, found.once) == (3, 1, 1, 1)
    found = traffic(3, 2)
    assert (found.read_sectors, found.block_reads, found.block_writes) == (32, 32, 32)
    assert (found.once_reads, found.once_writes, found.once) == (32, 32, 32)


@pytest.mark.parametrize(
    ("what", "wavefronts", "conflicts"),
    [(8, 1, 0), (9, 2, 1), (10, 32, 31), (11, 1, 0), (12, 1, 0), (13, 2, 0)],
)
def test_bank_conflicts(what: int, wavefronts: int, conflicts: int) -> None:
    found = traffic(what)
    assert (found.shared, found.wavefronts, found.conflicts) == (1, wavefronts, conflicts)
    assert found.reads == found.writes == 0


def test_atomics() -> None:
    one, four = traffic(14, 2), traffic(15)
    assert (one.atomics, one.atomic_warps, one.atomic_addresses, one.atomic_most) == (64, 2, 2, 32)
    assert (four.atomics, four.atomic_warps, four.atomic_sectors) == (32, 1, 1)
    assert (four.atomic_addresses, four.atomic_most) == (4, 8)
    shared = traffic(16)
    assert (shared.shared_atomics, shared.shared_atomic_addresses) == (32, 16)
    assert (shared.shared_atomic_most, shared.barriers, shared.atomics) == (2, 2, 0)
