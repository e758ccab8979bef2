"""gcext.functional: one graph, and the bits of packets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from emu.backends import same_bits
from packet_kit import dense
from torch import Tensor

import gcext
from gcext import functional

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


@pytest.fixture(params=["eager", "compiled"])
def wrap(request: pytest.FixtureRequest) -> Callable[..., Any]:
    if request.param == "eager":
        return lambda function: function
    torch._dynamo.reset()
    return lambda f: torch.compile(f, fullgraph=True, backend="aot_eager")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "p"), [((1000,), 0.01), ((20, 7), 0.3), ((), 1.0), ((0,), 0.1)])
def test_stc_gives_the_bits_of_packets(
    wrap: Callable[..., Any], shape: tuple[int, ...], p: float, dtype: torch.dtype
) -> None:
    stc = wrap(functional.stc)
    mine, theirs = torch.zeros(shape), torch.zeros(shape)
    for _ in range(3):
        tensor = torch.randn(shape, dtype=torch.float64).to(dtype)
        packet = gcext.stc(tensor, p=p, residual=theirs)
        assert same_bits(stc(tensor, p=p, residual=mine), dense(packet))
        assert same_bits(mine, theirs)
    assert same_bits(stc(tensor, p=p), dense(gcext.stc(tensor, p=p)))


@pytest.mark.parametrize("ternary", [False, True])
def test_topk_gives_the_elements_of_packets(wrap: Callable[..., Any], ternary: bool) -> None:
    tensor = torch.randn(40, 50).t()
    index, value = wrap(functional.topk)(tensor, p=0.05, ternary=ternary)
    packet = gcext.codec(f"{'stc' if ternary else 'topk'}:p=0.05").encode(tensor)
    assert torch.equal(index.long(), packet.indices())
    assert same_bits(value, packet.values())


def test_fewer_non_zeros_end_in_zeros(wrap: Callable[..., Any]) -> None:
    tensor = torch.tensor([0.0, 2.0, 0.0, -3.0, 0.0])
    index, value = wrap(functional.topk)(tensor, p=1.0)
    assert index.tolist() == [1, 3, 0, 0, 0]
    assert value.tolist() == [2, -3, 0, 0, 0]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_gives_nan_and_leaves_the_residual(
    wrap: Callable[..., Any], bad: float
) -> None:
    tensor, residual = torch.randn(100), torch.randn(100)
    before = residual.clone()
    tensor[17] = bad
    assert wrap(functional.stc)(tensor, p=0.1, residual=residual).isnan().any()
    assert same_bits(residual, before)
    assert wrap(functional.topk)(tensor, p=0.1)[1].isnan().all()


def test_inside_a_larger_graph_with_strides_and_gradients() -> None:
    torch._dynamo.reset()
    weight = torch.randn(30, 20, requires_grad=True)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def step(x: Tensor, residual: Tensor) -> Tensor:
        return x * 2 + functional.stc(weight.t() * x, p=0.1, residual=residual)

    x, mine, theirs = torch.randn(20, 30), torch.zeros(20, 30), torch.zeros(20, 30)
    want = x * 2 + dense(gcext.stc(weight.t().detach() * x, p=0.1, residual=theirs))
    assert same_bits(step(x, mine), want)
    assert same_bits(mine, theirs)


def test_one_graph() -> None:
    torch._dynamo.reset()
    explained = torch._dynamo.explain(functional.stc)(torch.randn(100), residual=torch.zeros(100))
    assert (explained.graph_count, explained.graph_break_count) == (1, 0)


@pytest.mark.parametrize(
    ("how", "match"),
    [
        ({"p": 0.0}, r"p must be in \(0, 1\], got 0"),
        ({"p": "a"}, r"p must be in \(0, 1\], got 'a'"),
        ({"residual": [0.0]}, "residual must be float32"),
        ({"residual": torch.zeros(4)}, r"of shape \(3,\) on cpu, got torch.float32 \(4,\)"),
        ({"residual": torch.zeros(3).double()}, "residual must be float32"),
        ({"residual": torch.zeros(6)[::2]}, "contiguous"),
    ],
)
def test_refuses(how: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        functional.topk(torch.ones(3), **how)
    with pytest.raises(ValueError, match="dtype must be one of float32"):
        functional.topk(torch.ones(3, dtype=torch.int32))
    with pytest.raises(TypeError, match=r"functional\.stc: tensor must be .* got NoneType"):
        functional.stc(None)  # type: ignore[arg-type]
    shared = torch.ones(3)
    with pytest.raises(ValueError, match="must not share the tensor's memory"):
        functional.topk(shared, residual=shared)


def test_autograd_sees_the_residual_change() -> None:
    leaf = torch.ones(40, requires_grad=True)
    residual = leaf * 2
    loss = (residual * residual).sum()
    with torch.no_grad():
        functional.topk(torch.randn(40), p=0.1, residual=residual)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
