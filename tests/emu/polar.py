"""polar on either backend."""

from __future__ import annotations

import ctypes

import torch
from emu.backends import GUARD, POISON, Emulated, pointer
from torch import Tensor


def _bytes(n: int) -> Tensor:
    return torch.full((n + GUARD,), POISON % 256, dtype=torch.uint8)


def _checked(out: Tensor, n: int) -> Tensor:
    assert (out[n:] == POISON % 256).all()
    return out[:n]


class Emu(Emulated):
    """polar under the emulator."""

    stem = "polar"

    def polar_encode(
        self, source: Tensor, frozen: Tensor, free: int, numel: int, weight: float, correction: int,
        symbols: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        assert symbols
        block = frozen.numel()
        soft = source.dtype == torch.float32
        size = (free * -(-numel // block) + 7) // 8
        message, bad = _bytes(size), torch.full((1,), POISON, dtype=torch.int64)
        found = _bytes((numel + 7) // 8)
        self.lib.emu_polar_encode(
            pointer(source if soft else None), pointer(None if soft else source), pointer(frozen),
            ctypes.c_int64(numel), block.bit_length() - 1, ctypes.c_int64(free),
            ctypes.c_double(weight), correction, self.max_blocks, pointer(message),
            pointer(found), pointer(bad),
        )  # fmt: skip
        return _checked(message, size), bad, _checked(found, (numel + 7) // 8)

    def polar_decode(self, message: Tensor, frozen: Tensor, numel: int) -> Tensor:
        size = (numel + 7) // 8
        packed = _bytes(size)
        self.lib.emu_polar_decode(
            pointer(message), ctypes.c_int64(message.numel()), pointer(frozen),
            ctypes.c_int64(numel), frozen.numel().bit_length() - 1, self.max_blocks,
            pointer(packed),
        )  # fmt: skip
        return _checked(packed, size)

    def polar_pack(self, symbols: Tensor) -> Tensor:
        size = (symbols.numel() + 7) // 8
        packed = _bytes(size)
        self.lib.emu_polar_pack(pointer(symbols), ctypes.c_int64(symbols.numel()), pointer(packed))
        return _checked(packed, size)

    def polar_unpack(self, packed: Tensor, numel: int) -> Tensor:
        symbols = _bytes(numel)
        self.lib.emu_polar_unpack(pointer(packed), ctypes.c_int64(numel), pointer(symbols))
        return _checked(symbols, numel)


make = Emu.make
