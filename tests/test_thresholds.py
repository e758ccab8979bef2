"""The codecs of thresholds, sides and rounds against their papers' formulas in NumPy."""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
import torch
from numpy_reader import round_to_f32
from packet_kit import dense

import gcext
from gcext import Packet
from gcext._codecs.repeat import Repeat

F32 = np.float32
TINY = F32(1e-45)


def inputs() -> Iterator[np.ndarray]:
    """Ties, zeros of both signs, denormals, one side alone, few elements, normal ones."""
    rng = np.random.default_rng(0)
    yield np.zeros(0, F32)
    yield np.array([2.5], F32)
    yield np.array([-2.5], F32)
    yield np.array([0.0, -0.0, 0.0], F32)
    yield np.array([1, -1, 1, -1, 1, 1, -1, 0, -0.0, 1], F32)
    yield np.array([3, -3, 3, 3, -2, -2, 2, 1, -1, -1] * 20, F32)
    yield np.arange(-50, 50).astype(F32) * TINY
    yield np.abs(rng.normal(size=333)).astype(F32)
    yield -np.abs(rng.normal(size=334)).astype(F32)
    yield np.array([1000, *([1e-3] * 400)], F32)
    for n in (31, 1000, 20_000):
        yield rng.normal(size=n).astype(F32)
        yield (rng.normal(size=n) ** 5).astype(F32)
        yield (rng.normal(size=n) * (rng.random(n) < 0.05)).astype(F32)


def both(spec: str, x: np.ndarray, seed: int = 3) -> tuple[Packet, np.ndarray, np.ndarray]:
    """Return the packet under a residual, that residual, and what the packet decodes to."""
    half = F32(0.5) * x
    residual = torch.from_numpy(x - half)
    packet = gcext.codec(spec).encode(torch.from_numpy(half.copy()), residual, seed=seed)
    assert Packet.from_bytes(packet.to_bytes(), expect=x.shape) == packet
    return packet, residual.numpy(), dense(packet).numpy()


def summed(x: np.ndarray) -> np.ndarray:
    """The sum that ``both`` encodes: halves of denormals are rounded."""
    half = F32(0.5) * x
    return half + (x - half)


def mean(x: np.ndarray) -> np.float32:
    """The exact mean magnitude, rounded once."""
    return F32(
        round_to_f32(sum(map(Fraction, map(float, np.abs(x))), Fraction(0)) / max(len(x), 1))
    )


def largest(x: np.ndarray, k: int) -> np.ndarray:
    """Where the k largest positive elements are, ties to the lower index."""
    at = np.argsort(-x, kind="stable")[:k]
    return np.sort(at[x[at] > 0])


def count(p: float, n: int) -> int:
    return max(math.floor(p * n), 1) if n else 0


@pytest.mark.parametrize("tau", [1e-44, 0.3, 1.0, 2.0])
def test_strom_is_the_papers(tau: float) -> None:
    """Algorithm 2: of a residual beyond tau, tau is sent and subtracted."""
    for x in inputs():
        packet, residual, sent = both(f"strom:tau={tau}", x)
        g, t = summed(x), F32(tau)
        want = np.where(g > t, t, np.where(g < -t, -t, F32(0)))
        assert sent.tobytes() == want.tobytes()
        assert residual.tobytes() == (g - want).tobytes()
        assert packet.method == "ternary"
        assert packet.scale == (float(t) if want.any() else 0.0)


def test_stroms_residual_stays_within_tau() -> None:
    tau, comp = 1.5, gcext.ErrorFeedback("strom:tau=1.5")
    rng = np.random.default_rng(5)
    for step in range(400):
        g = np.clip(rng.normal(size=700) + (step % 100 < 50), -tau, tau).astype(F32)
        comp.compress(torch.from_numpy(g), "w")
        assert float(comp.residual("w").abs().max()) <= tau * (1 + 1e-6)
    grown = gcext.ErrorFeedback("strom:tau=1.5")  # and beyond tau it does not
    for _ in range(10):
        grown.compress(torch.full((3,), 2.0), "w")
    assert grown.residual("w").tolist() == [5.0] * 3


