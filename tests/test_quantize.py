"""Dense codes fused with error feedback, against their definitions in csrc/quantize.h."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import oracle
import pytest
import torch
from isa_kit import at_every_isa
from test_select import KINDS, same_bits
from torch import Tensor

from gcext._native.ops import levels, sign

F32 = npt.NDArray[np.float32]
FORMS = ("none", "place", "slots")
NORMS = [(False, 0.0), (True, 0.0), (True, 2.5), (True, 0.7)]
GREATEST = float(np.finfo(np.float32).max)


def mixed(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    with np.errstate(over="ignore"):
        x = x + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ x >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ x >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return x ^ x >> np.uint64(31)


def drawn(n: int, seed: int) -> npt.NDArray[np.uint32]:
    """What n elements draw, 32 bits each: csrc/common/scalar.h."""
    key = mixed(np.array([seed % 2**64], np.uint64))
    with np.errstate(over="ignore"):
        pair = mixed(key + np.arange(n // 2 + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15))
    return pair.view(np.uint32)[:n]


def added(x: npt.NDArray[np.float64]) -> float:
    """The sum in the order of the contract: cells of 4096, lanes of 8, a tree."""
    total = 0.0
    for start in range(0, len(x), 4096):
        cell = x[start : start + 4096]
        lane = [np.cumsum(np.append(0.0, cell[j::8]))[-1] for j in range(8)]
        a = (lane[0] + lane[4]) + (lane[2] + lane[6])
        total += a + ((lane[1] + lane[5]) + (lane[3] + lane[7]))
    return total


def squares(x: F32) -> float:
    return added(x.astype(np.float64) ** 2)


class Answer(NamedTuple):
    norms: F32
    level: npt.NDArray[np.int64]
    sent: F32


def expected_levels(
    acc: F32, steps: int, bucket: int, largest: bool, clip: float, fit: bool, seed: int
) -> Answer:
    """What levels must give, every element's level included."""
    n = len(acc)
    bucket = bucket or max(n, 1)
    norms = []
    for start in range(0, n, bucket):
        part = acc[start : start + bucket]
        norm = float(np.abs(part).max()) if largest else min(math.sqrt(squares(part)), GREATEST)
        if largest and clip:
            limit = min(clip * math.sqrt(squares(part) / len(part)), GREATEST)
            norm = min(norm, float(np.float32(limit)))
        norms.append(np.float32(norm))
    each = np.repeat(np.array(norms, np.float32), bucket)[:n].astype(np.float64)
    u = drawn(n, seed) * 2.0**-32
    with np.errstate(invalid="ignore", divide="ignore"):
        r = np.where(each > 0, np.minimum(np.abs(acc.astype(np.float64)), each) * (steps / each), 0)
    level = np.floor(r + u)
    level = np.where(acc < 0, -level, level).astype(np.int64)
    if fit:
        norms = [
            np.float32(fitted(acc[start : start + bucket], level[start : start + bucket], steps))
            for start in range(0, n, bucket)
        ]
        each = np.repeat(np.array(norms, np.float32), bucket)[:n].astype(np.float64)
    return Answer(np.array(norms, np.float32), level, (each * level / steps).astype(np.float32))


def fitted(acc: F32, level: npt.NDArray[np.int64], steps: int) -> float:
    """The norm with which levels are nearest the sum."""
    power = float((level * level).sum())
    return min(steps * added(acc.astype(np.float64) * level) / power, GREATEST) if power else 0.0


# Greatest magnitudes of buckets: what float32 arithmetic can and cannot take part in.
SCALES = [2.0**-149, 2.0**-133, 2.0**-101, 2.0**-30, 1.0, 3e7, 2.0**101, 2.0**127, GREATEST]


def near(rng: np.random.Generator, ends: npt.NDArray[np.float64], scale: float) -> F32:
    """Numbers at and around ends of steps, of any sign, the greatest magnitude last."""
    off = rng.normal(size=len(ends)) * 2.0 ** -rng.integers(10, 30, len(ends))
    x = ends * (1 + off * rng.integers(0, 2, len(ends)))
    signed = np.clip(x, 0, scale) * rng.choice([-1.0, 1.0], len(ends))
    return np.append(signed, scale).astype(np.float32)


