"""rotate on either backend."""

from __future__ import annotations

import ctypes

import torch
from emu.backends import GUARD, POISON, Emulated, pointer
from torch import Tensor

from gcext._native.polar import layout


class Emu(Emulated):
    """rotate under the emulator."""

    stem = "rotate"

    def rotate(self, values: Tensor, size: int, least: int, seed: int) -> tuple[Tensor, Tensor]:
        chunks, symbols = layout(values.numel(), size, least)
        rotated, norm = _guarded(symbols), _guarded(chunks, torch.float64)
        self.lib.emu_rotate(
            pointer(values), *_numbers(values.numel(), size, least), ctypes.c_uint64(seed % 2**64),
            pointer(rotated), pointer(norm), self.max_blocks,
        )  # fmt: skip
        return _checked(rotated, symbols), _checked(norm, chunks)

    def rotate_scale(
        self, rotated: Tensor, symbols: Tensor, norm: Tensor, bad: Tensor, info: Tensor, size: int
    ) -> Tensor:
        scale = _guarded(norm.numel())
        self.lib.emu_rotate_scale(
            pointer(rotated), pointer(symbols), pointer(norm), pointer(bad),
            *_numbers(rotated.numel(), size, 64), pointer(scale), pointer(info), self.max_blocks,
        )  # fmt: skip
        return _checked(scale, norm.numel())

    def rotate_fit(
        self, values: Tensor, symbols: Tensor, scale: Tensor, size: int, least: int, seed: int
    ) -> tuple[Tensor, Tensor]:
        fitted = _guarded(scale.numel())
        out = self._back(values, fitted, symbols, scale, values.numel(), size, least, seed)
        return _checked(fitted, scale.numel()), out

    def rotate_back(
        self, symbols: Tensor, scale: Tensor, numel: int, size: int, least: int, seed: int
    ) -> Tensor:
        return self._back(None, None, symbols, scale, numel, size, least, seed)

    def _back(
        self,
        values: Tensor | None,
        fitted: Tensor | None,
        symbols: Tensor,
        scale: Tensor,
        numel: int,
        size: int,
        least: int,
        seed: int,
    ) -> Tensor:
        out = _guarded(numel)
        padded = symbols.numel() * 8 > numel
        last = symbols.numel() * 8 - (layout(numel, size, least)[0] - 1) * size if padded else 0
        tail = _guarded(last)
        self.lib.emu_rotate_back(
            pointer(values), pointer(fitted), pointer(symbols), pointer(scale),
            *_numbers(numel, size, least), ctypes.c_uint64(seed % 2**64), pointer(out),
            pointer(tail), self.max_blocks,
        )  # fmt: skip
        _checked(tail, last)
        return _checked(out, numel)


def _guarded(n: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.full((n + GUARD,), float(POISON), dtype=dtype)


def _checked(x: Tensor, n: int) -> Tensor:
    assert (x[n:] == POISON).all()
    return x[:n]


def _numbers(*values: int) -> list[ctypes.c_int64]:
    return [ctypes.c_int64(value) for value in values]


make = Emu.make
