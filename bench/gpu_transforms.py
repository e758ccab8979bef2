"""The cases of ``bench gpu-count`` that transform: rotations, polar codes, sketches, DCT."""

from __future__ import annotations

from collections.abc import Callable

import torch

from .gpu_kit import Case, Kit

BLOCK, RATE = 1024, 0.5  # of polar codes
CHUNK_OF_ROTATION = 1 << 16


def _chunks(kit: Kit, n: int) -> int:
    """Return as many elements in whole chunks."""
    kit.elements = max(n // CHUNK_OF_ROTATION, 1) * CHUNK_OF_ROTATION
    return kit.elements


def _rotate(kit: Kit, n: int) -> float:
    n = _chunks(kit, n)
    kit.make("rotate").rotate(kit.normal(n), CHUNK_OF_ROTATION, BLOCK, 1)
    return 2 * n


def _rotate_back(kit: Kit, n: int) -> float:
    n = _chunks(kit, n)
    symbols, scale = kit.zeros(n // 8, torch.uint8), kit.normal(n // CHUNK_OF_ROTATION)
    kit.make("rotate").rotate_back(symbols, scale, n, CHUNK_OF_ROTATION, BLOCK, 1)
    return n + n / 32


def _polar_rotated(kit: Kit, n: int) -> float:
    """What the codec polar does with a residual."""
    from gcext.polar import _code, _design

    n = _chunks(kit, n)
    kept, values = round(RATE * BLOCK), kit.normal(n)
    frozen = _design.frozen_set(BLOCK, kept, True)
    weight, correction = _code._steps(kept, BLOCK, True, True)
    rotate, polar = kit.make("rotate"), kit.make("polar")
    rotated, norm = rotate.rotate(values, CHUNK_OF_ROTATION, BLOCK, 1)
    _, bad, symbols = polar.polar_encode(rotated, frozen, kept, n, weight, correction, True)
    info = torch.zeros(4, dtype=torch.int64)
    scale = rotate.rotate_scale(rotated, symbols, norm, bad, info, CHUNK_OF_ROTATION)
    rotate.rotate_fit(values, symbols, scale, CHUNK_OF_ROTATION, BLOCK, 1)
    return 2 * n + RATE * n / 32


def _polar(soft: bool) -> Callable[[Kit, int], float]:
    def run(kit: Kit, n: int) -> float:
        from gcext.polar import _code, _design

        kept = round(RATE * BLOCK)
        frozen = _design.frozen_set(BLOCK, kept, soft)
        weight, correction = _code._steps(kept, BLOCK, soft, True)
        bits = torch.randint(0, 256, (n // 8,), dtype=torch.uint8)
        source = kit.normal(n) if soft else bits
        kit.make("polar").polar_encode(source, frozen, kept, n, weight, correction, True)
        return (n if soft else n / 32) + RATE * n / 32

    return run


def _polar_decode(kit: Kit, n: int) -> float:
    from gcext.polar import _design

    kept = round(RATE * BLOCK)
    frozen = _design.frozen_set(BLOCK, kept, True)
    size = kept * -(-n // BLOCK) // 8
    message = torch.randint(0, 256, (size,), dtype=torch.uint8)
    kit.make("polar").polar_decode(message, frozen, n)
    return size / 4 + n / 32


def _polar_pack(kit: Kit, n: int) -> float:
    kit.make("polar").polar_pack(kit.zeros(n, torch.uint8))
    return n / 4 + n / 32


def _polar_unpack(kit: Kit, n: int) -> float:
    kit.make("polar").polar_unpack(kit.zeros(n // 8, torch.uint8), n)
    return n / 4 + n / 32


def _sketch(kit: Kit, n: int) -> float:
    rows, cols = 5, max(n // 50, 1)
    kit.make("sketch").sketch(kit.normal(n), None, rows, cols, 0)
    return n + rows * cols


def _sketch_query(kit: Kit, n: int) -> float:
    rows, cols = 5, max(n // 50, 1)
    kit.make("sketch").sketch_query(kit.normal(rows * cols), None, n, rows, cols, 0)
    return n + rows * cols


def _dct(kit: Kit, n: int) -> float:
    rows, k = max(n // 1024, 1), 4
    n = kit.elements = rows * 1024
    index, _, _ = kit.make("dct").dct_select(
        kit.normal(n), kit.normal(n), kit.zeros(n), 1.0, rows, 1024, 64, k, True
    )
    return float(3 * n + 2 * index.numel())


def _dct_values(kit: Kit, n: int) -> float:
    rows = max(n // 1024, 1)
    index = kit.support(rows * 1024, 0.01)
    kit.make("dct").dct_values(index, kit.normal(index.numel()), rows, 1024, 64)
    return rows * 1024 + 2 * index.numel()


TRANSFORMS = [
    Case("rotate", "rotate, chunks of 2^16", 1 << 20, "2n", _rotate),
    Case("rotate", "rotate_back, chunks of 2^16", 1 << 20, "n + n/32", _rotate_back),
    Case("rotate", "polar, rotated, all, memory", 1 << 20, "2n + n/64", _polar_rotated),
    Case("polar", "polar encode, hard, rate 1/2, N=1024", 1 << 20, "n/32 + n/64", _polar(False)),
    Case("polar", "polar encode, soft, rate 1/2, N=1024", 1 << 20, "n + n/64", _polar(True)),
    Case("polar", "polar decode, rate 1/2, N=1024", 1 << 20, "n/64 + n/32", _polar_decode),
    Case("polar", "polar pack", 10**6, "n/4 + n/32", _polar_pack),
    Case("polar", "polar unpack", 10**6, "n/32 + n/4", _polar_unpack),
    Case("sketch", "sketch, 5 rows, a tenth", 10**6, "n + cells", _sketch),
    Case("sketch", "sketch_query, all elements", 10**6, "n + cells", _sketch_query),
    Case("dct", "dct_select, 4 of 64x64, memory", 1 << 20, "3n + 2k", _dct),
    Case("dct", "dct_values, p=0.01", 1 << 20, "n + 2k", _dct_values),
]
