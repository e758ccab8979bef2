"""sketch on either backend."""

from __future__ import annotations

import ctypes

import torch
from emu.backends import GUARD, POISON, Emulated, pointer
from torch import Tensor


class Emu(Emulated):
    """sketch under the emulator; a tensor has elements."""

    stem = "sketch"

    def sketch(
        self, tensor: Tensor, index: Tensor | None, rows: int, cols: int, seed: int
    ) -> tuple[Tensor, Tensor]:
        cells = rows * cols
        table = torch.full((cells + GUARD,), float(POISON))
        info = torch.full((4,), POISON, dtype=torch.int64)
        self.lib.emu_sketch_scratch_bytes.restype = ctypes.c_int64
        size = self.lib.emu_sketch_scratch_bytes(ctypes.c_int64(rows), ctypes.c_int64(cols))
        self.lib.emu_sketch(
            pointer(tensor), ctypes.c_int64(tensor.numel()), *_index(index),
            *_kind(rows, cols, seed), pointer(table), pointer(info),
            pointer(torch.full((size,), 0xA5, dtype=torch.uint8)), self.max_blocks,
        )  # fmt: skip
        assert (table[cells:] == POISON).all()
        return table[:cells], info

    def sketch_query(
        self, table: Tensor, index: Tensor | None, numel: int, rows: int, cols: int, seed: int
    ) -> Tensor:
        n = numel if index is None else index.numel()
        estimate = torch.full((n + GUARD,), float(POISON))
        self.lib.emu_sketch_query(
            pointer(table), *_index(index), ctypes.c_int64(n), *_kind(rows, cols, seed),
            pointer(estimate), self.max_blocks,
        )  # fmt: skip
        assert (estimate[n:] == POISON).all()
        return estimate[:n]


def _index(index: Tensor | None) -> tuple[ctypes.c_void_p, int]:
    return pointer(index), int(index is not None and index.dtype == torch.int64)


def _kind(rows: int, cols: int, seed: int) -> tuple[object, ...]:
    return ctypes.c_int64(rows), ctypes.c_int64(cols), ctypes.c_uint64(seed % 2**64)


make = Emu.make
