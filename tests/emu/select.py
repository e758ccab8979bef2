"""select on either backend, of one tensor or of many; ``out`` is changed in place."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from emu.backends import GUARD, POISON, Cuda, Emulated, pointer
from torch import Tensor

Selected = tuple[Tensor, Tensor, Tensor]


class Schedule(NamedTuple):
    """SelectSchedule of cuda/select_launch.h, and the emulator's order; no result depends on it."""

    max_blocks: int = 2048
    tiny: int = 1 << 15
    finish_blocks: int = 1024
    distrust: bool = False
    reverse: bool = False


class Gpu(Cuda):
    """The operators on a GPU; of many tensors, what is of each."""

    def select(
        self, tensor: Tensor, memory: Tensor | None, out: Tensor | None, k: int,
        a: float = 1.0, b: float = 1.0, ternary: bool = True, wide: bool = False,
        sent: Tensor | None = None, next: Tensor | None = None,
    ) -> Selected:  # fmt: skip
        rest = k, a, b, ternary, sent, next
        found: Selected = self.call("select", tensor, memory, out, *rest, wide=wide)
        return found

    def select_many(
        self, tensor: Sequence[Tensor], memory: Sequence[Tensor | None],
        out: Sequence[Tensor | None], k: Sequence[int],
        a: float = 1.0, b: float = 1.0, ternary: bool = True, wide: bool = False,
        sent: Sequence[Tensor | None] = (), next: Sequence[Tensor | None] = (),
    ) -> list[Selected]:  # fmt: skip
        given = [[t for t in each if t is not None] for each in (tensor, memory, out, sent, next)]
        rest = list(k), a, b, ternary, *given[3:]
        index, value, info = self.call("select_many", *given[:3], *rest, wide=wide)
        return list(zip(index.split(list(k)), value.split(list(k)), info, strict=True))


class Emu(Emulated):
    """select under the emulator."""

    stem = "select"

    def __init__(self, how: Schedule) -> None:
        super().__init__(reverse=how.reverse)
        self.how = (ctypes.c_int64 * 4)(*how[:4])

    def select(
        self, tensor: Tensor, memory: Tensor | None, out: Tensor | None, k: int,
        a: float = 1.0, b: float = 1.0, ternary: bool = True, wide: bool = False,
        sent: Tensor | None = None, next: Tensor | None = None,
    ) -> Selected:  # fmt: skip
        slots = [sent], [next]
        return self.select_many([tensor], [memory], [out], [k], a, b, ternary, wide, *slots)[0]

    def select_rest(self, memory: Tensor, sent: Tensor) -> Tensor:
        rest = torch.full((memory.numel() + GUARD,), float(POISON))
        n = ctypes.c_int64(memory.numel())
        assert self.lib.emu_select_rest(pointer(memory), pointer(sent), n, pointer(rest)) == 0
        assert (rest[memory.numel() :] == POISON).all()
        return rest[: memory.numel()]

    def select_many(
        self, tensor: Sequence[Tensor], memory: Sequence[Tensor | None],
        out: Sequence[Tensor | None], k: Sequence[int],
        a: float = 1.0, b: float = 1.0, ternary: bool = True, wide: bool = False,
        sent: Sequence[Tensor | None] = (), next: Sequence[Tensor | None] = (),
    ) -> list[Selected]:  # fmt: skip
        m = len(tensor)
        none = [None] * m
        dtype = torch.int64 if wide else torch.int32
        index = [torch.full((each + GUARD,), POISON, dtype=dtype) for each in k]
        value = [torch.full((each + GUARD,), float(POISON)) for each in k]
        info = [torch.full((4 + GUARD,), POISON, dtype=torch.int64) for _ in k]

        def pointers(tensors: Sequence[Tensor | None]) -> ctypes.Array[ctypes.c_void_p]:
            return (ctypes.c_void_p * m)(*[pointer(t) for t in tensors])

        def numbers(values: Sequence[int]) -> ctypes.Array[ctypes.c_int64]:
            return (ctypes.c_int64 * m)(*values)

        fields: list[ctypes.Array[Any]] = [
            pointers(tensor), pointers(memory), pointers(out), numbers([t.numel() for t in tensor]),
            numbers(k), pointers(index), pointers(value), pointers(info),
            pointers(sent or none), pointers(next or none),
        ]  # fmt: skip
        items = (ctypes.c_void_p * len(fields))(*[ctypes.addressof(field) for field in fields])
        run = self.lib.emu_select
        run.restype = ctypes.c_int64
        rest = (
            ctypes.c_int64(m), ctypes.c_float(a), ctypes.c_float(b), int(ternary), int(wide),
            self.how,
        )  # fmt: skip
        size = run(items, *rest, None)
        scratch = torch.full((size + GUARD,), 0xA5, dtype=torch.uint8)
        assert run(items, *rest, pointer(scratch)) == 0
        assert (scratch[size:] == 0xA5).all()
        self.scratch = scratch
        self.lib.emu_select_launches.restype = ctypes.c_int64
        self.launches = int(self.lib.emu_select_launches())
        for pairs, values, numbers_ in zip(index, value, info, strict=True):
            untouched = int(numbers_[0])
            assert (pairs[untouched:] == POISON).all()
            assert (values[untouched:] == POISON).all()
            assert (numbers_[4:] == POISON).all()
        return [
            (pairs[:each], values[:each], numbers_[:4])
            for pairs, values, numbers_, each in zip(index, value, info, k, strict=True)
        ]

    def scratch_bytes(self, n: int, k: int) -> int:
        """Return how much scratch a call takes, with the schedule that everybody takes."""
        self.lib.emu_select_scratch_bytes.restype = ctypes.c_int64
        return int(self.lib.emu_select_scratch_bytes(ctypes.c_int64(n), ctypes.c_int64(k)))

    def collected(self) -> tuple[int, bool]:
        """Return the candidates of the last call, and whether all elements were read."""
        self.lib.emu_select_collected.restype = ctypes.c_int64
        count = self.lib.emu_select_collected(pointer(self.scratch))
        return count, bool(self.lib.emu_select_all(pointer(self.scratch)))


def make(backend: str, how: Schedule = Schedule()) -> Any:  # noqa: B008
    """Return the backend of that name; the schedule asked for is the emulator's alone."""
    return Gpu() if backend == "cuda" else Emu(how)
