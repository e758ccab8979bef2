"""The two-round Hadamard rotation and the unbiased estimate that is built on it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from isa_kit import at_every_isa

from gcext import polar
from gcext._native import ops
from gcext.polar._values import chunks_of

MASK = 2**64 - 1


def mixed(x: int) -> int:
    x = (x + 0x9E3779B97F4A7C15) & MASK
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & MASK
    x = (x ^ x >> 27) * 0x94D049BB133111EB & MASK
    return x ^ x >> 31


def signs(seed: int, chunk: int, size: int, round_: int) -> np.ndarray:
    words = size // 64
    bits = []
    for i in range(words):
        word = mixed(mixed(seed & MASK) ^ mixed(2 * (chunk * words + i) + round_))
        bits += [word >> j & 1 for j in range(64)]
    return 1.0 - 2.0 * np.array(bits)


def walsh(size: int) -> np.ndarray:
    h = np.ones((1, 1))
    while len(h) < size:
        h = np.block([[h, h], [h, -h]])
    return h


@pytest.mark.parametrize("size", [64, 128, 512])
@pytest.mark.parametrize("seed", [0, 7, -1])
def test_is_the_product_of_matrices(size: int, seed: int) -> None:
    x = np.random.default_rng(size).standard_normal((3, size))
    x = x.astype(np.float32)
    h = walsh(size)
    expected = [
        h @ (signs(seed, c, size, 1) * (h @ (signs(seed, c, size, 0) * x[c]))) / size
        for c in range(3)
    ]
    flat = torch.from_numpy(x).reshape(-1)
    got = ops.hadamard(flat, size, seed, False)
    assert np.allclose(got.numpy().reshape(3, size), expected, atol=1e-5)
    assert torch.allclose(ops.hadamard(got, size, seed, True), flat, atol=1e-5)


def test_small_integers_are_exact() -> None:
    """Every sum is an integer times a power of two, so nothing rounds, forth and back."""
    x = torch.randint(-8, 9, (4 * 1024,), generator=torch.Generator().manual_seed(0)).float()
    assert torch.equal(ops.hadamard(ops.hadamard(x, 1024, 3, False), 1024, 3, True), x)


DIGEST = """
import hashlib, torch, gcext
from gcext import polar
from gcext._native import ops
from gcext.polar._values import chunks_of
g = torch.Generator().manual_seed(0)
digest = hashlib.sha256()
for threads in (1, 3):
    torch.set_num_threads(threads)
    digest = hashlib.sha256()
    for size in (64, 256, 4096, 65536):
        x = torch.randn(3 * size, generator=g.manual_seed(size))
        for inverse in (False, True):
            digest.update(ops.hadamard(x, size, 9, inverse).numpy().tobytes())
    coded = polar.encode_rotated(x[:70000], 0.3, 512, seed=1)
    digest.update(coded.coded.message.numpy().tobytes() + coded.scale.numpy().tobytes())
    digest.update(coded.to_dense().numpy().tobytes())
    print(digest.hexdigest())
"""


def test_the_same_bytes_at_every_instruction_set_and_number_of_threads() -> None:
    seen = {digest for printed in at_every_isa(DIGEST).values() for digest in printed}
    assert len(seen) == 1


def estimates(x: torch.Tensor, rate: float, count: int, block: int = 1024) -> torch.Tensor:
    return torch.stack(
        [polar.encode_rotated(x, rate, block, seed=s).to_dense().double() for s in range(count)]
    )


def sparse(*values: float) -> torch.Tensor:
    x = torch.zeros(1024)
    x[: len(values)] = torch.tensor(values)
    return x


@pytest.mark.parametrize(
    "x",
    [
        torch.randn(1024, generator=torch.Generator().manual_seed(1)),
        sparse(1.0, 0.5),
        sparse(1.0, 1.0),
        sparse(3.0, 2.0, 1.0),
    ],
    ids=["gaussian", "two", "equal", "three"],
)
def test_the_mean_of_many_estimates_converges(x: torch.Tensor) -> None:
    """The squared error of the mean of T falls as 1/T: a bias would keep it from falling."""
    draws = estimates(x, 0.5, 1500)
    norm = float(x.double().square().sum())
    each = float((draws - x).square().sum(1).mean()) / norm
    for count in (100, 500, 1500):
        mean_error = float((draws[:count].mean(0) - x).square().sum()) / norm
        assert mean_error * count < 1.25 * each, count


@pytest.mark.parametrize("rate", [0.5, 0.25, 0.1])
def test_variance_against_subsampled_signs(rate: float) -> None:
    """Signs of a random share R of rotated values, unbiased, have variance (pi/2)/R - 1."""
    x = torch.randn(1 << 14, generator=torch.Generator().manual_seed(2))
    error = (estimates(x, rate, 10) - x).square().sum(1).mean()
    assert float(error) / float(x.square().sum()) < 0.6 * (math.pi / 2 / rate - 1)


@pytest.mark.parametrize("numel", [0, 1, 63, 1024, 65_537, 200_000])
def test_any_size(numel: int) -> None:
    x = torch.randn(numel, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    coded = polar.encode_rotated(x, 0.9, 256, seed=5)
    estimate = coded.to_dense()
    assert estimate.shape == x.shape and estimate.dtype == torch.float32
    if numel > 1000:
        assert float((estimate - x).square().sum() / x.square().sum()) < 0.65
    chunks = chunks_of(numel, 256)
    padded = sum(size for _, size in chunks)
    bits = padded // 256 * coded.coded.kept
    assert coded.nbytes == (bits + 7) // 8 + 4 * len(chunks) + 8


def test_zeros_stay_zeros_and_what_is_not_finite_is_refused() -> None:
    assert not polar.encode_rotated(torch.zeros(3, 50), seed=0).to_dense().any()
    x = torch.ones(3000)
    x[2222] = float("nan")
    with pytest.raises(ValueError, match="at index 2222"):
        polar.encode_rotated(x, seed=0)
    with pytest.raises(ValueError, match="must be float"):
        polar.encode_rotated(torch.ones(3, dtype=torch.int32), seed=0)


def test_operator() -> None:
    values = torch.randn(256)
    torch.library.opcheck(torch.ops.gcext.hadamard.default, (values, 128, 3, False))
    with pytest.raises(RuntimeError, match="power of two"):
        ops.hadamard(values, 100, 0, False)
    with pytest.raises(RuntimeError, match="whole chunks"):
        ops.hadamard(values[:100].clone(), 64, 0, False)


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({"rate": 1.5}, "rate must be in"),
        ({"rate": -0.5}, "rate must be in"),
        ({"block": 100}, "power of two"),
        ({"block": 16}, "power of two"),
    ],
)
def test_invalid_options_raise(options: dict[str, Any], rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        polar.encode_rotated(torch.randn(100), seed=1, **options)