def draw(case: int) -> tuple[F32, F32]:
    rng = np.random.default_rng(case)
    kind = KINDS[case % len(KINDS)]
    n = int(10 ** rng.uniform(0, 4.3)) if case % 10 else int(rng.integers(70_000, 200_000))
    scale = float(rng.choice([0.0, 1.0, 1.0]))
    return kind(rng, n).astype(np.float32), (kind(rng, n) * scale).astype(np.float32)


def slots(form: str, held: F32) -> tuple[Tensor | None, Tensor | None]:
    memory = torch.from_numpy(held.copy())
    if form == "none":
        return None, None
    return (None, memory) if form == "place" else (memory, torch.empty_like(memory))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("decay", [1.0, 0.7])
def test_signs_match_the_oracle(form: str, decay: float) -> None:
    for case in range(120):
        tensor, held = draw(case)
        memory, out = slots(form, held)
        acc = tensor if form == "none" else tensor + np.float32(decay) * held
        bits, info = sign(torch.from_numpy(tensor), memory, out, decay)
        scale = oracle.exact_mean(np.abs(acc))
        n, status, _, mean = info.tolist()
        assert (n, status, mean) == (len(acc), 0, int(scale.view(np.uint32))), case
        negative = (acc < 0) & (scale > 0)
        assert bits.numpy().tobytes() == np.packbits(negative, bitorder="little").tobytes(), case
        if out is not None:
            assert same_bits(out.numpy(), acc - np.where(acc < 0, -scale, scale)), case
        if memory is not None:
            assert same_bits(memory.numpy(), held), case


@pytest.mark.parametrize(("largest", "clip"), NORMS)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("fit", [False, True])
def test_levels_match_the_oracle(form: str, largest: bool, clip: float, fit: bool) -> None:
    for case in range(16):
        tensor, held = draw(case)
        rng = np.random.default_rng(case)
        steps = int(rng.choice([1, 1, 3, 15, 255, 32767]))
        bucket = int(rng.choice([0, 1, 64, 100, 512, 4096, 5000, 10**6]))
        seed = int(rng.integers(-(2**63), 2**63))
        memory, out = slots(form, held)
        acc = tensor if form == "none" else tensor + held
        want = expected_levels(acc, steps, bucket, largest, clip, fit, seed)
        norms, at, level, info = levels(
            torch.from_numpy(tensor), memory, out, 1.0, steps, bucket, largest, clip, fit, seed
        )
        assert same_bits(norms.numpy(), want.norms), case
        assert np.array_equal(at.numpy(), np.flatnonzero(want.level)), case
        assert np.array_equal(level.numpy(), want.level[want.level != 0]), case
        assert info.tolist() == [len(at), 0, 0, 0]
        if out is not None:
            assert same_bits(out.numpy(), acc - want.sent), case
        if memory is not None:
            assert same_bits(memory.numpy(), held), case


