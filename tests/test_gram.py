"""gram: integer-exact on ternary packets, a fixed order of addition on others."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from isa_kit import at_every_isa

import gcext
from gcext._native import ops

NONE = torch.empty(0, dtype=torch.int32)
TILE = 16384


class Vector:
    """One packet as the operator takes it, and as a dense NumPy vector."""

    def __init__(self, index: torch.Tensor, value: np.ndarray, scale: float, numel: int) -> None:
        self.index, self.value, self.scale = index, torch.from_numpy(value), scale
        self.dense = np.zeros(numel, np.float32)
        self.dense[slice(None) if len(index) != len(value) else index.numpy()] = value


def support(rng: np.random.Generator, numel: int, k: int, dtype: Any = np.int32) -> torch.Tensor:
    return torch.from_numpy(np.sort(rng.choice(numel, k, replace=False)).astype(dtype))


def ternary(rng: np.random.Generator, numel: int, k: int, dtype: Any = np.int32) -> Vector:
    scale = float(np.float32(rng.uniform(0.1, 3))) if k else 0.0
    value = np.where(rng.random(k) < 0.5, -scale, scale).astype(np.float32)
    return Vector(support(rng, numel, k, dtype), value, scale, numel)


def sparse(rng: np.random.Generator, numel: int, k: int, dtype: Any = np.int32) -> Vector:
    value = rng.standard_normal(k).astype(np.float32)
    return Vector(support(rng, numel, k, dtype), value, 0.0, numel)


def dense(rng: np.random.Generator, numel: int) -> Vector:
    return Vector(NONE, rng.standard_normal(numel).astype(np.float32), 0.0, numel)


def gram(vectors: list[Vector], numel: int) -> np.ndarray:
    out = ops.gram(
        [v.index for v in vectors],
        [v.value for v in vectors],
        [v.scale for v in vectors],
        numel,
    )
    assert out.dtype == torch.float64 and out.shape == (len(vectors), len(vectors))
    assert torch.equal(out, out.T)
    return out.numpy()


@pytest.mark.parametrize(
    "numel", [1, 63, 64, 65, TILE - 1, TILE, TILE + 1, 3 * TILE, 40 * TILE + 5]
)
def test_ternary_is_integer_exact(numel: int) -> None:
    rng = np.random.default_rng(numel)
    shares = [1, 0.5, 0.1, 0.1, 0.02, 0.003, 0]
    vectors = [
        ternary(rng, numel, int(share * numel), dtype)
        for share in shares
        for dtype in (np.int32, np.int64)
    ]
    signs = np.sign(np.stack([v.dense for v in vectors])).astype(np.int64)
    scales = np.array([v.scale for v in vectors])
    assert np.array_equal(gram(vectors, numel), np.outer(scales, scales) * (signs @ signs.T))


def test_clustered_ternary() -> None:
    """All entries in one tile, or at the end of one and the start of the next."""
    rng = np.random.default_rng(0)
    numel, vectors = 8 * TILE, []
    for start, k in ((0, 900), (TILE - 450, 900), (TILE - 1, 2), (7 * TILE, TILE), (0, 8 * TILE)):
        value = np.where(rng.random(k) < 0.3, -0.7, 0.7).astype(np.float32)
        index = torch.arange(start, start + k, dtype=torch.int32)
        vectors.append(Vector(index, value, float(np.float32(0.7)), numel))
    signs = np.sign(np.stack([v.dense for v in vectors])).astype(np.int64)
    mu = vectors[0].scale
    assert np.array_equal(gram(vectors, numel), (mu * mu) * (signs @ signs.T))


@pytest.mark.parametrize("m", [40, 64, 97, 200])  # from 64 on by tiles, where there are any
def test_elements_of_every_popularity(m: int) -> None:
    """Met by none to all of the packets: as lists, as columns, and planes filled more than once."""
    rng = np.random.default_rng(m)
    numel = 30_000
    popular = np.concatenate([np.linspace(0, 1, numel // 2) ** 4, np.zeros(numel - numel // 2)])
    popular[-12_000:-200] = 0.9
    vectors = []
    for i in range(m):
        index = np.flatnonzero(rng.random(numel) < popular).astype((np.int32, np.int64)[i % 2])
        value = np.where(rng.random(len(index)) < 0.4, -1.0, 1.0).astype(np.float32)
        vectors.append(Vector(torch.from_numpy(index), value, 1.0, numel))
    signs = np.stack([v.dense for v in vectors]).astype(np.float64)
    assert np.array_equal(gram(vectors, numel), signs @ signs.T)  # integers, exact in float64


def test_same_bits_everywhere() -> None:
    script = """
import hashlib, torch, gcext
g = torch.Generator().manual_seed(0)
n = 100_003
names = ["stc:p=0.2", "stc:p=0.01", "topk:p=0.05", "dense", "stc:p=0.1"]
common = torch.randn(n, generator=g)
packets = [
    gcext.codec(names[i % 5]).encode(torch.randn(n, generator=g) + common) for i in range(120)
]
few = packets[0::5] + packets[4::5]
for threads in range(1, 9):
    torch.set_num_threads(threads)
    for some in (packets, few):
        print(hashlib.sha256(gcext.gram(some).numpy().tobytes()).hexdigest())
