"""project: the projection's coefficients against exactly rounded sums and the published loops."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from isa_kit import at_every_isa
from packet_kit import dense
from project_oracle import Loops
from project_oracle import project as expected

import gcext
from gcext._native import ops
from gcext.aggregate._project import Order, kept, project

ALPHAS = [0.0, 0.1, 0.5, 1.0]


def packets_of(rng: np.random.Generator, m: int, numel: int, p: float = 0.2) -> list[gcext.Packet]:
    """Clients that pull in a few common directions, so that many conflict."""
    pulls = np.random.default_rng(7).standard_normal((3, numel)) * 1.5
    return [
        gcext.stc(
            torch.from_numpy(rng.standard_normal(numel) + pulls[i % 3] * (-1) ** i).float(), p
        )
        for i in range(m)
    ]


@pytest.mark.parametrize("order", ["paper", "fedfv"])
@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("tau", [0, 1, 3, 5])
def test_eight_rounds_against_the_loops(order: Order, alpha: float, tau: int) -> None:
    rng = np.random.default_rng(int(10 * alpha) + tau)
    loops = Loops(alpha, tau, order)
    sent: dict[int, tuple[int, gcext.Packet]] = {}  # client -> (round, packet)
    for t in range(1, 9):
        clients = rng.choice(14, 5, replace=False).tolist()
        drawn = dict(zip(clients, packets_of(rng, 5, 300), strict=True))
        losses = {client: float(rng.integers(0, 3)) for client in clients}
        sent |= {client: (t, packet) for client, packet in drawn.items()}
        packets = [drawn[client] for client in sorted(clients, key=lambda c: (losses[c], c))]
        spans = []
        for past in range(t - tau + (order == "fedfv"), t):
            held = [packet for _, (r, packet) in sorted(sent.items()) if r == past]
            spans.append(range(len(packets), len(packets) + len(held)))
            packets += held
        if order == "fedfv":
            spans = [*spans, range(5)] if t >= tau > 0 else []
        coefficients = project(gcext.gram(packets).numpy(), 5, alpha, spans, order)
        vectors = np.stack([dense(packet).double().numpy() for packet in packets])
        updates = {client: dense(packet).double().numpy() for client, packet in drawn.items()}
        right = loops.aggregate(updates, losses)
        assert np.linalg.norm(coefficients @ vectors - right) <= 1e-6 * np.linalg.norm(right)
    assert (loops.internal > 0) == (alpha < 1)
    if order == "paper" or tau != 1:  # a mean without inner conflicts may have none with its parts
        assert (loops.external > 0) == (tau > 0)


@pytest.mark.parametrize("m", [1, 2, 7, 8, 9, 40])
def test_against_exactly_rounded_sums(m: int) -> None:
    rng = np.random.default_rng(m)
    size = m + 11
    dots = gcext.gram(packets_of(rng, size, 2000, 0.05)).numpy()
    spans = [range(m, m + 4), range(m + 4, m + 4), range(m + 4, size), range(m)]
    for alpha in ALPHAS:
        got = project(dots, m, alpha, spans)
        assert np.allclose(got, expected(dots, m, kept(m, alpha), spans), rtol=1e-9, atol=1e-12)


def test_how_many_are_kept() -> None:
    assert [kept(m, 0.1) for m in (1, 9, 10, 19, 20, 100)] == [0, 0, 1, 1, 2, 10]
    assert [kept(m, 0.1, "fedfv") for m in (1, 9, 10, 19, 20, 100)] == [1, 1, 1, 2, 2, 10]
    assert [kept(8, a) for a in ALPHAS] == [0, 0, 4, 8]
    assert [kept(8, a, "fedfv") for a in ALPHAS] == [0, 1, 4, 8]


def gram_of(*vectors: Sequence[float]) -> np.ndarray:
    x = np.array(vectors, dtype=np.float64)
    return x @ x.T


@pytest.mark.parametrize("alpha", ALPHAS)
def test_no_conflict_leaves_the_mean(alpha: float) -> None:
    for dots in (
        np.diag([1.0, 4.0, 9.0, 2.0]),  # orthogonal
        np.full((4, 4), 3.0),  # identical
        np.zeros((4, 4)),
        gram_of([1, 0], [2, 0], [1, 1], [0, 3]),
    ):
        got = project(dots, 4, alpha, [])
        assert np.array_equal(got, np.full(4, 0.25) if dots.any() else np.zeros(4))


def test_one_client() -> None:
    assert project(gram_of([3, 4]), 1, 0.0, []).tolist() == [1.0]
    assert project(np.zeros((1, 1)), 1, 0.0, []).tolist() == [0.0]
    one_and_past = gram_of([1, 0], [-1, 1])
    got = project(one_and_past, 1, 0.0, [range(1, 2)])
    assert np.allclose(got @ np.array([[1, 0], [-1, 1]]), np.array([1, 1]) / np.sqrt(2))


def test_opposite_updates_cancel() -> None:
    assert not project(gram_of([1, 2], [-1, -2]), 2, 0.0, []).any()
    assert not project(gram_of([1, 2], [-3, -6]), 2, 0.0, []).any()
    half = project(gram_of([1, 2], [-3, -6]), 2, 0.5, [])  # the second is kept
    assert np.allclose(half @ np.array([[1, 2], [-3, -6]]), [-1, -2])
    past = project(gram_of([1, 2], [-3, -6]), 1, 0.0, [range(1, 2)])  # all of it is in conflict
    assert not past.any()


def test_a_zero_update_conflicts_with_none() -> None:
    dots = gram_of([1, 0], [0, 0], [-1, 1])
    got = project(dots, 3, 0.0, [])
    assert np.allclose(got, expected(dots, 3, 0, [])) and np.isfinite(got).all()


def test_an_exact_zero_is_no_conflict() -> None:
    """The integer dot of ternary packets is 0 here; rounded products would hardly cancel."""
    numel = 1 << 12
    flip = torch.where(torch.arange(numel) % 2 == 0, 1.0, -1.0)
    dots = gcext.gram([gcext.stc(torch.full((numel,), 0.1), 1), gcext.stc(flip * 0.3, 1)]).numpy()
    assert project(dots, 2, 0.0, []).tolist() == [0.5, 0.5]


def test_same_bits_everywhere() -> None:
    script = """
