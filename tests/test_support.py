"""Random supports: the permutation of csrc/support.h, drawn fairly and sorted."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import numpy_values as reference
import pytest
import torch

from gcext._packet.codes import Random


@pytest.mark.parametrize(
    ("numel", "k"),
    [
        *[(0, 0), (1, 1), (2, 1), (3, 3), (5, 0), (1000, 1000), (1024, 9), (1025, 9), (4097, 4000)],
        *[(10**7, 3), (2**31 - 1, 50), (2**31, 50), (2**40 + 1, 50), (2**63 - 1, 50)],
    ],
)
def test_indices_are_those_of_the_numpy_decoder(numel: int, k: int) -> None:
    for seed in (0, 1, 2**64 - 1):
        index = Random(seed, k).draw(numel)
        assert index.dtype == (torch.int32 if numel < 2**31 else torch.int64)
        assert index.tolist() == reference.random_support(seed, k, numel)
        assert len(set(index.tolist())) == k


def test_a_seed_is_one_modulo_two_to_the_64() -> None:
    assert Random(-1, 5) == Random(2**64 - 1, 5)
    assert torch.equal(Random(-1, 5).draw(99), Random(2**64 - 1, 5).draw(99))


def chi_square(counts: np.ndarray) -> float:
    """In standard deviations above its mean, counts being the cells of equal probability."""
    expected = counts.sum() / counts.size
    dof = counts.size - 1
    return float((((counts - expected) ** 2 / expected).sum() - dof) / (2 * dof) ** 0.5)


@pytest.mark.parametrize(("numel", "k"), [(3, 1), (5, 2), (6, 3), (8, 4), (9, 2), (11, 3), (16, 2)])
def test_every_subset_is_equally_likely(numel: int, k: int) -> None:
    subsets = list(itertools.combinations(range(numel), k))
    seen = Counter(tuple(Random(s, k).draw(numel).tolist()) for s in range(200 * len(subsets)))
    assert abs(chi_square(np.array([seen[subset] for subset in subsets]))) < 5


@pytest.mark.parametrize(("numel", "k"), [(1000, 30), (1024, 500), (1025, 100)])
def test_every_index_and_pair_is_equally_likely(numel: int, k: int) -> None:
    draws = 4000
    hits = np.zeros((draws, numel), np.float32)
    for seed in range(draws):
        hits[seed, Random(seed, k).draw(numel).numpy()] = 1
    together = hits.T @ hits
    p = k / numel
    deviation = (np.diag(together) - draws * p) / (draws * p * (1 - p)) ** 0.5
    assert np.abs(deviation).max() < 5 and abs(deviation.std() - 1) < 0.1
    both = p * (k - 1) / (numel - 1)
    pairs = together[np.triu_indices(numel, 1)]
    deviation = (pairs - draws * both) / (draws * both * (1 - both)) ** 0.5
    assert np.abs(deviation).max() < 7 and abs(deviation.std() - 1) < 0.05


def test_neighbouring_seeds_draw_independently() -> None:
    n, k = 10**6, 10**5
    a, b, c = (set(Random(seed, k).draw(n).tolist()) for seed in (7, 8, 7 + 2**32))
    for x, y in ((a, b), (a, c), (b, c)):
        assert abs(len(x & y) - k * k / n) < 5 * (k * k / n * 0.81) ** 0.5


def test_refuses_more_than_there_are() -> None:
    with pytest.raises(RuntimeError, match=r"k must be in \[0, numel\], got 4 of 3"):
        Random(0, 4).draw(3)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_take_out_leaves_zeros(dtype: torch.dtype) -> None:
    info = torch.zeros(4, dtype=torch.int64)
    for n, k in ((10, 3), (100_000, 30_000), (5, 5), (5, 0)):
        sums, index = torch.randn(n), torch.randperm(n)[:k].sort().values.to(dtype)
        before = sums.clone()
        value = torch.ops.gcext.take_out(sums, index, info)
        assert value.equal(before[index.long()])
        assert sums.equal(before.index_fill(0, index.long(), 0.0))
    for index in (torch.tensor([0, 5]), torch.tensor([-1, 2]), torch.tensor([2, 2])):
        with pytest.raises(RuntimeError, match="take_out"):
            torch.ops.gcext.take_out(sums, index.to(dtype), info)
    assert sums.equal(before)
    index = torch.tensor([1, 4])
    torch.library.opcheck(torch.ops.gcext.take_out.default, (torch.randn(9), index, info))
    info[1] = 1
    assert not torch.ops.gcext.take_out(sums, index, info).any() and sums.equal(before)


def test_opcheck_and_compile() -> None:
    torch.library.opcheck(torch.ops.gcext.random_support.default, (1, 10, 100))
