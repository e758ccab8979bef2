"""Means, rounds that arrive packet by packet, and one result on every machine."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from isa_kit import at_every_isa
from packet_kit import dense, single
from round_kit import arrays, drawn, mixed

import gcext
from gcext.aggregate import (
    Aggregator,
    FetchSGD,
    LastValues,
    MaxK,
    Mean,
    Median,
    Momentum,
    Nesterov,
    NormBound,
    Predicted,
    Projection,
    Round,
    RoundInput,
    SignStep,
    TrimmedMean,
    Vote,
    aggregator_class,
    aggregators,
    register_aggregator,
)


def test_clients_in_any_order() -> None:
    rng = np.random.default_rng(1)
    servers = [Projection(tau=2), Projection(tau=2)]
    for _ in range(3):
        packets, losses = drawn(rng, 20, 9, 200, gcext.codec("stc:p=0.2").encode)
        turned = dict(reversed(packets.items()))
        one, two = servers[0].aggregate(packets, losses), servers[1].aggregate(turned, losses)
        assert torch.equal(single(one), single(two))
        weights = {client: client + 1 for client in packets}
        mean = [single(Mean().aggregate(p, losses, weights=weights)) for p in (packets, turned)]
        assert torch.equal(*mean)


def test_mean() -> None:
    rng = np.random.default_rng(2)
    packets, _ = drawn(rng, 9, 5, 100, mixed)
    vectors = arrays(packets)
    weights = {client: float(rng.integers(1, 9)) for client in packets}
    total = sum(weights.values())
    zeros = np.zeros(100)
    plain = sum((vectors[c] * (1 / 5) for c in sorted(packets)), zeros).astype(np.float32)
    terms = (vectors[c] * (weights[c] / total) for c in sorted(packets))
    weighted = sum(terms, zeros).astype(np.float32)
    assert np.array_equal(single(Mean().aggregate(packets)).numpy(), plain)
    assert np.array_equal(single(Mean().aggregate(packets, weights=weights)).numpy(), weighted)
    one = gcext.aggregate.mean([packets[c] for c in sorted(packets)], list(map(float, range(1, 6))))
    assert single(one).shape == (100,)
    assert Mean().state_dict() == {}


@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 4), (2, 0, 3)])
def test_shapes(shape: Any) -> None:
    packets = {i: gcext.stc(torch.full(shape, float(i + 1)), p=1) for i in range(3)}
    for server in (Mean(), Projection()):
        out = single(server.aggregate(packets, {0: 0.3, 1: 0.2, 2: 0.1}))
        assert out.shape == shape and torch.allclose(out, torch.full(shape, 2.0))


def test_merged_packets_count_with_their_sums() -> None:
    a, b = (gcext.stc(torch.tensor(t), p=1) for t in ([1.0, 2.0, 0.0], [0.0, 3.0, -4.0]))
    merged = gcext.Packet.merge([a, b])
    sums = dense(a) + dense(b)
    assert torch.equal(single(gcext.combine([merged], [1.0])), sums)
    assert gcext.gram([merged])[0, 0] == (sums.double() ** 2).sum()


def test_bad_arguments_are_named() -> None:
    a, b = gcext.stc(torch.ones(3), p=1), gcext.stc(torch.ones(1, 3), p=1)
    group = gcext.Packet.group([a])
    for call, message in (
        (lambda: Projection(alpha=1.5), "alpha must be in \\[0, 1\\], got 1.5"),
        (lambda: Projection(alpha=math.nan), "alpha must be in"),
        (lambda: Projection(tau=-1), "tau must be a whole number from 0 up, got -1"),
        (lambda: Projection(tau=1.0), "tau must be a whole number"),  # type: ignore[arg-type]
        (lambda: gcext.gram([]), "gram: needs at least one packet"),
        (lambda: gcext.gram([a, b]), r"gram: packets must have one shape, got \(3,\) and \(1, 3\)"),
        (lambda: gcext.gram([group, a]), "one shape"),
        (lambda: gcext.combine([a, b], [1, 1]), "combine: packets must have one shape"),
        (lambda: gcext.combine([a], [1, 1]), "weight for every packet, got 2 for 1"),
        (lambda: gcext.combine([a], [math.inf]), "finite, got inf for packet 0"),
        (lambda: gcext.aggregate.mean([a, a], [1]), "weight for every packet, got 1 for 2"),
        (lambda: gcext.aggregate.mean([a, a], [1, 0]), "positive and finite, got 0.0 for packet 1"),
        (lambda: gcext.aggregate.mean([a], [math.nan]), "positive and finite, got nan"),
        (lambda: Mean().aggregate({}), "at least one client's packet"),
        (
            lambda: Mean().aggregate({4: a}, weights={}),
            "weight for every client, got none for client 4",
        ),
        (
            lambda: Mean().aggregate({4: a}, weights={4: -1}),
            "finite, got -1 for client 4",
        ),
        (lambda: Mean().load_state_dict({"round": 1}), "Mean: its state is empty"),
        (lambda: Momentum(beta=1.0), r"Momentum: beta must be in \[0, 1\), got 1.0"),
        (lambda: Momentum(beta=-0.1), "beta must be in"),
        (lambda: Momentum(beta=math.nan), "beta must be in"),
        (lambda: Momentum().load_state_dict({}), "Momentum: its state holds inner and velocity"),
        (
            lambda: Momentum().load_state_dict(
                {"inner": {}, "velocity": [torch.zeros(2).double()]}
            ),
            "a list of float32 tensors",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            call()


SAME = """
import hashlib, numpy as np, torch, gcext
from gcext._native import ops
rng = np.random.default_rng(0)
n = 150_001
packets = []
for i in range(9):
    name = ["stc:p=0.1", "stc:p=0.004", "topk:p=0.05", "dense"][i % 4]
    tensor = torch.from_numpy(rng.standard_normal(n).astype(np.float32))
    packets.append(gcext.codec(name).encode(tensor))