import hashlib, numpy as np, torch
from gcext.aggregate._project import project
x = np.random.default_rng(0).standard_normal((700, 40))
dots = np.einsum("ik,jk->ij", x, x)
for threads in (1, 2, 3, 8):
    torch.set_num_threads(threads)
    got = project(dots, 500, 0.1, [range(500, 600), range(600, 700)])
    print(hashlib.sha256(got.tobytes()).hexdigest())
"""
    printed = at_every_isa(script)
    assert len({word for words in printed.values() for word in words}) == 1, printed


def test_bad_arguments_are_refused() -> None:
    dots = torch.eye(3, dtype=torch.float64)
    for args, rule in (
        ((dots.float(), 1, 0, [], []), "dots: wrong dtype"),
        ((dots[:2], 1, 0, [], []), "square"),
        ((dots, 0, 0, [], []), r"m must be in \[1, 3\], got 0"),
        ((dots, 4, 0, [], []), r"m must be in \[1, 3\], got 4"),
        ((dots, 2, 3, [], []), r"kept must be in \[0, 2\], got 3"),
        ((dots, 2, 0, [2], []), "both ends"),
        ((dots, 2, 0, [2], [4]), r"within \[0, 3\], got \[2, 4\)"),
        ((dots, 2, 0, [2], [1]), "within"),
        ((dots, 2, 0, [-1], [1]), "within"),
    ):
        with pytest.raises(RuntimeError, match=rule):
            ops.project(*args)


def test_opcheck_and_compile() -> None:
    dots = gcext.gram(packets_of(np.random.default_rng(1), 6, 200))
    torch.library.opcheck(torch.ops.gcext.project.default, (dots, 4, 1, [4], [6]))

    def step(x: torch.Tensor) -> torch.Tensor:
        return ops.project(x, 4, 1, [4], [6]) * 2

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(dots), step(dots))
