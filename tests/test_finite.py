"""No update is ever non-finite: it is refused, a client is named, and nothing has changed."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import gcext
from gcext import Packet
from gcext._packet.codes import Contents
from gcext.aggregate import (
    Aggregator,
    FetchSGD,
    HeavyBall,
    LastValues,
    MaxK,
    Mean,
    Median,
    Momentum,
    Nesterov,
    NormBound,
    Predicted,
    Projection,
    RoundInput,
    SignStep,
    TrimmedMean,
    Vote,
)

MOST = torch.finfo(torch.float32).max
TOP = float(MOST)


def dense(*values: float) -> Packet:
    return Packet("dense", (len(values),), torch.float32, Contents(None, torch.tensor(values)))


def one(at: int, value: float, n: int = 4) -> Packet:
    index = torch.tensor([at], dtype=torch.int32)
    return Packet("sparse", (n,), torch.float32, Contents(index, torch.tensor([value])))


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def colluders(x: float = 1e36) -> dict[int, Packet]:
    """Two opposed updates: what is left of either is on element 0, and gets the mean's length."""
    u = torch.full((100,), TOP)
    a, b = u.clone(), -0.5 * u
    a[0], b[0] = x, 0.0
    return {
        c: Packet("dense", (100,), torch.float32, Contents(None, y)) for c, y in ((3, a), (7, b))
    }


@pytest.mark.parametrize("order", ["paper", "fedfv"])
def test_projection_refuses_the_round_of_two_colluders(order: Any) -> None:
    server = Projection(alpha=0, tau=1, order=order)
    losses = {3: 0.1, 7: 0.2}
    honest = {
        c: Packet("dense", (100,), torch.float32, Contents(None, torch.randn(100))) for c in (3, 7)
    }
    server.aggregate(honest, losses)
    before = server.state_dict()
    with pytest.raises(
        ValueError,
        match=r"Projection: the update must be finite in float32, got inf at element 0, to which "
        r"client 3 adds the most. Leave it out, or bound",
    ):
        server.aggregate(colluders(), losses)
    assert same(server.state_dict(), before)
    for packets in (honest, {3: colluders()[3]}):
        update = server.aggregate(packets, losses)
        assert isinstance(update, Tensor) and update.isfinite().all()
    bounded = NormBound(1e30, Projection(alpha=0, order=order)).aggregate(colluders(), losses)
    assert isinstance(bounded, Tensor) and bounded.isfinite().all()


def test_combine_and_mean() -> None:
    top = dense(1.0, TOP)
    for weights in (None, [1e30, 1e30], [1e308, 1e308], [1e308, -1e308]):
        with pytest.raises(ValueError, match=r"combine: the update must be finite .* packet [01]"):
            gcext.combine([top, top], weights)
    out = torch.zeros(2)
    with pytest.raises(ValueError, match="combine"):
        gcext.combine([top, top], out=out)
    assert not out.any()
    assert torch.equal(gcext.combine([top, top], [0.5, 0.5], out), torch.tensor([1.0, TOP]))
    for many in (2, 3, 7, 1000):
        assert torch.equal(
            torch.as_tensor(gcext.aggregate.mean([top] * many)), torch.tensor([1.0, TOP])
        )
    half = torch.zeros(2, dtype=torch.float16)
    with pytest.raises(ValueError, match=r"mean: the sum must be finite in torch.float16"):
        gcext.aggregate.mean([dense(1.0, 70_000.0)], out=half)
    assert not half.any()
    group = Packet.group([dense(1.0), top])
    with pytest.raises(ValueError, match=r"at element 1 of tensor 1, to which packet 0 adds"):
        gcext.combine([group, Packet.group([dense(1.0), dense(1.0, TOP / 2)])])
    scaled = gcext.stc(torch.full((4,), TOP), p=1)
    with pytest.raises(ValueError, match="packet 0 adds the most"):
        gcext.combine([scaled, scaled])


