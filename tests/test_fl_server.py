"""The server's side of the loop: what is fetched, and what a round costs it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

import gcext
from gcext.aggregate import Aggregator, Mean, Median, NormBound
from gcext.fl import Federation, Settings, Workers, load
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
    dense = gcext.codec("dense")
    up, down = gcext.Link(dense, combine=combine), gcext.Link(dense)
    server = Server(torch.zeros(2), gcext.Recipe(up, down))
    packets = {c: dense.encode(torch.full((2,), float(c))) for c in (1, 2, 6)}
    samples = {1: 1.0, 2: 1.0, 6: 2.0}
    broadcast, _ = server.combine(packets, dict.fromkeys(packets, 0.5), samples)
    expected = 3.75 if combine is Mean else 2.0
    assert broadcast.packet.values().tolist() == [expected] * 2


@pytest.mark.parametrize("federation", ["pstc:p=0.1,alpha=0.1,tau=2"], indirect=True)
def test_a_round_packs_no_history(federation: Federation, monkeypatch: pytest.MonkeyPatch) -> None:
    """The state is for checkpoints; to roll back, what the receiver holds is enough."""
    calls = []
    monkeypatch.setattr(federation.server.receiver, "state_dict", lambda: calls.append(1))
    for _ in range(3):
        federation.step()
    assert calls == []
