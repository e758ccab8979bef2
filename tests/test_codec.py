"""gcext.stc and the codecs: what users call, and the errors that it raises."""

from __future__ import annotations

import numpy as np
import oracle
import pytest
import torch
from isa_kit import at_every_isa
from packet_kit import dense
from torch import Tensor

import gcext
from gcext._codecs.topk import STC

STOCHASTIC = [
    "randomk:p=0.2",
    "qsgd:bits=1,bucket=64",
    "qsgd:bits=4,bucket=512",
    "qsgd:bits=15,bucket=0",
    "terngrad:clip=0.0,bucket=0",
    "terngrad:clip=2.5,bucket=128",
    "natural",
    "polar:rate=0.5,block=256,rotate=true",
    "polar:rate=0.5,block=64,rotate=true,select=topk,p=0.2",
    "polar:rate=0.5,block=64,rotate=true,select=randomk,p=0.3",
    "polar:rate=0.5,block=64,rotate=false,select=randomk,p=0.3",
    "ajiheafield:drop=0.8",
    "wangni:p=0.2",
    "repeat:rounds=2,codec=randomk:p=0.2",
    "dorefa:bits=1,bucket=64",
    "dorefa:bits=4,bucket=512",
    "dorefa:bits=8,bucket=0",
]
DETERMINISTIC = [
    "sign",
    "fp16",
    "bf16",
    "uniform:bits=4,bucket=512",
    "uniform:bits=8,bucket=0",
    "int8:bucket=4096",
    "onebit:bucket=0",
    "onebit:bucket=100",
    "polar:rate=0.9,block=128,rotate=false",
    "polar:rate=0.5,block=64,rotate=false,select=topk,p=0.2",
    "strom:tau=4.0",
    "sbc:p=0.2",
    "dryden:p=0.2",
    "repeat:rounds=3,codec=topk:p=0.05",
    "stc:p=0.2,chunk=50",
    "topk:p=0.05,chunk=64",
    "sparseloco:p=0.2,chunk=100,bits=2",
    "sparseloco:p=0.1,chunk=4096,bits=4,range=5.0",
    "adacomp:bin=50",
    "dct:k=4,block=64,signs=true",
    "dct:k=40,block=33,signs=false",
]
# torch's matrix products: not the same bytes on every processor, with any number of threads.
PRODUCTS = ["lowrank:rank=2,iterations=1"]
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
    assert torch.equal(dense(again), dense(packet))
    assert dense(again).shape == shape
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
    assert not dense(gcext.stc(weight, p=0.1)).requires_grad


def test_topk_conserves_exactly() -> None:
    tensor, residual = torch.randn(10_000), torch.randn(10_000)
    acc = tensor + residual
    packet = gcext.codec("topk:p=0.03").encode(tensor, residual)
    assert packet.method == "sparse"
    assert packet.k == 300
    assert torch.equal(dense(packet) + residual, acc)


def test_dense_codec_sends_everything() -> None:
    tensor, residual = torch.randn(50, 2), torch.randn(50, 2)
    acc = tensor + residual
    packet = gcext.codec("dense").encode(tensor, residual)
    assert torch.equal(dense(packet), acc)
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
        gcext.stc(np.ones(3))  # type: ignore[call-overload]


