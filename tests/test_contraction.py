"""Error feedback keeps every residual bounded: each codec contracts by the constant it declares."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from packet_kit import dense
from test_fl import DATA, settings
from torch import Tensor

import gcext
from gcext._codecs import quantize
from gcext._codecs.base import CODECS
from gcext.fl import run

SPECS = {
    "stc": ["stc:p=0.01", "stc:p=0.3", "stc:p=1", "stc:p=0.1,chunk=64", "stc:p=0.5,chunk=100"],
    "topk": ["topk:p=0.01", "topk:p=0.3", "topk:p=0.1,chunk=64", "topk:p=0.01,chunk=200"],
    "sparseloco": [
        "sparseloco",
        "sparseloco:p=0.1,chunk=64",
        "sparseloco:p=0.3,chunk=0,bits=3",
        "sparseloco:p=1,range=3",
    ],
    "randomk": ["randomk:p=0.02", "randomk:p=0.3"],
    "dense": ["dense"],
    "sign": ["sign"],
    "qsgd": [
        "qsgd",
        "qsgd:bits=1,bucket=1",
        "qsgd:bits=1,bucket=64",
        "qsgd:bits=1,bucket=0",
        "qsgd:bits=2,bucket=128",
        "qsgd:bits=4,bucket=0",
        "qsgd:bits=15,bucket=0",
    ],
    "terngrad": [
        "terngrad",
        "terngrad:bucket=64",
        "terngrad:clip=2.5",
        "terngrad:clip=2.5,bucket=64",
        "terngrad:clip=0.5,bucket=64",
    ],
    "natural": ["natural"],
    "sketch": [],  # none
    "polar": [
        "polar:block=256",
        "polar:rate=0.05,block=64",
        "polar:rate=1,block=64",
        "polar:rate=0.5,block=64,rotate=false",
        "polar:rate=0.2,block=32,rotate=false",
        "polar:rate=0.5,block=64,select=topk,p=0.2",
        "polar:rate=0.5,block=64,select=randomk,p=0.2",
        "polar:rate=0.5,block=64,rotate=false,select=topk,p=0.2",
        "polar:rate=0.5,block=64,rotate=false,select=randomk,p=0.2",
    ],
    "ajiheafield": ["ajiheafield", "ajiheafield:drop=0.7", "ajiheafield:drop=0"],
    "sbc": ["sbc:p=0.01", "sbc:p=0.2", "sbc:p=1"],
    "dryden": ["dryden:p=0.01", "dryden:p=0.2", "dryden:p=1"],
    "wangni": ["wangni:p=0.02", "wangni:p=0.3", "wangni:p=1"],
    "repeat": [
        "repeat:rounds=4,codec=stc:p=0.05",
        "repeat:rounds=2,codec=qsgd:bits=2,bucket=128",
        "repeat:rounds=3,codec=randomk:p=0.1",
    ],
    "bf16": ["bf16"],
    "dorefa": [
        "dorefa",
        "dorefa:bits=1,bucket=1",
        "dorefa:bits=1,bucket=16",
        "dorefa:bits=2,bucket=0",
        "dorefa:bits=8,bucket=0",
    ],
    "uniform": [
        "uniform",
        "uniform:bits=1,bucket=1",
        "uniform:bits=1,bucket=16",
        "uniform:bits=2,bucket=0",
        "uniform:bits=8,bucket=0",
    ],
    "int8": ["int8", "int8:bucket=1", "int8:bucket=100"],
    "onebit": ["onebit", "onebit:bucket=1", "onebit:bucket=64"],
    "dct": ["dct", "dct:signs=false", "dct:k=1", "dct:k=9,block=16", "dct:k=64", "dct:block=1"],
    "lowrank": ["lowrank"],  # of one dimension nothing is left; test_lowrank.py has matrices
}
ALL = [spec for specs in SPECS.values() for spec in specs if gcext.codec(spec).contracts]


def test_every_codec_has_a_row() -> None:
    here = {name for name, kind in CODECS.items() if kind.__module__.startswith("gcext.")}
    assert set(SPECS) == {name for name in here if CODECS[name].contracts}
    assert all(spec.partition(":")[0] == name for name, specs in SPECS.items() for spec in specs)


@pytest.mark.parametrize("spec", ALL)
def test_the_residual_stays_bounded(spec: str) -> None:
    """Over 2,000 steps of fresh noise, below the bound of the constant, and with no growth left."""
    n, steps = 512, 2000
    comp = gcext.ErrorFeedback(spec, seed=1)
    noise = torch.Generator().manual_seed(0)
    norms = torch.zeros(steps)
    for step in range(steps):
        comp.compress(torch.randn(n, generator=noise), "w")
        norms[step] = torch.linalg.vector_norm(comp._residuals["w"].tensor())
    delta, largest = comp.codec.contraction(n), 1.2 * n**0.5
    assert norms.max() <= 2 * (1 - delta) ** 0.5 / delta * largest + 1e-3
    early, late = norms[1000:1500].mean(), norms[1500:].mean()
    assert late <= 1.1 * early + 1e-3, (early, late)


def adversarial(n: int) -> Iterator[Tensor]:
    """Inputs that are the worst case of one codec or another."""
    noise = torch.Generator().manual_seed(0)
    signs = torch.where(torch.rand(n, generator=noise) < 0.5, -1.0, 1.0)
    yield torch.eye(n)[n // 2]
    yield torch.eye(n)[1] - torch.eye(n)[n - 2]
    yield signs
    yield signs * 0.9 ** torch.arange(n)
    yield signs / torch.arange(1, n + 1)
    yield signs * torch.where(torch.arange(n) == 0, 1.0, 1e-3)
    for size in (64, n):  # terngrad's
        yield signs * torch.where(torch.arange(n) % size == 0, 1.0, 1 / (1 + size**0.5))
    yield torch.randn(n, generator=noise)
    yield torch.randn(n, generator=noise) ** 5


@pytest.mark.parametrize("n", [1, 300])
@pytest.mark.parametrize("spec", ALL)
def test_the_constant_holds(spec: str, n: int) -> None:
    """The mean of |x - C(x)|^2 over seeds is (1 - delta) |x|^2 at most, to five standard errors."""
    codec = gcext.codec(spec)
    delta = codec.contraction(n)
    assert 0 < delta <= 1
    for x in adversarial(n) if n > 1 else [torch.tensor([-3.0])]:
        left = []
        for seed in range((60 if spec.startswith("polar") else 200) if codec.stochastic else 1):
            residual = torch.zeros(n)
            codec.encode(x, residual, seed=seed)
            left.append(float(residual.double().square().sum()))
        whole = float(x.double().square().sum())
        mean, spread = torch.tensor(left).mean(), torch.tensor(left).std(correction=0)
        assert mean - 5 * spread / len(left) ** 0.5 <= (1 - delta + 1e-6) * whole, x
        assert max(left) <= (1 + 1e-6) * whole  # never more, whatever the seed


@pytest.mark.parametrize(("largest", "bits"), [(True, 1), (False, 1), (False, 2), (False, 4)])
def test_omega_bounds_the_variance_and_is_reached(largest: bool, bits: int) -> None:
    """Of the unbiased levels: exactly, by their definition, over the worst cases."""
    codec = gcext.codec("terngrad" if largest else f"qsgd:bits={bits},bucket=0")
    steps = 2**bits - 1
    for d in (1, 2, 16, 100, 700):
        omega, most = 1 / codec.contraction(d) - 1, 0.0
        rows = [torch.ones(d), torch.where(torch.arange(d) == 0, 1.0, 1 / (1 + d**0.5))]
        rows += [torch.randn(d), torch.randn(d) ** 5, 0.9 ** torch.arange(d)]
        for x in (row.double().abs() for row in rows):
            r = x * steps / (x.max() if largest else x.norm())
            step = x / r.where(r > 0, 1)
            most = max(most, float((r % 1 * (1 - r % 1) * step**2).sum() / x.square().sum()))
        assert most <= omega + 1e-9
        if largest or d >= 4 * steps**2:
            assert most == pytest.approx(omega)


def test_qsgd_of_two_bits_trains_under_feedback() -> None:
    """It ended near chance: the residual grew by a factor of some thousands in 60 steps."""
    comp = gcext.ErrorFeedback("qsgd:bits=2,bucket=128", seed=1)
    for _ in range(60):
        comp.compress(torch.randn(4096), "w")
    assert comp.residual("w").norm() < 2 * 4096**0.5
    accuracy = []
    for feedback in ("false", "true"):
        recipe = f"qsgd:bits=2,bucket=128,feedback={feedback}"
        plan = settings(recipe, participation=1.0, rounds=20)
        accuracy.append(run(plan, DATA, threads=1)["rounds"][-1]["accuracy"])
    assert accuracy[1] > 0.5 and accuracy[1] > accuracy[0] - 0.2, accuracy


@dataclass(frozen=True)
class Undeclared(gcext.Codec):
    """A codec of a user's, without a constant; not registered."""

    name = "undeclared"

    def encode_input(self, acc: gcext.CodecInput, seed: int) -> gcext.Packet:
        return acc.subtract(acc.packet("dense", None, acc.add().clone() * 3))