@pytest.mark.parametrize("steps", [1, 2, 15, 1022, 1023, 1024, 32767])
@pytest.mark.parametrize("scale", SCALES)
def test_levels_at_the_ends_of_steps(steps: int, scale: float) -> None:
    rng = np.random.default_rng(steps)
    u = drawn(20_000, 5) * 2.0**-32
    acc = near(rng, (rng.integers(1, steps + 1, len(u)) - u) * (scale / steps), scale)
    want = expected_levels(acc, steps, 0, True, 0.0, False, 5)
    norms, at, level, _ = levels(
        torch.from_numpy(acc), None, None, 1.0, steps, 0, True, 0.0, False, 5
    )
    assert same_bits(norms.numpy(), want.norms)
    assert np.array_equal(at.numpy(), np.flatnonzero(want.level))
    assert np.array_equal(level.numpy(), want.level[want.level != 0])


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("largest", [False, True])
def test_the_mean_over_seeds_is_the_tensor(steps: int, largest: bool) -> None:
    """Deviations in units of what independent draws of these probabilities would show."""
    n, seeds = 1000, 3000
    tensor = torch.randn(n, generator=torch.Generator().manual_seed(1))
    x = tensor.double()
    total = torch.zeros(n, dtype=torch.float64)
    for seed in range(seeds):
        norms, at, level, _ = levels(tensor, None, None, 1.0, steps, 100, largest, 0.0, False, seed)
        total[at.long()] += norms.double()[at.long() // 100] * level / steps
    step = norms.double().repeat_interleave(100) / steps
    fraction = x.abs() / step % 1
    sure = fraction == 0  # the largest of its bucket
    assert torch.allclose(total[sure] / seeds, x[sure], rtol=1e-12)
    spread = step * (fraction * (1 - fraction) / seeds).sqrt()
    z = ((total / seeds - x) / spread)[~sure]
    assert z.abs().max() < 5
    assert abs(z.square().mean() - 1) < 5 * (2 / n) ** 0.5
    assert abs(z.mean()) < 5 * n**-0.5


def test_seeds_and_places_draw_independently() -> None:
    half = torch.full((20_000,), 0.5)
    half[::10_000] = 1.0  # the norms, so that every other element is 0 or 1 at even odds

    def draws(seed: int) -> Tensor:
        _, at, _, _ = levels(half, None, None, 1.0, 1, 10_000, True, 0.0, False, seed)
        one = torch.full((20_000,), -1.0)
        one[at.long()] = 1.0
        return one

    a, b, c = draws(0), draws(1), draws(2**62)
    for x, y in ((a, b), (a, c), (b, c), (a[1:], a[:-1]), (a[64:], a[:-64])):
        assert abs(float((x * y).mean())) < 5 * len(x) ** -0.5


def test_a_norm_beyond_float32_is_the_greatest() -> None:
    tensor = torch.tensor([GREATEST, -GREATEST])
    norms, _, level, info = levels(tensor, None, None, 1.0, 3, 0, False, 0.0, False, 0)
    assert norms.tolist() == [GREATEST] and level.tolist() == [3, -3]
    assert info.tolist()[1] == 0
    fitted_norms, *_ = levels(tensor, None, None, 1.0, 3, 0, False, 0.0, True, 0)
    assert fitted_norms.tolist() == [GREATEST]


@pytest.mark.parametrize("steps", [1, 3, 255])
@pytest.mark.parametrize(("largest", "clip"), NORMS)
def test_fitted_levels_are_least_squares(steps: int, largest: bool, clip: float) -> None:
    """What is left is orthogonal to what is sent, bucket by bucket; so it never exceeds the sum."""
    for case in range(20):
        tensor = torch.from_numpy(draw(case)[0])
        out = torch.zeros_like(tensor)
        norms, at, level, _ = levels(tensor, None, out, 1.0, steps, 100, largest, clip, True, case)
        bare = levels(tensor, None, None, 1.0, steps, 100, largest, clip, False, case)
        assert at.equal(bare[1]) and level.equal(bare[2])  # fitting draws nothing anew
        sent = torch.zeros(len(tensor), dtype=torch.float64)
        sent[at.long()] = norms.double()[at.long() // 100] * level / steps
        pad = (0, -len(tensor) % 100)
        one, left, whole = (
            torch.nn.functional.pad(x.double(), pad).view(-1, 100) for x in (sent, out, tensor)
        )
        scale = whole.square().sum(1)
        exact = scale > 1e-60  # norms that are denormals are rounded
        assert (((one * left).sum(1).abs() <= 1e-6 * scale) | ~exact).all(), case
        assert ((left.square().sum(1) <= scale * (1 + 1e-6)) | ~exact).all(), case
        assert (
            norms[level.new_zeros(len(norms)).scatter_add_(0, at.long() // 100, level.abs()) > 0]
            > 0
        ).all()  # or no decoder would take the packet


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("code", ["sign", "levels"])
@pytest.mark.parametrize("n", [10, 100_000])
def test_what_is_refused_leaves_the_memory(code: str, form: str, n: int) -> None:
    def run(tensor: Tensor, memory: Tensor | None, out: Tensor | None) -> list[int]:
        if code == "sign":
            return sign(tensor, memory, out, 1.0)[-1].tolist()
        return levels(tensor, memory, out, 1.0, 1, 64, False, 0.0, True, 0)[-1].tolist()

    for value, place, status in (
        (math.nan, "tensor", 1),
        (-math.inf, "tensor", 1),
        (math.nan, "memory", 2),
        (GREATEST, "both", 3),
    ):
        if form == "none" and place != "tensor":
            continue
        tensor, held = torch.randn(n), torch.randn(n)
        where = n - 3
        if place in ("tensor", "both"):
            tensor[where:] = value
        if place in ("memory", "both"):
            held[where:] = value
        memory, out = slots(form, held.numpy())
        info = run(tensor, memory, out)
        assert info[1:3] == [status, where]
        kept = out if form == "place" else memory
        if kept is not None:
            assert same_bits(kept.numpy(), held.numpy())


CORPUS = """
import hashlib, torch
import numpy as np
import test_quantize as t
for threads in (1, 2, 7):
    torch.set_num_threads(threads)
    one = hashlib.sha256()
    for case in range(80):
        tensor, held = (torch.from_numpy(x) for x in t.draw(case))
        for decay in (1.0, 0.3):
            out = torch.empty_like(held)
            for each in (*t.sign(tensor, held, out, decay), out):
                one.update(each.numpy().tobytes())
            largest, clip = t.NORMS[case % 4]
            bucket = (0, 100, 5000)[case % 3]
            for fit in (False, True):
                norm = largest, clip, fit
                for each in (*t.levels(tensor, held, out, decay, 3, bucket, *norm, case), out):
                    one.update(each.numpy().tobytes())
    print(one.hexdigest())
"""


def test_same_bytes_for_every_isa_and_thread_count() -> None:
    digests = {digest for printed in at_every_isa(CORPUS).values() for digest in printed}
    assert len(digests) == 1, digests


def test_flushing_denormals_changes_nothing() -> None:
    tiny = torch.from_numpy(np.random.default_rng(0).integers(-40, 40, 50_000) * 2.0**-149).float()

    def run() -> list[bytes]:
        out = torch.empty_like(tiny)
        given = [*sign(tiny, tiny, out, 1.0), out.clone()]
        given += [*levels(tiny, tiny, out, 0.5, 3, 64, False, 0.0, False, 1), out.clone()]
        given += [*levels(tiny, tiny, out, 0.5, 3, 64, False, 0.0, True, 1), out]
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
        torch.library.opcheck(torch.ops.gcext.sign.default, (*given, 1.0))
        for fit in (False, True):
            rule = (1.0, 3, 64, False, 0.0, fit, 7)
            torch.library.opcheck(torch.ops.gcext.levels.default, (*given, *rule))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"tensor": torch.ones(10).double()}, "wrong dtype"),
        ({"tensor": torch.ones(20)[::2]}, "contiguous"),
        ({"out": torch.ones(9)}, "10 elements"),
        ({"memory": torch.ones(10), "out": None}, "memory needs out"),
        ({"steps": 0}, "steps must be in"),
        ({"steps": 2**15}, "steps must be in"),
        ({"bucket": -1}, "bucket must not be negative"),
    ],
)
def test_raw_ops_refuse_what_does_not_fit(change: dict[str, object], match: str) -> None:
    args: dict[str, object] = {"tensor": torch.ones(10), "memory": None, "out": torch.ones(10)}
    args |= {"decay": 1.0, "steps": 3, "bucket": 64} | change
    with pytest.raises(RuntimeError, match=match):
        torch.ops.gcext.levels.default(*args.values(), False, 0.0, False, 0)
    if not {"steps", "bucket"} & set(change):
        with pytest.raises(RuntimeError, match=match):
            torch.ops.gcext.sign.default(*list(args.values())[:4])