@pytest.mark.parametrize("p", [0.02, 0.3, 1.0])
def test_sbc_is_the_papers(p: float) -> None:
    """Algorithm 2: both sides' top p, their means, and the side of the larger one."""
    for x in inputs():
        packet, residual, sent = both(f"sbc:p={p}", x)
        g = summed(x)
        k = count(p, len(g))
        up, down = largest(g, k), largest(-g, k)
        want, index = np.zeros_like(g), up
        if mean(g[up]) >= mean(g[down]):
            want[up] = mean(g[up])
        else:
            index = down
            want[down] = -mean(g[down])
        assert sent.tobytes() == want.tobytes()
        assert residual.tobytes() == (g - want).tobytes()
        assert packet.indices().tolist() == index.tolist()


@pytest.mark.parametrize("p", [0.02, 0.3, 1.0])
def test_dryden_is_the_papers(p: float) -> None:
    """Adaptive quantization: a share of each side, as that share's mean."""
    for x in inputs():
        packet, residual, sent = both(f"dryden:p={p}", x)
        g = summed(x)
        want = np.zeros_like(g)
        up = largest(g, count(p, int((g > 0).sum())))
        down = largest(-g, count(p, int((g < 0).sum())))
        want[up], want[down] = mean(g[up]), -mean(g[down])
        assert sent.tobytes() == want.tobytes()
        assert residual.tobytes() == (g - want).tobytes()
        assert packet.indices().tolist() == sorted([*up, *down])


@pytest.mark.parametrize("drop", [0.0, 0.5, 0.99])
def test_ajiheafield_is_the_papers(drop: float) -> None:
    """Algorithm 1, with elements at the threshold sent; a sample of all is no sample."""
    for x in inputs():
        _, residual, sent = both(f"ajiheafield:drop={drop}", x)
        g = summed(x)
        size = np.abs(g)
        if len(g) <= 256:
            threshold = np.sort(size)[min(int(drop * len(g)), len(g) - 1)] if len(g) else 0
        else:  # any threshold of elements that are there
            threshold = np.abs(sent[sent != 0]).min(initial=F32(np.inf))
            share = np.mean(size < threshold)
            assert abs(share - drop) < 0.15 or threshold == size[size > 0].min()
        want = np.where(size >= threshold, g, F32(0))
        assert (sent == want).all()
        assert residual.tobytes() == (g - want).tobytes()


def test_ajiheafield_drops_its_share_and_sends_all_where_the_threshold_is_zero() -> None:
    codec = gcext.codec("ajiheafield:drop=0.99")
    x = torch.randn(10**6, generator=torch.Generator().manual_seed(0))
    sent = [codec.encode(x, seed=seed).k / 10**6 for seed in range(5)]
    assert len(set(sent)) == 5  # a sample of 1,000: 0.01 +- 0.003
    assert all(0.001 < share < 0.02 for share in sent)
    x[torch.rand(10**6, generator=torch.Generator().manual_seed(1)) < 0.995] = 0
    assert codec.encode(x, seed=1).k == int((x != 0).sum())
    ones = torch.ones(5000)
    assert codec.encode(ones, seed=1).k == 5000


def greedy(x: np.ndarray, budget: float, iterations: int) -> np.ndarray:
    """The probabilities of Wangni's Algorithm 3, as printed but for the count of elements."""
    size = np.abs(x.astype(np.float64))
    p = np.minimum(budget * size / size.sum(), 1)
    for _ in range(iterations):
        active = p < 1
        total = p[active].sum()
        if not total:
            break
        c = (budget - len(x) + active.sum()) / total
        if c <= 1:
            break
        p[active] = np.minimum(c * p[active], 1)
    return p


@pytest.mark.parametrize("p", [0.01, 0.2, 1.0])
def test_wangnis_probabilities_are_the_papers(p: float) -> None:
    for x in inputs():
        if not x.any() or np.abs(x).max() < 1e-30:
            continue
        packet = gcext.codec(f"wangni:p={p}").encode(torch.from_numpy(x), seed=1)
        exact, drawn = packet.parts()
        want = greedy(x, max(p * len(x), 1), 2)
        sure = want >= 1 - 1e-6
        assert set(np.flatnonzero(want >= 1 + 1e-9)) <= set(exact.indices().tolist())
        assert set(exact.indices().tolist()) <= set(np.flatnonzero(sure))
        assert torch.equal(exact.values(), torch.from_numpy(x)[exact.indices()])
        if drawn.k:
            i = int(drawn.indices()[0])
            assert abs(x[i]) / drawn.scale == pytest.approx(want[i], rel=1e-5)
            assert (np.abs(drawn.values().numpy()) == F32(drawn.scale)).all()
            assert (np.sign(drawn.values().numpy()) == np.sign(x[drawn.indices()])).all()


