"""What the tests of the polar coders share."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from gcext import polar
from gcext._native import polar as ops
from gcext.polar import _design as design

RATES = (0.1, 0.3, 0.5, 0.7, 0.9)


def bits(rng: np.random.Generator, n: int) -> np.ndarray:
    return rng.integers(0, 2, n, dtype=np.uint8)


def code(block: int, kept: int, soft: bool = False) -> np.ndarray:
    return design.frozen_set(block, kept, soft).numpy()


def distortions(block: int, rate: float, blocks: int, **options: Any) -> torch.Tensor:
    """The share of symbols that each block of random signs gets wrong, float64."""
    n = block * blocks
    source = torch.from_numpy(np.random.default_rng(block).integers(0, 256, n // 8, np.uint8))
    coded = polar.encode(source, rate, block, packed=True, **options)
    assert coded.nbytes == coded.kept * blocks // 8
    wrong = ops.polar_unpack(source ^ polar.decode(coded), n).view(-1, block, 64)
    return wrong.sum(1, dtype=torch.float64).view(-1) / block


def distortion(block: int, rate: float, blocks: int, **options: Any) -> float:
    return float(distortions(block, rate, blocks, **options).mean())
