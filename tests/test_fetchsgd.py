"""FetchSGD's server against a transcription of its algorithm, and what it refuses."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from packet_kit import single
from test_aggregate import equal_states
from test_fl import DATA, settings
from test_sketch import places
from torch import Tensor

import gcext
from gcext.aggregate import FetchSGD, Momentum, NormBound, Round
from gcext.fl import run

F64 = npt.NDArray[np.float64]
CODEC = gcext.codec("sketch:rows=3,cols=40,hash=5")


def matrix(n: int, rows: int, cols: int, seed: int) -> F64:
    """The sketch as a matrix: one signed one a row of the table and element."""
    a = np.zeros((rows * cols, n))
    for i in range(n):
        for r, (c, sign) in enumerate(places(i, rows, cols, seed)):
            a[r * cols + c, i] = sign
    return a


class Plain:
    """Algorithm 1 of Rothchild et al. (2020), lines 9 to 15, in float64."""

    def __init__(
        self, a: F64, rows: int, k: int, rho: float, eta: float, mask: bool, clear: bool
    ) -> None:
        self.a, self.rows, self.k, self.rho, self.eta = a, rows, k, rho, eta
        self.mask, self.clear = mask, clear
        self.momentum = self.error = np.zeros(len(a))

    def step(self, updates: list[F64], weights: list[float]) -> F64:
        s = np.average([self.a @ g for g in updates], axis=0, weights=weights)
        self.momentum = self.rho * self.momentum + s
        self.error = self.error + self.eta * self.momentum
        cells = (self.a * self.error[:, None]).reshape(self.rows, -1, self.a.shape[1]).sum(1)
        estimates = np.median(cells, axis=0)
        chosen = np.argsort(-np.abs(estimates), kind="stable")[: self.k]
        delta = np.zeros(self.a.shape[1])
        delta[chosen] = estimates[chosen]
        touched = self.a @ delta
        self.error = np.where(touched != 0, 0, self.error) if self.clear else self.error - touched
        if self.mask:
            self.momentum = np.where(touched != 0, 0, self.momentum)
        return delta


@pytest.mark.parametrize("rows", [1, 3, 4])
@pytest.mark.parametrize(("mask", "clear"), [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize("weighted", [False, True])
def test_against_the_published_algorithm(
    rows: int, mask: bool, clear: bool, weighted: bool
) -> None:
    n, cols, rng = 150, 60, np.random.default_rng(rows)
    codec = gcext.codec(f"sketch:rows={rows},cols={cols},hash=9")
    ours = FetchSGD(k=5, rho=0.8, eta=0.7, mask=mask, clear=clear)
    plain = Plain(matrix(n, rows, cols, 9), rows, 5, 0.8, 0.7, mask, clear)
    pull = rng.normal(size=n) ** 3
    for number in range(8):
        updates = [(pull + rng.normal(size=n)).astype(np.float32) for _ in range(4)]
        weights = {c: float(c + 1) for c in range(4)}
        want = plain.step(
            [g.astype(np.float64) for g in updates], [*weights.values()] if weighted else [1.0] * 4
        )
        packets = {c: codec.encode(torch.from_numpy(g)) for c, g in enumerate(updates)}
        got = single(ours.aggregate(packets, weights=weights if weighted else None)).numpy()
        assert np.flatnonzero(got).tolist() == np.flatnonzero(want).tolist(), number
        assert np.allclose(got, want, rtol=1e-4, atol=1e-4)
        state = ours.state_dict()
        assert np.allclose(state["momentum"][0].numpy(), plain.momentum, atol=1e-4)
        assert np.allclose(state["error"][0].numpy(), plain.error, atol=1e-4)


def test_of_a_group_the_largest_of_all_tensors_together() -> None:
    """As of one tensor whose sketch is the tensors' sketches side by side."""
    rng, shapes = np.random.default_rng(2), [(6, 15), (0,), (40,)]
    codec = gcext.codec("sketch:rows=3,cols=50,hash=4")
    ours, blocks = FetchSGD(k=6, rho=0.5, mask=False), [matrix(90, 3, 50, 4), matrix(40, 3, 50, 4)]
    a = np.zeros((3, 2, 50, 130))  # by row, tensor, column
    a[:, 0, :, :90], a[:, 1, :, 90:] = (b.reshape(3, 50, -1) for b in blocks)
    plain = Plain(a.reshape(300, 130), 3, 6, 0.5, 1.0, False, False)
    pull = rng.normal(size=130) ** 3
    for _ in range(5):
        flat = [(pull + rng.normal(size=130)).astype(np.float32) for _ in range(3)]
        want = plain.step([x.astype(np.float64) for x in flat], [1.0] * 3)
        groups = {
            c: gcext.Packet.group(
                [
                    codec.encode(torch.from_numpy(part).reshape(shape))
                    for part, shape in zip(np.split(x, [90, 90]), shapes, strict=True)
                ]
            )
            for c, x in enumerate(flat)
        }
        got = ours.aggregate(groups)
        assert isinstance(got, list) and [tuple(x.shape) for x in got] == shapes
        assert np.allclose(torch.cat([x.flatten() for x in got]).numpy(), want, atol=1e-4)


