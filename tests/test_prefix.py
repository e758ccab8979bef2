"""The prefix code of powers and levels2: as short as it can be, and how long packets are."""

from __future__ import annotations

import heapq
import math

import numpy as np
import numpy_decoder
import numpy_prefix as reference
import pytest
import torch
import wire_bodies as wire
from isa_kit import at_every_isa

import gcext
from gcext._packet.codes import Levels, Signs
from gcext._packet.powers import Powers


def huffman(count: list[int]) -> int:
    """The least bits of any prefix code, words of any length."""
    heap, total = sorted(count), 0
    while len(heap) > 1:
        two = heapq.heappop(heap) + heapq.heappop(heap)
        total += two
        heapq.heappush(heap, two)
    return total


def test_package_merge_is_huffman_where_words_are_short() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        count = rng.integers(1, 100, int(rng.integers(2, 40))).tolist()
        length = reference.word_lengths(dict(enumerate(count)))
        assert sum(c * length[s] for s, c in enumerate(count)) == huffman(count)
        assert sum(2.0 ** -length[s] for s in range(len(count))) == 1


def test_words_have_12_bits_at_most() -> None:
    count = [1, 1]
    while len(count) < 30:
        count.append(count[-1] + count[-2])
    length = reference.word_lengths(dict(enumerate(count)))
    assert max(length.values()) == 12
    assert sum(2.0**-size for size in length.values()) == 1


@pytest.mark.parametrize("seed", range(30))
def test_both_implementations_give_the_same_code(seed: int) -> None:
    """Ties and long tails included: the decoder in NumPy accepts what pack makes."""
    rng = np.random.default_rng(seed)
    kinds = int(rng.integers(1, 278))
    count = np.minimum(rng.geometric(10.0 ** -rng.uniform(0, 3), kinds), 3000)
    power = rng.permutation(np.repeat(rng.permutation(277)[:kinds] + 1, count))
    power = power * rng.choice([-1, 1], len(power))
    body = wire.Body("powers", (len(power),), code=(1.0, power.astype(np.int16)))
    message = wire.pack(body)
    assert wire.unpack(message).code[1].tolist() == power.tolist()
    assert numpy_decoder.decode(message)["power"] == power.tolist()


def entropy(symbols: np.ndarray) -> float:
    """Empirical, in bits for all of them."""
    _, count = np.unique(symbols, return_counts=True)
    p = count / len(symbols)
    return float(-(p * np.log2(p)).sum()) * len(symbols)


N = 10**6


@pytest.fixture(scope="module")
def normal() -> torch.Tensor:
    return torch.randn(N, generator=torch.Generator().manual_seed(1))


def test_natural_takes_3_65_bits_an_element(normal: torch.Tensor) -> None:
    packet = gcext.codec("natural").encode(normal, seed=3)
    assert isinstance(packet.coded, Powers)
    bound = entropy(packet.coded.power.numpy())
    print(f"natural: {8 * packet.nbytes / N:.4f} bits an element, entropy {bound / N:.4f}")
    assert bound < 8 * packet.nbytes <= 3.65 * N
    assert 8 * packet.nbytes <= 1.02 * bound


@pytest.mark.parametrize("bucket", [0, 64, 128, 512])
@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
def test_qsgd_is_within_three_percent_of_the_entropy(
    normal: torch.Tensor, bits: int, bucket: int
) -> None:
    """Of the signed levels, beyond the norms; and 32 bytes for header and checksum."""
    packet = gcext.codec(f"qsgd:bits={bits},bucket={bucket}").encode(normal, seed=3)
    code = packet.coded
    assert isinstance(code, Levels)
    level = np.zeros(N, int)
    level[code.at.numpy()] = code.level.numpy()
    bound, norms = entropy(level), 32 * len(code.norms)
    size = 8 * packet.nbytes - norms
    print(f"bits {bits}, bucket {bucket}: {size / bound:.4f} of the entropy {bound / N:.4f}")
    assert 0.999 * bound < size <= 1.03 * bound + 8 * 32


def test_terngrad_and_sign_are_near_their_bounds(normal: torch.Tensor) -> None:
    for spec in ("terngrad", "terngrad:clip=2.5", "terngrad:clip=0.5"):
        packet = gcext.codec(spec).encode(normal, seed=3)
        assert 8 * packet.nbytes <= 1.02 * math.log2(3) * N, spec
    packet = gcext.codec("sign").encode(normal)
    assert isinstance(packet.coded, Signs)
    assert 8 * packet.nbytes <= 1.001 * N


def test_five_levels_of_independent_elements() -> None:
    """Four steps, which no option of qsgd gives."""
    rng = np.random.default_rng(4)
    norm = math.sqrt(512)
    for share in (1.0, 5.0):
        r = np.minimum(np.abs(rng.standard_normal(N)) * 4 * share / norm, 4)
        level = np.floor(r + rng.random(N)) * rng.choice([-1, 1], N)
        at = np.flatnonzero(level).astype(np.int32)
        code = 4, 0, np.ones(1, np.float32), at, level[at].astype(np.int16)
        size = 8 * len(wire.pack(wire.Body("levels2", (N,), code=code)))
        assert size <= 1.02 * entropy(level)


def test_every_instruction_set_gives_the_same_bytes() -> None:
    script = """
import hashlib, torch, gcext
one = hashlib.sha256()
x = torch.randn(50_000, generator=torch.Generator().manual_seed(1))
for spec in ("natural", "qsgd:bits=2", "qsgd:bits=8,bucket=64"):
    message = gcext.codec(spec).encode(x, seed=1).to_bytes()
    one.update(message + gcext.Packet.from_bytes(message).values().numpy().tobytes())
print(one.hexdigest())
"""
    printed = at_every_isa(script)
    assert len({word for words in printed.values() for word in words}) == 1, printed
