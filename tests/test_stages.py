"""Stages of a sender, and the aggregators at its other end, against the papers in NumPy."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from packet_kit import dense, single
from torch import Tensor

import gcext
from gcext import Clip, LastValue, Lazy, MomentumCorrection, Sender, Stage, Trajectory
from gcext.aggregate import LastValues, Nesterov, Predicted, SignStep

Floats = npt.NDArray[np.float32]


def gradients(steps: int, n: int = 400, seed: int = 0) -> list[Floats]:
    rng = np.random.default_rng(seed)
    trend = rng.standard_normal(n)
    return [(trend + rng.standard_normal(n)).astype(np.float32) for _ in range(steps)]


def top(x: Floats, k: int) -> Floats:
    """The k largest magnitudes of x, zeros elsewhere; ties to the lower index."""
    kept = np.zeros_like(x)
    index = np.argsort(-np.abs(x), kind="stable")[:k]
    kept[index] = x[index]
    return kept


def sent(sender: Sender, x: Floats, name: str = "w") -> Floats:
    return dense(sender.compress(torch.from_numpy(x), name)).numpy()


def test_dgc() -> None:
    """Lin et al. 2018, Algorithm 4: u = m u + g; v = v + u; send the top of v; clear both there."""
    sender = gcext.recipe("dgc:p=0.05,momentum=0.5,warmup=0").up.sender()
    u = v = np.zeros(400, np.float32)
    for g in gradients(20):
        u = np.float32(0.5) * u + g
        v = v + u
        out = top(v, 20)
        np.testing.assert_array_equal(sent(sender, g), out)
        u, v = np.where(out != 0, np.float32(0), u), np.where(out != 0, np.float32(0), v)


def test_dgc_clips_first() -> None:
    sender = gcext.recipe("dgc:p=1,clip=2.0,warmup=0").up.sender()
    (g,) = gradients(1)
    assert np.linalg.norm(sent(sender, g)) == pytest.approx(2.0, rel=1e-6)
    small = g / np.linalg.norm(g)
    np.testing.assert_array_equal(sent(gcext.recipe("dgc:p=1,clip=2.0").up.sender(), small), small)


def test_warm_up_of_p() -> None:
    """Lin et al. 2018, section 3.3: 75 %, 93.75 %, 98.4375 %, 99.6 % sparsity, then 99.9 %."""
    made = gcext.recipe("dgc:p=0.001")
    shares = [made.schedule.codec(made.up.codec, r).options()["p"] for r in range(1, 7)]
    assert shares == [0.25, 0.0625, 0.015625, 0.00390625, 0.001, 0.001]


@pytest.mark.parametrize("clients", [1, 3])
def test_ef21(clients: int) -> None:
    """Richtarik et al. 2021: c_i = C(g_i - v_i), v_i += c_i; the mean of all v_i is the step."""
    made = gcext.recipe("ef21:p=0.1")
    sender, server = made.up.sender(), made.up.receiver()
    values = [np.zeros(400, np.float32) for _ in range(clients)]
    for step in range(12):
        packets = {}
        for i in range(clients):
            g = gradients(12, seed=i)[step]
            c = top(g - values[i], 40)
            values[i] = values[i] + c
            packets[i] = sender.compress(torch.from_numpy(g), str(i))
            np.testing.assert_array_equal(dense(packets[i]).numpy(), c)
        got = server.aggregate(packets)
        np.testing.assert_allclose(
            got, np.mean(values, axis=0, dtype=np.float64), rtol=1e-6, atol=1e-6
        )


def test_ef21_counts_silent_clients() -> None:
    """Partial participation: the value of a client that is not drawn stands."""
    server = LastValues()
    server.aggregate({1: whole(8.0), 2: whole(2.0)})
    assert float(single(server.aggregate({2: whole(-1.0)}))[0]) == (8 + 1) / 2


def whole(x: float) -> gcext.Packet:
    return gcext.codec("dense").encode(torch.full((3,), x))


@pytest.mark.parametrize("order", [0, 1, 2])
def test_trajectory(order: int) -> None:
    """Song et al. 2022: what travels is C(g - predicted), and both ends add the prediction back."""
    stage = Trajectory(order)
    sender = Sender("topk:p=0.1", stages=[stage])
    server = Predicted(order)
    past: list[Floats] = []
    for g in gradients(8):
        if order == 0 or not past:
            predicted = np.zeros_like(g)
        else:
            predicted = past[0] if order == 1 or len(past) == 1 else 2 * past[0] - past[1]
        packet = sender.compress(torch.from_numpy(g), "w")
        out = top(g - predicted, 40)
        np.testing.assert_array_equal(dense(packet).numpy(), out)
        past.insert(0, np.asarray(predicted + out, np.float32))
        got = server.aggregate({5: gcext.Packet.from_bytes(packet.to_bytes())})
        np.testing.assert_array_equal(got, past[0])


class Laq:
    """Sun et al. 2019, criterion 7, of one worker, in float64; C is top-k here."""

    def __init__(self, clients: int, xi: float, depth: int, patience: int) -> None:
        self.clients, self.xi, self.depth, self.patience = clients, xi, depth, patience
        self.value, self.before, self.missed = np.zeros(400, np.float32), 0.0, patience
        self.models: list[Floats] = []

    def __call__(self, g: Floats) -> Floats:
        x = g - self.value
        q = top(x, 40)
        error = float(np.sum(np.float64(x - q) ** 2))
        pairs = list(zip(self.models[1:], self.models, strict=False))[-self.depth :]
        moved = sum(self.xi * float(np.sum((np.float64(b) - np.float64(a)) ** 2)) for b, a in pairs)
        bound = moved / self.clients**2 + 3 * (error + self.before)
        if self.missed < self.patience and float(np.sum(np.float64(q) ** 2)) <= bound:
            self.missed += 1
            return np.zeros_like(q)
        self.value, self.before, self.missed = self.value + q, error, 0
        return q


def test_laq() -> None:
    sender = Sender("topk:p=0.1", stages=[Lazy(clients=2, depth=3, xi=0.4, patience=4)])
    want, skipped = Laq(2, 0.4, 3, 4), 0
    for step, g in enumerate(gradients(30)):
        model = np.float32(0.3) * sum(gradients(step + 1, seed=9))
        want.models.append(np.asarray(model))
        sender.observe(torch.from_numpy(model))
        g = g * np.float32(0.01 if step % 7 == 3 else 1)
        expected = want(g)
        packet = sender.compress(torch.from_numpy(g), "w")
        np.testing.assert_array_equal(dense(packet).numpy(), expected)
        skipped += packet.k == 0
        assert packet.k > 0 or packet.nbytes < 40
    assert 3 < skipped < 27


def test_laq_sends_first() -> None:
    """From empty state the criterion is not asked: there is nothing to reuse."""
    assert Sender("topk:p=0.01", stages=[Lazy()]).compress(torch.ones(400), "w").k == 4


def test_lazy_takes_no_residual() -> None:
    with pytest.raises(ValueError, match="Lazy must be used without a residual"):
        gcext.ErrorFeedback("topk:p=0.1", stages=[Lazy()])


def test_nesterov_and_sign() -> None:
    """torch.optim.SGD with nesterov on the mean update; Peng et al. 2024: lr times the sign."""
    server = Nesterov(beta=0.9, lr=0.7)
    weight = torch.nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.SGD([weight], lr=0.7, momentum=0.9, nesterov=True)
    total = torch.zeros(3)
    for x in (1.0, -2.0, 0.5, 3.0):
        weight.grad = torch.full((3,), x)
        optimizer.step()
        total -= single(server.aggregate({0: whole(x)}))
    assert torch.allclose(total, weight.detach(), atol=1e-6)
    step = single(SignStep(lr=0.25).aggregate({0: whole(-3.0), 1: whole(1.0)}))
    assert torch.equal(step, torch.full((3,), -0.25))


STAGES: dict[str, Callable[[], Stage]] = {
    "clip": lambda: Clip(3.0),
    "momentum": lambda: MomentumCorrection(0.7),
    "unmasked": lambda: MomentumCorrection(0.7, masked=False),
    "last": LastValue,
    "lazy": lambda: Lazy(patience=3),
    "order1": lambda: Trajectory(1),
    "order2": lambda: Trajectory(2),
}


def sender_of(kind: str, **more: Any) -> Sender:
    stages = [STAGES[kind]()]
    if kind == "lazy":
        return Sender("topk:p=0.05", stages=stages, **more)
    return gcext.ErrorFeedback("topk:p=0.05", stages=stages, **more)


@pytest.mark.parametrize("kind", STAGES)
class TestEveryStage:
    def test_a_mapping_does_what_single_tensors_do(self, kind: str) -> None:
        one, many = sender_of(kind, exact_below=10), sender_of(kind, exact_below=10)
        for step in range(5):
            tensors = {
                f"t{n}": torch.from_numpy(gradients(5, n, seed=n)[step]) for n in (3, 40, 400)
            }
            group = many.compress(tensors)
            singles = [one.compress(x, name) for name, x in tensors.items()]
            assert group == gcext.Packet.group(singles)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    def test_dtypes_and_shapes(self, kind: str, dtype: torch.dtype) -> None:
        sender = sender_of(kind)
        for _ in range(3):
            packet = sender.compress(torch.randn(4, 5, 6).to(dtype), "w")
            assert packet.shape == (4, 5, 6) and packet.dtype == dtype
        for shape in ((), (0,), (1,)):
            for _ in range(2):
                assert sender.compress(torch.ones(shape), f"{shape}").shape == shape

    def test_rollback_and_errors_change_nothing(self, kind: str) -> None:
        straight, tried = sender_of(kind), sender_of(kind)
        spoiled = torch.randn(400)
        spoiled[7] = float("nan")
        for g in map(torch.from_numpy, gradients(6)):
            with pytest.raises(ValueError, match="finite"):
                tried.compress(spoiled, "w")
            with pytest.raises(ValueError, match="finite"):
                tried.compress({"w": g, "x": spoiled})
            tried.compress(g * 2, "w", commit=False)
            tried.rollback()
            tried.compress({"w": g * 3, "x": g}, commit=False)
            tried.rollback("x")
            tried.rollback("w")
            packet = tried.compress(g, "w", commit=False)
            tried.commit("w")
            assert packet.to_bytes() == straight.compress(g, "w").to_bytes()
        assert same(straight.state_dict(), tried.state_dict())

    def test_state_round_trip(self, kind: str) -> None:
        first = sender_of(kind)
        grads = list(map(torch.from_numpy, gradients(8)))
        for g in grads[:3]:
            first.observe(g)
            first.compress(g, "w")
        first.compress(grads[3], "w", commit=False)
        copies = [first, copy.deepcopy(first), pickle.loads(pickle.dumps(first)), sender_of(kind)]
        copies[-1].load_state_dict(copy.deepcopy(first.state_dict()))
        for each in copies:
            each.commit("w")
        for g in grads[4:]:
            messages = {each.compress(g, "w").to_bytes() for each in copies}
            assert len(messages) == 1

    def test_a_foreign_state_is_refused_and_changes_nothing(self, kind: str) -> None:
        sender = sender_of(kind)
        sender.compress(torch.ones(400), "w")
        before = sender.state_dict()
        for other in STAGES:
            if other != kind:
                with pytest.raises(ValueError):
                    sender.load_state_dict(sender_of(other).state_dict())
        assert same(sender.state_dict(), before)

    def test_another_shape_is_refused(self, kind: str) -> None:
        sender = sender_of(kind)
        sender.compress(torch.ones(400), "w")
        if kind != "clip":
            with pytest.raises(ValueError, match="must stay"):
                sender.compress(torch.ones(20, 20), "w")


def same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Clip(0.0), "bound must be positive"),
        (lambda: MomentumCorrection(1.0), r"momentum must be in \[0, 1\)"),
        (lambda: Trajectory(3), "order must be 0, 1 or 2"),
        (lambda: Predicted(-1), "order must be 0, 1 or 2"),
        (lambda: Lazy(clients=0), "clients must be at least 1"),
        (lambda: Lazy(xi=float("nan")), "xi must be at least 0"),
        (lambda: Nesterov(lr=0.0), "lr must be positive"),
        (lambda: SignStep(lr=float("inf")), "lr must be positive"),
        (lambda: gcext.recipe("localsgd:every=0"), "every must be at least 1"),
        (lambda: gcext.recipe("ef21:p=2"), "p must be in"),
        (lambda: gcext.recipe("doublesqueeze:codec=nothing"), "must be one of"),
    ],
)
def test_options_out_of_range(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_a_recipe_of_another_codec() -> None:
    made = gcext.recipe("localsgd:every=4,codec=stc:p=0.1,feedback=true,down=sign")
    assert (made.up.codec.spec, made.up.feedback, made.down.codec.spec) == (
        "stc:p=0.1",
        True,
        "sign",
    )
    assert made.schedule.local_steps == 4


def test_feedback_of_a_method() -> None:
    assert gcext.recipe("natural:feedback=true").up.feedback
    assert not gcext.recipe("stc:p=0.1,feedback=false").up.feedback
    assert gcext.recipe("stc:p=0.1,feedback=false").down.feedback
    with pytest.raises(ValueError, match="Lazy must be used without a residual"):
        gcext.recipe("laq:feedback=true")
    with pytest.raises(ValueError, match="feedback must be one of true, false"):
        gcext.recipe("stc:feedback=perhaps")
