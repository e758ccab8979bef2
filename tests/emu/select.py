"""select on either backend; ``out`` is changed in place."""

from __future__ import annotations

import ctypes

import torch
from emu.backends import GUARD, POISON, Emulated, pointer
from torch import Tensor


class Emu(Emulated):
    """select under the emulator."""

    stem = "select"

    def select(
        self, tensor: Tensor, memory: Tensor | None, out: Tensor | None, k: int,
        a: float = 1.0, b: float = 1.0, ternary: bool = True, wide: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        self.lib.emu_select_scratch_bytes.restype = ctypes.c_int64
        index = torch.full((k + GUARD,), POISON, dtype=torch.int64 if wide else torch.int32)
        value = torch.full((k + GUARD,), float(POISON))
        info = torch.full((4,), POISON, dtype=torch.int64)
        scratch = torch.full((self.lib.emu_select_scratch_bytes(),), 0xA5, dtype=torch.uint8)
        self.lib.emu_select(
            pointer(tensor), pointer(memory), pointer(out), ctypes.c_int64(tensor.numel()),
            ctypes.c_int64(k), ctypes.c_float(a), ctypes.c_float(b), int(ternary), int(wide),
            self.max_blocks, pointer(index), pointer(value), pointer(info), pointer(scratch),
        )  # fmt: skip
        untouched = int(info[0])
        assert (index[untouched:] == POISON).all()
        assert (value[untouched:] == POISON).all()
        return index[:k], value[:k], info


class Cuda:
    """The operator on the first GPU. Its schedule is its own."""

    def select(
        self, tensor: Tensor, memory: Tensor | None, out: Tensor | None, k: int,
        a: float = 1.0, b: float = 1.0, ternary: bool = True, wide: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        del wide  # follows from the size
        there = [None if t is None else t.cuda() for t in (tensor, memory, out)]
        index, value, info = torch.ops.gcext.select(*there, k, a, b, ternary)
        if out is not None:
            out.copy_(there[2])
        return index.cpu(), value.cpu(), info.cpu()


def make(backend: str, max_blocks: int = 1024, reverse: bool = False) -> Emu | Cuda:
    """Return the backend of that name; the schedule asked for is the emulator's alone."""
    return Cuda() if backend == "cuda" else Emu(max_blocks, reverse)
