"""The server's side of the loop: what is fetched, and what a round costs it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from packet_kit import dense

import gcext
from gcext.aggregate import Aggregator, Mean, Median, NormBound
from gcext.fl import Federation, Settings, Workers, load
from gcext.fl._copies import Copies
from gcext.fl._server import MOST_MERGED, Broadcast, Server

DATA = load("digits")


@pytest.fixture
def federation(request: pytest.FixtureRequest) -> Iterator[Federation]:
    plan = Settings(
        data="digits",
        method="any",
        recipe=request.param,
        clients=40,
        participation=0.3,
        rounds=10,
        seed=0,
        target=0.9,
    )
    with Workers(DATA, 2) as workers:
        yield Federation(plan, DATA, workers)


@pytest.mark.parametrize("federation", ["stc:p=0.1"], indirect=True)
def test_a_fault_in_merging_is_not_hidden(
    federation: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fault(packets: object) -> None:
        raise ValueError("merge: a fault")

    monkeypatch.setattr(gcext.Packet, "merge", fault)
    with pytest.raises(ValueError, match="merge: a fault"):
        for _ in range(10):
            federation.step()


@pytest.mark.parametrize(
    "count, spec, kind",
    [
        (1, "stc:p=1e-4", "single"),
        (MOST_MERGED, "stc:p=1e-4", "merged"),
        (MOST_MERGED + 1, "stc:p=1e-4", "single"),
        (50, "topk:p=1e-4", "single"),
    ],
)
def test_what_can_be_merged(count: int, spec: str, kind: str) -> None:
    """Within the wire format's limits, for one method; beyond them the packets travel alone."""
    server = Server(torch.zeros(100_000), gcext.recipe("stc:p=0.1"))
    packet = gcext.codec(spec).encode(torch.ones(100_000))
    server.history = {v: Broadcast(packet.to_bytes(), packet) for v in range(1, count + 1)}
    server.version = count
    assert server.download(0).kind == kind


@pytest.mark.parametrize("combine", [Mean, Median, lambda: NormBound(9.0, Median())])
def test_samples_are_weights_where_the_receiver_uses_weights(
    combine: Callable[[], Aggregator],
) -> None:
    whole = gcext.codec("dense")
    up, down = gcext.Link(whole, combine=combine), gcext.Link(whole)
    server = Server(torch.zeros(2), gcext.Recipe(up, down))
    packets = {c: whole.encode(torch.full((2,), float(c))) for c in (1, 2, 6)}
    samples = {1: 1.0, 2: 1.0, 6: 2.0}
    broadcast, _ = server.combine(packets, dict.fromkeys(packets, 0.5), samples)
    expected = 3.75 if combine is Mean else 2.0
    assert broadcast is not None
    assert broadcast.packet.values().tolist() == [expected] * 2


@pytest.mark.parametrize("federation", ["pstc:p=0.1,alpha=0.1,tau=2"], indirect=True)
def test_a_round_packs_no_history(federation: Federation, monkeypatch: pytest.MonkeyPatch) -> None:
    """The state is for checkpoints; to roll back, what the receiver holds is enough."""
    calls = []
    monkeypatch.setattr(federation.server.receiver, "state_dict", lambda: calls.append(1))
    for _ in range(3):
        federation.step()
    assert calls == []


class TestCopies:
    def test_the_difference_is_its_own_feedback(self) -> None:
        """A packet is STC of what the copy lacks, so the copy comes to where the model stays."""
        model = torch.randn(500)
        copies = Copies(torch.zeros(500), gcext.codec("stc:p=0.1"))
        held = np.zeros(500, np.float32)
        for _ in range(200):
            message, copy = copies.send(3, model)
            copies.commit()
            packet = gcext.Packet.from_bytes(message, expect=(500,))
            assert packet == gcext.stc(torch.from_numpy(held) - model, p=0.1)
            held = held - dense(packet).numpy()
            assert np.array_equal(copy.numpy(), held) and torch.equal(copies.copy(3), copy)
        assert np.abs(held - model.numpy()).max() < 0.02

    def test_what_is_not_committed_was_not_sent(self) -> None:
        copies = Copies(torch.zeros(500), gcext.codec("randomk:p=0.1"), seed=5)
        first = copies.send(1, torch.ones(500))[0]
        copies.rollback()
        assert not copies.copy(1).any()
        assert copies.send(1, torch.ones(500))[0] == first
        copies.commit()
        assert copies.send(1, torch.ones(500))[0] != first

    def test_messages_never_outgrow_the_dense_copy(self) -> None:
        copies = Copies(torch.zeros(1000), gcext.codec("topk:p=0.1"))
        for step in range(40):
            copies.send(1, torch.randn(1000, generator=torch.Generator().manual_seed(step)))
            copies.commit()
            assert sum(map(len, copies.messages[1])) <= 4000 + 32
        again = Copies(torch.zeros(1000), gcext.codec("topk:p=0.1"))
        again.load_state_dict(copies.state_dict())
        assert torch.equal(again.copy(1), copies.copy(1)) and again.copy(1).any()

    def test_every_recipe_takes_it(self) -> None:
        made = gcext.recipe("sign:feedback=true,down=stc:p=0.01,catchup=true")
        assert made.down.catch_up and made.up.feedback
        with pytest.raises(ValueError, match="without feedback and stages"):
            gcext.recipe("sign:down=stc:p=0.01,catchup=true,feedback=true")
        with pytest.raises(ValueError, match="unknown option catchup"):
            gcext.recipe("sign:catchup=true")
