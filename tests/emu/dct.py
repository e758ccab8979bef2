"""dct on either backend; ``out`` is changed in place."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from emu.backends import GUARD, POISON, Cuda, Emulated, pointer
from emu.quantize import poisoned
from torch import Tensor


def numbers(*values: int) -> list[ctypes.c_int64]:
    return [ctypes.c_int64(x) for x in values]


class Gpu(Cuda):
    """The operators on a GPU; index and value cut to their number."""

    def dct_select(self, *given: Any, **options: Any) -> tuple[Tensor, Tensor, Tensor]:
        index, value, info = self.call("dct_select", *given, **options)
        count = int(info[0])
        return index[:count], value[:count], info


class Emu(Emulated):
    """dct under the emulator; index and value cut to their number."""

    stem, cuda = "dct", Gpu

    def dct_select(
        self, tensor: Tensor, memory: Tensor | None, out: Tensor | None, decay: float, rows: int,
        cols: int, block: int, k: int, ternary: bool, wide: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        grid = numbers(rows, cols, block, k)
        for each in (self.lib.emu_dct_capacity, self.lib.emu_dct_select_scratch_bytes):
            each.restype = ctypes.c_int64
        capacity = self.lib.emu_dct_capacity(*grid)
        k = capacity // max(1, self.lib.emu_dct_capacity(*numbers(rows, cols, block, 1)))
        scratch = self.lib.emu_dct_select_scratch_bytes(*numbers(rows, cols, block, k))
        kind = torch.int64 if wide else torch.int32
        index = torch.full((capacity + GUARD,), POISON, dtype=kind)
        value = torch.full((capacity + GUARD,), float(POISON))
        info = torch.full((4,), POISON, dtype=torch.int64)
        self.lib.emu_dct_select(
            pointer(tensor), pointer(memory), pointer(out), ctypes.c_float(decay), *grid,
            int(ternary), pointer(index), int(wide), pointer(value), pointer(info),
            pointer(poisoned(scratch)), self.max_blocks,
        )  # fmt: skip
        count = int(info[0])
        assert (index[count:] == POISON).all()
        assert (value[count:] == POISON).all()
        return index[:count], value[:count], info

    def dct_values(self, index: Tensor, value: Tensor, rows: int, cols: int, block: int) -> Tensor:
        out = torch.full((rows * cols + GUARD,), float(POISON))
        self.lib.emu_dct_values_scratch_bytes.restype = ctypes.c_int64
        scratch = self.lib.emu_dct_values_scratch_bytes()
        self.lib.emu_dct_values(
            pointer(index), int(index.dtype == torch.int64), pointer(value),
            *numbers(value.numel(), rows, cols, block), pointer(out), pointer(poisoned(scratch)),
            self.max_blocks,
        )  # fmt: skip
        assert (out[rows * cols :] == POISON).all()
        return out[: rows * cols]


make = Emu.make
