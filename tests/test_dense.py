"""Packets into dense tensors of the caller: to_dense, combine and mean with out= and dtype=."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from emu.backends import same_bits
from emu.deferred import DeferredCodec
from packet_kit import dense, single
from torch import Tensor

import gcext
from gcext import Packet
from gcext.aggregate import mean

SHAPE = (6, 10)
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
SPECS = ["stc:p=0.2", "topk:p=0.2", "dense", "sign", "qsgd:bits=3", "randomk:p=0.3", "polar"]
Make = Callable[[torch.dtype], Tensor]
TARGETS: dict[str, Make] = {
    "contiguous": lambda dtype: torch.full(SHAPE, 7.0, dtype=dtype),
    "flat": lambda dtype: torch.full((60,), 7.0, dtype=dtype),
    "transposed": lambda dtype: torch.full(SHAPE[::-1], 7.0, dtype=dtype).t(),
    "every second": lambda dtype: torch.full((12, 20), 7.0, dtype=dtype)[::2, 1::2],
    "at an offset": lambda dtype: torch.full((61,), 7.0, dtype=dtype)[1:].view(SHAPE),
}


def encoded(spec: str = "topk:p=0.2", shape: tuple[int, ...] = SHAPE) -> Packet:
    return gcext.codec(spec).encode(torch.randn(shape), seed=1)


def group() -> Packet:
    return Packet.group([encoded(), encoded("dense", (3,)), encoded("sign", (0, 4)), encoded()])


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("spec", SPECS)
def test_out_of_any_strides_and_dtype(spec: str, dtype: torch.dtype, name: str) -> None:
    packet, out = encoded(spec), TARGETS[name](dtype)
    want = dense(packet).to(dtype)
    assert packet.to_dense(out=out) is out
    assert same_bits(out.reshape(SHAPE), want)
    assert packet.to_dense(out, dtype) is out
    assert same_bits(dense(packet).to(dtype), single(packet.to_dense(dtype=dtype)))


def test_only_the_elements_of_out_are_written() -> None:
    whole = torch.full((12, 20), 7.0)
    encoded().to_dense(out=whole[::2, 1::2])
    whole[::2, 1::2] = 7
    assert bool((whole == 7).all())


def test_float32_values_are_rounded_once() -> None:
    values = torch.tensor([1 + 2.0**-11, 1 + 2.0**-11 + 2.0**-23, 65519.996, 2.0**-25, 1e-42, -0.0])
    packet = gcext.codec("dense").encode(values)
    for dtype in DTYPES:
        assert same_bits(single(packet.to_dense(dtype=dtype)), values.to(dtype))
    assert single(packet.to_dense(dtype=torch.float64)).float().tolist() == values.tolist()


def test_a_group_fills_a_list() -> None:
    packet = group()
    outs: Any = [
        torch.full(SHAPE[::-1], 7.0).t(), torch.full((3,), 7.0, dtype=torch.float16),
        torch.full((0, 4), 7.0), torch.full((60,), 7.0, dtype=torch.float64),
    ]  # fmt: skip
    assert packet.to_dense(out=outs) is outs
    for out, want in zip(outs, packet.to_dense(), strict=True):
        assert same_bits(out.reshape(want.shape), want.to(out.dtype))
    assert [each.dtype for each in packet.to_dense(dtype=torch.bfloat16)] == [torch.bfloat16] * 4
    tupled = tuple(torch.empty(shape) for shape in packet.shape)
    assert packet.to_dense(out=tupled) is tupled


def test_a_parameter_and_inference_tensors_may_be_overwritten() -> None:
    packet = encoded()
    parameter = torch.nn.Parameter(torch.ones(SHAPE))
    before = parameter._version
    packet.to_dense(out=parameter)
    assert parameter._version > before and parameter.requires_grad
    with torch.inference_mode():
        outs = [torch.ones(SHAPE), torch.ones(SHAPE[::-1]).t()]
    for out in outs:
        packet.to_dense(out=out)
    for out in (parameter, *outs):
        assert torch.equal(out.detach(), dense(packet))


def ones(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.ones(shape, dtype=dtype)


BAD_SINGLE: list[tuple[Any, type[Exception], str]] = [
    ([ones(6, 10)], TypeError, r"out must be a torch\.Tensor, got list"),
    (ones(6, 10).numpy(), TypeError, r"out must be a torch\.Tensor, got ndarray"),
    (ones(10, 6), ValueError, r"shape \(6, 10\) or \(60,\) on cpu, got \(10, 6\) on cpu"),
    (ones(59), ValueError, r"got \(59,\)"),
    (ones(6, 10, dtype=torch.int64), ValueError, r"one of float32, .*, got torch\.int64"),
    (ones(6, 10).to_sparse(), ValueError, r"must be strided .*torch\.sparse_coo"),
    (ones(6, 10).to("meta"), ValueError, r"on cpu, got \(6, 10\) on meta"),
    (ones(10).expand(6, 10), ValueError, r"must not overlap itself, got .* strides \(0, 1\)"),
    (ones(69).as_strided((6, 10), (2, 1)), ValueError, "must not overlap itself"),
]
BAD_GROUP: list[tuple[Any, type[Exception], str]] = [
    (ones(6, 10), TypeError, "out must be a list of 4 tensors, .* got Tensor"),
    ({"a": ones(6, 10)}, TypeError, "out must be a list of 4 tensors, .* got dict"),
    ([ones(6, 10)], ValueError, "out must be a list of 4 tensors, .* got 1"),
    ([ones(6, 10), ones(3), ones(0, 4), ones(5)], ValueError, r"out\[3\] must have the shape"),
    ([ones(6, 10), ones(3), ones(0, 4), None], TypeError, r"out\[3\] must be a torch\.Tensor"),
    ([ones(6, 10), ones(3), ones(0, 4), ones(1).expand(60)], ValueError, r"out\[3\] must not"),
    ([shared := ones(6, 10), ones(3), ones(0, 4), shared], ValueError, "must not share memory"),
]
INTO: dict[str, Callable[[Packet, Any], Any]] = {
    "Packet.to_dense": lambda packet, out: packet.to_dense(out=out),
    "combine": lambda packet, out: gcext.combine([packet, packet], out=out),
    "mean": lambda packet, out: mean([packet, packet], out=out),
}


@pytest.mark.parametrize("op", INTO)
@pytest.mark.parametrize(("out", "error", "text"), [*BAD_SINGLE, *BAD_GROUP])
def test_what_does_not_fit_changes_nothing(
    op: str, out: Any, error: type[Exception], text: str
) -> None:
    packet = encoded() if any(out is bad for bad, *_ in BAD_SINGLE) else group()
    before = copy.deepcopy(out)
    with pytest.raises(error, match=f"^{op}: .*{text}"):
        INTO[op](packet, out)
    for was, now in zip(before, out, strict=True) if isinstance(out, list) else ():
        assert now is None or torch.equal(was, now)


def test_dtype_must_be_a_float_and_agree_with_out() -> None:
    packet, out = encoded(), ones(6, 10)
    for dtype in (torch.int32, torch.complex64, "float32"):
        with pytest.raises(ValueError, match=r"Packet\.to_dense: dtype must be one of float32"):
            packet.to_dense(dtype=dtype)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"dtype must be that of out, torch\.float32, got .*64"):
        packet.to_dense(out, torch.float64)
    outs = [ones(6, 10), ones(3), ones(0, 4), ones(6, 10).double()]
    with pytest.raises(ValueError, match=r"that of out\[3\], torch\.float64, got torch\.float32"):
        group().to_dense(outs, torch.float32)
    assert all(bool((each == 1).all()) for each in (out, *outs))


def test_a_deferred_error_changes_nothing() -> None:
    bad = torch.randn(SHAPE)
    bad[1, 2] = float("nan")
    late = DeferredCodec(gcext.codec("stc")).encode(bad)
    with pytest.raises(ValueError, match="tensor must be finite"):
        late.to_dense(out=(out := ones(6, 10)))
    outs = [ones(6, 10), ones(6, 10)]
    with pytest.raises(ValueError, match="tensor must be finite"):
        Packet.group([encoded(), late]).to_dense(out=outs)
    assert all(bool((each == 1).all()) for each in (out, *outs))


class TestSums:
    def test_default_weights(self) -> None:
        packets = [encoded(spec) for spec in SPECS]
        assert same_bits(
            single(gcext.combine(packets)), single(gcext.combine(packets, [1.0] * len(SPECS)))
        )
        assert same_bits(single(mean(packets)), single(mean(packets, [1.0] * len(SPECS))))

    @pytest.mark.parametrize("name", TARGETS)
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_out(self, dtype: torch.dtype, name: str) -> None:
        packets, weights = [encoded(spec) for spec in SPECS], [float(i) for i in range(1, 8)]
        for function in (gcext.combine, mean):
            out = TARGETS[name](dtype)
            assert function(packets, weights, out) is out
            assert same_bits(out.reshape(SHAPE), single(function(packets, weights)).to(dtype))
            assert function(packets, out=out) is out
            assert same_bits(out.reshape(SHAPE), single(function(packets)).to(dtype))

    def test_groups(self) -> None:
        groups = [group(), group()]
        outs = [torch.full(shape, 7.0) for shape in groups[0].shape]
        for function in (gcext.combine, mean):
            assert function(groups, out=outs) is outs
            assert all(map(same_bits, outs, function(groups)))

    def test_bad_weights_change_nothing(self) -> None:
        out = ones(6, 10)
        for function in (gcext.combine, mean):
            with pytest.raises(ValueError, match="finite, got inf for packet 1"):
                function([encoded(), encoded()], [1.0, float("inf")], out)
            with pytest.raises(ValueError, match="one shape"):
                function([encoded(), encoded(shape=(60,))], out=out)
        assert bool((out == 1).all())
