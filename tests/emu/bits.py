"""bits on either backend: planes of signs, as `_wire` has them."""

from __future__ import annotations

import ctypes

import torch
from emu.backends import GUARD, POISON, Emulated, pointer
from torch import Tensor


class Emu(Emulated):
    """bits under the emulator."""

    stem = "bits"

    def unpack_signs(
        self, bits: Tensor, n: int, scale: float, scales: Tensor | None, run: int
    ) -> Tensor:
        out = torch.full((n + GUARD,), float(POISON))
        self.lib.launch_unpack_signs(
            pointer(bits), ctypes.c_int64(n), ctypes.c_float(scale), pointer(scales),
            ctypes.c_int64(run), pointer(out), self.max_blocks, None,
        )  # fmt: skip
        assert (out[n:] == POISON).all()
        return out[:n]
