"""encode_codes on either backend; ``out`` is changed in place."""

from __future__ import annotations

import ctypes

import torch
from emu.backends import GUARD, POISON, Emulated, pointer
from emu.quantize import poisoned
from torch import Tensor


class Emu(Emulated):
    """encode_codes under the emulator."""

    stem = "encode_codes"

    def encode_codes(
        self, tensor: Tensor, memory: Tensor | None, out: Tensor | None, decay: float, table: int,
        width: int, bucket: int, random: bool, fit: bool, seed: int,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        n = tensor.numel()
        bucket = bucket if 0 < bucket < n else n
        floats, size = -(-n // bucket) * (2, 1, 1, 0, 0)[table], (n * width + 7) // 8
        scales = torch.full((floats + GUARD,), float(POISON))
        bits = torch.full((size + GUARD,), POISON & 0xFF, dtype=torch.uint8)
        info = torch.full((4,), POISON, dtype=torch.int64)
        self.lib.emu_encode_scratch_bytes.restype = ctypes.c_int64
        scratch = self.lib.emu_encode_scratch_bytes(
            table, ctypes.c_int64(n), ctypes.c_int64(bucket)
        )
        self.lib.emu_encode_codes(
            pointer(tensor), pointer(memory), pointer(out), ctypes.c_float(decay),
            ctypes.c_int64(n), table, width, ctypes.c_int64(bucket), int(random), int(fit),
            ctypes.c_int64(seed), pointer(scales), pointer(bits), pointer(info),
            pointer(poisoned(scratch)), self.max_blocks,
        )  # fmt: skip
        assert (scales[floats:] == POISON).all()
        assert (bits[size:] == POISON & 0xFF).all()
        return scales[:floats], bits[:size], info


make = Emu.make