def test_weights_whose_sum_overflows() -> None:
    packets = {3: dense(2.0), 7: dense(4.0)}
    for weight in (1e308, 1.7e308, 5e-324, 1e-300):
        assert Mean().aggregate(packets, weights={3: weight, 7: weight}) == torch.tensor([3.0])
    made = Mean().aggregate(packets, weights={3: 1.5e308, 7: 0.5e308})
    assert made == torch.tensor([2.5])
    assert gcext.aggregate.mean(list(packets.values()), [1e308, 1e308]) == torch.tensor([3.0])
    code = gcext.codec("sketch:rows=3,cols=5")
    table = {c: code.encode(torch.ones(4)) for c in (1, 2)}
    FetchSGD(k=1).aggregate(table, weights={1: 1e308, 2: 1e308})


def test_the_client_that_adds_the_most_is_named() -> None:
    for named in (3, 5):
        sent = {c: dense(0.0, TOP if c == named else TOP / 2) for c in (3, 4, 5)}
        with pytest.raises(
            ValueError, match=rf"at element 1, to which client {named} adds the most"
        ):
            LastValues().aggregate(sent)
    by_name = {"a": one(2, TOP), "b": one(2, TOP / 4), "c": one(1, TOP)}

    class Sum(Aggregator):
        def _aggregate(self, given: RoundInput) -> Tensor | list[Tensor]:
            total: Tensor = sum(p.to_dense() for p in given.packets)  # type: ignore[assignment, misc]
            return total

    with pytest.raises(ValueError, match=r"Sum: .* got inf at element 2, to which client a adds"):
        Sum().aggregate(by_name)


SERVERS: dict[str, Callable[[], Aggregator]] = {
    "momentum": lambda: Momentum(beta=0.9),
    "nesterov": lambda: Nesterov(beta=0.9, lr=0.7),
    "nesterov of a large rate": lambda: Nesterov(beta=0.5, lr=1e6),
    "heavy ball": lambda: HeavyBall(beta=0.9, lr=2.0),
    "momentum of momentum": lambda: Momentum(Momentum(beta=0.9), beta=0.9),
    "heavy ball of nesterov": lambda: HeavyBall(Nesterov(beta=0.9), beta=0.99, lr=1e-3),
    "momentum of a median": lambda: Momentum(Median(), beta=0.9),
    "momentum of last values": lambda: Momentum(LastValues(), beta=0.9),
    "momentum of a prediction": lambda: Momentum(Predicted(2), beta=0.9),
    "momentum of a projection": lambda: Momentum(Projection(), beta=0.9),
    "last values": LastValues,
    "prediction": lambda: Predicted(2, TrimmedMean(0.2)),
    "sign step": lambda: SignStep(Momentum(beta=0.9), lr=1e38),
    "limits": lambda: MaxK(9, NormBound(1e38, Nesterov(beta=0.99, lr=1.0))),
}


@pytest.mark.parametrize("name", SERVERS)
def test_every_update_is_finite_or_refused_with_the_state_as_it_was(name: str) -> None:
    server = SERVERS[name]()
    refused = 0
    for number in range(1, 30):
        value = TOP * (0.3 + 0.02 * number)
        sent = {c: dense(value, -value, 1.0 / number) for c in (3, 7)}
        honest = {c: dense(1.0, 2.0, 3.0) for c in (3, 7)}
        for packets in (sent, honest, sent):
            before = server.state_dict()
            try:
                update = server.aggregate(packets, {3: 1.0, 7: 2.0})
            except ValueError as error:
                refused += 1
                assert "client 3" in str(error) or "client 7" in str(error)
                assert same(server.state_dict(), before)
            else:
                assert isinstance(update, Tensor) and update.isfinite().all(), number
    if name not in ("sign step",):
        assert refused > 0


def test_order_statistics_of_the_largest_numbers_are_finite() -> None:
    sent = {c: dense(TOP, -TOP, (-1) ** c * TOP) for c in range(6)}
    for server in (Median(), TrimmedMean(0.2), TrimmedMean(0)):
        update = server.aggregate(sent)
        assert isinstance(update, Tensor) and update.isfinite().all()


