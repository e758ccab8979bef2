"""A whole model in one call: ``compress({name: tensor})``, all or nothing."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from emu.deferred import DeferredCodec
from torch import Tensor, nn

import gcext
from gcext import ErrorFeedback, Packet, Sender

SPECS = ["stc:p=0.1", "topk:p=0.1", "sign", "qsgd:bits=4,bucket=16", "randomk:p=0.3", "dense"]
SHAPES = {"a": (40, 5), "b": (), "c": (3,), "d": (200,), "e": (0,), "f": (200,)}


def tensors(step: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(step)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def spoiled(name: str, value: float = math.nan) -> dict[str, Tensor]:
    given = tensors()
    given[name].view(-1)[1] = value
    return given


def residuals(comp: ErrorFeedback) -> dict[str, Tensor]:
    held: dict[str, Tensor] = comp.state_dict()["residuals"]
    return held


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


@pytest.mark.parametrize("kind", [ErrorFeedback, Sender])
@pytest.mark.parametrize("spec", SPECS)
def test_gives_the_packets_and_residuals_of_single_calls(kind: type[Sender], spec: str) -> None:
    whole, single = kind(spec, seed=3), kind(spec, seed=3)
    for step in range(3):
        group = whole.compress(tensors(step))
        packets = [single.compress(tensor, name) for name, tensor in tensors(step).items()]
        assert group.to_bytes() == Packet.group(packets).to_bytes()
        assert group.shape == tuple(SHAPES.values())
    if isinstance(whole, ErrorFeedback) and isinstance(single, ErrorFeedback):
        assert same(residuals(whole), residuals(single))


@pytest.mark.parametrize("name", ["a", "d", "f"])
@pytest.mark.parametrize("spec", SPECS)
def test_a_nan_leaves_every_residual_and_seed_as_it_was(spec: str, name: str) -> None:
    comp, straight = ErrorFeedback(spec, seed=3), ErrorFeedback(spec, seed=3)
    for each in (comp, straight):
        each.compress(tensors(0))
    before = residuals(comp)
    with pytest.raises(ValueError, match=f"{name!r}: tensor must be finite.* at index 1"):
        comp.compress(spoiled(name))
    assert not comp.pending
    assert same(residuals(comp), before)
    assert comp.compress(tensors(1)) == straight.compress(tensors(1))


def test_a_nan_in_an_exact_tensor_leaves_the_others() -> None:
    comp = ErrorFeedback("stc:p=0.1", exact_below=10)
    comp.compress(tensors(0))
    before = residuals(comp)
    with pytest.raises(ValueError, match="'c': tensor must be finite"):
        comp.compress(spoiled("c"))
    assert same(residuals(comp), before)


@pytest.mark.parametrize("settle", ["commit", "rollback"])
def test_one_commit_or_rollback_for_all(settle: str) -> None:
    comp, straight = ErrorFeedback("stc:p=0.1"), ErrorFeedback("stc:p=0.1")
    for each in (comp, straight):
        each.compress(tensors(0))
    before = residuals(comp)
    packet = comp.compress(tensors(1), commit=False)
    assert comp.pending == tuple(SHAPES)
    assert same(residuals(comp), before)
    with pytest.raises(RuntimeError, match="'a' is pending"):
        comp.compress(tensors(2))
    getattr(comp, settle)()
    assert not comp.pending
    if settle == "rollback":
        assert same(residuals(comp), before)
        assert comp.compress(tensors(1)) == packet
    straight.compress(tensors(1))
    assert comp.compress(tensors(2)).to_bytes() == straight.compress(tensors(2)).to_bytes()
    getattr(comp, settle)()  # nothing is pending: nothing happens


def test_pending_goes_through_a_state(tmp_path: Path) -> None:
    comp = ErrorFeedback("stc:p=0.1", exact_below=10)
    comp.compress(tensors(0))
    comp.compress(tensors(1), commit=False)
    torch.save(comp.state_dict(), tmp_path / "state.pt")
    again = ErrorFeedback("stc:p=0.1", exact_below=10)
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert again.pending == comp.pending
    for each in (comp, again):
        each.commit()
    assert again.compress(tensors(2)) == comp.compress(tensors(2))


def test_small_tensors_exact() -> None:
    comp = ErrorFeedback("stc:p=0.1", exact_below=200)
    packet = comp.compress(tensors())
    exact = {"b", "c", "e"}
    for name, member in zip(SHAPES, packet.members, strict=True):
        assert (member.method == "dense") == (name in exact)
        if name in exact:
            assert torch.equal(torch.as_tensor(member.to_dense()), tensors()[name])
    assert residuals(comp).keys() == SHAPES.keys() - exact
    assert comp.compress(torch.ones(199), "w").method == "dense"
    assert comp.compress(torch.ones(200), "v").method == "ternary"


class TestModule:
    def model(self) -> nn.Sequential:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 3))

    def test_sends_the_gradients_of_parameters(self) -> None:
        model = self.model()
        model(torch.randn(5, 8)).sum().backward()
        parameters = dict(model.named_parameters())
        gradients = {name: p.grad for name, p in parameters.items()}
        packets = [
            ErrorFeedback("stc:p=0.1").compress(given)
            for given in (model.named_parameters(), parameters, gradients, gradients.items())
        ]
        assert len({packet.to_bytes() for packet in packets}) == 1

    def test_warns_of_names_without_a_gradient_when_they_change(
        self, recwarn: pytest.WarningsRecorder
    ) -> None:
        model = self.model()
        model[2](torch.randn(5, 4)).sum().backward()
        comp = ErrorFeedback("stc:p=0.1")
        packet = comp.compress(model.named_parameters())
        assert list(comp.skipped) == ["0.weight", "0.bias"]
        assert packet.shape == ((3, 4), (3,))
        assert "no gradient for '0.weight', '0.bias'; the packet leaves out 2 of 4" in str(
            recwarn.pop(UserWarning).message
        )
        comp.compress(model.named_parameters())
        assert not recwarn.list
        model(torch.randn(5, 8)).sum().backward()
        comp.compress(model.named_parameters())
        assert not comp.skipped

    def test_no_gradient_at_all(self) -> None:
        with pytest.raises(ValueError, match="at least one tensor, got 4 names without a gradient"):
            ErrorFeedback("stc:p=0.1").compress(self.model().named_parameters())


@pytest.mark.parametrize(
    ("given", "error", "match"),
    [
        ({"a": [1.0]}, TypeError, "names of their own, got 'a': list"),
        ({3: torch.ones(2)}, TypeError, "names of their own, got 3: Tensor"),
        ([("a", torch.ones(2)), ("a", torch.ones(3))], TypeError, "got 'a': Tensor"),
        ([torch.ones(3)], TypeError, "or {name: tensor}, got list"),
        (None, TypeError, "or {name: tensor}, got NoneType"),
        (3.0, TypeError, "or {name: tensor}, got float"),
        ({}, ValueError, "at least one tensor"),
    ],
)
def test_what_is_no_mapping_of_tensors(given: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        ErrorFeedback("stc:p=0.1").compress(given)


def test_a_single_tensor_needs_a_name_and_a_name_a_tensor() -> None:
    unchecked: Any = ErrorFeedback("stc:p=0.1")
    with pytest.raises(TypeError, match="the name of a tensor must be a str, got NoneType"):
        unchecked.compress(torch.ones(3))
    with pytest.raises(TypeError, match=r"tensor must be a torch\.Tensor, got NoneType"):
        unchecked.compress(None, "w")


def test_a_changed_shape_leaves_all() -> None:
    comp = ErrorFeedback("stc:p=0.1")
    comp.compress(tensors(0))
    before = residuals(comp)
    with pytest.raises(ValueError, match=r"'f' must stay \(200,\)"):
        comp.compress(tensors(1) | {"f": torch.ones(201)})
    assert same(residuals(comp), before)
    assert not comp.pending


def test_options() -> None:
    with pytest.raises(ValueError, match="exact_below must be at least 0, got -1"):
        ErrorFeedback("stc:p=0.1", exact_below=-1)
    with pytest.raises(ValueError, match="scope must be 'tensor' or 'model', got 'all'"):
        Sender("stc:p=0.1", scope="all")  # type: ignore[arg-type]

    with pytest.raises(ValueError, match=r"sign: scope must be 'tensor' .*got 'model'"):
        ErrorFeedback("sign", scope="model")
    with pytest.raises(ValueError, match=r"exact_below must be .* got 2\.5"):
        ErrorFeedback("stc:p=0.1", exact_below=2.5)  # type: ignore[arg-type]


def test_over_the_model() -> None:
    comp, tensors_ = ErrorFeedback("topk:p=0.05", scope="model"), tensors()
    flat = torch.cat([tensor.flatten() for tensor in tensors_.values()])
    want = torch.zeros_like(flat)
    largest = flat.abs().topk(int(0.05 * flat.numel())).indices
    want[largest] = flat[largest]
    got = comp.compress(tensors_).to_dense()
    assert torch.equal(torch.cat([tensor.flatten() for tensor in got]), want)
    with pytest.raises(ValueError, match="scope must be the state's 'model', got 'tensor'"):
        ErrorFeedback("topk:p=0.05").load_state_dict(comp.state_dict())


def test_a_shape_that_fell_below_the_exact_ones_is_refused() -> None:
    comp = ErrorFeedback("stc:p=0.1", exact_below=10)
    comp.compress({"w": torch.ones(20)})
    for call in (
        lambda: comp.compress(torch.ones(5), "w"),
        lambda: comp.compress({"w": torch.ones(5)}),
    ):
        with pytest.raises(ValueError, match=r"'w' must stay \(20,\)"):
            call()


def test_what_an_iterable_raises_is_the_callers() -> None:
    def broken() -> Iterator[tuple[str, Tensor]]:
        yield "a", torch.ones(3)
        raise TypeError("of the caller")

    with pytest.raises(TypeError, match=r"^of the caller$"):
        ErrorFeedback("stc:p=0.1").compress(broken())
    with pytest.raises(TypeError, match=r"Pass its named_parameters\(\)"):
        ErrorFeedback("stc:p=0.1").compress(nn.Linear(2, 2))  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="state must be a dict, got NoneType"):
        ErrorFeedback("stc:p=0.1").load_state_dict(None)  # type: ignore[arg-type]


class TestDeferred:
    """As on CUDA: the error is raised when the packet is first read."""

    @pytest.mark.parametrize("spec", ["stc:p=0.1", "sign", "qsgd:bits=4,bucket=16", "dense"])
    @pytest.mark.parametrize("name", ["a", "d"])
    def test_all_or_nothing(self, spec: str, name: str) -> None:
        comp = ErrorFeedback(DeferredCodec(gcext.codec(spec)), seed=3)
        given, good, bad = (
            {name: tensor for name, tensor in each.items() if tensor.numel()}
            for each in (tensors(0), tensors(1), spoiled(name, math.inf))
        )
        comp.compress(given).to_bytes()
        before = residuals(comp)
        packet = comp.compress(bad)
        at = list(bad).index(name)
        for member in packet.members:
            own = member is packet.members[at]
            rule = "tensor must be finite" if own else f"another one that is not, number {at}"
            with pytest.raises(ValueError, match=rule):
                member.to_bytes()
        assert same(residuals(comp), before)
        comp.compress(good).to_bytes()

    def test_gives_the_packets_of_single_calls(self) -> None:
        comp, single = (
            ErrorFeedback(DeferredCodec(gcext.codec("stc:p=0.1"))),
            ErrorFeedback("stc:p=0.1"),
        )
        for step in range(3):
            assert comp.compress(tensors(step)) == single.compress(tensors(step))
        assert same(residuals(comp), residuals(single))


@pytest.mark.parametrize("error", [TypeError, ValueError, KeyError])
def test_what_the_callers_iterator_raises_is_passed_on(error: type[Exception]) -> None:
    def pairs() -> Iterator[tuple[str, torch.Tensor]]:
        yield "a", torch.ones(3)
        raise error("of the caller")

    comp = gcext.ErrorFeedback("stc:p=0.5")
    with pytest.raises(error, match="of the caller"):
        comp.compress(pairs())
    assert not comp.pending


def test_exact_below_is_a_whole_number() -> None:
    for bad in (float("nan"), 1.5, "a"):
        with pytest.raises(ValueError, match="exact_below must be a whole number"):
            gcext.ErrorFeedback("stc", exact_below=bad)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("residuals", None),
        ("residuals", {3: torch.zeros(4)}),
        ("residuals", {"a": torch.zeros(4).to_sparse()}),
        ("pending", ["a"]),
        ("seeds", None),
    ],
)
def test_a_damaged_state_is_refused(key: str, value: Any) -> None:
    comp = gcext.ErrorFeedback("stc:p=0.5")
    comp.compress({"a": torch.ones(4), "b": torch.ones(2)})
    before = comp.state_dict()
    with pytest.raises(ValueError, match="ErrorFeedback: "):
        comp.load_state_dict(before | {"pending": {}, key: value})
    assert torch.equal(comp.residual("a"), before["residuals"]["a"])


@pytest.mark.parametrize(("key", "value"), [("pending", [3]), ("pending", None), ("seeds", None)])
def test_a_damaged_state_of_a_sender_is_refused(key: str, value: Any) -> None:
    sender = gcext.Sender("qsgd:bits=2", seed=1)
    with pytest.raises(ValueError, match="Sender: "):
        sender.load_state_dict(sender.state_dict() | {key: value})
    assert sender.pending == ()


@pytest.mark.parametrize("spec", SPECS)
def test_the_first_steps_may_be_in_inference_mode(spec: str) -> None:
    comp, mirror = (ErrorFeedback(spec, seed=1) for _ in range(2))
    for step in range(4):
        given = tensors(step)
        with torch.inference_mode(step < 2):
            assert comp.compress(given) == mirror.compress(given)
            mirror.load_state_dict(mirror.state_dict())
