"""SparseLoCo against a transcription of its authors' quantizer: codes, means, residual, bytes."""

from __future__ import annotations

import chunk_oracle
import numpy as np
import pytest
import torch
from packet_kit import dense
from test_select import KINDS, Rng, same_bits
from torch import Tensor

import gcext


def draw(rng: Rng, n: int) -> np.ndarray:
    x = KINDS[int(rng.integers(len(KINDS)))](rng, n) if n else np.empty(0)
    return x.astype(np.float32)


@pytest.mark.parametrize("block", range(4))
def test_three_hundred_cases(block: int) -> None:
    for case in range(block * 75, block * 75 + 75):
        rng = np.random.default_rng(case)
        n = int(10 ** rng.uniform(0, 4.3)) - 1
        tensor, held = draw(rng, n), draw(rng, n)
        chunk, bits = int(rng.choice([0, 50, 4096])), int(rng.choice([2, 2, 3, 8]))
        p, sigmas = float(rng.choice([1 / 64, 0.2])), float(rng.choice([6.0, 2.0]))
        spec = f"sparseloco:p={p},chunk={chunk},bits={bits},range={sigmas}"
        want = chunk_oracle.select(tensor, held, p, chunk or max(n, 1), ternary=False)
        table, code = chunk_oracle.bin_means(want.value, bits, sigmas)
        sent, left = table[code], want.residual.copy()
        left[want.index] = want.value - sent
        residual = torch.from_numpy(held.copy())
        packet = gcext.codec(spec).encode(torch.from_numpy(tensor), residual)
        assert packet.method == "codes"
        assert packet.k == want.index.size
        assert np.array_equal(packet.indices().numpy(), want.index), case
        assert same_bits(packet.values().numpy(), sent), case
        assert same_bits(residual.numpy(), left), case
        again = gcext.Packet.from_bytes(packet.to_bytes(), expect=(n,))
        assert again.to_bytes() == packet.to_bytes()
        assert same_bits(again.values().numpy(), sent), case


@pytest.mark.parametrize("p", [1 / 64, 0.01, 0.03])
def test_size_is_near_the_count(p: float) -> None:
    """Positions cost their entropy, a value two bits, and 16 bytes of means go with a tensor."""
    n = 10**6
    packet = gcext.codec(f"sparseloco:p={p}").encode(torch.randn(n))
    k = sum(max(int(p * size), 1) for size in [4096] * (n // 4096) + [n % 4096])
    assert packet.k == k
    share = k / n
    positions = (-share * np.log2(share) - (1 - share) * np.log2(1 - share)) / share
    assert packet.nbytes * 8 / k <= 1.02 * (positions + 2) + (16 + 32) * 8 / k
    if p == 1 / 64:
        assert packet.nbytes * 8 / k <= 9.6  # the authors' 12-bit positions and values: 14


def test_few_values_travel_as_they_are() -> None:
    codec, residual = gcext.codec("sparseloco:p=0.1"), torch.zeros(40)
    tensor = torch.zeros(40)
    tensor[[3, 30]] = torch.tensor([1.0, -1.0])
    packet = codec.encode(tensor, residual)
    assert torch.equal(dense(packet), tensor) and not residual.any()
    assert codec.contraction(40) == 0.1
    empty = codec.encode(torch.zeros(40), residual)
    assert empty.k == 0 and empty.nbytes < 40


def test_a_range_without_a_constant_takes_no_residual() -> None:
    codec, tensor = gcext.codec("sparseloco:range=8,p=0.5"), torch.randn(1000)
    assert codec.encode(tensor).k == 500
    for encode in (
        lambda: codec.encode(tensor, torch.zeros(1000)),
        lambda: codec.contraction(1000),
    ):
        with pytest.raises(ValueError, match=r"middle bin must not hold all.*range below 7\.16"):
            encode()
    assert codec.contraction(8) == 0.5  # 4 values, a bin each


def test_most_of_the_energy_of_normal_values_is_kept() -> None:
    tensor = torch.randn(10**6)
    sent = dense(gcext.codec("sparseloco").encode(tensor)).square().sum()
    chosen = dense(gcext.codec("topk:p=0.015625,chunk=4096").encode(tensor)).square().sum()
    assert 0.98 < sent / chosen < 1


def test_decayed_feedback_follows_a_constant_gradient() -> None:
    """With e = .95 e + g, in the long run the 5 % that decay takes are not sent."""
    codec, gradient = gcext.codec("sparseloco:p=0.25,chunk=64"), torch.randn(2048)
    residual, total = torch.zeros(2048), torch.zeros(2048)
    for _ in range(100):
        out = torch.empty(2048)
        total += dense(codec.advance(gradient, residual, out, 0.95))
        residual = out
    error = (total / 100 - gradient).norm() / gradient.norm()
    assert error < 0.3


def test_denormals_and_extremes() -> None:
    least, largest = 2.0**-149, float(np.finfo(np.float32).max)
    for x in ([least, -least, 3 * least, 0.0], [largest, -largest, largest, 1.0]):
        tensor: Tensor = torch.tensor(x * 8)
        packet = gcext.codec("sparseloco:p=1,chunk=8").encode(tensor)
        values = tensor[tensor != 0].numpy()
        table, code = chunk_oracle.bin_means(values, 2, 6.0)
        assert same_bits(packet.values().numpy(), table[code])
