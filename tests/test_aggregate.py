"""Mean and Projection against plain float64 loops, and one result on every machine."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
import torch
from isa_kit import at_every_isa

import gcext
from gcext._project import project
from gcext.aggregate import Mean, Projection


class Loops:
    """Algorithms 2 and 3 (FedFV; Wang et al. 2021) on dense float64 vectors, line by line."""

    def __init__(self, alpha, tau):
        self.alpha, self.tau, self.t = alpha, tau, 0
        self.history = {}  # client -> (round, update)
        self.internal = self.external = 0  # conflicts met

    def aggregate(self, updates, losses):
        self.t += 1
        for client, g in updates.items():
            self.history[client] = (self.t, g)
        order = sorted(updates, key=lambda c: (losses[c], c))
        m = len(order)
        keep = order[m - math.floor(self.alpha * m) :]
        changed = []
        for k in order:
            c = updates[k].copy()
            for i in order:
                g = updates[i]
                if k not in keep and i != k and c @ g < 0 and g @ g > 0:
                    c -= (c @ g) / (g @ g) * g
                    self.internal += 1
            changed.append(c)
        mean = sum(changed) / m
        for r in range(self.t - self.tau, self.t):
            held = [g for client, (t, g) in sorted(self.history.items()) if t == r]
            h = sum((g for g in held if mean @ g < 0), np.zeros_like(mean))
            if mean @ h < 0:
                mean = mean - (mean @ h) / (h @ h) * h
                self.external += 1
        length = np.linalg.norm(mean)
        plain = np.linalg.norm(sum(updates.values()) / m)
        return mean * (plain / length) if length > 0 else np.zeros_like(mean)


def drawn(rng, clients, m, numel, encode):
    """A round's packets by client and their losses; the clients pull in a few common directions."""
    pulls = np.random.default_rng(7).standard_normal((3, numel)) * 1.5
    packets, losses = {}, {}
    for client in rng.choice(clients, m, replace=False).tolist():
        update = rng.standard_normal(numel) + pulls[client % 3] * (-1) ** client
        packets[client] = encode(torch.from_numpy(update).float())
        losses[client] = float(rng.integers(0, 4))  # with ties
    return packets, losses


def dense(packets):
    return {client: packet.to_dense().double().numpy() for client, packet in packets.items()}


def mixed(tensor):
    """A method by the first element's sign and size, all of one shape."""
    names = ["stc:p=0.2", "topk:p=0.3", "dense"]
    return gcext.codec(names[int(abs(tensor[0]) * 10) % 3]).encode(tensor)


@pytest.mark.parametrize("alpha", [0, 0.1, 0.5, 1])
@pytest.mark.parametrize("tau", [0, 1, 2, 3])
@pytest.mark.parametrize("method", ["stc:p=0.2", "dense", "mixed"])
def test_projection_against_loops(alpha, tau, method):
    rng = np.random.default_rng(int(100 * alpha) + tau)
    encode = mixed if method == "mixed" else gcext.codec(method).encode
    ours, loops = Projection(alpha, tau), Loops(alpha, tau)
    for _ in range(6):
        packets, losses = drawn(rng, 12, 6, 300, encode)
        got = ours.aggregate(packets, losses)
        expected = loops.aggregate(dense(packets), losses)
        assert got.dtype == torch.float32 and got.shape == (300,)
        off = np.linalg.norm(got.double().numpy() - expected)
        assert off <= 1e-6 * np.linalg.norm(expected)
    assert (loops.internal > 0) == (alpha < 1) and (loops.external > 0) == (tau > 0)


def test_rounds_without_packets_hold_nothing():
    """Numbers of rounds may jump, and a client drawn again counts as of now."""
    rng = np.random.default_rng(4)
    a, losses = drawn(rng, 4, 4, 50, gcext.codec("dense").encode)
    b = {client: gcext.codec("dense").encode(-p.to_dense()) for client, p in a.items()}
    fresh = Projection(tau=1).aggregate(b, losses)
    other = {client + 10: packet for client, packet in b.items()}
    other_losses = {client + 10: loss for client, loss in losses.items()}
    for round, packets, lost, same in (
        (3, b, losses, True),
        (3, other, other_losses, False),  # others, a round later: their conflict counts
        (4, other, other_losses, True),
    ):
        server = Projection(tau=1)
        server.aggregate(a, losses, round=2)
        assert torch.equal(server.aggregate(packets, lost, round=round), fresh) == same


def test_clients_in_any_order():
    rng = np.random.default_rng(1)
    servers = [Projection(tau=2), Projection(tau=2)]
    for _ in range(3):
        packets, losses = drawn(rng, 20, 9, 200, gcext.codec("stc:p=0.2").encode)
        turned = dict(reversed(packets.items()))
        one, two = servers[0].aggregate(packets, losses), servers[1].aggregate(turned, losses)
        assert torch.equal(one, two)
        weights = {client: client + 1 for client in packets}
        mean = [Mean().aggregate(p, losses, weights=weights) for p in (packets, turned)]
        assert torch.equal(*mean)