def test_a_codec_without_a_constant_takes_no_residual(monkeypatch: pytest.MonkeyPatch) -> None:
    codec, tensor, residual = Undeclared(), torch.randn(5), torch.zeros(5)
    assert dense(codec.encode(tensor)).equal(3 * tensor)
    assert gcext.Link(codec).sender().compress(tensor, "w").k == 5
    with pytest.raises(ValueError, match=r"undeclared: error feedback needs.*Override Codec\.cont"):
        codec.encode(tensor, residual)
    with pytest.raises(ValueError, match="undeclared: error feedback needs"):
        codec.encode([tensor], [residual])
    with pytest.raises(ValueError, match="undeclared: error feedback needs"):
        codec.advance(tensor, residual, residual.clone())
    with pytest.raises(ValueError, match="undeclared: error feedback needs"):
        gcext.Link(codec, feedback=True).sender()
    monkeypatch.setitem(CODECS, "undeclared", Undeclared)
    assert gcext.recipe("undeclared:down=undeclared").up.codec == codec
    for spec in ("undeclared:feedback=true", "sign:down=undeclared:feedback=true"):
        with pytest.raises(ValueError, match="undeclared: error feedback needs"):
            gcext.recipe(spec)
    assert not residual.any()


@pytest.mark.parametrize("spec", ["qsgd:bits=1,bucket=0", "terngrad:clip=2.5"])
def test_a_large_variance_is_refused(spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    codec = gcext.codec(spec)
    with pytest.raises(ValueError, match="variance must be at most 10000 squared norms, got"):
        codec.contraction(10**9)
    assert codec.contraction(10**7) > 0
    monkeypatch.setattr(quantize, "_MOST_VARIANCE", 10.0)
    comp = gcext.ErrorFeedback(codec, seed=1)
    comp.compress(torch.randn(100), "w")
    before = comp.state_dict()
    residuals = [torch.zeros(100), torch.zeros(1000)]
    with pytest.raises(ValueError, match=r"for a bucket of 1000 elements\. Choose smaller buckets"):
        comp.compress(torch.randn(1000), "v")
    with pytest.raises(ValueError, match="for a bucket of 1000 elements"):
        codec.encode([torch.randn(100), torch.randn(1000)], residuals, [1, 2])
    assert not residuals[0].any() and not residuals[1].any()
    assert comp.pending == () and comp.state_dict()["residuals"].keys() == {"w"}
    assert comp.residual("w").equal(before["residuals"]["w"])
    codec.encode(torch.randn(1000), seed=1)


def test_polar_signs_that_are_tied_are_refused() -> None:
    """Below 6 bits of 32 there are sums of which least squares sends nothing, forever."""
    codec, x = gcext.codec("polar:rate=0.1,block=32,rotate=false"), torch.zeros(64)
    codec.encode(x)
    with pytest.raises(ValueError, match=r"got 3 bits for a block of 32\. Raise the rate"):
        codec.encode(x, x.clone())
    for block, least in ((32, 6), (64, 8), (256, 17)):
        for kept in (least - 1, least):
            spec = f"polar:rate={kept / block},block={block},rotate=false"
            if kept < least:
                with pytest.raises(ValueError, match="different signs"):
                    gcext.codec(spec).contraction(9)
            else:
                assert gcext.codec(spec).contraction(9) == 1 / 9


def test_an_overflow_names_the_residual() -> None:
    for spec in ("stc:p=0.1", "sign", "qsgd"):
        comp = gcext.ErrorFeedback(spec, seed=1)
        comp.compress(torch.full((9,), 3e38), "w")
        state = comp.state_dict()
        state["residuals"]["w"] = torch.full((9,), 2e38)
        comp.load_state_dict(state)
        with pytest.raises(ValueError, match=r"plus residual must be.*A residual grows where the"):
            comp.compress(torch.full((9,), 2e38), "w")
