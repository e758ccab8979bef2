"""A whole model on a GPU: one call, all or nothing, without waiting; and selection in a graph."""

from __future__ import annotations

import pytest
import torch
from emu.backends import same_bits
from packet_kit import dense
from test_cuda_device import no_sync
from torch import Tensor

import gcext
from gcext import ErrorFeedback, functional

pytestmark = pytest.mark.cuda

SHAPES = {"a": (300, 40), "b": (7,), "c": (70_000,), "d": (64, 64), "e": (300, 40)}
SPECS = ["stc:p=0.05", "topk:p=0.05", "sign", "qsgd:bits=4,bucket=64", "dense"]


def tensors(step: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(step)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def there(given: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.cuda() for name, tensor in given.items()}


@pytest.mark.parametrize("spec", SPECS)
def test_same_bytes_and_residuals_as_the_cpu(spec: str) -> None:
    here, device = (ErrorFeedback(spec, seed=2, exact_below=10) for _ in range(2))
    for step in range(3):
        given = there(tensors(step))
        with no_sync():
            packet = device.compress(given)
        assert packet.to_bytes() == here.compress(tensors(step)).to_bytes()
    for name in SHAPES.keys() - {"b"}:
        assert same_bits(device.residual(name).cpu(), here.residual(name))


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("name", ["a", "b", "e"])
def test_a_nan_anywhere_leaves_every_residual(spec: str, name: str) -> None:
    comp = ErrorFeedback(spec, seed=2, exact_below=10)
    comp.compress(there(tensors(0))).to_bytes()
    before = {each: comp.residual(each) for each in SHAPES if each != "b"}
    bad = there(tensors(1))
    bad[name].view(-1)[3] = float("nan")
    with no_sync():
        packet = comp.compress(bad)
    with pytest.raises(ValueError, match="must be finite"):
        packet.to_bytes()
    assert all(same_bits(comp.residual(each), held) for each, held in before.items())
    comp.compress(there(tensors(2))).to_bytes()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_group_goes_onto_its_tensors(dtype: torch.dtype) -> None:
    packet = ErrorFeedback("stc:p=0.05").compress(there(tensors(0)))
    onto = [torch.randn(shape).to(dtype) for shape in SHAPES.values()]
    device = [tensor.cuda() for tensor in onto]
    packet.add_to_(device, alpha=-0.5)
    packet.to("cpu").add_to_(onto, alpha=-0.5)
    assert all(same_bits(mine.cpu(), theirs) for mine, theirs in zip(device, onto, strict=True))


def test_functional_gives_the_bits_of_packets() -> None:
    mine, theirs = torch.zeros(5000, device="cuda"), torch.zeros(5000)
    for step in range(3):
        tensor = torch.randn(5000, generator=torch.Generator().manual_seed(step))
        given = tensor.cuda()
        with no_sync():
            got = functional.stc(given, p=0.01, residual=mine)
        want = gcext.stc(tensor, p=0.01, residual=theirs)
        assert same_bits(got.cpu(), dense(want))
        assert same_bits(mine.cpu(), theirs)


def test_a_threshold_for_the_model_is_refused() -> None:
    with pytest.raises(ValueError, match="scope='model' needs tensors on the CPU"):
        ErrorFeedback("stc:p=0.05", scope="model").compress(there(tensors(0)))
