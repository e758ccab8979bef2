"""The CUDA kernels of bin_means give the CPU's bytes: emulated, and on a GPU if there is one."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from emu.backends import BACKENDS, same_bits
from emu.bin_means import make
from test_select import KINDS, Rng
from torch import Tensor

from gcext._native import library as _lib  # noqa: F401  (_lib loads the CPU operators)


def compare(run: object, value: Tensor, count: int, bits: int, sigmas: float, wide: bool) -> None:
    k = value.numel()
    index = torch.randperm(2 * k + 1)[:k].sort().values.to(torch.int64 if wide else torch.int32)
    info = torch.tensor([count, 0, 0, 0])
    for outs in ([None, None], [torch.full((2 * k + 1,), 5.0) for _ in range(2)]):
        want = torch.ops.gcext.bin_means(index, value, info, outs[0], bits, sigmas)
        got = run.bin_means(index, value, info, outs[1], bits, sigmas)  # type: ignore[attr-defined]
        size = (count * bits + 7) // 8
        assert same_bits(got[0], want[0])
        assert torch.equal(got[1][:size], want[1][:size])
        if outs[0] is not None and outs[1] is not None:
            assert same_bits(outs[0], outs[1])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_same_as_the_cpu(backend: str, kind: Callable[[Rng, int], np.ndarray]) -> None:
    draw = random.Random(kind.__name__)
    rng = np.random.default_rng(draw.randrange(1000))
    for k in (0, 1, 4, 5, 7, 100, 4096, 4099, 33_000):
        run = make(backend, draw.choice([1, 3, 1024]), draw.random() < 0.5)
        value = torch.from_numpy(kind(rng, k)).float() if k else torch.empty(0)
        count = draw.choice([k, k, k // 2])
        bits, sigmas = draw.choice([1, 2, 2, 3, 8]), draw.choice([6.0, 2.0])
        compare(run, value, count, bits, sigmas, draw.random() < 0.3)


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_error_leaves_out(backend: str) -> None:
    index, value = torch.arange(50, dtype=torch.int32), torch.randn(50)
    out, info = torch.zeros(50), torch.tensor([0, 1, 3, 0])
    make(backend).bin_means(index, value, info, out, 2, 6.0)
    assert not out.any()
