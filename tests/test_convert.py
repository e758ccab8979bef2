"""Tensors of other float types: as float32, and as kernels read them; csrc/convert.h."""

from __future__ import annotations

import math

import pytest
import torch
from isa_kit import at_every_isa
from torch import Tensor

import gcext
from gcext._codecs.base import CODECS, Scope
from gcext._native import ops

HALVES = [torch.float16, torch.bfloat16]
SPECS = ["stc:p=0.01", "stc:p=0.3", "topk:p=0.1", "topk:p=0.1,chunk=256", "sign", "dense", "qsgd"]
SPECS += ["terngrad", "natural", "fp16", "bf16", "int8", "dorefa:bits=2", "onebit", "randomk:p=0.1"]
SPECS += ["strom:tau=1.5", "ajiheafield:drop=0.9", "wangni:p=0.1"]


def every(dtype: torch.dtype) -> Tensor:
    """All 65,536 of a 16-bit type."""
    return torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)


@pytest.mark.parametrize("dtype", HALVES)
def test_every_half_is_converted_as_torch_does(dtype: torch.dtype) -> None:
    given = every(dtype)
    made, expected = ops.to_float32(given), given.float()
    nan = expected.isnan()
    assert torch.equal(made.isnan(), nan)
    assert torch.equal(made[~nan].view(torch.int32), expected[~nan].view(torch.int32))


def test_float64_is_rounded_to_nearest_and_denormals_stay() -> None:
    given = torch.randn(70_001, dtype=torch.float64) * 2.0 ** torch.randint(-160, 127, (70_001,))
    expected = given.float()
    assert torch.set_flush_denormal(True)
    try:
        made = ops.to_float32(given)
    finally:
        torch.set_flush_denormal(False)
    assert torch.equal(made.view(torch.int32), expected.view(torch.int32))
    assert (made[made != 0].abs() < 2.0**-126).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.int32])
def test_the_operator_refuses_other_types(dtype: torch.dtype) -> None:
    with pytest.raises(RuntimeError, match="to_float32: tensor: wrong dtype"):
        ops.to_float32(torch.zeros(3, dtype=dtype))


def decoded(packet: gcext.Packet) -> bytes:
    made = packet.to_dense(dtype=torch.float32)
    assert isinstance(made, Tensor)
    return made.numpy().tobytes()


def feedback(spec: str, dtype: torch.dtype, convert: bool, n: int) -> list[bytes]:
    """Packets and residual of some steps."""
    made = gcext.ErrorFeedback(spec, seed=3)
    out = []
    for step in range(4):
        tensor = torch.randn(n, generator=torch.Generator().manual_seed(step)).to(dtype)
        packet = made.compress(tensor.float() if convert else tensor, "g")
        out.append(decoded(packet))
        made.commit()
    return [*out, made.residual("g").numpy().tobytes()]


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("n", [1, 1000, 150_001])
def test_a_residual_is_that_of_the_tensor_as_float32(spec: str, dtype: torch.dtype, n: int) -> None:
    assert feedback(spec, dtype, False, n) == feedback(spec, dtype, True, n)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("spec", [*SPECS, "terngrad:clip=2.5"])
def test_a_packet_is_that_of_the_tensor_as_float32(spec: str, dtype: torch.dtype) -> None:
    codec = gcext.codec(spec)
    for n in (0, 5, 5000):
        tensor = torch.randn(n).to(dtype)
        residual = torch.randn(n)
        other = residual.clone()
        for kept in (False, True):
            one = codec.encode(tensor, residual if kept else None, 7)
            two = codec.encode(tensor.float(), other if kept else None, 7)
            assert decoded(one) == decoded(two), n
        assert torch.equal(residual, other)


@pytest.mark.parametrize("scope", ["tensor", "model"])
def test_a_list_may_mix_types(scope: Scope) -> None:
    kinds = zip((300, 4000, 90_000), [*HALVES, torch.float32], strict=True)
    tensors = [torch.randn(n).to(dtype) for n, dtype in kinds]
    codec = gcext.codec("stc:p=0.05")
    mixed = codec.encode(tensors, scope=scope)
    alike = codec.encode([t.float() for t in tensors], scope=scope)
    for one, two in zip(mixed, alike, strict=True):
        assert decoded(one) == decoded(two)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("spec", SPECS)
def test_what_is_not_finite_is_named_and_changes_nothing(spec: str, dtype: torch.dtype) -> None:
    made = gcext.ErrorFeedback(spec, seed=3)
    made.compress(torch.randn(5000), "g")
    made.commit()
    before = made.residual("g")
    for value in (math.nan, math.inf):
        bad = torch.randn(5000).to(dtype)
        bad[4321:] = value
        with pytest.raises(ValueError, match="4321"):
            made.compress(bad, "g")
        assert torch.equal(made.residual("g"), before)


CORPUS = """
import hashlib, torch
import test_convert as t
for threads in (1, 2, 7):
    torch.set_num_threads(threads)
    one = hashlib.sha256()
    for dtype in t.HALVES:
        for spec in t.SPECS:
            for each in t.feedback(spec, dtype, False, 100_003):
                one.update(each)
    print(one.hexdigest())
"""


def test_same_bytes_for_every_isa_and_thread_count() -> None:
    digests = {digest for printed in at_every_isa(CORPUS).values() for digest in printed}
    assert len(digests) == 1, digests


def test_a_kernel_that_updates_in_place_takes_no_half() -> None:
    with pytest.raises(RuntimeError, match="16 bits needs a memory apart"):
        ops.select(torch.zeros(8).half(), None, torch.zeros(8), 1, 1.0, 1.0, True)


def test_codecs_that_are_given_halves_are_those_of_these_tests() -> None:
    built_in = {name for name, kind in CODECS.items() if kind.__module__.startswith("gcext.")}
    reading = {name for name in built_in if CODECS[name].reads_half}
    assert reading <= {spec.partition(":")[0] for spec in SPECS} | {"uniform"}
    assert {"stc", "topk", "sign", "qsgd", "terngrad"} <= reading
