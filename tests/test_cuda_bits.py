"""The CUDA kernels of bits give the CPU's bytes, emulated."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from emu.backends import same_bits
from emu.bits import Emu

from gcext import _wire

SIZES = [0, 1, 31, 32, 33, 255, 256, 257, 1023, 1024, 1025, 5003]
SCHEDULES = [(65536, False), (1, True), (3, False), (2, True)]


@pytest.mark.parametrize("b", range(33))
def test_same_planes(b: int) -> None:
    generator = np.random.default_rng(b)
    for turn, n in enumerate(SIZES):
        value = generator.integers(0, 2**b, n, dtype=np.uint64).astype(np.uint32)
        there = torch.from_numpy(value.view(np.int32))
        run = Emu(*SCHEDULES[turn % len(SCHEDULES)])
        want = _wire.bits_pack(value, b)
        assert run.pack(there, b) == want
        assert same_bits(run.unpack(want, n, b), there)


@pytest.mark.parametrize(("max_blocks", "reverse"), SCHEDULES)
def test_same_signs(max_blocks: int, reverse: bool) -> None:
    draw = random.Random(max_blocks)
    run = Emu(max_blocks, reverse)
    for n in SIZES:
        bits = torch.randint(-(2**31), 2**31, (n,), dtype=torch.int64).int()  # NaN and -0 as well
        value = bits.view(torch.float32)
        want = np.packbits(bits.numpy() < 0, bitorder="little").tobytes()
        assert run.pack_signs(value) == want
        scale = draw.choice([0, 1, 0x3F800000, 0x7F7FFFFF])
        signed = torch.where(bits < 0, scale - 2**31, scale).int()
        assert same_bits(run.unpack_signs(want, n, scale), signed.view(torch.float32))