def test_mean():
    rng = np.random.default_rng(2)
    packets, _ = drawn(rng, 9, 5, 100, mixed)
    vectors = dense(packets)
    weights = {client: float(rng.integers(1, 9)) for client in packets}
    total = sum(weights.values())
    plain = sum(vectors[c] * (1 / 5) for c in sorted(packets)).astype(np.float32)
    weighted = sum(vectors[c] * (weights[c] / total) for c in sorted(packets)).astype(np.float32)
    assert np.array_equal(Mean().aggregate(packets).numpy(), plain)
    assert np.array_equal(Mean().aggregate(packets, weights=weights).numpy(), weighted)
    one = gcext.aggregate.mean([packets[c] for c in sorted(packets)], list(map(float, range(1, 6))))
    assert one.shape == (100,)
    assert Mean().state_dict() == {}


@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 4), (2, 0, 3)])
def test_shapes(shape):
    packets = {i: gcext.stc(torch.full(shape, float(i + 1)), p=1) for i in range(3)}
    for server in (Mean(), Projection()):
        out = server.aggregate(packets, {0: 0.3, 1: 0.2, 2: 0.1})
        assert out.shape == shape and torch.allclose(out, torch.full(shape, 2.0))


def test_updates_that_cancel_or_are_zero_give_zero():
    up = gcext.stc(torch.tensor([0.1, 0.7, -0.3]), p=1)
    for factor in (-1.0, -0.3, -7.1):
        down = gcext.codec("dense").encode(up.to_dense() * factor)
        out = Projection(alpha=0).aggregate({0: up, 1: down}, {0: 1.0, 1: 2.0})
        assert not out.any()
    zero = gcext.stc(torch.zeros(3), p=1)
    server = Projection(alpha=0)
    assert not server.aggregate({0: zero, 1: zero}, {0: 1.0, 1: 2.0}).any()
    out = server.aggregate({2: up, 3: zero}, {2: 1.0, 3: 2.0})
    assert torch.allclose(out, up.to_dense() / 2)


def test_groups_are_many_tensors_under_one_projection():
    """A group projects as the one long vector that it is."""
    rng = np.random.default_rng(3)
    encode = gcext.codec("dense").encode
    flat, grouped = Projection(alpha=0, tau=1), Projection(alpha=0, tau=1)
    for round in range(3):
        tensors = {
            5 * round + i: torch.from_numpy(rng.standard_normal(60)).float() for i in range(5)
        }
        losses = {client: float(client) for client in tensors}
        whole = {client: encode(t) for client, t in tensors.items()}
        parts = {
            client: gcext.Packet.group([encode(t[:20].view(4, 5)), encode(t[20:])])
            for client, t in tensors.items()
        }
        expected = flat.aggregate(whole, losses)
        first, rest = grouped.aggregate(parts, losses)
        assert first.shape == (4, 5)
        assert torch.allclose(torch.cat([first.flatten(), rest]), expected, atol=1e-6)
        sums = gcext.gram(list(parts.values()))
        assert torch.allclose(sums, gcext.gram(list(whole.values())))
        mean = gcext.aggregate.mean(list(parts.values()))
        assert torch.equal(mean[1], gcext.aggregate.mean(list(whole.values()))[20:])


def test_merged_packets_count_with_their_sums():
    a, b = (gcext.stc(torch.tensor(t), p=1) for t in ([1.0, 2.0, 0.0], [0.0, 3.0, -4.0]))
    merged = gcext.Packet.merge([a, b])
    sums = a.to_dense() + b.to_dense()
    assert torch.equal(gcext.combine([merged], [1.0]), sums)
    assert gcext.gram([merged])[0, 0] == (sums.double() ** 2).sum()


def test_state_round_trips_through_a_file():
    rng = np.random.default_rng(8)
    server = Projection(tau=2)
    for _ in range(4):
        server.aggregate(*drawn(rng, 30, 6, 400, mixed))
    state = server.state_dict()
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    assert loaded == state and state["round"] == 4 and sorted(state["history"]) == [3, 4]
    other = Projection(tau=2)
    other.load_state_dict(loaded)
    for _ in range(3):
        packets, losses = drawn(rng, 30, 6, 400, mixed)
        assert torch.equal(server.aggregate(packets, losses), other.aggregate(packets, losses))
    assert server.state_dict() == other.state_dict()
    assert state == loaded  # what was handed out stays as it was
    empty = Projection()
    empty.load_state_dict(Projection().state_dict())
    assert empty.state_dict() == {"tau": 1, "round": None, "history": {}}


