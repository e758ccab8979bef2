"""The projection against plain float64 loops, and what it remembers."""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from packet_kit import dense, single
from project_oracle import Loops
from round_kit import arrays, drawn, mixed

import gcext
from gcext.aggregate import Projection
from gcext.aggregate._project import project


@pytest.mark.parametrize("alpha", [0, 0.1, 0.5, 1])
@pytest.mark.parametrize("tau", [0, 1, 2, 3])
@pytest.mark.parametrize("method", ["stc:p=0.2", "dense", "mixed"])
@pytest.mark.parametrize("path", [None, "history"])
def test_projection_against_loops(
    tmp_path: Path, alpha: float, tau: int, method: str, path: str | None
) -> None:
    rng = np.random.default_rng(int(100 * alpha) + tau)
    encode = mixed if method == "mixed" else gcext.codec(method).encode
    history = gcext.History(path and tmp_path / path)
    ours, loops = Projection(alpha, tau, history), Loops(alpha, tau)
    for _ in range(6):
        packets, losses = drawn(rng, 12, 6, 300, encode)
        got = single(ours.aggregate(packets, losses))
        expected = loops.aggregate(arrays(packets), losses)
        assert got.dtype == torch.float32 and got.shape == (300,)
        off = np.linalg.norm(got.double().numpy() - expected)
        assert off <= 1e-6 * np.linalg.norm(expected)
        assert {c: history.round_of(c) for c in loops.history} == {
            c: t for c, (t, _) in loops.history.items()
        }
    history.close()
    assert (loops.internal > 0) == (alpha < 1) and (loops.external > 0) == (tau > 0)


@pytest.mark.parametrize("alpha", [0, 0.1, 0.5])
@pytest.mark.parametrize("tau", [0, 1, 3])
def test_the_order_of_fedfv(alpha: float, tau: int) -> None:
    rng = np.random.default_rng(int(100 * alpha) + tau)
    ours, loops = Projection(alpha, tau, order="fedfv"), Loops(alpha, tau, "fedfv")
    paper, differ = Projection(alpha, tau), 0
    for _ in range(6):
        packets, losses = drawn(rng, 12, 6, 300, gcext.codec("stc:p=0.2").encode)
        got = single(ours.aggregate(packets, losses)).double().numpy()
        expected = loops.aggregate(arrays(packets), losses)
        assert np.linalg.norm(got - expected) <= 1e-6 * np.linalg.norm(expected)
        differ += not np.array_equal(got, single(paper.aggregate(packets, losses)).double().numpy())
    assert (differ > 0) == (tau > 0 or alpha == 0.1)
    with pytest.raises(ValueError, match="order must be paper or fedfv, got 'none'"):
        Projection(order="none")  # type: ignore[arg-type]


def test_rounds_without_packets_hold_nothing() -> None:
    """Numbers of rounds may jump, and a client drawn again counts as of now."""
    rng = np.random.default_rng(4)
    a, losses = drawn(rng, 4, 4, 50, gcext.codec("dense").encode)
    b = {client: gcext.codec("dense").encode(-dense(p)) for client, p in a.items()}
    fresh = single(Projection(tau=1).aggregate(b, losses))
    other = {client + 10: packet for client, packet in b.items()}
    other_losses = {client + 10: loss for client, loss in losses.items()}
    for round, packets, lost, same in (
        (3, b, losses, True),
        (3, other, other_losses, False),  # others, a round later: their conflict counts
        (4, other, other_losses, True),
    ):
        server = Projection(tau=1)
        server.aggregate(a, losses, round=2)
        assert torch.equal(single(server.aggregate(packets, lost, round=round)), fresh) == same


def test_updates_that_cancel_or_are_zero_give_zero() -> None:
    up = gcext.stc(torch.tensor([0.1, 0.7, -0.3]), p=1)
    for factor in (-1.0, -0.3, -7.1):
        down = gcext.codec("dense").encode(dense(up) * factor)
        out = single(Projection(alpha=0).aggregate({0: up, 1: down}, {0: 1.0, 1: 2.0}))
        assert not out.any()
    zero = gcext.stc(torch.zeros(3), p=1)
    server = Projection(alpha=0)
    assert not single(server.aggregate({0: zero, 1: zero}, {0: 1.0, 1: 2.0})).any()
    out = single(server.aggregate({2: up, 3: zero}, {2: 1.0, 3: 2.0}))
    assert torch.allclose(out, dense(up) / 2)


