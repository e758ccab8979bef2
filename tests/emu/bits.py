"""bits on either backend: planes as bytes, as `_wire` has them."""

from __future__ import annotations

import ctypes

import torch
from emu.backends import GUARD, POISON, Emulated, pointer
from torch import Tensor


class Emu(Emulated):
    """bits under the emulator."""

    stem = "bits"

    def pack(self, value: Tensor, b: int) -> bytes:
        out = self._plane(value.numel(), b)
        self.lib.emu_bits_pack(
            pointer(value), ctypes.c_int64(value.numel()), b, pointer(out), self.max_blocks
        )
        return self._bytes(out, value.numel(), b)

    def unpack(self, plane: bytes, n: int, b: int) -> Tensor:
        out = torch.full((n + GUARD,), POISON, dtype=torch.int32)
        self.lib.emu_bits_unpack(
            pointer(words(plane)), ctypes.c_int64(n), b, pointer(out), self.max_blocks
        )
        assert (out[n:] == POISON).all()
        return out[:n]

    def pack_signs(self, value: Tensor) -> bytes:
        out = self._plane(value.numel(), 1)
        self.lib.emu_bits_pack_signs(
            pointer(value), ctypes.c_int64(value.numel()), pointer(out), self.max_blocks
        )
        return self._bytes(out, value.numel(), 1)

    def unpack_signs(
        self, bits: Tensor, n: int, scale: float, scales: Tensor | None, run: int
    ) -> Tensor:
        out = torch.full((n + GUARD,), float(POISON))
        self.lib.emu_bits_unpack_signs(
            pointer(bits), ctypes.c_int64(n), ctypes.c_float(scale), pointer(scales),
            ctypes.c_int64(run), pointer(out), self.max_blocks,
        )  # fmt: skip
        assert (out[n:] == POISON).all()
        return out[:n]

    @staticmethod
    def _plane(n: int, b: int) -> Tensor:
        return torch.full(((n * b + 31) // 32 + GUARD,), POISON, dtype=torch.int32)

    @staticmethod
    def _bytes(plane: Tensor, n: int, b: int) -> bytes:
        used, size = (n * b + 31) // 32, (n * b + 7) // 8
        assert (plane[used:] == POISON).all()
        whole = plane[:used].numpy().tobytes()
        assert not any(whole[size:])  # the rest of the last word
        return whole[:size]


def words(plane: bytes) -> Tensor:
    """Return the plane as whole 32-bit words."""
    return torch.tensor(list(plane) + [0] * (-len(plane) % 4), dtype=torch.uint8)
