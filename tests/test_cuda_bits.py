"""The CUDA kernels of bits give the CPU's bytes, emulated."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from emu.backends import same_bits
from emu.bits import Emu

from gcext._packet.codes import signed

SIZES = [0, 1, 31, 32, 33, 255, 256, 257, 1023, 1024, 1025, 5003]
SCHEDULES = [(65536, False), (1, True), (3, False), (2, True)]


@pytest.mark.parametrize(("max_blocks", "reverse"), SCHEDULES)
def test_same_signs(max_blocks: int, reverse: bool) -> None:
    draw = random.Random(max_blocks)
    run = Emu(max_blocks, reverse)
    for n in SIZES:
        bits = torch.randint(-(2**31), 2**31, (n,), dtype=torch.int64).int()
        packed = np.packbits(bits.numpy() < 0, bitorder="little").tobytes()
        plane = torch.tensor([7, *packed], dtype=torch.uint8)[1:]  # at an odd address
        scale = draw.choice([0.0, 2.0**-149, 1.0, 3.4e38])
        want = torch.ops.gcext.unpack_signs(plane, n, scale, None, 0)
        assert same_bits(run.unpack_signs(plane, n, scale, None, 0), want)
        each = draw.choice([8, 64, 1024])
        scales = torch.rand(-(-n // each))
        want = torch.ops.gcext.unpack_signs(plane, n, 0.0, scales, each)
        assert same_bits(run.unpack_signs(plane, n, 0.0, scales, each), want)


@pytest.mark.cuda
@pytest.mark.parametrize("n", [0, 1, 10**6 + 3])
def test_signs_on_the_gpu(n: int) -> None:
    bits = torch.randint(0, 256, ((n + 7) // 8,), dtype=torch.uint8)
    if n % 8:
        bits[-1] &= 0xFF >> -n % 8
    for scale, run in ((0.75, 0), (torch.tensor([2.0**-149]), 0), (torch.rand(n // 64 + 1), 64)):
        there = signed(bits.cuda(), n, scale, run)
        assert same_bits(there.cpu(), signed(bits, n, scale, run))
