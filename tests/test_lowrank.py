"""Low-rank factors: the codec, and PowerSGD for one worker and for many, against its algorithms."""

from __future__ import annotations

import hashlib
import math
import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from emu.deferred import NoSynchronization, on_a_gpu
from numpy_transforms import lowrank_values as in_order
from packet_kit import dense
from sklearn.datasets import load_digits
from torch import Tensor

import gcext
from gcext._codecs.lowrank import orthonormal, rank_of
from gcext._links.lowrank import PowerSGD
from gcext._packet.transforms import LowRank, lowrank_view, product

ROOT = Path(__file__).parents[1]
SHAPES = {"conv": (16, 4, 3, 3), "bias": (16,), "fc": (20, 30)}


def gram_schmidt(p: np.ndarray) -> np.ndarray:
    p = p.copy()
    for i in range(p.shape[1]):
        p[:, i] /= np.linalg.norm(p[:, i])
        for j in range(i + 1, p.shape[1]):
            p[:, j] -= (p[:, i] @ p[:, j]) * p[:, i]
    return p


class Paper:
    """Algorithms 1 and 2 of Vogels et al. 2019 for W workers, in float64."""

    def __init__(self, workers: int, starts: dict[str, np.ndarray]) -> None:
        self.q = starts
        self.e: list[dict[str, Any]] = [{} for _ in range(workers)]

    def step(self, gradients: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        decoded = {}
        for name in gradients[0]:
            if name not in self.q:
                decoded[name] = np.mean([g[name] for g in gradients], axis=0)
                continue
            rows = gradients[0][name].shape[0]
            delta = [
                g[name].reshape(rows, -1) + e.get(name, 0)
                for g, e in zip(gradients, self.e, strict=True)
            ]
            p = gram_schmidt(np.mean([d @ self.q[name] for d in delta], axis=0))
            for d, e in zip(delta, self.e, strict=True):
                e[name] = d - p @ (d.T @ p).T
            self.q[name] = np.mean([d.T @ p for d in delta], axis=0)
            decoded[name] = (p @ self.q[name].T).reshape(gradients[0][name].shape)
        return decoded


def tensors(generator: torch.Generator) -> dict[str, Tensor]:
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def starts(state: PowerSGD) -> dict[str, np.ndarray]:
    held = {name: state._start(torch.zeros(shape), name) for name, shape in SHAPES.items()}
    return {name: x.start.double().numpy() for name, x in held.items() if x is not None}


def together(states: list[PowerSGD], given: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
    """One step of simulated workers."""

    def mean(parts: list[Tensor]) -> Tensor:
        return torch.stack(parts).mean(0)

    p = mean([s.project(g) for s, g in zip(states, given, strict=True)])
    q = mean([state.factor(p.clone()) for state in states])
    return [state.finish(q.clone()) for state in states]


@pytest.mark.parametrize("rank", [1, 2, 4])
@pytest.mark.parametrize("workers", [1, 3])
def test_many_workers_are_the_papers_algorithm(workers: int, rank: int) -> None:
    generator = torch.Generator().manual_seed(0)
    states = [PowerSGD(rank, seed=5) for _ in range(workers)]
    paper = Paper(workers, starts(states[0]))
    assert set(paper.q) == {"conv", "fc"}
    for _ in range(5):
        given = [tensors(generator) for _ in range(workers)]
        decoded = together(states, given)
        want = paper.step([{n: x.double().numpy() for n, x in g.items()} for g in given])
        for mine in decoded:
            assert list(mine) == list(SHAPES)
            for name, value in mine.items():
                assert value.shape == SHAPES[name]
                assert np.allclose(value.numpy(), want[name], atol=2e-4)
        for state, e in zip(states, paper.e, strict=True):
            for name in paper.q:
                got = state.residual(name).numpy().reshape(e[name].shape)
                assert np.allclose(got, e[name], atol=2e-4)


def test_one_worker_sends_what_it_would_reduce_to() -> None:
    generator = torch.Generator().manual_seed(1)
    sender, reducer = PowerSGD(2, seed=3), PowerSGD(2, seed=3)
    for _ in range(4):
        given = tensors(generator)
        packet = sender.compress(given)
        assert [member.method for member in packet.members] == ["lowrank", "dense", "lowrank"]
        decoded = reducer.reduce(given, lambda flat: flat)
        for member, value in zip(packet.members, decoded.values(), strict=True):
            assert torch.allclose(dense(member), value, atol=1e-5)
        for name in ("conv", "fc"):
            assert torch.allclose(sender.residual(name), reducer.residual(name), atol=1e-5)
        for name in ("conv", "fc"):  # conserved
            index = list(SHAPES).index(name)
            assert dense(packet.members[index]).shape == SHAPES[name]


def test_the_warm_start_follows_the_leading_singular_vectors() -> None:
    generator = torch.Generator().manual_seed(2)
    u, v = (torch.linalg.qr(torch.randn(40, 40, generator=generator))[0] for _ in range(2))
    matrix = u @ torch.diag(0.7 ** torch.arange(40.0)) @ v.t()
    best = float((matrix - u[:, :3] @ torch.diag(0.7 ** torch.arange(3.0)) @ v[:, :3].t()).norm())
    state = PowerSGD(3, feedback=False)
    errors = [float((dense(state.compress(matrix, "w")) - matrix).norm()) for _ in range(20)]
    assert errors[0] > 1.05 * best and errors[-1] < 1.001 * best
    with pytest.raises(KeyError):
        state.residual("w")


def test_bytes() -> None:
    """Rank (rows + cols) float32 and a header; of the collectives nothing but those."""
    for shape, rank in (((300, 200), 2), ((64, 32, 3, 3), 4)):
        rows, cols = lowrank_view(shape)
        message = gcext.codec(f"lowrank:rank={rank}").encode(torch.randn(shape), seed=1).to_bytes()
        size = 4 * rank * (rows + cols)
        assert size < len(message) <= size + 32
        state = PowerSGD(rank)
        p = state.project({"w": torch.randn(shape)})
        assert 4 * (p.numel() + state.factor(p).numel()) == size


def test_small_tensors_travel_as_they_are() -> None:
    for shape in ((), (9,), (0, 3), (9, 1), (4, 4)):
        assert rank_of(shape, 2) == 0
    assert rank_of((4, 5), 2) == rank_of((5, 20), 2) == 2
    assert rank_of((100, 2), 2) == 0 and rank_of((100, 3), 9) == 0 and rank_of((100, 3), 2) == 2
    state = PowerSGD(2, exact_below=1000)
    packet = state.compress({"w": torch.randn(20, 30), "v": torch.randn(50, 30)})
    assert [member.method for member in packet.members] == ["dense", "lowrank"]
    assert len(state.project({"w": torch.randn(20, 30), "v": torch.randn(50, 30)})) == 100 + 600


def test_the_product_is_summed_in_order() -> None:
    """Of a size that is cut into pieces; so no matrix product's order or TF32 shows."""
    rng = np.random.default_rng(0)
    for rows, cols, rank in ((3, 70_001, 4), (5000, 37, 3), (7, 5, 0), (1, 1, 1)):
        left, right = (rng.standard_normal((n, rank)).astype(np.float32) for n in (rows, cols))
        got = product(torch.from_numpy(left), torch.from_numpy(right))
        assert got.numpy().tobytes() == in_order(left, right).tobytes()


def test_columns_that_depend_on_others_vanish() -> None:
    x = torch.randn(50, 2)
    columns = torch.cat([x, x @ torch.tensor([[1.0], [2.0]]), torch.zeros(50, 1), x[:, :1]], 1)
    basis = orthonormal(columns)
    assert basis.dtype == torch.float32 and not basis[:, 2:].any()
    assert torch.allclose(basis[:, :2].t() @ basis[:, :2], torch.eye(2), atol=1e-6)
    for scale in (2.0**-140, 2.0**120):
        assert torch.allclose(orthonormal(x * scale), orthonormal(x), atol=1e-3)
    assert not orthonormal(torch.zeros(4, 2)).any()
    assert orthonormal(torch.full((4, 2), float("inf"))).isnan().any()


def test_a_gradient_of_zeros_is_no_end() -> None:
    state = PowerSGD(2)
    matrix = torch.outer(torch.arange(1.0, 21.0), torch.ones(30))
    for given in (torch.zeros(20, 30), matrix, torch.zeros(20, 30), matrix.flip(0)):
        assert torch.allclose(dense(state.compress(given, "w")), given, atol=1e-4)


@pytest.mark.parametrize("shape", [(12, 30), (40, 8)])
@pytest.mark.parametrize(
    "spec", ["lowrank:rank=1", "lowrank:rank=3", "lowrank:rank=2,iterations=2"]
)
def test_the_constant_holds_of_matrices(spec: str, shape: tuple[int, int]) -> None:
    """In the mean over seeds, to five standard errors; reached where singular values are equal."""
    codec, small = gcext.codec(spec), min(shape)
    assert isinstance(codec.rank, int)  # type: ignore[attr-defined]
    rank = codec.rank  # type: ignore[attr-defined]
    delta = min(1.0, rank / small)
    assert codec.contraction(shape[0] * shape[1]) <= delta
    flat = torch.linalg.qr(torch.randn(max(shape), small))[0]
    flat = flat if shape[0] > shape[1] else flat.t()
    decaying = flat @ torch.diag(0.8 ** torch.arange(float(shape[1])))
    one = torch.zeros(shape)
    one[3, 5] = -2.0
    for x, exact in ((flat, True), (decaying, False), (one, False), (torch.randn(shape), False)):
        left = []
        for seed in range(80):
            residual = torch.zeros(shape)
            codec.encode(x, residual, seed=seed)
            left.append(float(residual.double().square().sum()))
        whole = float(x.double().square().sum())
        mean, spread = np.mean(left), np.std(left) / len(left) ** 0.5
        assert mean - 5 * spread <= (1 - delta + 1e-6) * whole
        assert max(left) <= (1 + 1e-6) * whole
        if exact:
            assert mean == pytest.approx((1 - delta) * whole, rel=0.05)


def test_the_residual_of_matrices_stays_bounded() -> None:
    state, largest = PowerSGD(2), 0.0
    noise = torch.Generator().manual_seed(0)
    norms = []
    for _ in range(400):
        state.compress(torch.randn(20, 30, generator=noise), "w")
        norms.append(float(state.residual("w").norm()))
    delta, largest = 2 / 20, 1.2 * 600**0.5
    assert max(norms) <= 2 * (1 - delta) ** 0.5 / delta * largest
    assert np.mean(norms[300:]) <= 1.1 * np.mean(norms[200:300])


class TestState:
    def test_a_packet_counts_once_it_is_committed(self) -> None:
        state, twin = PowerSGD(2, seed=1), PowerSGD(2, seed=1)
        x = torch.randn(20, 30)
        lost = state.compress(x, "w", commit=False)
        with pytest.raises(RuntimeError, match="'w' is pending"):
            state.compress(x, "w")
        with pytest.raises(RuntimeError, match="'w' is pending"):
            state.project({"w": x})
        state.rollback("w")
        again = state.compress(x, "w", commit=False)
        assert again == lost == twin.compress(x, "w")
        state.commit()
        assert torch.equal(state.residual("w"), twin.residual("w"))
        assert state.compress(x, "w") == twin.compress(x, "w")

    @pytest.mark.parametrize("feedback", [True, False])
    def test_round_trips_bit_for_bit(self, feedback: bool) -> None:
        state = PowerSGD(2, seed=1, feedback=feedback)
        generator = torch.Generator().manual_seed(0)
        state.compress(tensors(generator))
        state.compress(tensors(generator), commit=False)
        twin = PowerSGD(2, seed=1, feedback=feedback)
        twin.load_state_dict(state.state_dict())
        assert twin.pending == state.pending == tuple(SHAPES)
        given = tensors(generator)
        for each in (state, twin):
            each.commit()
        assert state.compress(given) == twin.compress(given)

    def test_what_does_not_fit_changes_nothing(self) -> None:
        state = PowerSGD(2, seed=1)
        state.compress(torch.randn(20, 30), "w")
        before = state.residual("w")
        good = state.state_dict()
        held = good["held"]["w"]
        for wrong in (
            {**good, "rank": 3},
            {**good, "feedback": False},
            {**good, "version": 2},
            {**good, "seeds": {"seed": 2, "counts": {}}},
            {**good, "held": {"w": {**held, "start": held["start"][1:]}}},
            {**good, "held": {"w": {**held, "residual": None}}},
            {**good, "held": {"w": None}},
            {**good, "held": 3},
            {key: good[key] for key in list(good)[1:]},
        ):
            with pytest.raises(ValueError, match="PowerSGD"):
                state.load_state_dict(wrong)
        with pytest.raises(TypeError, match="state must be a dict"):
            state.load_state_dict(None)  # type: ignore[arg-type]
        assert torch.equal(state.residual("w"), before)

    def test_errors_leave_the_state(self) -> None:
        state = PowerSGD(2, seed=1)
        good = {"v": torch.randn(20, 30), "w": torch.randn(20, 30)}
        state.compress(good)
        before = state.state_dict()
        bad = {**good, "w": torch.full((20, 30), float("nan"))}
        for call in (state.compress, state.project):
            with pytest.raises(ValueError, match="lowrank 'w': tensor must be finite"):
                call(bad)
            with pytest.raises(ValueError, match=r"'w' must stay \(20, 30\)"):
                call({**good, "w": torch.zeros(30, 20)})
        with pytest.raises(ValueError, match="small enough to be transformed"):
            state.compress(torch.full((20, 30), 3e37), "w")
        state.project(good)  # never finished
        after = state.state_dict()
        for name in good:
            for key in ("residual", "start"):
                assert torch.equal(after["held"][name][key], before["held"][name][key])
        assert after["seeds"] == before["seeds"]

    def test_phases_come_in_order(self) -> None:
        state, flat = PowerSGD(2), torch.zeros(3)
        with pytest.raises(RuntimeError, match=r"factor: must follow project"):
            state.factor(flat)
        with pytest.raises(RuntimeError, match=r"finish: must follow factor"):
            state.finish(flat)
        p = state.project({"w": torch.randn(20, 30)})
        with pytest.raises(RuntimeError, match=r"finish: must follow factor"):
            state.finish(p)
        with pytest.raises(ValueError, match=r"mean must be float32 of shape \(40,\)"):
            state.factor(p[1:])
        q = state.factor(p)
        with pytest.raises(RuntimeError, match=r"factor: must follow project"):
            state.factor(p)
        state.finish(q)
        with pytest.raises(RuntimeError, match=r"finish: must follow factor"):
            state.finish(q)


def test_a_deferred_error_leaves_all_of_the_state() -> None:
    """As on a GPU: nothing synchronizes, and the steps that were refused have changed nothing."""
    state, twin = PowerSGD(2, seed=1), PowerSGD(2, seed=1)
    good = {"v": torch.randn(20, 30), "w": torch.randn(12, 10), "bias": torch.randn(3)}
    bad = {**good, "w": torch.full((12, 10), float("inf"))}
    for given in (good, bad, {**good, "bias": torch.full((3,), torch.nan)}, good):
        with on_a_gpu(), NoSynchronization():
            packet = state.compress(given)
        if given is good:
            assert packet.to_bytes() == twin.compress(given).to_bytes()
        else:
            with pytest.raises(ValueError, match="must be finite in float32"):
                packet.to_bytes()
            state._seeds.counts = dict(twin._seeds.counts)
        for name in ("v", "w"):
            mine, its = state._held[name], twin._held[name]
            assert torch.equal(state.residual(name), twin.residual(name))
            assert torch.equal(mine.start, its.start)
    with on_a_gpu(), NoSynchronization():
        packet = state.compress(bad["w"], "w")
    with pytest.raises(ValueError, match="must be finite in float32, got NaN or Inf at index 0"):
        packet.to_bytes()
    assert torch.equal(state.residual("w"), twin.residual("w"))


def test_gradients_of_parameters() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(30, 20), torch.nn.Linear(20, 3, bias=False))
    model(torch.randn(4, 30)).sum().backward()
    state = PowerSGD(1)
    assert list(state.reduce(model.named_parameters(), lambda flat: flat)) == [
        "0.weight", "0.bias", "1.weight",
    ]  # fmt: skip
    with pytest.raises(ValueError, match="at least one tensor"):
        state.project({})


def learn(workers: int, rank: int | None, steps: int = 100) -> float:
    """Train data-parallel on digits, by SGD; rank None: of the whole mean. Return the accuracy."""
    digits = load_digits()
    x = torch.tensor(digits.data / 16, dtype=torch.float32)
    y = torch.tensor(digits.target)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    states = [PowerSGD(rank or 1) for _ in range(workers)]
    for _ in range(steps):
        gradients = []
        for worker in range(workers):
            rows = torch.randint(0, 1300 // workers, (16,)) * workers + worker
            loss = torch.nn.functional.cross_entropy(model(x[rows]), y[rows])
            names, parameters = zip(*model.named_parameters(), strict=True)
            gradients.append(dict(zip(names, torch.autograd.grad(loss, parameters), strict=True)))
        if rank is None:
            update = {n: torch.stack([g[n] for g in gradients]).mean(0) for n in gradients[0]}
        else:
            update = together(states, gradients)[0]
        for name, parameter in model.named_parameters():
            parameter.grad = update[name]
        optimizer.step()
    with torch.no_grad():
        return float((model(x[1300:]).argmax(1) == y[1300:]).float().mean())


def test_a_data_parallel_run_learns() -> None:
    whole, low = learn(3, None), learn(3, 2)
    assert low > 0.85 and low > whole - 0.05, (low, whole)


# Two processes ---------------------------------------------------------------------------------


def run_rank(rank: int, world: int, store: str) -> None:
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=world,
        timeout=timedelta(seconds=60),
    )  # fmt: skip

    def mean(flat: Tensor) -> Tensor:
        dist.all_reduce(flat)
        return flat / world

    state, digest = PowerSGD(2, seed=9), hashlib.sha256()
    generator = torch.Generator().manual_seed(rank)
    for _ in range(4):
        decoded = state.reduce(tensors(generator), mean)
        for value in decoded.values():
            digest.update(value.numpy().tobytes())
    print(digest.hexdigest(), *(f"{float(decoded[name].norm()):.4f}" for name in SHAPES))
    dist.destroy_process_group()


def test_over_two_processes(tmp_path: Path) -> None:
    """Both decode the same bytes; and what simulated workers do."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    env = {**os.environ, "PYTHONPATH": path, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, __file__, "2", str(tmp_path / "store"), str(rank)],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        ended = [rank.communicate(timeout=120) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    for rank, (_, error) in zip(ranks, ended, strict=True):
        assert rank.returncode == 0, error
    first, second = (out.split() for out, _ in ended)
    assert first == second
    states = [PowerSGD(2, seed=9) for _ in range(2)]
    generators = [torch.Generator().manual_seed(rank) for rank in range(2)]
    for _ in range(4):
        decoded = together(states, [tensors(generator) for generator in generators])[0]
    for text, name in zip(first[1:], SHAPES, strict=True):
        assert math.isclose(float(text), float(decoded[name].norm()), rel_tol=1e-3)


def test_packets_hold_the_factors() -> None:
    packet = gcext.codec("lowrank:rank=3").encode(torch.randn(9, 4, 5), seed=2)
    code = packet.coded
    assert isinstance(code, LowRank)
    assert (code.rows, code.cols, code.rank) == (9, 20, 3)
    left = code.left.view(9, 3)
    assert torch.allclose(left.t() @ left, torch.eye(3), atol=1e-6)
    again = gcext.Packet.from_bytes(packet.to_bytes(), expect=(9, 4, 5))
    assert again == packet and torch.equal(dense(again), dense(packet))


if __name__ == "__main__":
    run_rank(int(sys.argv[3]), int(sys.argv[1]), sys.argv[2])