for threads in (1, 2, 7):
    torch.set_num_threads(threads)
    digest = hashlib.sha256()
    digest.update(gcext.combine(packets, [0.1] * 9).numpy())
    digest.update(gcext.combine(packets[:1], [0.3]).numpy())
    digest.update(gcext.gram(packets).numpy())
    target = torch.linspace(-1, 1, n)
    for packet in packets:
        packet.add_to_(target, 0.7)
    digest.update(target.numpy())
    server = gcext.aggregate.Projection(tau=2)
    for t in range(3):
        now = {3 * t + i: packets[3 * t + i] for i in range(3)}
        digest.update(server.aggregate(now, {c: float(c) for c in now}).numpy())
    print(digest.hexdigest())
"""


def test_the_same_bits_at_every_instruction_set_and_number_of_threads() -> None:
    results = at_every_isa(SAME)
    digests = [digest for digests in results.values() for digest in digests]
    assert len(digests) == 3 * len(results) and len(set(digests)) == 1, results


SERVERS: dict[str, Callable[[], Aggregator]] = {
    "mean": Mean,
    "projection": lambda: Projection(tau=2),
    "trimmed": lambda: TrimmedMean(0.2),
    "median": Median,
    "bound": lambda: NormBound(2.0, MaxK(400, Projection())),
    "vote": Vote,
    "momentum": lambda: Momentum(NormBound(2.0), beta=0.5),
    "nesterov": lambda: Nesterov(NormBound(2.0), beta=0.5, lr=0.3),
    "sign": lambda: SignStep(Median(), lr=0.1),
    "last": LastValues,
    "predicted": lambda: Predicted(2, NormBound(2.0)),
    "fetchsgd": lambda: FetchSGD(k=9),
}
CODECS = {"vote": "stc:p=0.2", "fetchsgd": "sketch:rows=3,p=0.5"}  # mixed for others


@pytest.mark.parametrize("name", SERVERS)
def test_packets_that_arrive_one_by_one_in_any_order(name: str) -> None:
    rng = np.random.default_rng(5)
    encode = gcext.codec(CODECS[name]).encode if name in CODECS else mixed
    rounds = [drawn(rng, 9, 4, 200, encode) for _ in range(3)]
    weights = {client: client + 1.0 for client in range(9)}
    for number, order in enumerate(itertools.permutations(range(4))):
        whole, parts = SERVERS[name](), SERVERS[name]()
        for packets, losses in rounds:
            some = {client: weights[client] for client in packets} if whole.uses_weights else None
            expected = single(whole.aggregate(packets, losses, weights=some))
            arriving = Round(parts, expect=(200,) if number % 2 else None)
            clients = list(packets)
            for i in order:
                c = clients[i]
                sent = packets[c].to_bytes() if number % 3 else packets[c]
                weight = some[c] if some else None
                assert arriving.add(c, sent, losses[c], weight)
                assert not arriving.add(c, packets[c], losses[c], weight)  # sent again
            assert len(arriving) == 4
            assert torch.equal(single(arriving.finish()), expected)
        assert equal_states(parts.state_dict(), whole.state_dict())


def equal_states(one: Any, other: Any) -> bool:
    """Deep equality, tensors bit for bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one.view(torch.int32), other.view(torch.int32))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal_states(one[k], other[k]) for k in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(equal_states, one, other))
    return one == other


