"""The codecs fp16, bf16, dorefa, uniform, int8 and onebit: bytes, worst cases, published faults."""

from __future__ import annotations

import math

import pytest
import torch
from packet_kit import dense
from torch import Tensor

import gcext
from gcext._packet.tables import Codes


def left(spec: str, x: Tensor, seed: int = 0) -> float:
    """The squared norm of what the packet lacks under a residual, in squared norms of x."""
    residual = torch.zeros_like(x)
    gcext.codec(spec).encode(x, residual, seed=seed)
    return float(residual.double().square().sum() / x.double().square().sum())


@pytest.mark.parametrize(
    ("spec", "bits"),
    [
        ("fp16", 16.001),
        ("bf16", 16.001),
        ("dorefa:bits=2,bucket=512", 2 + 32 / 512 + 0.001),
        ("dorefa:bits=8,bucket=0", 8.001),
        ("uniform:bits=1,bucket=64", 1.501),
        ("uniform:bits=5,bucket=0", 5.001),
        ("int8", 8.01),
        ("onebit", 1.001),
    ],
)
def test_bytes_are_the_papers_count(spec: str, bits: float) -> None:
    """Of 10^6 elements: codes, the scales, and at most 32 bytes around them."""
    packet = gcext.codec(spec).encode(torch.randn(10**6), seed=1)
    assert packet.nbytes * 8 <= bits * 10**6


class TestFaultsOfOneBitInBytePS:
    """1-bit in the BytePS interface lost a study 3 points of accuracy by these."""

    def test_the_sign_survives_the_packing(self) -> None:
        """Casting to bool made every non-zero element a one."""
        x = torch.tensor([1.0, -1.0, 3.0, -5.0])
        assert dense(gcext.codec("onebit").encode(x)).tolist() == [2.0, -3.0, 2.0, -3.0]

    def test_each_tensor_has_its_own_means(self) -> None:
        """One mean was shared by all: small layers were drowned by large ones."""
        tensors = {"conv": torch.randn(4, 50), "bias": 1e-4 * torch.randn(40)}
        packet = gcext.ErrorFeedback("onebit").compress(tensors)
        for sent, x in zip(packet.to_dense(), tensors.values(), strict=True):
            rows = x if x.dim() > 1 else x[None]
            for got, row in zip(sent.view(rows.shape), rows, strict=True):
                assert torch.allclose(got[row >= 0], row[row >= 0].mean())
                assert torch.allclose(got[row < 0], row[row < 0].mean())

    def test_one_bit_travels_as_one(self) -> None:
        """Values went on as 16 bits."""
        packet = gcext.codec("onebit").encode(torch.randn(80_000))
        assert isinstance(packet.coded, Codes)
        assert packet.coded.bits.numel() == 10_000
        assert packet.nbytes <= 10_000 + 8 + 32

    def test_the_loss_is_fed_back(self) -> None:
        comp, x = gcext.ErrorFeedback("onebit"), torch.randn(1000)
        total = torch.zeros(1000)
        for step in range(1, 21):
            total += dense(comp.compress(x, "w"))
            assert torch.allclose(total + comp.residual("w"), step * x, atol=1e-4)
        alone = sum((dense(gcext.codec("onebit").encode(x)) for _ in range(20)), torch.zeros(1000))
        assert (total - 20 * x).norm() < 0.4 * (alone - 20 * x).norm()


def test_one_bit_takes_columns_of_the_first_dimension() -> None:
    x = torch.randn(6, 5, 2)
    sent = dense(gcext.codec("onebit").encode(x))
    each = [dense(gcext.codec("onebit").encode(row.flatten())) for row in x]
    assert torch.equal(sent.view(6, 10), torch.stack(each))
    assert torch.equal(dense(gcext.codec("onebit:bucket=10").encode(x.flatten())), sent.flatten())
    transposed = dense(gcext.codec("onebit").encode(x.permute(2, 0, 1)))
    assert [len(row.unique()) for row in transposed] == [2, 2]
    for shape in ((), (1,), (3, 0), (0, 3), (1, 4), (4, 1)):
        assert dense(gcext.codec("onebit").encode(torch.ones(shape))).equal(torch.ones(shape))


def test_a_side_without_elements_has_the_mean_zero() -> None:
    code = gcext.codec("onebit").encode(torch.tensor([[2.0, 4.0], [-2.0, -4.0]])).coded
    assert isinstance(code, Codes)
    assert code.scales.tolist() == [3.0, 0.0, 0.0, -3.0]
    assert not math.copysign(1, float(code.scales[1])) < 0


