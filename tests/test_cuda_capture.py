"""CUDA graphs that hold calls with a state: every replay is to do what one more call would."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from emu.backends import same_bits
from torch import Tensor

import gcext
from gcext._links import feedback as links

STEPS = 100
SIZES = [1000, 40_000]  # of select's first and second way; the sizes of a model, too


def captured(call: Callable[[], Any]) -> tuple[torch.cuda.CUDAGraph, Any]:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        torch.zeros(1, device="cuda")  # a graph that holds nothing is a warning
        result = call()
    return graph, result


def bad_at(step: int) -> float | None:
    """What is not finite in a step, if anything: twice in a row, and two kinds of it."""
    return {40: float("nan"), 41: float("inf"), 77: float("nan")}.get(step)


@pytest.mark.cuda
@pytest.mark.parametrize(
    ("spec", "n"),
    [
        *product(["stc:p=0.01", "topk:p=0.01", "sign"], SIZES),
        *product(["stc:p=0.1,chunk=50", "dense", "strom:tau=1.0"], SIZES[:1]),
    ],
)
def test_replays_do_what_calls_do(spec: str, n: int) -> None:
    steps = STEPS if n == SIZES[0] else 20
    there, here = gcext.ErrorFeedback(spec, decay=0.9), gcext.ErrorFeedback(spec, decay=0.9)
    tensor, first = torch.empty(n, device="cuda"), torch.randn(n)
    tensor.copy_(first)
    assert there.compress(tensor, "w").to_bytes() == here.compress(first, "w").to_bytes()
    graph, packet = captured(lambda: there.compress(tensor, "w"))
    for step in range(steps):
        data = torch.randn(n)
        if (bad := bad_at(step if steps == STEPS else step + 35)) is not None:
            data[n // 3] = bad
        tensor.copy_(data)
        graph.replay()
        if bad is None:
            assert packet.to_bytes() == here.compress(data, "w").to_bytes()
        else:
            with pytest.raises(ValueError, match=f"finite.*at index {n // 3}"):
                packet.to_bytes()
            with pytest.raises(ValueError, match="finite"):
                here.compress(data, "w")
        assert same_bits(there.residual("w").cpu(), here.residual("w"))


@pytest.mark.cuda
def test_replays_of_a_model_do_what_calls_do() -> None:
    """All or nothing: where one tensor is not finite no residual moves on."""
    shapes = {"a": (300,), "b": (40, 50), "bias": (7,), "c": (33_000,)}
    there, here = (gcext.ErrorFeedback("stc:p=0.05", exact_below=10) for _ in range(2))
    tensors = {name: torch.randn(shape) for name, shape in shapes.items()}
    inputs = {name: x.cuda() for name, x in tensors.items()}
    assert there.compress(inputs).to_bytes() == here.compress(tensors).to_bytes()
    graph, packet = captured(lambda: there.compress(inputs))
    for step in range(20):
        tensors = {name: torch.randn(shape) for name, shape in shapes.items()}
        if step == 7:
            tensors["b"][3, 3] = float("nan")
        for name, x in tensors.items():
            inputs[name].copy_(x)
        graph.replay()
        if step == 7:
            with pytest.raises(ValueError, match="finite"):
                packet.to_bytes()
        else:
            assert packet.to_bytes() == here.compress(tensors).to_bytes()
        for name in ("a", "b", "c"):
            assert same_bits(there.residual(name).cpu(), here.residual(name))


@pytest.mark.cuda
def test_calls_commits_and_states_between_replays_go_on_from_one_another() -> None:
    n, spec = 500, "stc:p=0.1"
    there, here = gcext.ErrorFeedback(spec), gcext.ErrorFeedback(spec)
    tensor = torch.randn(n).cuda()
    there.compress(tensor, "w")
    graph, packet = captured(lambda: there.compress(tensor, "w"))

    def on_the_cpu(state: dict[str, Any]) -> dict[str, Any]:
        return {**state, "residuals": {name: x.cpu() for name, x in state["residuals"].items()}}

    here.load_state_dict(on_the_cpu(there.state_dict()))

    def step(replay: bool, after: Callable[[gcext.ErrorFeedback], object] | None = None) -> None:
        data = torch.randn(n)
        tensor.copy_(data)
        if replay:
            graph.replay()
            got = packet
        else:
            got = there.compress(tensor, "w", commit=after is None)
        assert got.to_bytes() == here.compress(data, "w", commit=after is None).to_bytes()
        if after is not None:
            after(there), after(here)
        assert same_bits(there.residual("w").cpu(), here.residual("w").cpu())

    step(True)
    step(False)
    step(True)
    step(False, gcext.ErrorFeedback.commit)
    step(True)
    step(False, gcext.ErrorFeedback.rollback)
    step(True)
    kept = there.state_dict()
    for _ in range(2):
        step(True)
    there.load_state_dict(on_the_cpu(kept))
    here.load_state_dict(on_the_cpu(kept))
    step(True)
    empty = {**kept, "residuals": {}}
    there.load_state_dict(on_the_cpu(empty))
    here.load_state_dict(empty)
    step(True)
    other = {**kept, "residuals": {"w": torch.zeros(n + 1)}}
    with pytest.raises(ValueError, match="'w', which a CUDA graph compresses, must stay"):
        there.load_state_dict(other)
    step(True)
    there.compress(tensor, "w", commit=False)
    with pytest.raises(RuntimeError, match="commit: must not be captured"):
        captured(there.commit)
    assert there.pending == ("w",)


@pytest.mark.cuda
def test_other_names_take_no_memory_of_a_graph() -> None:
    n = 2000
    there, here = gcext.ErrorFeedback("topk:p=0.1"), gcext.ErrorFeedback("topk:p=0.1")
    tensor, other = torch.randn(n).cuda(), torch.randn(n)
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        there.compress(tensor, "w")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=side):
        there.compress(tensor, "w")
    for _ in range(3):
        want = here.compress(other, "x").to_bytes()
        with torch.cuda.stream(side):
            packet = there.compress(other.cuda(), "x", commit=False)
            graph.replay()
            there.commit()
        assert packet.to_bytes() == want
        assert same_bits(there.residual("x").cpu(), here.residual("x"))


@pytest.mark.cuda
@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: gcext.ErrorFeedback("stc"), "'[vw]' has no residual yet"),
        (lambda: gcext.ErrorFeedback("stc", diagnose=True), "diagnostics synchronize"),
        (
            lambda: gcext.ErrorFeedback("stc", stages=[gcext.MomentumCorrection(masked=False)]),
            "state of MomentumCorrection",
        ),
        (lambda: gcext.PowerSGD(1), "PowerSGD.compress: .* move its residuals on"),
        (lambda: gcext.ErrorFeedback("randomk:p=0.1", seed=1), "stochastic codec must not be"),
    ],
)
def test_refuses_what_a_graph_cannot_hold(make: Callable[[], Any], match: str) -> None:
    sender, tensor = make(), torch.randn(20, 30).cuda()
    if "no residual" not in match:
        sender.compress(tensor, "w")
    with pytest.raises(RuntimeError, match=match):
        captured(lambda: sender.compress(tensor, "w"))
    sender.compress(tensor, "w").to_bytes()
    with pytest.raises(RuntimeError, match=match):
        captured(lambda: sender.compress({"v" if "no residual" in match else "w": tensor}))


@pytest.mark.cuda
def test_refuses_to_hold_a_commit_back_in_a_graph() -> None:
    sender, tensor = gcext.ErrorFeedback("stc"), torch.randn(50).cuda()
    sender.compress(tensor, "w")
    with pytest.raises(RuntimeError, match=r"each replay counts at once, got commit=False"):
        captured(lambda: sender.compress(tensor, "w", commit=False))
    sender.compress(torch.randn(50), "x", commit=False)  # on the CPU nothing is captured
    assert sender.pending == ("x",)


def test_a_captured_name_keeps_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU: the calls that a graph would hold read and write one residual's memory."""
    comp, plain = gcext.ErrorFeedback("sign"), gcext.ErrorFeedback("sign")
    tensors = [torch.randn(30) for _ in range(6)]
    comp.compress(tensors[0], "w")
    slot = comp._residuals["w"]
    at = slot.residual.total.data_ptr()
    calls = [lambda x: comp.compress(x, "w")] * 6
    monkeypatch.setattr(links, "capturing", lambda: True)
    monkeypatch.setattr(links, "current_stream", lambda device: Stream())
    monkeypatch.setattr(links.ErrorFeedback, "_slots", through_capture)
    packets = [calls[1](tensors[1]), calls[2](tensors[2])]
    monkeypatch.undo()
    packets += [calls[3](tensors[3])]
    comp.load_state_dict(comp.state_dict())
    packets += [comp.compress(tensors[4], "w", commit=False)]
    comp.commit()
    plain.compress(tensors[0], "w")
    want = [plain.compress(x, "w").to_bytes() for x in tensors[1:5]]
    assert [packet.to_bytes() for packet in packets] == want
    assert comp._residuals["w"] is slot
    assert slot.residual.total.data_ptr() == at
    assert same_bits(comp.residual("w"), plain.residual("w"))


class Stream:
    """A stream that nothing is done on."""


def through_capture(sender: Any, tensor: Tensor, name: str) -> Any:
    return sender._captured_slots(sender._residuals[name], name, Stream())
