"""Natural compression: against the paper's formula, and where others' implementations failed."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
import torch
from isa_kit import at_every_isa
from packet_kit import dense
from test_quantize import FORMS, draw, drawn, slots
from test_select import same_bits
from torch import Tensor

import gcext
from gcext._native.natural import natural, power_values
from gcext._packet.powers import Powers

F32 = npt.NDArray[np.float32]
FED_BACK = float(np.float32(8 / 9))
GREATEST = float(np.finfo(np.float32).max)
TINY = 2.0**-149


def uniform(n: int, seed: int) -> npt.NDArray[np.float64]:
    """The draws of csrc/natural.h."""
    return np.float64(2.0**-23) * (drawn(n, seed) >> np.uint32(9)).astype(np.float64)


def paper(t: F32, u: npt.NDArray[np.float64], least: float) -> npt.NDArray[np.float64]:
    """C_nat of Horvath et al. (2019): 2^ceil(log2|t|) where u is below its probability.

    p(t) = (2^ceil - |t|) / 2^floor is that of 2^floor; float64 holds all of this exactly. What is
    beyond ``least`` in the paper's formula becomes it.
    """
    out = np.zeros(len(t))
    x = np.abs(t.astype(np.float64))
    some = x > 0
    fraction, exponent = np.frexp(x[some])
    floor = np.ldexp(1.0, exponent - 1)
    ceil = np.where(fraction == 0.5, floor, 2 * floor)
    p = (ceil - x[some]) / floor
    up = u[some] < np.where(fraction == 0.5, 0, 1 - p)
    out[some] = np.minimum(np.where(up, ceil, floor), least)
    return np.copysign(out, t)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("scale", [1.0, FED_BACK, 0.3])
def test_powers_match_the_paper(form: str, scale: float) -> None:
    for case in range(60):
        tensor, held = draw(case)
        seed = int(np.random.default_rng(case).integers(-(2**63), 2**63))
        memory, out = slots(form, held)
        decay = (1.0, 0.7)[case % 2]
        acc = tensor if form == "none" else tensor + np.float32(decay) * held
        most = 2.0**127 if scale == 1 else 2.0**128
        want = paper(acc, uniform(len(acc), seed), most)
        power, info = natural(torch.from_numpy(tensor), memory, out, decay, scale, seed)
        assert info.tolist() == [len(acc), 0, 0, 0]
        drawn = np.copysign(np.ldexp(1.0, np.abs(power.numpy()) - 150), power.numpy())
        assert np.array_equal(np.where(power == 0, 0, drawn), want), case
        sent = (np.float64(np.float32(scale)) * want).astype(np.float32)
        assert np.array_equal(power_values(power, scale).numpy(), sent), case
        if out is not None:
            assert np.array_equal(out.numpy(), acc - sent), case
        if memory is not None:
            assert same_bits(memory.numpy(), held), case


def test_the_mean_over_seeds_is_the_tensor() -> None:
    """Each of 1,000 deviations has 5 standard errors: it fails with probability 6e-4 in all."""
    n, seeds = 1000, 3000
    tensor = torch.randn(n, generator=torch.Generator().manual_seed(1))
    tensor[::7] *= 2.0**-130  # denormals too
    x = tensor.double()
    total, squares = torch.zeros(n, dtype=torch.float64), 0.0
    for seed in range(seeds):
        sent = power_values(natural(tensor, None, None, 1.0, 1.0, seed)[0], 1.0).double()
        total += sent
        squares += float((sent - x).square().sum())
    assert squares / seeds <= float(x.square().sum()) / 8  # omega
    floor = torch.from_numpy(np.ldexp(1.0, np.frexp(x.numpy())[1] - 1))
    up = x.abs() / floor - 1
    spread = floor * (up * (1 - up) / seeds).sqrt()
    z = (total / seeds - x) / spread
    assert z.abs().max() < 5
    assert abs(z.square().mean() - 1) < 5 * (2 / n) ** 0.5
    assert abs(z.mean()) < 5 * n**-0.5


def test_draws_are_independent() -> None:
    """Of neighbours, which share 64 bits, and of seeds; five standard errors, 3e-6 in all."""
    half = torch.full((20_000,), 1.5)

    def draws(seed: int) -> Tensor:
        return natural(half, None, None, 1.0, 1.0, seed)[0].double() * 2 - 301

    a, b, c = draws(0), draws(1), draws(2**62)
    for x, y in ((a, b), (a, c), (b, c), (a[1:], a[:-1]), (a[::2], a[1::2]), (a[2:], a[:-2])):
        assert abs(float((x * y).mean())) < 5 * len(x) ** -0.5


def test_powers_of_two_are_sent_as_they_are() -> None:
    """Powers of two of base two, not e; and zeros, and denormals."""
    every = torch.tensor([2.0**e for e in range(-149, 128)])
    tensor = torch.cat([every, -every, torch.tensor([0.0, -0.0])])
    for seed in range(20):
        packet = gcext.codec("natural").encode(tensor, seed=seed)
        for each in (packet, gcext.Packet.from_bytes(packet.to_bytes())):
            assert torch.equal(dense(each), tensor)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_rounds_up_as_often_as_it_should(sign: float) -> None:
    """Rounding toward zero would send 1 alone. 100,000 draws: 5 standard errors, 6e-7."""
    tensor = torch.full((100_000,), sign * 1.75)
    value = dense(gcext.codec("natural").encode(tensor, seed=0)) * sign
    assert set(value.tolist()) == {1.0, 2.0}
    assert abs(float((value == 2).double().mean()) - 0.75) < 5 * (0.1875 / 1e5) ** 0.5


def test_zeros_travel_for_nothing() -> None:
    packet = gcext.codec("natural").encode(torch.zeros(10**6), seed=0)
    assert packet.nbytes <= 32
    again = gcext.Packet.from_bytes(packet.to_bytes())
    assert isinstance(again.coded, Powers)
    assert again.coded.power.numel() == 0  # nothing to make of a message that has nothing
    assert again.k == 10**6 and not dense(again).any()
    some = torch.zeros(1000)
    some[[3, 500]] = torch.tensor([0.5, -4.0])
    assert torch.equal(dense(gcext.codec("natural").encode(some, seed=0)), some)


def test_denormals() -> None:
    tensor = torch.arange(-64, 65) * TINY
    for seed in range(50):
        residual = torch.zeros_like(tensor)
        sent = dense(gcext.codec("natural").encode(tensor, seed=seed)).double()
        fraction, _ = np.frexp(sent.abs().numpy())
        assert set(fraction.tolist()) <= {0.0, 0.5}
        assert (sent.abs() <= 2 * tensor.abs()).all() and (2 * sent.abs() >= tensor.abs()).all()
        packet = gcext.codec("natural").encode(tensor, residual, seed=seed)
        assert torch.equal(dense(packet) + residual, tensor)


def test_beyond_the_greatest_power_of_float32() -> None:
    tensor = torch.tensor([GREATEST, -GREATEST, 2.0**127, 1.5 * 2.0**127])
    packet = gcext.codec("natural").encode(tensor, seed=0)
    assert dense(packet).tolist() == [2.0**127, -(2.0**127), 2.0**127, 2.0**127]
    seen = set()
    for seed in range(40):
        residual = torch.zeros(4)
        packet = gcext.codec("natural").encode(tensor, residual, seed=seed)
        value = dense(gcext.Packet.from_bytes(packet.to_bytes()))
        assert torch.equal(value + residual, tensor)
        seen |= set(value.abs().tolist())
    assert seen == {FED_BACK * 2.0**127, FED_BACK * 2.0**128}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("n", [10, 100_000])
def test_what_is_refused_leaves_the_memory(form: str, n: int) -> None:
    for value, place, status in (
        (math.nan, "tensor", 1),
        (-math.inf, "tensor", 1),
        (math.nan, "memory", 2),
        (GREATEST, "both", 3),
    ):
        if form == "none" and place != "tensor":
            continue
        tensor, held = torch.randn(n), torch.randn(n)
        if place in ("tensor", "both"):
            tensor[n - 3 :] = value
        if place in ("memory", "both"):
            held[n - 3 :] = value
        memory, out = slots(form, held.numpy())
        info = natural(tensor, memory, out, 1.0, FED_BACK, 0)[-1].tolist()
        assert info[1:3] == [status, n - 3]
        kept = out if form == "place" else memory
        if kept is not None:
            assert same_bits(kept.numpy(), held.numpy())


CORPUS = """
import hashlib, torch
import numpy as np
import test_natural as t
for threads in (1, 2, 7):
    torch.set_num_threads(threads)
    one = hashlib.sha256()
    for case in range(80):
        tensor, held = (torch.from_numpy(x) for x in t.draw(case))
        for decay, scale in ((1.0, 1.0), (0.3, t.FED_BACK)):
            out = torch.empty_like(held)
            power, info = t.natural(tensor, held, out, decay, scale, case)
            for each in (power, info, out, t.power_values(power, scale)):
                one.update(each.numpy().tobytes())
            packet = t.gcext.codec("natural").encode(tensor, seed=case)
            one.update(packet.to_bytes())
    print(one.hexdigest())
