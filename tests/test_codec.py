"""gcext.stc and the codecs: what users call, what they are told when it cannot be done."""

from __future__ import annotations

import numpy as np
import oracle
import pytest
import torch
from torch import Tensor

import gcext
from gcext.codec import TopK

FLOATS = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", [(), (0,), (1,), (7,), (30, 40), (3, 0, 2), (5, 6, 7, 8)])
def test_any_shape_and_dtype(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    tensor = torch.randn(shape).to(dtype)
    residual = torch.randn(shape)
    held = residual.clone()
    packet = gcext.stc(tensor, p=0.1, residual=residual)
    want = oracle.stc(
        tensor.float().numpy().ravel(), held.numpy().ravel(), max(int(0.1 * tensor.numel()), 1)
    )
    assert packet.shape == shape
    assert packet.dtype == dtype
    assert packet.numel == tensor.numel()
    assert packet.indices().tolist() == want.index.tolist()
    assert packet.values().numpy().tobytes() == want.value.tobytes()
    assert residual.numpy().tobytes() == want.residual.tobytes()
    again = gcext.Packet.from_bytes(packet.to_bytes(), expect=shape)
    assert torch.equal(again.to_dense(), packet.to_dense())
    assert again.to_dense().shape == shape
    assert again.dtype == dtype


def test_any_strides() -> None:
    whole = torch.randn(40, 30)
    for tensor in (whole.t(), whole[::2, ::3], whole.flip(0), torch.randn(30).expand(20, 30)):
        base = torch.randn(2 * tensor.numel())
        strided = base[::2].view(tensor.shape)
        held = strided.clone()
        packet = gcext.stc(tensor, p=0.05, residual=strided)
        plain = held.clone()
        assert packet.to_bytes() == gcext.stc(tensor.contiguous(), 0.05, plain).to_bytes()
        assert torch.equal(strided, plain)


def test_gradients_are_taken_as_values() -> None:
    weight = torch.randn(100, requires_grad=True)
    assert not gcext.stc(weight, p=0.1).to_dense().requires_grad


def test_topk_conserves_exactly() -> None:
    tensor, residual = torch.randn(10_000), torch.randn(10_000)
    acc = tensor + residual
    packet = gcext.codec("topk:p=0.03").encode(tensor, residual)
    assert packet.method == "sparse"
    assert packet.k == 300
    assert torch.equal(packet.to_dense() + residual, acc)


def test_dense_codec_sends_everything() -> None:
    tensor, residual = torch.randn(50, 2), torch.randn(50, 2)
    acc = tensor + residual
    packet = gcext.codec("dense").encode(tensor, residual)
    assert torch.equal(packet.to_dense(), acc)
    assert not residual.any()
    assert packet.nbytes - 4 * 100 <= 32


@pytest.mark.parametrize("spec", ["stc:p=0.1", "topk:p=0.1", "dense"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", FLOATS)
def test_not_finite_is_refused_and_harms_nothing(spec: str, bad: float, dtype: torch.dtype) -> None:
    for n, where in ((1, 0), (1000, 999), (100_000, 31_313)):
        tensor = torch.randn(n).to(dtype)
        tensor[where] = bad
        if where + 1 < n:
            tensor[-1] = bad
        residual = torch.randn(n)
        held = residual.clone()
        for given in (residual, None):
            with pytest.raises(ValueError, match=rf"must be finite.*at index {where}\."):
                gcext.codec(spec).encode(tensor, given)
        assert torch.equal(residual, held)


def test_float64_beyond_float32_is_refused() -> None:
    tensor = torch.zeros(10, dtype=torch.float64)
    tensor[4] = 1e39
    with pytest.raises(ValueError, match="finite in float32, got 1e\\+39 at index 4"):
        gcext.stc(tensor)


def test_overflow_of_the_sum_is_an_error() -> None:
    big = torch.full((5,), 3e38)
    with pytest.raises(ValueError, match="overflow"):
        gcext.stc(big, p=0.5, residual=big.clone())


@pytest.mark.parametrize("p", [0, -0.1, 1.5, float("nan")])
def test_p_out_of_range(p: float) -> None:
    with pytest.raises(ValueError, match=r"stc: p must be in \(0, 1\], got"):
        gcext.stc(torch.ones(3), p=p)


@pytest.mark.parametrize(
    ("tensor", "residual", "match"),
    [
        (torch.ones(3, dtype=torch.int64), None, "dtype must be one of"),
        (torch.ones(3).to_sparse(), None, "must be strided"),
        (torch.ones(3, device="meta"), None, "cpu or cuda"),
        (torch.ones(3), torch.ones(3, dtype=torch.float64), "residual must be a float32 tensor"),
        (torch.ones(3), torch.ones(4), "shape and device"),
    ],
)
def test_what_does_not_fit(tensor: Tensor, residual: Tensor | None, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        gcext.stc(tensor, residual=residual)


def test_residual_must_not_share_memory() -> None:
    whole = torch.ones(10)
    for tensor, residual in ((whole, whole), (whole[:-1], whole[1:]), (whole[1:], whole[:-1])):
        with pytest.raises(ValueError, match="must not share the tensor's memory"):
            gcext.stc(tensor, residual=residual)
    gcext.stc(whole[:5], residual=whole[5:])


def test_autograd_sees_what_is_written() -> None:
    weight = torch.nn.Parameter(torch.tensor([2.0, 3.0]))
    loss = (weight * weight).sum()
    gcext.stc(torch.ones(2), p=1).add_to_(weight)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
    residual = torch.zeros(4)
    gcext.stc(torch.ones(4), residual=residual)
    assert residual._version > 0
    with torch.inference_mode():
        gcext.stc(torch.ones(4), residual=torch.zeros(4))


def test_arrays_are_not_tensors() -> None:
    with pytest.raises(TypeError, match=r"must be a torch.Tensor, got ndarray"):
        gcext.stc(np.ones(3))  # type: ignore[arg-type]


def test_p_of_any_number_type() -> None:
    codec = TopK(np.float32(0.5), ternary=True)
    assert gcext.codec(codec.spec) == codec


@pytest.mark.parametrize(
    ("spec", "match"),
    [
        ("", "codec: must be one of"),
        ("sct:p=1", "codec: must be one of stc, topk, .*, got 'sct'"),
        ("stc:p", "key=value"),
        ("stc:", "key=value"),
        ("stc:p=0.1,p=0.2", "each once"),
        ("stc:p=much", "p must be a number"),
        ("stc:q=0.1", "unknown option q"),
        ("dense:p=0.1", "unknown option p"),
        ("stc:p=0", r"p must be in \(0, 1\]"),
    ],
)
def test_specs_that_are_none(spec: str, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        gcext.codec(spec)


def test_specs_round_trip() -> None:
    for spec in ("stc:p=0.001", "topk:p=0.1", "dense"):
        codec = gcext.codec(spec)
        assert codec.spec == spec
        assert gcext.codec(codec.spec) == codec
    assert set(gcext.codecs()) >= {"stc", "topk", "dense"}


@pytest.mark.parametrize("p", [0.1, 0.01, 0.001])
def test_size_is_near_the_entropy_bound(p: float) -> None:
    n = 10**6
    packet = gcext.stc(torch.randn(n), p=p)
    entropy = -p * np.log2(p) - (1 - p) * np.log2(1 - p)
    assert packet.nbytes <= 1.02 * n * (entropy + p) / 8 + 32