def test_wangni_draws_each_element_by_its_probability() -> None:
    """200 elements within 4.7 standard errors: other seeds would fail once in 2,000 runs."""
    rng, seeds = np.random.default_rng(1), 2000
    x = rng.normal(size=200).astype(F32)
    x[:3] *= 50
    want, drawn, total = greedy(x, 30, 2), np.zeros(200), np.zeros(200)
    codec = gcext.codec("wangni:p=0.15")
    for seed in range(seeds):
        packet = codec.encode(torch.from_numpy(x), seed=seed)
        drawn[packet.indices().numpy()] += 1
        total += dense(packet).numpy()
    deviation = np.sqrt(want * (1 - want) / seeds)
    assert (np.abs(drawn / seeds - want) <= 4.7 * deviation + 1e-9).all()
    assert (np.abs(total / seeds - x) <= 4.7 * deviation * np.abs(x) / want + 1e-5).all()
    assert drawn.sum() / seeds == pytest.approx(30, abs=0.5)


def test_wangni_under_a_residual_sends_mean_magnitudes() -> None:
    for x in inputs():
        packet, residual, sent = both("wangni:p=0.1", x)
        g = summed(x)
        exact, drawn = packet.parts()
        at = drawn.indices().numpy()
        assert F32(drawn.scale) == mean(g[at])
        assert (residual[exact.indices().numpy()] == 0).all()
        assert residual.tobytes() == (g - sent).tobytes()


def test_wangni_refuses_what_overflows() -> None:
    codec = gcext.codec("wangni:p=0.01")
    large = torch.full((1000,), 3e37)
    for tensor in (large, torch.tensor([3.4e38, 3.4e38, -1.0])):
        residual = torch.zeros_like(tensor)
        for given in (None, residual):
            with pytest.raises(ValueError, match="must be finite in float32, got an overflow"):
                codec.encode(tensor, given, seed=1)


@pytest.mark.parametrize(
    "inner", ["stc:p=0.05", "sign", "topk:p=0.1", "randomk:p=0.2", "qsgd:bits=2"]
)
def test_repeat_is_rounds_on_the_remainder(inner: str) -> None:
    """NEOLITHIC's compressed communication: c_r = C(x - the sum so far)."""
    rounds, n = 4, 3000
    x = torch.randn(n, generator=torch.Generator().manual_seed(2))
    residual, rest = torch.zeros(n), x.clone()
    packet = gcext.codec(f"repeat:rounds={rounds},codec={inner}").encode(x, residual, seed=7)
    codec, norms = gcext.codec(inner), [float(x.norm())]
    for r, part in enumerate(packet.parts()):
        left = torch.zeros(n)
        seed = gcext.derive(7, "round", r)
        assert codec.encode(rest, left, seed=seed).to_bytes() == part.to_bytes()
        rest = rest - dense(part)
        assert torch.equal(rest, left)
        norms.append(float(rest.norm()))
    assert torch.equal(rest, residual)
    assert all(later < norm for norm, later in pairwise(norms))
    assert float((dense(packet) + residual - x).abs().max()) < 1e-6 * rounds
    without = gcext.codec(f"repeat:rounds={rounds},codec={inner}").encode(x, seed=7)
    assert without == packet
    memory, out = torch.zeros(n), torch.ones(n)
    repeat = gcext.codec(f"repeat:rounds={rounds},codec={inner}")
    assert repeat.advance(x, memory, out, seed=7) == packet
    assert torch.equal(out, residual) and not memory.any()


def test_repeat_leaves_everything_where_a_later_round_raises() -> None:
    codec = gcext.codec("repeat:rounds=2,codec=polar:rate=0.5,block=64")
    tensor, residual = torch.full((64,), 3e38), torch.full((64,), 2.0)
    with pytest.raises(ValueError, match="when rotated"):
        codec.encode(tensor, residual, seed=1)
    assert residual.eq(2).all()