def packets_of(seed: int, n: int = 100) -> dict[int, gcext.Packet]:
    noise = torch.Generator().manual_seed(seed)
    return {c: CODEC.encode(torch.randn(n, generator=noise)) for c in range(3)}


def test_restores_and_resumes() -> None:
    server = FetchSGD(k=4)
    assert server.state_dict() == {"shapes": [], "kinds": [], "momentum": [], "error": []}
    for seed in range(3):
        server.aggregate(packets_of(seed))
    before, snapshot = server.state_dict(), server.snapshot()
    first, after = single(server.aggregate(packets_of(9))), server.state_dict()
    assert not equal_states(before, after)
    server.restore(snapshot)
    assert equal_states(server.state_dict(), before)
    other = FetchSGD(k=4)
    other.load_state_dict(before)
    for each in (server, other):
        assert torch.equal(single(each.aggregate(packets_of(9))), first)
        assert equal_states(each.state_dict(), after)
    first.zero_()  # what was returned is the caller's
    assert equal_states(server.state_dict(), after)
    fresh = FetchSGD()
    fresh.load_state_dict(FetchSGD().state_dict())
    assert fresh.state_dict() == FetchSGD().state_dict()
    for wrong in (
        {},
        {"round": 1},
        before | {"momentum": []},
        before | {"error": [torch.zeros(120).double()]},
        before | {"error": [torch.zeros(119)]},
        before | {"kinds": [[3, 40]]},
    ):
        with pytest.raises(ValueError, match="FetchSGD: its state holds shapes, kinds"):
            server.load_state_dict(wrong)
    assert equal_states(server.state_dict(), after)


def test_what_is_refused_leaves_the_state() -> None:
    server, fine = FetchSGD(k=4), packets_of(0)
    x = torch.randn(100)
    other: dict[str, gcext.Packet] = {
        "sketches, got dense from client 7": gcext.codec("dense").encode(x),
        r"shape \(100,\), got \(10, 10\) from client 7": CODEC.encode(x.view(10, 10)),
        "3 rows, 40 cols, hash 5, got 3 rows, 40 cols, hash 6 from client 7": gcext.codec(
            "sketch:rows=3,cols=40,hash=6"
        ).encode(x),
        "got 4 rows, 30 cols, hash 5 from client 7": gcext.codec(
            "sketch:rows=4,cols=30,hash=5"
        ).encode(x),
    }
    for started in (False, True):
        if started:
            server.aggregate(fine)
        state = server.state_dict()
        for message, packet in other.items():
            if started:
                with pytest.raises(ValueError, match=message):
                    Round(server).add(7, packet)
            message = "one shape" if "(10, 10)" in message.replace("\\", "") else message
            with pytest.raises(ValueError, match=message):
                server.aggregate({**fine, 7: packet})
            assert equal_states(server.state_dict(), state)
    group = gcext.Packet.group([fine[0]])
    with pytest.raises(ValueError, match="got dense from client 3"):
        Round(server).add(3, gcext.Packet.group([other["sketches, got dense from client 7"]]))
    server.aggregate({1: group})  # one tensor either way
    with pytest.raises(ValueError, match="sketches of 1 tensors, got 2 from client 1"):
        server.aggregate({1: gcext.Packet.group([fine[0], fine[0]])})
    with pytest.raises(ValueError, match="got dense from client 0"):  # a bound makes it dense
        NormBound(1e-3, FetchSGD()).aggregate(fine)
    large = gcext.codec("sketch:rows=1,cols=1").encode(torch.tensor([3e38]))
    server, state = FetchSGD(rho=0.5, mask=False), {}
    server.aggregate({0: large})
    state = server.state_dict()
    with pytest.raises(ValueError, match="finite in float32, got an overflow"):
        server.aggregate({0: large})
    assert equal_states(server.state_dict(), state)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": -1}, "k must be at least 0, got -1"),
        ({"k": 1.5}, "k must be a whole number"),
        ({"share": 0}, r"share must be in \(0, 1\], got 0"),
        ({"share": 1.5}, "share must be in"),
        ({"rho": 1.0}, r"rho must be in \[0, 1\), got 1"),
        ({"rho": math.nan}, "rho must be in"),
        ({"eta": 0}, "eta must be positive and finite"),
        ({"eta": math.inf}, "eta must be positive and finite"),
        ({"mask": 2}, "mask must be True or False"),
    ],
)
def test_invalid_options_raise(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"FetchSGD: {message}"):
        FetchSGD(**options)


