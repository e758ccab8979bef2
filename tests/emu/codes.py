"""codes on either backend."""

from __future__ import annotations

import ctypes

import torch
from emu.backends import GUARD, POISON, Emulated, pointer
from torch import Tensor


class Emu(Emulated):
    """codes under the emulator."""

    stem = "codes"

    def code_values(
        self, bits: Tensor, scales: Tensor, n: int, table: int, width: int, bucket: int
    ) -> Tensor:
        out = torch.full((n + GUARD,), float(POISON))
        self.lib.emu_code_values(
            pointer(bits), pointer(scales), ctypes.c_int64(n), table, width,
            ctypes.c_int64(bucket), pointer(out), self.max_blocks,
        )  # fmt: skip
        assert (out[n:] == POISON).all()
        return out[:n]


make = Emu.make
