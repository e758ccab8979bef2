"""The two-round Hadamard rotation and the unbiased estimate that is built on it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from isa_kit import at_every_isa

from gcext import polar
from gcext._native import polar as ops
from gcext._native.status import ROTATED
from gcext.polar._values import chunks_of

MASK = 2**64 - 1
GOLDEN = 0x9E3779B97F4A7C15


def mixed(x: int) -> int:
    x = (x + GOLDEN) & MASK
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & MASK
    x = (x ^ x >> 27) * 0x94D049BB133111EB & MASK
    return x ^ x >> 31


def signs(seed: int, chunk: int, size: int, round_: int) -> np.ndarray:
    key = mixed(seed + GOLDEN * chunk & MASK)
    bits = []
    for i in range(size // 64):
        word = mixed(key ^ mixed(2 * i + round_))
        bits += [word >> j & 1 for j in range(64)]
    return 1.0 - 2.0 * np.array(bits)


def walsh(size: int) -> np.ndarray:
    h = np.ones((1, 1))
    while len(h) < size:
        h = np.block([[h, h], [h, -h]])
    return h


def rotation(seed: int, chunk: int, size: int) -> np.ndarray:
    """Return the orthogonal matrix R of a chunk."""
    h = walsh(size)
    first, second = (signs(seed, chunk, size, round_) for round_ in (0, 1))
    return h @ (second[:, None] * (h * first)) / size


def cut(n: int, size: int, least: int) -> list[slice]:
    """Return the chunks of n values, padding included."""
    chunks = [slice(start, start + size) for start in range(0, n, size)]
    if chunks:
        last = least
        while last < n - chunks[-1].start:
            last *= 2
        chunks[-1] = slice(chunks[-1].start, chunks[-1].start + last)
    return chunks


def tree(x: np.ndarray) -> float:
    """Return the sum of a power of two of values: halves added, and again."""
    while len(x) > 1:
        x = x[: len(x) // 2] + x[len(x) // 2 :]
    return float(x[0])


def padded(x: torch.Tensor, n: int) -> np.ndarray:
    return np.pad(x.numpy(), (0, n - len(x))).astype(np.float64)


@pytest.mark.parametrize("seed", [0, 7, -1])
@pytest.mark.parametrize(
    ("n", "size", "least"),
    [(0, 64, 64), (1, 64, 64), (192, 64, 64), (512, 512, 64), (700, 256, 128), (513, 512, 64)],
)
def test_is_the_product_of_matrices(n: int, size: int, least: int, seed: int) -> None:
    x = torch.randn(n, generator=torch.Generator().manual_seed(n))
    chunks = cut(n, size, least)
    total = chunks[-1].stop if chunks else 0
    whole = padded(x, total)
    y, norm = ops.rotate(x, size, least, seed)
    assert y.shape == (total,) and norm.shape == (len(chunks),)
    symbols = torch.randint(0, 256, (total // 8,), dtype=torch.uint8)
    c = 1.0 - 2.0 * np.unpackbits(symbols.numpy(), bitorder="little")
    info, none = torch.zeros(4, dtype=torch.int64), torch.tensor([-1])
    scale = ops.rotate_scale(y, symbols, norm, none, info, size)
    positive = scale.abs() + 0.5  # of random symbols half the scales are 0
    back = ops.rotate_back(symbols, positive, n, size, least, seed)
    fitted, estimate = ops.rotate_fit(x, symbols, positive, size, least, seed)
    for i, chunk in enumerate(chunks):
        r = rotation(seed, i, chunk.stop - chunk.start)
        assert np.allclose(y[chunk], r @ whole[chunk], atol=1e-5)
        assert float(norm[i]) == tree(whole[chunk] ** 2)
        agreement = tree(y[chunk].double().numpy() * c[chunk])
        assert scale[i] == np.float32(max(float(norm[i]) / agreement, 0.0))
        turned = r.T @ c[chunk]  # R is orthogonal
        kept = slice(chunk.start, min(chunk.stop, n))
        part = slice(0, kept.stop - kept.start)
        assert np.allclose(back[kept], float(positive[i]) * turned[part], atol=1e-4)
        best = max(whole[chunk] @ turned / len(turned), 0.0)
        assert np.isclose(float(fitted[i]), best, atol=1e-6)
        assert np.allclose(estimate[kept], best * turned[part], atol=1e-4)


def test_small_integers_are_exact() -> None:
    """Every sum is an integer times a power of two, so nothing rounds, forth and back."""
    x = torch.randint(-8, 9, (4 * 1024,), generator=torch.Generator().manual_seed(0)).float()
    y, norm = ops.rotate(x, 1024, 64, 3)
    for i, chunk in enumerate(cut(4096, 1024, 64)):
        assert np.array_equal(y[chunk].numpy(), rotation(3, i, 1024) @ x[chunk].double().numpy())
        assert float(norm[i]) == float(x[chunk].double().square().sum())


def test_what_overflows_is_marked_once() -> None:
    x = torch.full((256,), 3e38)
    y, norm = ops.rotate(x, 64, 64, 0)
    info = torch.zeros(4, dtype=torch.int64)
    bad = torch.tensor([-1])
    ops.rotate_scale(y, torch.zeros(32, dtype=torch.uint8), norm, bad, info, 64)
    finite = bool(torch.isfinite(y).all())
    assert int(info[1]) == 0 if finite else ROTATED
    for status in (0, 2):  # an error that is there already stays
        info[1] = status
        ops.rotate_scale(x, torch.zeros(32, dtype=torch.uint8), norm, bad * 0, info, 64)
        assert int(info[1]) == (status or ROTATED)


DIGEST = """
import hashlib, torch, gcext
from gcext import polar
from gcext._native import polar as ops
from gcext.polar._values import chunks_of
g = torch.Generator().manual_seed(0)
digest = hashlib.sha256()
for threads in (1, 3):
    torch.set_num_threads(threads)
    digest = hashlib.sha256()
    for size in (64, 256, 4096, 65536):
        x = torch.randn(3 * size, generator=g.manual_seed(size))
        y, norm = ops.rotate(x[: 3 * size - 7], size, 64, 9)
        info, none = torch.zeros(4, dtype=torch.int64), torch.tensor([-1])
        symbols = (y[: len(y) // 8] > 0).to(torch.uint8) * 0x5B
        scale = ops.rotate_scale(y, symbols, norm, none, info, size)
        fitted, estimate = ops.rotate_fit(x[: 3 * size - 7], symbols, scale + 1, size, 64, 9)
        back = ops.rotate_back(symbols, fitted, 3 * size - 7, size, 64, 9)
        assert torch.equal(back, estimate)
        for each in (y, norm, scale, fitted, estimate):
            digest.update(each.numpy().tobytes())
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


def test_operators() -> None:
    x = torch.randn(300)
    args = (128, 64, 3)
    torch.library.opcheck(torch.ops.gcext.rotate.default, (x, *args))
    y, norm = ops.rotate(x, *args)
    symbols = torch.zeros(len(y) // 8, dtype=torch.uint8)
    info = torch.zeros(4, dtype=torch.int64)
    given = (y, symbols, norm, torch.tensor([-1]), info, 128)
    torch.library.opcheck(torch.ops.gcext.rotate_scale.default, given)
    scale = ops.rotate_scale(*given)
    torch.library.opcheck(torch.ops.gcext.rotate_fit.default, (x, symbols, scale, *args))
    torch.library.opcheck(torch.ops.gcext.rotate_back.default, (symbols, scale, 300, *args))
    with pytest.raises(RuntimeError, match="power of two"):
        ops.rotate(x, 100, 64, 0)
    with pytest.raises(RuntimeError, match="least must be at most size"):
        ops.rotate(x, 64, 128, 0)
    with pytest.raises(RuntimeError, match="a bit for each"):
        ops.rotate_back(symbols[:-1], scale, 300, *args)
    with pytest.raises(RuntimeError, match="one for each of 3 chunks"):
        ops.rotate_back(symbols, scale[:-1], 300, *args)
    with pytest.raises(RuntimeError, match="what rotate gave"):
        ops.rotate_scale(y[:-1].clone(), *given[1:])


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
