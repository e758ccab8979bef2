"""natural on either backend; ``out`` is changed in place."""

from __future__ import annotations

import ctypes

import torch
from emu.backends import GUARD, POISON, Emulated, pointer
from torch import Tensor

from gcext._native.ops import signed


class Emu(Emulated):
    """natural under the emulator."""

    stem = "natural"

    def natural(
        self, tensor: Tensor, memory: Tensor | None, out: Tensor | None, decay: float,
        scale: float, seed: int,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        n = tensor.numel()
        power = torch.full((n + GUARD,), POISON, dtype=torch.int16)
        info = torch.full((4,), POISON, dtype=torch.int64)
        self.lib.emu_natural_scratch_bytes.restype = ctypes.c_int64
        size = self.lib.emu_natural_scratch_bytes()
        self.lib.emu_natural(
            pointer(tensor), pointer(memory), pointer(out), ctypes.c_float(decay),
            ctypes.c_int64(n), ctypes.c_float(scale), ctypes.c_int64(signed(seed)),
            pointer(power), pointer(info), pointer(torch.full((size,), 0xA5, dtype=torch.uint8)),
            self.max_blocks,
        )  # fmt: skip
        assert (power[n:] == POISON).all()
        return power[:n], info

    def power_values(self, power: Tensor, scale: float) -> Tensor:
        n = power.numel()
        value = torch.full((n + GUARD,), float(POISON))
        self.lib.emu_power_values(
            pointer(power), ctypes.c_int64(n), ctypes.c_float(scale), pointer(value),
            self.max_blocks,
        )  # fmt: skip
        assert (value[n:] == POISON).all()
        return value[:n]


make = Emu.make
