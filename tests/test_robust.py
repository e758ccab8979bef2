"""Trimmed mean and median against NumPy, and what bounds a poisoned update."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import pytest
import torch
from emu.backends import BACKENDS, same_bits
from emu.robust import make
from isa_kit import at_every_isa
from packet_kit import dense, single
from round_kit import arrays, drawn, mixed

import gcext
from gcext._native import ops
from gcext.aggregate import MaxK, Mean, Median, NormBound, Projection, TrimmedMean

NONE = torch.empty(0, dtype=torch.int32)


def some(
    rng: np.random.Generator, numel: int, k: int, dtype: Any = np.int32
) -> tuple[torch.Tensor, torch.Tensor]:
    """A sparse packet of few values, so that there are ties, or all of numel."""
    index = np.sort(rng.choice(numel, k, replace=False)).astype(dtype)
    value = rng.choice([-2.5, -1.0, 0.1, 1.0, 3.0], k) * rng.choice([1, 1, rng.random()], k)
    return torch.from_numpy(index), torch.from_numpy(value.astype(np.float32))


def whole(rng: np.random.Generator, numel: int) -> tuple[torch.Tensor, torch.Tensor]:
    value = rng.standard_normal(numel).astype(np.float32)
    value[rng.random(numel) < 0.2] = -0.0
    return NONE, torch.from_numpy(value)


def expected(packets: list[tuple[torch.Tensor, torch.Tensor]], drop: int, numel: int) -> np.ndarray:
    """Sort all m values of each element, zeros too, and add the kept ones in rising order."""
    table = np.zeros((len(packets), numel))
    for row, (index, value) in zip(table, packets, strict=True):
        row[slice(None) if len(index) < len(value) else index.numpy()] = value.numpy()
    table = np.sort(table + 0.0, axis=0)[drop : len(packets) - drop]
    total = np.zeros(numel)
    for row in table:
        total += row
    return (total / len(table)).astype(np.float32)


def trimmed(
    packets: list[tuple[torch.Tensor, torch.Tensor]], drop: int, numel: int
) -> torch.Tensor:
    return ops.trimmed_mean([p[0] for p in packets], [p[1] for p in packets], drop, numel)


@pytest.mark.parametrize("numel", [1, 15, 511, 512, 513, 20_003])
@pytest.mark.parametrize("m", [1, 2, 3, 4, 5, 8, 9, 31, 64])
def test_exact_against_a_sort(numel: int, m: int) -> None:
    rng = np.random.default_rng(100 * m + numel)
    kinds = {
        "sparse": [some(rng, numel, int(rng.integers(0, numel + 1))) for _ in range(m)],
        "thin": [some(rng, numel, numel // 20, np.int64) for _ in range(m)],
        "dense": [whole(rng, numel) for _ in range(m)],
    }
    kinds["mixed"] = [kinds[name][i] for i in range(m) for name in kinds][:m]
    for packets in kinds.values():
        for drop in {0, 1, m // 4, (m - 1) // 2}:
            if 2 * drop < m:
                out = trimmed(packets, drop, numel)
                assert out.dtype == torch.float32 and out.shape == (numel,)
                assert out.numpy().tobytes() == expected(packets, drop, numel).tobytes()
                assert (
                    out.numpy().tobytes() == trimmed(packets[::-1], drop, numel).numpy().tobytes()
                )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("m", [1, 2, 3, 5, 8, 31, 64, 100, 1024])
def test_same_bytes(backend: str, m: int) -> None:
    """CUDA's kernel against the CPU's: a tile's columns in one batch and in many."""
    draw = random.Random(m)
    for numel in (1, 31, 1023, 1025, 9001) if m < 100 else (1, 1100):
        rng = np.random.default_rng(100 * m + numel)
        kinds = {
            "sparse": [some(rng, numel, draw.randint(0, numel)) for _ in range(m)],
            "thin": [some(rng, numel, numel // 20, np.int64) for _ in range(m)],
            "dense": [whole(rng, numel) for _ in range(m)],
        }
        kinds["mixed"] = [draw.choice(packets) for packets in kinds.values() for _ in range(m)]
        kinds["mixed"] = draw.sample(kinds["mixed"], m)
        for packets in kinds.values() if m < 1024 else [kinds["mixed"]]:
            for drop in {0, m // 4, (m - 1) // 2} if m < 1024 else {m // 4}:
                run = make(backend, draw.choice([1, 2, 1024]), draw.random() < 0.5)
                index, value = map(list, zip(*packets, strict=True))
                want = trimmed(packets, drop, numel)
                assert same_bits(run.trimmed_mean(index, value, drop, numel), want)


@pytest.mark.parametrize("backend", BACKENDS)
def test_wrong_indices_stay_inside(backend: str) -> None:
    index = torch.tensor([-(2**31), -5, 700, 3, 3, 1500, 2**31 - 1] * 50, dtype=torch.int32)
    for each in (index, torch.full((9000,), 5, dtype=torch.int32)):
        out = make(backend, 2).trimmed_mean([each], [torch.ones(len(each))], 0, 10_000)
        assert set(out.tolist()) <= {0.0, 1.0}


@pytest.mark.cuda
def test_packets_of_a_device() -> None:
    tensors = [torch.randn(3000) for _ in range(5)]
    here = {i: gcext.codec(("dense", "stc:p=0.5")[i % 2]).encode(t) for i, t in enumerate(tensors)}
    there = {i: packet.to("cuda") for i, packet in here.items()}
    assert torch.equal(single(Median().aggregate(there)).cpu(), single(Median().aggregate(here)))
    with pytest.raises(RuntimeError, match=r"at most 1024 packets, got 1025\. Move them to the"):
        Median().aggregate(dict.fromkeys(range(1025), there[1]))


def test_nothing_to_sort() -> None:
    assert trimmed([(NONE, torch.empty(0))] * 3, 1, 0).shape == (0,)
    assert trimmed([(NONE, torch.empty(0))] * 3, 1, 4).tolist() == [0.0] * 4


def test_bad_arguments_are_refused() -> None:
    one = (torch.tensor([1]).int(), torch.tensor([1.0]))
    for drop, m in ((-1, 3), (1, 2), (2, 4)):
        with pytest.raises(RuntimeError, match=f"drop must be in .*, got {drop} of {m} packets"):
            trimmed([one] * m, drop, 4)
    with pytest.raises(RuntimeError, match="rise strictly"):
        trimmed([(one[0] + 9, one[1])], 0, 4)
    for call, message in (
        (lambda: TrimmedMean(0.5), r"beta must be in \[0, 0.5\), got 0.5"),
        (lambda: TrimmedMean(math.nan), "beta must be in"),
        (lambda: NormBound(-1), "bound must be positive and finite, got -1"),
        (lambda: NormBound(math.inf), "bound must be positive"),
        (lambda: MaxK(-1), "k must be a whole number from 0 up, got -1"),
        (lambda: MaxK(1.0), "k must be a whole number"),  # type: ignore[arg-type]
        (lambda: Median().aggregate({}), "Median: needs at least one client's packet"),
        (lambda: NormBound(1).aggregate({}), "at least one client's packet"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_opcheck_and_compile() -> None:
    rng = np.random.default_rng(2)
    packets = [some(rng, 600, 300) for _ in range(4)] + [whole(rng, 600)]
    index, value = [p[0] for p in packets], [p[1] for p in packets]
    torch.library.opcheck(torch.ops.gcext.trimmed_mean.default, (index, value, 1, 600))
    compiled = torch.compile(
        lambda a, b: ops.trimmed_mean(a, b, 1, 600) + 1, fullgraph=True, backend="aot_eager"
    )
    assert torch.equal(compiled(index, value), trimmed(packets, 1, 600) + 1)


@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 4), (2, 0, 3)])
def test_shapes_and_groups(shape: Any) -> None:
    packets = {i: gcext.stc(torch.full(shape, float(i + 1)), p=1) for i in range(3)}
    groups = {i: gcext.Packet.group([p, p]) for i, p in packets.items()}
    for server in (Median(), TrimmedMean(0.4), NormBound(1e9), MaxK(99)):
        out = single(server.aggregate(packets))
        assert out.shape == shape and torch.allclose(out, torch.full(shape, 2.0))
        assert all(torch.equal(each, out) for each in server.aggregate(groups))
        assert server.state_dict() == {}
        server.restore(server.snapshot())


def attacked(
    rng: np.random.Generator, honest: int, attackers: int, numel: int = 500
) -> tuple[list[np.ndarray], dict[int, gcext.Packet]]:
    """Dense updates around a common one; what the attackers send instead is the caller's."""
    common = rng.standard_normal(numel)
    updates = [common + 0.1 * rng.standard_normal(numel) for _ in range(honest + attackers)]
    encode = gcext.codec("dense").encode
    return updates, {i: encode(torch.from_numpy(u).float()) for i, u in enumerate(updates)}


POISON = {
    "huge": lambda u, rng: np.full_like(u, 3e38),
    "flipped": lambda u, rng: -50 * u,
    "noise": lambda u, rng: 1e4 * rng.standard_normal(u.shape),
    "small": lambda u, rng: u - 0.3,
}


@pytest.mark.parametrize("poison", POISON)
def test_f_of_m_attackers_stay_within_the_honest_values(poison: str) -> None:
    """Element by element, whatever they send: that is what trimming promises, and the mean not."""
    rng = np.random.default_rng(3)
    updates, packets = attacked(rng, 15, 4)
    attackers = [2, 7, 11, 18]
    for client in attackers:
        update = torch.from_numpy(POISON[poison](updates[client], rng)).float()
        packets[client] = gcext.codec("dense").encode(update)
    good = np.array([u for i, u in enumerate(updates) if i not in attackers]).astype(np.float32)
    low, high = good.min(axis=0), good.max(axis=0)
    for server in (TrimmedMean(4 / 19), Median()):
        out = single(server.aggregate(packets)).numpy()
        assert (low <= out).all() and (out <= high).all()
    out = single(Mean().aggregate(packets)).numpy()
    assert ((low > out) | (out > high)).any()


@pytest.mark.parametrize("method", ["dense", "stc:p=0.2", "topk:p=0.2"])
def test_a_norm_bound_limits_each_client(method: str) -> None:
    rng = np.random.default_rng(4)
    packets, _ = drawn(rng, 30, 10, 400, gcext.codec(method).encode)
    norms = {c: np.linalg.norm(v) for c, v in arrays(packets).items()}
    bound = float(np.median(list(norms.values())))
    clean = single(NormBound(bound).aggregate(packets)).double().numpy()
    scaled = {c: v * min(1, bound / norms[c]) for c, v in arrays(packets).items()}
    assert np.allclose(clean, sum(scaled.values()) / 10, rtol=1e-6, atol=1e-7)
    attacker = sorted(packets)[3]
    for size in (1e3, 1e30):
        poison = gcext.codec(method).encode(dense(packets[attacker]) * -size)
        moved = single(NormBound(bound).aggregate({**packets, attacker: poison})).double().numpy()
        assert np.linalg.norm(moved - clean) <= 2 * bound / 10 * (1 + 1e-6)
    small = {c: gcext.codec(method).encode(dense(p) * 1e-3) for c, p in packets.items()}
    assert torch.equal(single(NormBound(bound).aggregate(small)), single(Mean().aggregate(small)))


@pytest.mark.parametrize("attackers", [0, 1, 4])
def test_without_a_bound_the_round_decides(attackers: int) -> None:
    """The bound stays within three times the longest honest norm, and idle clients do not count."""
    rng = np.random.default_rng(4)
    packets, _ = drawn(rng, 30, 9, 400, gcext.codec("topk:p=0.2").encode)
    norms = {c: float(np.linalg.norm(v)) for c, v in arrays(packets).items()}
    clients = sorted(packets)
    for client in clients[:attackers]:
        packets[client] = gcext.codec("topk:p=0.2").encode(dense(packets[client]) * 1e20)
        norms[client] = float(dense(packets[client]).double().norm())
    idle = {100 + i: gcext.codec("topk:p=0.2").encode(torch.zeros(400)) for i in range(12)}
    bound = 3 * sorted(norms.values())[4]
    assert bound <= 3 * max(norms[c] for c in clients[attackers:]) * (1 + 1e-6)
    sent = packets | idle
    got = single(NormBound().aggregate(sent))
    assert torch.equal(got, single(NormBound(bound).aggregate(sent)))
    assert float(got.double().norm()) <= bound
    assert not single(NormBound().aggregate(idle)).any()
    assert gcext.recipe("topk:combine=normbound").up.receiver().bound == 0  # type: ignore[attr-defined]


def test_bounded_packets_are_packets() -> None:
    """They can be remembered: a projection behind a bound packs them."""
    rng = np.random.default_rng(5)
    for encode in (gcext.codec("stc:p=0.2").encode, gcext.codec("topk:p=0.2").encode, mixed):
        inner = Projection(alpha=0, tau=1)
        server = NormBound(1e-3, inner)
        before = server.state_dict()
        packets, losses = drawn(rng, 9, 5, 100, encode)
        snapshot = server.snapshot()
        server.aggregate(packets, losses)
        for client, packet in packets.items():
            held = inner.history.packet(client)
            assert held.method == packet.method
            assert float(dense(held).double().norm()) == pytest.approx(1e-3, rel=1e-6)
        server.restore(snapshot)
        assert server.state_dict() == before
    huge = gcext.stc(torch.full((4,), 3e38), p=1)
    for sent in (huge, gcext.codec("topk:p=1").encode(dense(huge))):
        inner = Projection()
        assert not single(NormBound(1e-45, inner).aggregate({0: sent}, {0: 1.0})).any()
        assert inner.history.packet(0).k == 0


def test_a_cap_names_the_client() -> None:
    packets = {3: gcext.stc(torch.ones(9), p=0.3), 8: gcext.stc(torch.ones(9), p=0.5)}
    assert torch.equal(single(MaxK(4).aggregate(packets)), single(Mean().aggregate(packets)))
    with pytest.raises(ValueError, match="may hold 3 elements, got 4 from client 8"):
        MaxK(3).aggregate(packets)
    group = gcext.Packet.group(list(packets.values()))
    with pytest.raises(ValueError, match="may hold 5 elements, got 6 from client 1"):
        MaxK(5).aggregate({1: group})


def test_the_median_of_elements_that_few_send_is_zero() -> None:
    """A property to know before a median is combined with top-k."""
    packets = {i: gcext.stc(torch.eye(5)[i % 5], p=0.2) for i in range(10)}
    assert not single(Median().aggregate(packets)).any()
    assert single(Mean().aggregate(packets)).tolist() == pytest.approx([0.2] * 5)


SAME = """
import hashlib, numpy as np, torch, gcext
from gcext.aggregate import Median, NormBound, TrimmedMean
from round_kit import mixed
rng = np.random.default_rng(0)
n, packets = 40_003, {}
for i in range(13):
    packets[i] = mixed(torch.from_numpy(rng.standard_normal(n).astype(np.float32)))
turned = dict(sorted(packets.items(), key=lambda item: item[0] * 7 % 13))
servers = (Median(), TrimmedMean(0.1), TrimmedMean(0.3), NormBound(3.0, Median()))
for threads in range(1, 9):
    torch.set_num_threads(threads)
    digest = hashlib.sha256()
    for server in servers:
        digest.update(server.aggregate(packets if threads % 2 else turned).numpy())
    print(digest.hexdigest())
"""


def test_the_same_bits_at_every_instruction_set_and_number_of_threads() -> None:
    results = at_every_isa(SAME)
    digests = [digest for digests in results.values() for digest in digests]
    assert len(digests) == 8 * len(results) and len(set(digests)) == 1, results