def test_memory_is_that_of_tau_rounds():
    rng = np.random.default_rng(9)
    server = Projection(tau=2)
    for _ in range(9):
        server.aggregate(*drawn(rng, 100, 5, 40, mixed))
    assert sum(map(len, server.state_dict()["history"].values())) <= 10
    server = Projection(tau=0)
    server.aggregate(*drawn(rng, 100, 5, 40, mixed))
    assert server.state_dict()["history"] == {}


def test_snapshot_goes_back_over_a_round():
    rng = np.random.default_rng(11)
    server = Projection(alpha=0.2, tau=2)
    for _ in range(3):
        server.aggregate(*drawn(rng, 5, 5, 40, mixed))
    before, snapshot = server.state_dict(), server.snapshot()
    packets, losses = drawn(rng, 5, 5, 40, mixed)
    first = server.aggregate(packets, losses, round=4)
    after = server.state_dict()
    assert after != before
    server.restore(snapshot)
    assert server.state_dict() == before
    assert torch.equal(server.aggregate(packets, losses, round=4), first)
    assert server.state_dict() == after
    other = Mean()
    other.restore(other.snapshot())


def test_what_is_refused_leaves_the_state():
    rng = np.random.default_rng(10)
    packets, losses = drawn(rng, 5, 5, 40, mixed)
    server = Projection()
    server.aggregate(packets, losses, round=7)
    before = server.state_dict()
    other = {**packets, 3: gcext.stc(torch.ones(2, 20), p=1)}
    strange = {9: gcext.stc(torch.ones(41), p=1)}
    missing = {client: loss for client, loss in losses.items() if client != 3}
    for call, message in (
        (lambda: server.aggregate(packets, None), "Projection: needs the clients' losses"),
        (
            lambda: server.aggregate(packets, missing),
            "loss for every client, got none for client 3",
        ),
        (lambda: server.aggregate(packets, {**losses, 2: math.nan}), "got nan for client 2"),
        (lambda: server.aggregate(packets, {**losses, 2: math.inf}), "got inf for client 2"),
        (lambda: server.aggregate({}, {}), "at least one client's packet"),
        (lambda: server.aggregate(packets, losses, round=7), "rounds must rise, got 7 after 7"),
        (
            lambda: server.aggregate(other, losses),
            r"\(40,\) from client 0 and \(2, 20\) from client 3",
        ),
        (lambda: server.aggregate(strange, {9: 1.0}), r"one shape, got \(41,\) and \(40,\)"),
        (lambda: server.load_state_dict({**before, "tau": 2}), "tau must be 1, got 2"),
        (lambda: server.load_state_dict({"round": 3}), r"got \['round'\]"),
        (lambda: server.load_state_dict({**before, "history": {7: {1: b"no packet"}}}), "message"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
        assert server.state_dict() == before


def test_bad_arguments_are_named():
    a, b = gcext.stc(torch.ones(3), p=1), gcext.stc(torch.ones(1, 3), p=1)
    group = gcext.Packet.group([a])
    for call, message in (
        (lambda: Projection(alpha=1.5), "alpha must be in \\[0, 1\\], got 1.5"),
        (lambda: Projection(alpha=math.nan), "alpha must be in"),
        (lambda: Projection(tau=-1), "tau must be a whole number from 0 up, got -1"),
        (lambda: Projection(tau=1.0), "tau must be a whole number"),
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
        (lambda: Mean().aggregate({4: a}, weights={4: -1}), "positive, got -1 for client 4"),
        (lambda: Mean().load_state_dict({"round": 1}), "Mean: its state is empty"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize(
    ("alpha", "m", "keep"),
    [(0.1, 20, 2), (0.29, 100, 28), (0.5, 3, 1), (0.34, 2, 0), (0, 4, 0), (0.99, 4, 3), (1, 4, 4)],
)
def test_the_floor_of_the_share_keeps_its_update(alpha, m, keep):
    """0.29*100 is 28.999.. in binary, so 28. Counted where the last conflicts with all others."""
    dots = np.diag(np.full(m, 128.0))
    dots[-1, :-1] = dots[:-1, -1] = -1.0
    c = project(dots, m, alpha, [])
    # A free client takes 1/128 of the last update; the last, where free, 1/128 of every other.
    scale = c[0] / (1 if keep else 1 + 1 / 128)
    free = (c[-1] / scale - 1) * 128
    assert np.allclose(c[:-1], c[0]) and free == pytest.approx(m - max(keep, 1))


SAME = """
import hashlib, numpy as np, torch, gcext
from gcext import _server_ops as ops
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


def test_the_same_bits_at_every_instruction_set_and_number_of_threads():
    results = at_every_isa(SAME)
    digests = [digest for digests in results.values() for digest in digests]
    assert len(digests) == 3 * len(results) and len(set(digests)) == 1, results
