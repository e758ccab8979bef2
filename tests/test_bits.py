"""Fixed-width planes, against NumPy's own bits."""

from __future__ import annotations

import numpy as np
import pytest
import wire_bodies as wire

from gcext import _wire


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