def test_p_of_any_number_type() -> None:
    codec = STC(np.float32(0.5))  # type: ignore[arg-type,unused-ignore]
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
        ("randomk:p=2", r"randomk: p must be in \(0, 1\]"),
        ("sign:p=0.1", "unknown option p"),
        ("qsgd:bits=0", r"qsgd: bits must be in \[1, 15\]"),
        ("qsgd:bits=1.5", "bits must be a whole number"),
        ("qsgd:bucket=-1", "bucket must be at least 0"),
        ("qsgd:bucket=inf", "bucket must be a whole number"),
        ("terngrad:clip=-1", "terngrad: clip must be at least 0"),
        ("terngrad:bits=2", "unknown option bits"),
        ("dorefa:bits=9", r"dorefa: bits must be in \[1, 8\]"),
        ("uniform:bits=0", r"uniform: bits must be in \[1, 8\]"),
        ("int8:bucket=-1", "int8: bucket must be at least 0"),
        ("onebit:bits=1", "onebit: unknown option bits"),
        ("fp16:bits=16", "unknown option bits"),
        ("polar:rate=0", "at least 1 bit"),
        ("polar:rate=1.5", "rate must be in"),
        ("polar:rate=0.001,block=64", "at least 1 bit"),
        ("polar:block=1000", "block must be a power of two"),
        ("polar:rotate=yes", "rotate must be one of true, false"),
        ("polar:select=best", "select must be one of all, topk, randomk"),
        ("polar:p=0.1", "unknown option p"),
        ("polar:select=topk,p=0", r"polar: p must be in \(0, 1\]"),
        ("strom:tau=0", "strom: tau must be above 0 and finite"),
        ("strom:tau=1e-50", "strom: tau must be positive in float32"),
        ("strom:tau=1e39", "strom: tau must be positive in float32"),
        ("ajiheafield:drop=1", r"ajiheafield: drop must be in \[0, 1\)"),
        ("sbc:p=0", r"sbc: p must be in \(0, 1\]"),
        ("dryden:p=2", r"dryden: p must be in \(0, 1\]"),
        ("wangni:p=0", r"wangni: p must be in \(0, 1\]"),
        ("repeat:rounds=1", r"repeat: rounds must be in \[2, 64\]"),
        ("repeat:rounds=2,codec=sct", "repeat: codec: must be one of .*, got 'sct'"),
        ("repeat:codec=stc:q=1", "stc: unknown option q"),
        ("repeat:codec=stc,q=1", "stc: unknown option q"),
        ("repeat:codec=repeat:rounds=2", "codec must not be repeat itself"),
        ("repeat:codec=strom", "codec must be a contraction, got strom"),
        ("lowrank:rank=0", "lowrank: rank must be at least 1"),
        ("dct:k=0", "dct: k must be at least 1"),
        ("dct:block=65", r"dct: block must be in \[1, 64\]"),
    ],
)
def test_invalid_specs_raise(spec: str, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        gcext.codec(spec)


def test_specs_round_trip() -> None:
    for spec in ("stc:p=0.001", "topk:p=0.1", "dense", *STOCHASTIC, *DETERMINISTIC, *PRODUCTS):
        codec = gcext.codec(spec)
        assert codec.spec == spec
        assert gcext.codec(codec.spec) == codec
    assert set(gcext.codecs()) >= {"stc", "topk", "dense"}
    for name in gcext.codecs():
        assert gcext.codec(gcext.codec(name).spec) == gcext.codec(name)


@pytest.mark.parametrize("p", [0.1, 0.01, 0.001])
def test_size_is_near_the_entropy_bound(p: float) -> None:
    n = 10**6
    packet = gcext.stc(torch.randn(n), p=p)
    entropy = -p * np.log2(p) - (1 - p) * np.log2(1 - p)
    assert packet.nbytes <= 1.02 * n * (entropy + p) / 8 + 32


@pytest.mark.parametrize("spec", [*DETERMINISTIC, *STOCHASTIC, *PRODUCTS])
class TestEveryCodec:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
    @pytest.mark.parametrize("shape", [(), (0,), (1,), (7,), (30, 40), (3, 0, 2)])
    def test_any_shape_and_dtype(
        self, spec: str, dtype: torch.dtype, shape: tuple[int, ...]
    ) -> None:
        tensor, residual = torch.randn(shape).to(dtype), torch.randn(shape)
        acc = tensor.float() + residual
        packet = gcext.codec(spec).encode(tensor, residual, seed=5)
        assert packet.shape == shape and packet.dtype == dtype
        assert residual.numpy().tobytes() == (acc - dense(packet)).numpy().tobytes()
        again = gcext.Packet.from_bytes(packet.to_bytes(), expect=shape)
        assert dense(again).numpy().tobytes() == dense(packet).numpy().tobytes()
        assert again.dtype == dtype

    def test_both_forms_and_any_strides_agree(self, spec: str) -> None:
        codec = gcext.codec(spec)
        tensor, memory = torch.randn(40, 30).t(), torch.randn(30, 80)[:, ::2]
        held, out, strided = memory.clone(), torch.empty(30, 40), memory.clone().t().t()
        packet = codec.advance(tensor, held, out, 1.0, seed=5)
        assert torch.equal(held, memory)
        assert codec.encode(tensor, strided, seed=5).to_bytes() == packet.to_bytes()
        assert torch.equal(out, strided)
        scaled = codec.advance(tensor, held, torch.empty_like(out), 0.5, seed=5)
        assert scaled.to_bytes() == codec.encode(tensor, held * 0.5, seed=5).to_bytes()

    def test_what_is_not_finite_leaves_the_residual(self, spec: str) -> None:
        tensor, residual = torch.randn(1000), torch.randn(1000)
        held = residual.clone()
        tensor[17] = float("nan")
        for given in (residual, None):
            with pytest.raises(ValueError, match="finite in float32, got nan at index 17"):
                gcext.codec(spec).encode(tensor, given, seed=0)
        assert torch.equal(residual, held)

    def test_zeros_stay_zeros(self, spec: str) -> None:
        residual = torch.zeros(500)
        packet = gcext.codec(spec).encode(torch.zeros(500), residual, seed=1)
        assert not dense(packet).any() and not residual.any()
        assert not dense(gcext.Packet.from_bytes(packet.to_bytes())).any()

    def test_feedback_is_bounded(self, spec: str) -> None:
        """What is sent follows the gradient."""
        comp, total = gcext.ErrorFeedback(spec, seed=3), torch.zeros(2000)
        gradient = torch.randn(2000)
        for _ in range(150):
            total += dense(comp.compress(gradient, "w"))
        error = float((total / 150 - gradient).norm() / gradient.norm())
        assert error < 0.5


@pytest.mark.parametrize("spec", [*STOCHASTIC, *PRODUCTS])
def test_stochastic_codecs_need_a_seed(spec: str) -> None:
    codec, tensor = gcext.codec(spec), torch.randn(50, 40)
    assert codec.stochastic
    residual = torch.zeros(50, 40)
    with pytest.raises(ValueError, match=r"a stochastic codec needs a seed, got none\. Pass seed="):
        codec.encode(tensor, residual)
    with pytest.raises(ValueError, match="needs a seed"):
        codec.advance(tensor, residual, residual.clone())
    assert not residual.any()
    messages = [codec.encode(tensor, seed=seed).to_bytes() for seed in (1, 1, 1 + 2**64, 2, -1)]
    assert messages[0] == messages[1] == messages[2]
    assert len(set(messages)) == 3


@pytest.mark.parametrize("spec", DETERMINISTIC)
def test_deterministic_codecs_ignore_the_seed(spec: str) -> None:
    codec, tensor = gcext.codec(spec), torch.randn(2000)
    assert not codec.stochastic
    assert codec.encode(tensor, seed=1).to_bytes() == codec.encode(tensor).to_bytes()


@pytest.mark.parametrize(
    "spec",
    [
        "randomk:p=0.2",
        "qsgd:bits=1,bucket=64",
        "terngrad",
        "natural",
        "polar:rate=0.5,block=256",
        "polar:rate=0.5,block=64,select=randomk,p=0.3",
        "wangni:p=0.002",
        "dorefa:bits=1,bucket=64",
        "dorefa:bits=3,bucket=0",
    ],
)
@pytest.mark.parametrize("kind", ["gaussian", "sparse"])
def test_the_mean_over_seeds_is_the_tensor(spec: str, kind: str) -> None:
    """The error of the mean of S estimates is that of one over sqrt(S) unless there is a bias.

    Three elements leave little more than one degree of freedom, whose square is above 16 with a
    probability of 6e-5.
    """
    n, seeds, codec = 1000, 1500, gcext.codec(spec)
    tensor = torch.randn(n)
    if kind == "sparse":
        tensor[3:] = 0
    total, errors = torch.zeros(n, dtype=torch.float64), 0.0
    for seed in range(seeds):
        estimate = dense(codec.encode(tensor, seed=seed)).double()
        total += estimate
        errors += float((estimate - tensor).square().sum())
    bias = float((total / seeds - tensor).square().sum())
    assert bias < errors / seeds / seeds * (1.5 if kind == "gaussian" else 16)


def test_random_k_travels_plain_with_a_residual() -> None:
    codec, tensor = gcext.codec("randomk:p=0.25"), torch.randn(10_000)
    packet = codec.encode(tensor, seed=1)
    assert packet.k == 2500
    assert torch.equal(packet.values(), tensor[packet.indices()] * 4)
    residual = torch.randn(10_000)
    acc = tensor + residual
    packet = codec.encode(tensor, residual, seed=1)
    assert torch.equal(packet.values(), acc[packet.indices()])
    assert torch.equal(dense(packet) + residual, acc)
    assert not residual[packet.indices()].any()


def test_random_k_refuses_to_overflow_by_its_scale() -> None:
    with pytest.raises(ValueError, match="tensor times n/k must be finite"):
        gcext.codec("randomk:p=0.25").encode(torch.full((8,), 2e38), seed=0)


@pytest.mark.parametrize("rotate", ["true", "false"])
def test_polar_with_a_residual_is_least_squares(rotate: str) -> None:
    tensor, residual = torch.randn(5000), torch.zeros(5000)
    codec = gcext.codec(f"polar:rate=0.5,block=512,rotate={rotate}")
    sent = dense(codec.encode(tensor, residual, seed=1)).double()
    if rotate == "false":  # a rotation's padding is not orthogonal by itself
        assert abs(float(sent @ residual.double())) < 1e-5 * float(sent @ sent)
    # D = 1 - rho^2 of signs by weight at R = 0.5, measured: 0.46 of the energy is left
    assert 0.4 < float(residual.square().sum() / tensor.square().sum()) < 0.6


def test_sizes_are_what_the_rates_promise() -> None:
    n = 338_006
    tensor = torch.randn(n)
    for spec, bits in (
        ("sign", 1.0),
        ("polar:rate=0.5", 0.51),
        ("polar:rate=0.5,rotate=false", 0.505),
        ("qsgd:bits=1,bucket=512", 0.33),
        ("qsgd:bits=1,bucket=64", 1.1),
    ):
        assert gcext.codec(spec).encode(tensor, seed=0).nbytes * 8 < bits * n + 256, spec


SAME = """
import hashlib, torch
import test_codec as t
for threads in (1, 2, 7):
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    one = hashlib.sha256()
    for spec in (*t.STOCHASTIC, *t.DETERMINISTIC):
        for n in (1, 1000, 70_000):
            tensor, residual = torch.randn(n), torch.randn(n)
            packet = t.gcext.codec(spec).encode(tensor, residual, seed=n)
            one.update(packet.to_bytes() + residual.numpy().tobytes())
            one.update(t.gcext.codec(spec).encode(tensor, seed=n).to_bytes())
    print(one.hexdigest())
"""


def test_same_bytes_for_every_isa_and_thread_count() -> None:
    digests = {digest for printed in at_every_isa(SAME).values() for digest in printed}
    assert len(digests) == 1, digests