def test_what_a_round_refuses_leaves_it_as_it_was() -> None:
    a, b = gcext.stc(torch.ones(3), p=1), gcext.stc(torch.full((3,), 2.0), p=1)
    other, whole = gcext.stc(torch.ones(1, 3), p=1), gcext.codec("dense").encode(torch.ones(3))
    inner = Projection()
    server = MaxK(3, inner)
    arriving = Round(server, expect=(3,), number=5)
    arriving.add(1, a, loss=0.5)
    for call, message in (
        (lambda: arriving.add(1, b, loss=0.5), "once a round, got something else from client 1"),
        (lambda: arriving.add(1, a, loss=0.6), "something else from client 1"),
        (lambda: arriving.add(1, whole, loss=0.5), "something else from client 1"),
        (lambda: arriving.add(2, other, loss=0.5), r"shape \(3,\), got \(1, 3\) from client 2"),
        (lambda: arriving.add(2, other.to_bytes(), loss=0.5), "as the caller expects"),
        (lambda: arriving.add(2, b"no packet", loss=0.5), "message"),
        (lambda: arriving.add(2, b), "loss for every client, got none for client 2"),
        (lambda: arriving.add(2, b, loss=math.nan), "finite, got nan for client 2"),
        (lambda: Round(MaxK(2)).add(4, a), "got 3 from client 4"),
        (lambda: Round(Vote()).add(4, whole), "got dense from client 4"),
        (lambda: Round(Mean()).add(4, a, weight=0.0), "got 0.0 for client 4"),
        (lambda: Round(Mean()).finish(), "at least one client's packet"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
        assert len(arriving) == 1
    loose = Round(Mean())
    loose.add(1, a)
    with pytest.raises(ValueError, match="one shape"):
        loose.add(2, other)
    assert torch.equal(single(arriving.finish()), torch.ones(3)) and inner.history.last_round == 5
    for again in (arriving.finish, lambda: arriving.add(2, b, loss=1.0)):
        with pytest.raises(RuntimeError, match="the round is finished"):
            again()


@pytest.mark.parametrize(
    "server",
    [Projection(), TrimmedMean(0.1), Median(), Vote(), MaxK(9, Median()), NormBound(1.0, Vote())],
    ids=repr,
)
def test_weights_are_refused_where_they_are_not_used(server: Aggregator) -> None:
    packets = {c: gcext.stc(torch.tensor([1.0, 2.0, 0.0]), p=0.5) for c in (4, 7)}
    losses = {4: 0.1, 7: 0.2}
    before = server.state_dict()
    name = type(server).__name__
    with pytest.raises(ValueError, match=f"{name}: takes no weights, got 2. Leave them out"):
        server.aggregate(packets, losses, weights={4: 1.0, 7: 2.0})
    with pytest.raises(ValueError, match="takes no weights, got 0"):
        server.aggregate(packets, losses, weights={})
    arriving = Round(server)
    with pytest.raises(ValueError, match=r"takes no weights, got 2\.0 for client 4\. Leave it out"):
        arriving.add(4, packets[4], loss=0.1, weight=2.0)
    assert len(arriving) == 0 and server.state_dict() == before


@pytest.mark.parametrize("wrapper", [lambda i: MaxK(99, i), lambda i: NormBound(1e9, i), Momentum])
def test_wrappers_need_and_take_what_the_inner_aggregator_does(
    wrapper: Callable[[Aggregator], Aggregator],
) -> None:
    packets = {c: gcext.stc(torch.full((3,), float(c)), p=1) for c in (1, 3)}
    out = single(wrapper(Mean()).aggregate(packets, weights={1: 3.0, 3: 1.0}))
    assert torch.equal(out, torch.full((3,), 1.5))
    with pytest.raises(ValueError, match="needs a loss for every client, got none for client 1"):
        wrapper(Projection()).aggregate(packets, {3: 1.0})


def listed(result: torch.Tensor | list[torch.Tensor]) -> list[torch.Tensor]:
    return result if isinstance(result, list) else [result]


@pytest.mark.parametrize("groups", [False, True])
@pytest.mark.parametrize("inner", [Mean, lambda: Projection(alpha=0.2, tau=2), lambda: None])
def test_momentum_against_a_plain_loop(
    inner: Callable[[], Aggregator | None], groups: bool
) -> None:
    rng = np.random.default_rng(12)
    ours, plain = Momentum(inner(), beta=0.7), inner() or Mean()
    velocity = [torch.zeros(150), torch.zeros(10, 15)] if groups else [torch.zeros(300)]
    for _ in range(5):
        packets, losses = drawn(rng, 9, 4, 300, mixed)
        if groups:
            split = {c: (dense(p)[:150], dense(p)[150:].view(10, 15)) for c, p in packets.items()}
            packets = {c: gcext.Packet.group([mixed(t) for t in ts]) for c, ts in split.items()}
        update = plain.aggregate(packets, losses)
        velocity = [0.7 * v + u for v, u in zip(velocity, listed(update), strict=True)]
        got = ours.aggregate(packets, losses)
        assert isinstance(got, list) == groups and equal_states(listed(got), velocity)
        for part in listed(got):
            part.zero_()  # what was returned is the caller's


def test_momentum_restores_and_resumes() -> None:
    """By a snapshot over a round, and by a state in another process's aggregator."""
    rng = np.random.default_rng(13)
    server = Momentum(Projection(tau=2), beta=0.5)
    for _ in range(3):
        server.aggregate(*drawn(rng, 9, 4, 100, mixed))
    before, snapshot = server.state_dict(), server.snapshot()
    packets, losses = drawn(rng, 9, 4, 100, mixed)
    first, after = single(server.aggregate(packets, losses)), server.state_dict()
    server.restore(snapshot)
    assert equal_states(server.state_dict(), before) and not equal_states(before, after)
    other = Momentum(Projection(tau=2), beta=0.5)
    other.load_state_dict(before)
    for each in (server, other):
        assert torch.equal(single(each.aggregate(packets, losses)), first)
        assert equal_states(each.state_dict(), after)
    shape = {1: gcext.stc(torch.ones(99), p=1)}
    with pytest.raises(ValueError, match=r"shape \(\(100,\),\), got \(99,\) from client 1"):
        server.aggregate(shape, {1: 1.0})
    with pytest.raises(ValueError, match="History"):  # the inner state does not fit
        server.load_state_dict({"inner": {}, "velocity": []})
    assert equal_states(server.state_dict(), after)


def test_aggregators_by_name() -> None:
    names = {"mean", "projection", "trimmed", "median", "vote", "normbound", "maxk"}
    assert set(aggregators()) >= names
    assert aggregator_class("trimmed") is TrimmedMean
    with pytest.raises(ValueError, match=r"must be one of mean, .*, got 'modus'"):
        aggregator_class("modus")
    for name in ("mean", "clipped mean", "", "a=b"):
        with pytest.raises(ValueError, match=f"must be a new identifier, got '{name}'"):
            register_aggregator(name, Mean)


def test_a_custom_aggregator(monkeypatch: pytest.MonkeyPatch) -> None:
    """One method, for single tensors and groups, and a name."""

    class ClippedMean(Aggregator):
        def __init__(self, most: float = 1.0) -> None:
            self.most = most

        def _aggregate(self, given: RoundInput) -> torch.Tensor | list[torch.Tensor]:
            def clipped(packets: Sequence[gcext.Packet]) -> torch.Tensor:
                values = torch.stack([dense(p) for p in packets])
                return values.clamp(-self.most, self.most).mean(0)

            return gcext.aggregate.per_tensor(clipped, given.packets)

    monkeypatch.setattr(gcext.aggregate._registry, "_CLASSES", {})
    register_aggregator("clipped", ClippedMean)
    server = aggregator_class("clipped")(most=2.0)  # type: ignore[call-arg]
    assert repr(server) == "ClippedMean(most=2.0)"
    packets = {i: gcext.stc(torch.full((2, 3), v), p=1) for i, v in enumerate((1.0, 1e9))}
    assert torch.equal(single(server.aggregate(packets)), torch.full((2, 3), 1.5))
    groups = {c: gcext.Packet.group([p, p]) for c, p in packets.items()}
    assert [each.shape for each in server.aggregate(groups)] == [(2, 3), (2, 3)]
    with pytest.raises(ValueError, match="ClippedMean: takes no weights"):
        server.aggregate(packets, weights={0: 1.0, 1: 1.0})


def test_reprs() -> None:
    history = gcext.History()
    arriving = Round(Median())
    arriving.add(1, gcext.stc(torch.ones(3), p=1))
    for made, text in (
        (Mean(), "Mean()"),
        (Projection(), "Projection(alpha=0.1, tau=1)"),
        (Projection(tau=2, order="fedfv"), "Projection(alpha=0.1, tau=2, order='fedfv')"),
        (TrimmedMean(0.1), "TrimmedMean(0.1)"),
        (Vote(), "Vote(scale=1.0)"),
        (NormBound(2), "NormBound(bound=2.0, inner=Mean())"),
        (NormBound(inner=Median()), "NormBound(bound=0.0, inner=Median())"),
        (MaxK(3, Momentum(Median())), "MaxK(3, Momentum(Median(), beta=0.9))"),
        (arriving, "Round(1 packet for Median())"),
        (history, "History(0 clients)"),
    ):
        assert repr(made) == text
    history.put(4, {c: gcext.stc(torch.ones(3), p=1) for c in range(12)})
    assert repr(history) == "History(12 clients, last round 4)"
    history.close()
    assert repr(history) == "History(closed)"