def test_repeat_takes_a_codec_or_its_spec() -> None:
    made = Repeat(rounds=3, codec=gcext.codec("qsgd:bits=2,bucket=64"))  # type: ignore[arg-type]
    assert made.spec == "repeat:rounds=3,codec=qsgd:bits=2,bucket=64"
    assert gcext.codec(made.spec) == made and made.stochastic
    assert not gcext.codec("repeat").stochastic
    assert made.contraction(640) == pytest.approx(
        1 - (1 - gcext.codec("qsgd:bits=2,bucket=64").contraction(640)) ** 3
    )
    recipe = gcext.recipe("repeat:rounds=2,codec=stc:p=0.1,feedback=true,down=repeat:codec=sign")
    assert recipe.up.feedback and recipe.up.codec.spec == "repeat:rounds=2,codec=stc:p=0.1"
    assert recipe.down.codec.spec == "repeat:rounds=2,codec=sign"


def entropy(p: float) -> float:
    return -p * math.log2(p) - (1 - p) * math.log2(1 - p)


def test_sizes_are_what_the_papers_count() -> None:
    """Positions at their entropy, and what each method sends beside them."""
    n, p = 10**6, 0.01
    x = torch.randn(n, generator=torch.Generator().manual_seed(3))

    def bits(spec: str) -> tuple[float, int]:
        packet = gcext.codec(spec).encode(x, seed=1)
        return 8 * (packet.nbytes - 32), packet.k

    size, k = bits("topk:p=0.001")  # what DGC sends
    assert k == 1000 and size <= 46_000
    size, k = bits("sbc:p=0.01")  # positions alone
    assert k == n * p and size <= 1.02 * n * entropy(p)
    size, k = bits("dryden:p=0.01")  # and a bit
    assert k == pytest.approx(n * p, abs=2) and size <= 1.02 * n * (entropy(p) + p)
    size, k = bits("strom:tau=2.5")  # and a bit
    assert size <= 1.02 * n * (entropy(k / n) + k / n)
    size, k = bits("ajiheafield:drop=0.99")  # and 32 bits
    assert size <= 1.02 * n * entropy(k / n) + 32 * k
    size, k = bits("wangni:p=0.01")  # hybrid: and a bit, where there are none with p = 1
    assert k == pytest.approx(n * p, rel=0.05) and size <= 1.02 * n * (entropy(k / n) + k / n)


SPECS = ["strom:tau=2e-44", "ajiheafield:drop=0.9", "sbc:p=0.1", "dryden:p=0.1", "wangni:p=0.1"]
SPECS += ["repeat:rounds=3,codec=stc:p=0.05"]


@pytest.mark.parametrize("spec", SPECS)
def test_denormals_are_kept_whatever_the_flush_mode(spec: str) -> None:
    rng = np.random.default_rng(4)
    x = rng.integers(-40, 40, 2000).astype(F32) * TINY
    x[::3] = (rng.normal(size=667) * 1e-39).astype(F32)
    seen = []
    for flush in (False, True):
        if not torch.set_flush_denormal(flush):
            pytest.skip("the processor has no such mode")
        try:
            tensor, residual, codec = torch.from_numpy(x), torch.zeros(2000), gcext.codec(spec)
            packets = codec.encode(tensor, residual, seed=2), codec.encode(tensor, seed=2)
            seen.append([residual.numpy().tobytes()])
            for packet in packets:
                seen[-1] += [packet.to_bytes(), dense(packet).numpy().tobytes()]
        finally:
            torch.set_flush_denormal(False)
    assert seen[0] == seen[1]
    assert any(seen[0][2])


@pytest.mark.parametrize("spec", SPECS)
def test_residuals_may_be_inference_tensors(spec: str) -> None:
    tensor, residual = torch.randn(300), torch.zeros(300)
    with torch.inference_mode():
        held = torch.zeros(300)
    codec = gcext.codec(spec)
    assert codec.encode(tensor, held, seed=1) == codec.encode(tensor, residual, seed=1)
    assert torch.equal(held, residual)
