"""The server's side of the loop: what is fetched, and what a round costs it."""

import pytest
import torch

import gcext
from gcext.fl.data import load
from gcext.fl.run import Federation
from gcext.fl.server import MOST_MERGED, Broadcast, Server
from gcext.fl.settings import Settings
from gcext.fl.workers import Workers

DATA = load("digits")


@pytest.fixture
def federation(request):
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
def test_a_fault_in_merging_is_not_hidden(federation, monkeypatch):
    def fault(packets):
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
def test_what_can_be_merged(count, spec, kind):
    """Within the wire format's limits, for one method; beyond them the packets travel alone."""
    server = Server(torch.zeros(100_000), gcext.recipe("stc:p=0.1"))
    packet = gcext.codec(spec).encode(torch.ones(100_000))
    server.history = {v: Broadcast(packet.to_bytes(), packet) for v in range(1, count + 1)}
    server.version = count
    assert server.download(0).kind == kind


@pytest.mark.parametrize("federation", ["pstc:p=0.1,alpha=0.1,tau=2"], indirect=True)
def test_a_round_packs_no_history(federation, monkeypatch):
    """The state is for checkpoints; to roll back, what the receiver holds is enough."""
    calls = []
    monkeypatch.setattr(federation.server.receiver, "state_dict", lambda: calls.append(1))
    for _ in range(3):
        federation.step()
    assert calls == []
