"""What the CUDA kernels ask of memory, counted under the emulator; before, the counter itself."""

from __future__ import annotations

import ctypes
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from emu.backends import pointer
from emu.build import ROOT
from emu.count import Launch, counting, gxx
from typer.testing import CliRunner

from bench import gpu_kit
from bench.__main__ import app
from bench.gpu_cases import CASES
from bench.gpu_count import count
from bench.gpu_kit import Case, Kit

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
    [(8, 1, 0), (9, 2, 1), (10, 32, 31), (11, 1, 0), (12, 1, 0), (13, 2, 0), (19, 4, 0)],
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


# What a call may ask for, at n elements: launches; words an element requested and, of each launch,
# distinct; wavefronts an element beyond one a turn. `python -m bench gpu-count --kernel select
# --n 3M --detail --lines 12` says which line asks for them. Who makes a kernel better lowers these.
SLACK = 1.02  # compilers differ in what they reload
LIMITS = {
    "stc, feedback, p=0.001": (1_000_000, 3, 3.25, 3.11, 0.002),
    "stc, feedback, p=0.01": (1_000_000, 3, 3.41, 3.17, 0.002),
    "stc, feedback, p=0.1": (1_000_000, 3, 4.70, 3.74, 0.02),
    "stc, in place, p=0.01": (300_000, 4, 4.77, 4.43, 0.005),
    "topk, no residual, p=0.01": (300_000, 3, 1.54, 1.24, 0.005),
    "stc of 32,768, p=0.01": (32_768, 1, 7.22, 4.02, 0.007),
    "rest": (300_000, 1, 2.75, 2.00, 0.0),
    "combine, 20 packets, p=0.01": (300_000, 2, 2.23, 1.41, 0.052),
    "combine, 4 dense packets": (300_000, 2, 5.06, 5.00, 0.0),
    "combine_add, p=0.01": (300_000, 1, 0.175, 0.175, 0.0),
    "sign, feedback": (300_000, 4, 4.17, 3.04, 0.0),
    "sign, in place": (300_000, 4, 5.51, 5.04, 0.0),
    "sign, no residual": (300_000, 4, 1.51, 1.04, 0.0),
    "qsgd, 15 steps of 512": (300_000, 7, 6.03, 3.98, 0.0),
    "qsgd, memory, by least squares": (300_000, 9, 10.36, 8.00, 0.0),
    "terngrad": (300_000, 7, 5.72, 3.70, 0.0),
    "threshold 2.5, memory": (300_000, 4, 6.28, 4.38, 0.0),
    "wangni, p=0.01, memory": (300_000, 10, 11.25, 7.62, 0.0),
    "natural, memory": (300_000, 4, 3.75, 3.50, 0.0),
    "float16, memory": (300_000, 4, 3.72, 3.50, 0.0),
    "level_values, k=n/2": (300_000, 1, 1.38, 1.26, 0.0),
    "rotate, chunks of 2^16": (1 << 18, 1, 9.0, 3.0, 0.0),
    "rotate_back, chunks of 2^16": (1 << 18, 1, 7.26, 2.04, 0.0),
}
# Launches at any size, and those of a model of 160 tensors of its own sizes.
LAUNCHES = {
    "stc, feedback, p=0.01": 3,
    "stc of a model of 160 tensors, p=0.01": 7,
    "polar, rotated, all, memory": 5,
}


def case_of(name: str) -> Case:
    return next(case for case in CASES if case.name == name)


@pytest.mark.parametrize("name", LIMITS)
def test_no_more_traffic_than_before(name: str) -> None:
    n, launches, requested, once, conflicts = LIMITS[name]
    found = count(case_of(name), n)
    assert found.total.launches == found.chain == launches
    assert found.total.requested <= requested * SLACK
    assert found.total.once <= once * SLACK
    assert found.total.conflicts <= conflicts * SLACK


@pytest.mark.parametrize("name", LAUNCHES)
def test_launches(name: str) -> None:
    """Of every size, as the host enqueues them: nothing runs."""
    case = case_of(name)
    sizes = [case.n] if "model" in name else [10**6, 10**7]
    for n in sizes:
        with counting(dry=True) as counted:
            case.run(Kit(counted, True), n)
            launches = counted.launches()
        assert 0 < len(launches) <= LAUNCHES[name]
        assert {launch.stream for launch in launches} == {0}


def test_the_resources_page_has_every_kernel() -> None:
    command = [sys.executable, str(ROOT / "tools" / "cuda_resources.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_command(tmp_path: Path) -> None:
    files = [tmp_path / "counts.json", tmp_path / "counts.md"]
    given = ["--kernel", "combine", "--n", "10K", "--detail", "--lines", "3"]
    done = CliRunner().invoke(
        app, ["gpu-count", *given, "--json", str(files[0]), "--page", str(files[1])]
    )
    assert done.exit_code == 0, done.output
    assert "Counts are no times." in done.output
    assert re.search(r"combine_sum_kernel +.*combine\.cu:\d+", done.output)
    results = json.loads(files[0].read_text())
    assert [each["kernel"] for each in results] == ["combine"] * 3
    assert files[1].read_text().count("\n| combine |") == 3


def test_the_command_names_what_it_lacks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["gpu-count", "--kernel", "combin"])
    assert done.exit_code == 2
    monkeypatch.setattr(gpu_kit, "ROOT", tmp_path)  # as installed
    with pytest.raises(ValueError, match=r"bench: counting needs .* in a clone"):
        gpu_kit.emulator()