def test_groups_are_many_tensors_under_one_projection() -> None:
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
        expected = single(flat.aggregate(whole, losses))
        first, rest = grouped.aggregate(parts, losses)
        assert first.shape == (4, 5)
        assert torch.allclose(torch.cat([first.flatten(), rest]), expected, atol=1e-6)
        sums = gcext.gram(list(parts.values()))
        assert torch.allclose(sums, gcext.gram(list(whole.values())))
        mean = gcext.aggregate.mean(list(parts.values()))
        assert torch.equal(mean[1], single(gcext.aggregate.mean(list(whole.values())))[20:])


@pytest.mark.parametrize(
    ("alpha", "m", "keep"),
    [(0.1, 20, 2), (0.29, 100, 28), (0.5, 3, 1), (0.34, 2, 0), (0, 4, 0), (0.99, 4, 3), (1, 4, 4)],
)
def test_the_number_of_kept_updates_is_rounded_down(alpha: float, m: int, keep: int) -> None:
    """0.29*100 is 28.999.. in binary, so 28. Counted where the last conflicts with all others."""
    dots = np.diag(np.full(m, 128.0))
    dots[-1, :-1] = dots[:-1, -1] = -1.0
    c = project(dots, m, alpha, [])
    # A free client takes 1/128 of the last update; the last, where free, 1/128 of every other.
    scale = c[0] / (1 if keep else 1 + 1 / 128)
    free = (c[-1] / scale - 1) * 128
    assert np.allclose(c[:-1], c[0]) and free == pytest.approx(m - max(keep, 1))


@pytest.mark.parametrize("path", [None, "history"])
def test_state_round_trips_through_a_file(tmp_path: Path, path: str | None) -> None:
    rng = np.random.default_rng(8)
    server = Projection(tau=2, history=gcext.History(path and tmp_path / path))
    for _ in range(4):
        server.aggregate(*drawn(rng, 30, 6, 400, mixed))
    state = server.state_dict()
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    assert loaded == state and state["round"] == 4
    rounds = [drawn(rng, 30, 6, 400, mixed) for _ in range(3)]
    expected = [single(server.aggregate(*each)) for each in rounds]
    after = server.state_dict()
    server.history.close()
    other = Projection(tau=2, history=gcext.History(path and tmp_path / path))
    other.load_state_dict(loaded)  # a file has gone on meanwhile
    assert all(map(torch.equal, expected, [single(other.aggregate(*each)) for each in rounds]))
    assert other.state_dict() == after
    other.history.close()
    assert state == loaded  # what was handed out stays as it was


def test_only_the_window_is_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(9)
    server = Projection(tau=2)
    unpacked: list[int] = []
    packet = gcext.History.packet

    def spy(self: gcext.History, client: int, device: torch.device) -> gcext.Packet:
        unpacked.append(client)
        return packet(self, client, device)

    monkeypatch.setattr(gcext.History, "packet", spy)
    for round in range(9):
        packets, losses = drawn(rng, 100, 5, 40, mixed)
        unpacked.clear()
        server.aggregate(packets, losses)
        assert len(unpacked) <= 5 * min(round, 2) and not packets.keys() & set(unpacked)
        assert (round < 2) or unpacked
    assert len(server.history) > 10


def test_snapshot_goes_back_over_a_round() -> None:
    rng = np.random.default_rng(11)
    server = Projection(alpha=0.2, tau=2)
    for _ in range(3):
        server.aggregate(*drawn(rng, 5, 5, 40, mixed))
    before, snapshot = server.state_dict(), server.snapshot()
    packets, losses = drawn(rng, 5, 5, 40, mixed)
    first = single(server.aggregate(packets, losses, round=4))
    after = server.state_dict()
    assert after != before
    server.restore(snapshot)
    assert server.state_dict() == before
    assert torch.equal(single(server.aggregate(packets, losses, round=4)), first)
    assert server.state_dict() == after


def test_what_is_refused_leaves_the_state() -> None:
    rng = np.random.default_rng(10)
    packets, losses = drawn(rng, 5, 5, 40, mixed)
    server = Projection()
    server.aggregate(packets, losses, round=7)
    before = server.state_dict()
    other = {**packets, 3: gcext.stc(torch.ones(2, 20), p=1)}
    strange = {9: gcext.stc(torch.ones(41), p=1)}
    missing = {client: loss for client, loss in losses.items() if client != 3}
    for call, message in (
        (lambda: server.aggregate(packets, None), "loss for every client, got none for client 0"),
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
        (lambda: server.load_state_dict({"round": 3}), r"got \['round'\]"),
        (lambda: server.load_state_dict({**before, "packets": {7: {1: b"no packet"}}}), "message"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
        assert server.state_dict() == before