def test_sizes_of_steps_are_finite_in_float32() -> None:
    for make in (
        lambda: Vote(1e39),
        lambda: Vote(math.nan),
        lambda: SignStep(lr=1e39),
        lambda: Nesterov(lr=1e39),
        lambda: HeavyBall(lr=1e39),
    ):
        with pytest.raises(ValueError, match="must be finite in float32"):
            make()
    signs = {c: gcext.codec("sign").encode(torch.ones(3)) for c in range(3)}
    with pytest.raises(ValueError, match="Vote: scale must be at most"):
        Momentum(Momentum(Vote(TOP)), beta=0.5).aggregate(signs)


def test_fetchsgd_names_the_client() -> None:
    code = gcext.codec("sketch:rows=3,cols=5")
    sent = {c: code.encode(torch.full((4,), 1e38 if c == 7 else 1.0)) for c in (3, 7)}
    server = FetchSGD(k=1, rho=0.9)
    with pytest.raises(ValueError, match="client 7 adds the most"):
        for _ in range(40):
            before = server.state_dict()
            server.aggregate(sent)
    assert same(server.state_dict(), before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("strided", [False, True])
def test_add_to_refuses_an_overflow_and_changes_nothing(dtype: torch.dtype, strided: bool) -> None:
    most = torch.finfo(dtype).max
    top = (
        torch.full((4, 2), most, dtype=dtype).t()
        if strided
        else torch.full((8,), most, dtype=dtype)
    )
    packets = [
        dense(*[most / 2] * 8),
        one(3, most, n=8),
        gcext.stc(torch.full((8,), most), p=0.2),
        gcext.codec("sign").encode(torch.full((8,), most)),
    ]
    for packet in packets:
        target, fine = top.clone(), torch.ones(8, dtype=dtype)
        with pytest.raises(ValueError, match=r"Packet.add_to_: sums must be finite"):
            packet.add_to_(target)
        assert torch.equal(target, top)
        with pytest.raises(ValueError, match=r"Packet.add_to_: sums must be finite"):
            Packet.group([packet, packet]).add_to_([fine, target])
        assert torch.equal(target, top) and torch.equal(fine, torch.ones(8, dtype=dtype))
        packet.add_to_(target, alpha=-1.0)
        assert target.isfinite().all()
    once = torch.zeros(8)
    packets[0].add_to_(once)
    if dtype == torch.float32:
        packets[0].add_to_(once)
        with pytest.raises(ValueError, match="add_to_"):
            packets[0].add_to_(once)


def test_add_to_leaves_what_was_not_finite_before() -> None:
    target = torch.tensor([math.inf, math.nan, 1.0])
    dense(TOP, TOP, TOP).add_to_(target)
    assert target[0] == math.inf and target[1].isnan() and target[2] == TOP
    wide = torch.full((3,), TOP, dtype=torch.float64)
    dense(TOP, TOP, TOP).add_to_(wide)
    assert wide[0] == 2 * TOP
    small = torch.full((3,), TOP)
    dense(2.0**100, 1.0, -1.0).add_to_(small)  # below half the distance to the next number
    assert torch.equal(small, torch.full((3,), TOP))


def test_a_dense_result_for_which_there_is_no_memory() -> None:
    for numel in (2**62, 2**50):
        index = torch.tensor([5], dtype=torch.int64)
        sent = {
            c: Packet("sparse", (numel,), torch.float32, Contents(index, torch.ones(1)))
            for c in (3, 7)
        }
        message = rf"aggregate: a dense result of {numel} elements needs .* GiB"
        for server in (Mean(), Median(), TrimmedMean(0.1), Vote(), Projection()):
            losses = {3: 1.0, 7: 2.0}
            with pytest.raises(MemoryError, match=message):
                server.aggregate(sent, losses)
        with pytest.raises(MemoryError, match=message):
            gcext.combine(list(sent.values()))