"""
    printed = at_every_isa(script)
    assert len({word for words in printed.values() for word in words}) == 2, printed


def test_orthogonal_is_exactly_zero() -> None:
    """In floating point a million products of either sign would hardly cancel."""
    numel = 1 << 17
    index = torch.arange(numel, dtype=torch.int32)
    flip = np.where(np.arange(numel) % 2 == 0, 1.0, -1.0).astype(np.float32)
    a, b = np.float32(0.1), np.float32(0.3)
    vectors = [
        Vector(index, np.full(numel, a), float(a), numel),
        Vector(index, flip * b, float(b), numel),
    ]
    assert gram(vectors, numel)[0, 1] == 0.0


def in_fixed_order(x, y):
    """The order of gram.h: eight lanes a tile, tiles to their chunk, chunks to the dot."""
    tiles = []
    for begin in range(0, len(x), TILE):
        lanes = np.zeros(8)
        products = x[begin : begin + TILE].astype(np.float64) * y[begin : begin + TILE]
        for row in np.append(products, np.zeros(-len(products) % 8)).reshape(-1, 8):
            lanes += row
        a, b, c, d = lanes[:4] + lanes[4:]
        tiles.append((a + c) + (b + d))
    step = -(-len(tiles) // 32)
    total = 0.0
    for first in range(0, len(tiles), step):
        chunk = 0.0
        for tile in tiles[first : first + step]:
            chunk += tile
        total += chunk
    return total


@pytest.mark.parametrize("numel", [1, 9, TILE + 3, 34 * TILE + 11])
def test_other_pairs_are_summed_in_the_fixed_order(numel: int) -> None:
    rng = np.random.default_rng(numel)
    vectors = [
        dense(rng, numel),
        ternary(rng, numel, numel // 9),
        sparse(rng, numel, numel // 3, np.int64),
        sparse(rng, numel, 1),
        ternary(rng, numel, 0),
    ]
    got = gram(vectors, numel)
    for i, v in enumerate(vectors):
        for j, w in enumerate(vectors[: i + 1]):
            exact = math.fsum(v.dense.astype(np.float64) * w.dense)
            size = math.fsum(np.abs(v.dense.astype(np.float64) * w.dense))
            assert abs(got[i, j] - exact) <= 1e-12 * size
            if not (v.scale and w.scale):
                assert got[i, j] == in_fixed_order(v.dense, w.dense)


def test_explicit_zeros_and_the_order_of_packets_do_not_matter() -> None:
    rng = np.random.default_rng(5)
    numel = 3 * TILE + 17
    vectors = [sparse(rng, numel, 2000), dense(rng, numel), ternary(rng, numel, 5000)]
    as_dense = [Vector(NONE, v.dense, 0.0, numel) for v in vectors]
    got, same = gram(vectors, numel), gram(as_dense, numel)
    same[2, 2] = got[2, 2]  # the exact one
    assert got.tobytes() == same.tobytes()
    order = [2, 0, 1]
    permuted = gram([vectors[i] for i in order], numel)
    assert permuted.tobytes() == np.ascontiguousarray(got[np.ix_(order, order)]).tobytes()


def test_a_huge_tensor_costs_what_its_packets_cost() -> None:
    numel = 2**63 - 1
    index = torch.tensor([0, 5, 2**40, 2**61 + 1, numel - 1])
    minus = torch.tensor([1.0, -1, 1, -1, 1])
    got = ops.gram(
        [index, index[1:4], index], [minus, minus[1:4], minus * 2], [1.0, 1.0, 0.0], numel
    )
    assert got.tolist() == [[5, 3, 10], [3, 3, 6], [10, 6, 20]]


def test_empty_packets_and_tensors() -> None:
    none = ternary(np.random.default_rng(0), 10, 0)
    assert gram([none, none], 10).tolist() == [[0, 0], [0, 0]]
    assert gram([none], 0).tolist() == [[0]]
    zero_d = gcext.codec("dense").encode(torch.tensor(3.0))
    assert gcext.gram([zero_d, zero_d]).tolist() == [[9, 9], [9, 9]]


def test_bad_arguments_are_refused() -> None:
    index, value = torch.tensor([0, 3]).int(), torch.ones(2)
    with pytest.raises(RuntimeError, match=r"within \[0, 3\), packet 1 does not"):
        ops.gram([index[:1], index], [value[:1], value], [0.0, 0.0], 3)
    with pytest.raises(RuntimeError, match="rise strictly"):
        ops.gram([index.flip(0)], [value], [1.0], 4)
    with pytest.raises(RuntimeError, match="scale for every packet, got 0 for 1"):
        ops.gram([index], [value], [], 4)
    for scale in (-1.0, math.inf, math.nan):
        with pytest.raises(RuntimeError, match="a scale must be finite and not negative"):
            ops.gram([index], [value], [scale], 4)
    with pytest.raises(RuntimeError, match="a dense packet has no scale"):
        ops.gram([NONE], [torch.ones(4)], [1.0], 4)


def test_opcheck_and_compile() -> None:
    rng = np.random.default_rng(3)
    vectors = [ternary(rng, 500, 50), sparse(rng, 500, 40, np.int64), dense(rng, 500)]
    index, value = [v.index for v in vectors], [v.value for v in vectors]
    scale = [v.scale for v in vectors]
    torch.library.opcheck(torch.ops.gcext.gram.default, (index, value, scale, 500))

    def norms(a: list[torch.Tensor], b: list[torch.Tensor]) -> torch.Tensor:
        return ops.gram(a, b, scale, 500).diagonal().sqrt()

    compiled = torch.compile(norms, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(index, value), norms(index, value))