def test_share_ties_and_zeros() -> None:
    codec = gcext.codec("sketch:rows=1,cols=100000,hash=1")  # without collisions

    def take(tensor: Tensor, **options: Any) -> list[float]:
        return single(FetchSGD(**options).aggregate({0: codec.encode(tensor)})).tolist()

    assert take(torch.tensor([1.0, -2.0, 2.0, 2.0]), k=2) == [0, -2, 2, 0]
    assert take(torch.tensor([1.0, -2.0, 2.0, 2.0]), share=0.3) == [0, -2, 0, 0]
    assert take(torch.tensor([0.0, 3.0, 0.0]), k=99) == [0, 3, 0]
    assert take(torch.zeros(5)) == [0] * 5
    assert take(torch.zeros(0)) == []
    assert repr(Momentum(FetchSGD(k=3))) == (
        "Momentum(FetchSGD(k=3, share=0.01, rho=0.9, eta=1.0, mask=True, clear=False), beta=0.9)"
    )


def test_nothing_large_is_lost() -> None:
    """Error feedback: over the rounds all of a constant sparse update arrives."""
    update = torch.zeros(2000)
    update[::100] = torch.linspace(1, 2, 20)
    codec, server = gcext.codec("sketch:rows=5,cols=500"), FetchSGD(k=5, rho=0.0)
    total = sum(single(server.aggregate({0: codec.encode(update)})) for _ in range(200))
    assert isinstance(total, Tensor)
    assert float((total / 200 - update).norm() / update.norm()) < 0.05


@pytest.mark.parametrize("clear", ["false", "true"])
def test_a_federation_learns(clear: str) -> None:
    """FedAvg reaches 0.80 in these rounds; the server answers with the elements of Δ alone."""
    recipe = f"sketch:rows=5,p=0.5,combine=fetchsgd,share=0.02,rho=0.9,clear={clear},down=topk:p=1"
    made = gcext.recipe(recipe)
    assert made.up.receiver().__repr__().startswith("FetchSGD(k=0, share=0.02, rho=0.9")
    result = run(settings(recipe, participation=1.0, rounds=30), DATA, threads=1)
    last = result["rounds"][-1]
    assert last["accuracy"] > 0.6
    assert last["up_bytes"] < 0.51 * 10 * 4 * result["numel"]
    assert last["down_bytes"] < 0.03 * 10 * 4 * result["numel"]


def test_a_recipe_of_links() -> None:
    """By the constructor: the links' ends over a group, as a loop of a user's would have them."""
    up = gcext.Link(CODEC, combine=lambda: FetchSGD(k=10))
    down = gcext.Link(gcext.codec("topk:p=1"))
    recipe = gcext.Recipe(up=up, down=down)
    senders, server, answer = [recipe.up.sender() for _ in range(2)], up.receiver(), down.sender()
    weights = {"w": torch.randn(20, 10), "b": torch.randn(30)}
    packets = {c: sender.compress(weights) for c, sender in enumerate(senders)}
    update = server.aggregate(packets)
    assert isinstance(update, list)
    sent = answer.compress(dict(zip(weights, update, strict=True)))
    assert sent.k == 10
    assert all(map(torch.equal, sent.to_dense(), update))
    with pytest.raises(ValueError, match="sketch: error feedback needs"):
        gcext.Link(CODEC, feedback=True).sender()
