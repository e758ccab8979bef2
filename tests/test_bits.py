"""Fixed-width planes, against NumPy's own bits; signs unpacked by the CUDA kernel."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
import wire_bodies as wire
from emu.backends import same_bits
from emu.bits import Emu

from gcext import _wire
from gcext._packet.codes import signed

SIZES = [0, 1, 31, 32, 33, 255, 256, 257, 1023, 1024, 1025, 5003]
SCHEDULES = [(65536, False), (1, True), (3, False), (2, True)]


def plane(value: np.ndarray, b: int) -> bytes:
    bits = value[:, None] >> np.arange(b, dtype=np.uint32) & 1
    return np.packbits(bits.astype(np.uint8).ravel(), bitorder="little").tobytes()


@pytest.mark.parametrize("b", range(33))
def test_pack_and_unpack(b: int) -> None:
    rng = np.random.default_rng(b)
    for n in (0, 1, 7, 8, 9, 15, 16, 17, 31, 64, 100, 255, 1023, 1024, 1025):
        value = rng.integers(0, 1 << b, n).astype(np.uint32)
        if n > 2:
            value[:2] = 0, (1 << b) - 1
        packed = _wire.bits_pack(value, b)
        assert packed == plane(value, b)
        assert np.array_equal(_wire.bits_unpack(packed, n, b), value)


def test_signs_follow_the_sign_bit() -> None:
    rng = np.random.default_rng(0)
    for k in (1, 7, 8, 15, 16, 17, 33, 1000):
        value = np.where(rng.random(k) < 0.5, -3, 3).astype(np.float32)
        index = np.arange(k, dtype=np.int32)
        message = wire.pack(wire.Body("ternary", (k,), index=index, value=value, scale=3.0))
        signs = message[-8 - (k + 7) // 8 : -8]
        assert signs == np.packbits(value < 0, bitorder="little").tobytes()
        back = wire.unpack(message).value
        assert back is not None and np.array_equal(back, value)


def test_a_plane_must_hold_its_values() -> None:
    with pytest.raises(ValueError, match="must hold"):
        _wire.bits_unpack(b"\x00", 9, 1)
    with pytest.raises(ValueError, match=r"\[0, 32\]"):
        _wire.bits_pack(np.zeros(1, np.uint32), 33)
    with pytest.raises(ValueError, match="array of uint32"):
        _wire.bits_pack(np.zeros(1, np.int64), 3)


@pytest.mark.parametrize(("max_blocks", "reverse"), SCHEDULES)
def test_same_bytes(max_blocks: int, reverse: bool) -> None:
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