"""


def test_same_bytes_for_every_isa_and_thread_count() -> None:
    digests = {digest for printed in at_every_isa(CORPUS).values() for digest in printed}
    assert len(digests) == 1, digests


def test_flushing_denormals_changes_nothing() -> None:
    tiny = torch.from_numpy(np.random.default_rng(0).integers(-40, 40, 50_000) * TINY).float()

    def run() -> list[bytes]:
        out = torch.empty_like(tiny)
        power, info = natural(tiny, tiny, out, 0.5, FED_BACK, 3)
        given = [power, info, out, power_values(power, FED_BACK), power_values(power, TINY)]
        return [each.numpy().tobytes() for each in given]

    kept = run()
    assert torch.set_flush_denormal(True)
    try:
        flushed = run()
    finally:
        torch.set_flush_denormal(False)
    assert kept == flushed


def test_ops_pass_opcheck() -> None:
    tensor, memory, out = torch.randn(1000), torch.randn(1000), torch.empty(1000)
    for given in ((tensor, None, None), (tensor, memory, out), (tensor, None, out.zero_())):
        torch.library.opcheck(torch.ops.gcext.natural.default, (*given, 1.0, 0.5, 7))
    power = torch.tensor([0, 1, -278], dtype=torch.int16)
    torch.library.opcheck(torch.ops.gcext.power_values.default, (power, 0.5))


def test_raw_ops_refuse_what_does_not_fit() -> None:
    ten = torch.ones(10)
    for match, args in {
        "wrong dtype": (ten.double(), None, None, 1.0, 1.0, 0),
        "10 elements": (ten, None, ten[:9], 1.0, 1.0, 0),
        "memory needs out": (ten, ten, None, 1.0, 1.0, 0),
        r"scale must be in \(0, 1\], got 0": (ten, None, None, 1.0, 0.0, 0),
        r"scale must be in \(0, 1\], got 1.5": (ten, None, None, 1.0, 1.5, 0),
        r"in \(0, 1\], got nan": (ten, None, None, 1.0, math.nan, 0),
    }.items():
        with pytest.raises(RuntimeError, match=match):
            torch.ops.gcext.natural.default(*args)
    zero = torch.zeros(3, dtype=torch.int16)
    for match, power, scale in (
        ("wrong dtype", zero.int(), 1.0),
        ("positive and finite, got 0", zero, 0.0),
        ("positive and finite, got inf", zero, math.inf),
        (r"in \[-278, 278\]", zero + 279, 1.0),
        (r"in \[-278, 278\]", zero - 32768, 1.0),
    ):
        with pytest.raises(RuntimeError, match=match):
            power_values(power, scale)
