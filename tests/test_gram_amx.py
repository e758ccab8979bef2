"""Exact counts of many packets; from 64 on by AMX tiles, where the processor has them."""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import gcext


@pytest.mark.parametrize("m", [63, 64, 65, 95, 96, 130])
@pytest.mark.parametrize("numel", [1, 64, 1023, 8192 + 1024 + 65])
def test_counts_are_the_integers(m: int, numel: int) -> None:
    """Panels half full, chunks of words begun, planes filled more than once; some packets empty."""
    rng = np.random.default_rng(m * numel)
    signs = rng.integers(-1, 2, (m, numel)) * (np.arange(m) % 7 > 0)[:, None]
    scales = rng.uniform(0.5, 2, m).astype(np.float32)
    codec = gcext.codec("stc:p=1")
    packets = [
        codec.encode(torch.from_numpy(row.astype(np.float32) * scale))
        for row, scale in zip(signs, scales, strict=True)
    ]
    mu = np.array([packet.scale for packet in packets])
    assert np.array_equal(gcext.gram(packets).numpy(), mu[:, None] * mu * (signs @ signs.T))


# Linux lets a process use tiles only on request, and reports which processor states it may use:
# arch_prctl with ARCH_GET_XCOMP_SUPP (all there are) and ARCH_GET_XCOMP_PERM (those requested).
ARCH_PRCTL, SUPPORTED, PERMITTED, TILE_DATA = 158, 0x1021, 0x1022, 18


def tile_state(which: int) -> bool:
    mask = ctypes.c_uint64()
    failed = ctypes.CDLL(None).syscall(ARCH_PRCTL, which, ctypes.byref(mask))
    return failed == 0 and mask.value >> TILE_DATA & 1 == 1


def why_no_tiles() -> str:
    """The reason why gram cannot use AMX here; "" where it can."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return "AMX is used on x86-64 Linux alone"
    if not {"amx_tile", "amx_int8"} <= set(Path("/proc/cpuinfo").read_text().split()):
        return "this processor has no AMX: nothing was counted with tiles"
    if (isa := gcext.build_info()["isa"]) != "avx512":
        return f"AMX needs the instruction set avx512, and {isa} is in use"
    return "" if tile_state(SUPPORTED) else "this system lets no process use AMX"


SCRIPT = """
import torch, gcext
from test_gram_amx import PERMITTED, tile_state
codec = gcext.codec("stc:p=1")
packets = [codec.encode(torch.randn(1000)) for _ in range(64)]
for m in (1, 63, 64):
    gcext.gram(packets[:m])
    print(tile_state(PERMITTED))
"""


def test_tiles_are_used_from_64_packets_on() -> None:
    """Gram requests them with the first 64 packets; where that is granted, it counts with them."""
    if why := why_no_tiles():
        pytest.skip(why)
    path = os.pathsep.join([str(Path(__file__).parent), str(Path(gcext.__file__).parents[1])])
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == ["False", "False", "True"]