@pytest.mark.parametrize("d", [2, 17, 300])
def test_worst_cases_reach_the_constants(d: int) -> None:
    one = torch.zeros(d)
    one[d // 2] = 3.0
    for spec in ("uniform:bits=1", "uniform:bits=3,bucket=0", "dorefa:bits=2"):
        assert left(spec, one) == pytest.approx(1 - gcext.codec(spec).contraction(d), rel=1e-5)
    assert left("onebit", one) == pytest.approx(1 - gcext.codec("onebit").contraction(d), rel=1e-5)


def test_the_nearest_level_alone_is_no_contraction() -> None:
    """Hence the fit by least squares under a residual."""
    one = torch.zeros(100)
    one[0] = 1.0
    bare = dense(gcext.codec("uniform:bits=2").encode(one))
    assert (bare - one).square().sum() > 10 * one.square().sum()
    assert left("uniform:bits=2", one) < 1


def test_fitted_scales_are_bounded_and_not_negative() -> None:
    """Draws that point away from the tensor send nothing; sums beyond float32 send its greatest."""
    x = torch.full((64,), 1e-6)
    x[0] = 1.0
    sent = [gcext.codec("dorefa:bits=1").encode(x, torch.zeros(64), seed=s) for s in range(50)]
    for packet in sent:
        assert isinstance(packet.coded, Codes) and packet.coded.scales.ge(0).all()
    assert all(left("dorefa:bits=1", x, seed) <= 1 for seed in range(50))
    big = torch.full((8,), 3.4e38)
    assert left("uniform:bits=3", big) < 1e-12


def test_omega_above_ten_thousand_is_refused() -> None:
    for name in ("dorefa", "uniform"):
        codec = gcext.codec(f"{name}:bits=1,bucket=0")
        x = torch.zeros(10_002)
        with pytest.raises(ValueError, match=r"variance must be at most 10000 .* got 10001"):
            codec.encode(x, x.clone(), seed=1)
        codec.encode(x, seed=1)
        assert codec.contraction(10_001) == pytest.approx(1e-4, rel=1e-3)


@pytest.mark.parametrize("spec", ["fp16", "bf16"])
def test_what_overflows_saturates_and_stays_in_the_residual(spec: str) -> None:
    most = torch.finfo(torch.float16 if spec == "fp16" else torch.bfloat16).max
    x = torch.tensor([3.4e38, -3.4e38, most, 1.0])
    residual = torch.zeros(4)
    sent = dense(gcext.codec(spec).encode(x, residual))
    assert sent.tolist() == [most, -most, most, 1.0]
    assert torch.equal(residual, x - sent)
    assert torch.equal(dense(gcext.codec(spec).encode(x)), sent)


def test_a_float16_residual_stays_bounded() -> None:
    """No contraction, but an absolute bound: 2^-11 of the greatest gradient, or 2^-25."""
    assert not gcext.codec("fp16").contracts
    assert gcext.recipe("fp16:feedback=true").up.feedback
    noise = torch.Generator().manual_seed(0)
    for scale in (1e-9, 1e-4, 1.0, 1e3):
        comp, total = gcext.ErrorFeedback("fp16"), torch.zeros(300, dtype=torch.float64)
        most, sent = 0.0, torch.zeros(300, dtype=torch.float64)
        for _ in range(300):
            x = (scale * (1 + torch.randn(300, generator=noise))).clamp(-65000, 65000)
            most = max(most, float(x.abs().max()))
            total += x
            sent += dense(comp.compress(x, "w"))
            bound = max(2**-11 * most, 2**-25) * 1.001
            assert comp.residual("w").abs().max() <= bound
        assert (sent - total).abs().max() <= bound + 1e-5 * total.abs().max()


def test_small_gradients_below_float16_arrive_in_time() -> None:
    comp, x = gcext.ErrorFeedback("fp16"), torch.full((10,), 1e-9)
    assert not dense(gcext.codec("fp16").encode(x)).any()
    total = sum((dense(comp.compress(x, "w")) for _ in range(1000)), torch.zeros(10))
    assert torch.allclose(total, 1000 * x, atol=2**-25)


def test_int8_keeps_the_largest_and_six_decades() -> None:
    x = torch.tensor([8.0, -8.0, 0.8, 8e-3, -8e-5, 1e-7, 0.0])
    sent = dense(gcext.codec("int8").encode(x))
    assert sent[0] == 8 and float(sent[1]) == pytest.approx(-8, rel=0.0071)
    assert float(sent[2]) == pytest.approx(0.8, rel=0.09)
    assert (sent[2:5].sign() == x[2:5].sign()).all()
    assert not sent[5:].any()
    assert 0.96 < gcext.codec("int8").contraction(10**6) < 0.999
    assert gcext.codec("int8:bucket=0").contraction(2**38) > 0.3


@pytest.mark.parametrize("spec", ["dorefa:bits=3", "uniform:bits=3", "int8", "onebit", "bf16"])
def test_lists_and_groups_travel(spec: str) -> None:
    tensors = [torch.randn(30, 40), torch.randn(0), torch.randn(7).double()]
    codec = gcext.codec(spec)
    packets = codec.encode(tensors, seed=[1, 2, 3] if codec.stochastic else None)
    again = gcext.Packet.from_bytes(gcext.Packet.group(packets).to_bytes())
    for one, packet, tensor in zip(again.members, packets, tensors, strict=True):
        assert one == packet
        assert torch.equal(dense(one), dense(packet))
        assert one.shape == tensor.shape
