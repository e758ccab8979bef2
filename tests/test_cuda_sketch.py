"""The CUDA kernels of sketch give the CPU's bytes: emulated, and on a GPU if there is one."""

from __future__ import annotations

import math
import random

import pytest
import torch
from emu.backends import BACKENDS, same_bits
from emu.deferred import DeferredCodec
from emu.sketch import make
from test_sketch import odd_values

import gcext
from gcext._native.sketch import sketch, sketch_query


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 8, 64])
def test_same_bytes(backend: str, rows: int) -> None:
    draw = random.Random(rows)
    for _ in range(8):
        n, cols = draw.choice([1, 31, 257, 3000]), draw.choice([1, 3, 300, 5000])
        seed = draw.randrange(-(2**63), 2**63)
        torch.manual_seed(draw.randrange(2**31))
        tensor = draw.choice([torch.randn(n), odd_values(n, n), torch.zeros(n)])
        wide = draw.choice([torch.int32, torch.int64])
        index = draw.choice([None, torch.randint(2**31 - 1, (n,), dtype=wide)])
        run = make(backend, draw.choice([1, 2, 1024]), draw.random() < 0.3)
        want, info = sketch(tensor, index, rows, cols, seed)
        got, its = run.sketch(tensor, index, rows, cols, seed)
        assert same_bits(got, want) and torch.equal(its, info)
        estimates = run.sketch_query(want, index, n, rows, cols, seed)
        assert same_bits(estimates, sketch_query(want, index, n, rows, cols, seed))


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_same_errors(backend: str) -> None:
    tensor = torch.randn(3000)
    for bad in (math.nan, math.inf, -math.inf):
        tensor[1234], tensor[2345] = bad, bad
        for reverse in (False, True):
            info = make(backend, 2, reverse).sketch(tensor, None, 3, 10, 0)[1]
            assert info.tolist() == [0, 1, 1234, 0]
    big, index = torch.full((4,), 3e38), torch.full((4,), 9)
    want = sketch(big, index, 3, 10, 0)[1]
    assert want.tolist()[:2] == [0, 8]
    assert torch.equal(make(backend).sketch(big, index, 3, 10, 0)[1], want)


@pytest.mark.parametrize("n", [0, 1, 33, 1001])
def test_encoding_never_synchronizes_and_gives_the_same_bytes(n: int) -> None:
    codec, tensor = gcext.codec("sketch:rows=3,p=0.4"), torch.randn(n).half()
    packet, want = DeferredCodec(codec).encode(tensor), codec.encode(tensor)
    assert repr(packet).endswith("deferred on cpu)")
    assert packet.to_bytes() == want.to_bytes()
    if n:
        tensor[n // 2] = math.inf
        later = DeferredCodec(codec).encode(tensor)
        with pytest.raises(ValueError, match="tensor must be finite in float32, got NaN or Inf at"):
            later.to_bytes()
