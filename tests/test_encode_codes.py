"""Codes into tables, fused with error feedback, against the papers' formulas."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import oracle
import pytest
import torch
from isa_kit import at_every_isa
from test_quantize import FORMS, SCALES, draw, drawn, near, slots
from test_select import same_bits
from torch import Tensor

from gcext._native.codes import TABLES
from gcext._native.encode_codes import encode_codes

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
BUCKETS = [0, 1, 7, 64, 100, 512, 4096, 4097, 5000, 10**6]
GREATEST = float(np.finfo(np.float32).max)


def noise(n: int, seed: int) -> F64:
    """Uniform in [-1/2, 1/2): half a draw each."""
    return drawn(n, seed).view(np.int32).astype(np.float64) * 2.0**-32


def buckets_of(x: F32, bucket: int) -> list[F32]:
    return [x[i : i + (bucket or len(x))] for i in range(0, len(x), bucket or len(x))]


def dorefa(g: F32, bits: int, bucket: int, v: F64) -> tuple[F32, npt.NDArray[np.int64]]:
    """2m [quant_k(g/2m + 1/2 + N) - 1/2] of Zhou et al. 2016; with N = 0 LAQ's.

    Returns each bucket's m and the integers that quant_k rounds to.
    """
    steps = 2**bits - 1
    tops, codes, at = [], [np.zeros(0, np.int64)], 0
    for part in buckets_of(g, bucket):
        m = np.abs(part).max()
        with np.errstate(invalid="ignore", divide="ignore"):
            x = part.astype(np.float64) * (0.5 * steps / np.float64(m))
        x = x + (steps / 2 + 0.5) + v[at : at + len(part)]  # half: rounds to the nearest by floor
        codes.append(np.where(m > 0, np.floor(x), 2 ** (bits - 1)).astype(np.int64))
        tops.append(m)
        at += len(part)
    return np.array(tops, np.float32), np.concatenate(codes)


def least_squares(part: F32, level: npt.NDArray[np.int64], steps: int) -> np.float32:
    dot = sum_in_order(part.astype(np.float64) * level)
    power = float((level * level).sum())
    return np.float32(min(steps * dot / power, GREATEST) if dot > 0 else 0.0)


def sum_in_order(x: F64) -> float:
    total = 0.0
    for start in range(0, len(x), 4096):
        lane = [np.cumsum(np.append(0.0, x[start : start + 4096][j::8]))[-1] for j in range(8)]
        total += ((lane[0] + lane[4]) + (lane[2] + lane[6])) + (
            (lane[1] + lane[5]) + (lane[3] + lane[7])
        )
    return total


def tree() -> F32:
    """The signed dynamic tree of Dettmers 2015: means of equal pieces of each decade."""
    sizes = [0.0, 1.0]
    for i in range(7):
        edges = np.linspace(0.1, 1, 2**i + 1)
        middle = (edges[:-1] + edges[1:]) / 2 * 10.0 ** (i - 6)
        sizes += [*middle, *-middle]
    return np.sort(np.array(sizes)).astype(np.float32)


def unpacked(bits: Tensor, n: int, width: int) -> npt.NDArray[np.int64]:
    plane = np.unpackbits(bits.numpy(), bitorder="little")
    assert not plane[n * width :].any()
    return (plane[: n * width].reshape(n, width) * (1 << np.arange(width))).sum(1)


def run(
    case: int, form: str, *options: object, decay: float = 1.0
) -> tuple[F32, F32, Tensor, Tensor | None]:
    """Returns the sum, and the operator's scales, bits and out."""
    tensor, held = draw(case)
    memory, out = slots(form, held)
    acc = tensor if form == "none" else tensor + np.float32(decay) * held
    given = torch.from_numpy(tensor), memory, out, decay
    scales, bits, info = encode_codes(*given, *options)  # type: ignore[arg-type]
    assert info.tolist() == [len(acc), 0, 0, 0]
    if memory is not None:
        assert same_bits(memory.numpy(), held)
    return acc, scales.numpy(), bits, out


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("random", [False, True])
@pytest.mark.parametrize("fit", [False, True])
def test_grids_are_those_of_dorefa_and_laq(form: str, random: bool, fit: bool) -> None:
    for case in range(60):
        rng = np.random.default_rng(case)
        width, seed = int(rng.integers(1, 9)), int(rng.integers(-(2**63), 2**63))
        bucket, steps = int(rng.choice(BUCKETS)), 2**width - 1
        acc, scales, bits, out = run(case, form, "uniform", width, bucket, random, fit, seed)
        n = len(acc)
        bucket = bucket or n
        want, code = dorefa(acc, width, bucket, noise(n, seed) if random else np.zeros(n))
        level = 2 * code - steps
        if fit:
            parts = zip(buckets_of(acc, bucket), range(0, n, bucket), strict=True)
            fits = [least_squares(x, level[i : i + len(x)], steps) for x, i in parts]
            want = np.array(fits, np.float32)
        each = np.repeat(want, bucket)[:n]
        code = np.where(each > 0, code, 2 ** (width - 1))
        assert same_bits(scales, want), case
        assert np.array_equal(unpacked(bits, n, width), code), case
        if out is not None:
            sent = (each.astype(np.float64) * (2 * code - steps) / steps).astype(np.float32)
            assert same_bits(out.numpy(), acc - sent), case


@pytest.mark.parametrize("width", range(1, 9))
@pytest.mark.parametrize("scale", SCALES)
def test_grids_at_the_ends_of_steps(width: int, scale: float) -> None:
    rng, steps, n = np.random.default_rng(width), 2**width - 1, 20_000
    for v in (np.zeros(n + 1), noise(n + 1, 5)):
        ends = (rng.integers(1, steps + 1, n) - (steps + 1) / 2 - v[:n]) * (2 * scale / steps)
        acc = near(rng, np.abs(ends), scale)
        acc[:-1] = np.copysign(acc[:-1], ends)
        bits = encode_codes(
            torch.from_numpy(acc), None, None, 1.0, "uniform", width, 0, bool(v.any()), False, 5
        )[1]
        code = dorefa(acc, width, 0, v)[1]
        assert np.array_equal(unpacked(bits, n + 1, width), code)


def test_a_product_gives_the_quotient_that_the_format_defines() -> None:
    """Steps times levels, rounded to float32: the same as the format's quotient."""
    rng = np.random.default_rng(0)
    scale = rng.integers(1, 0x7F800000, 20_000).astype(np.uint32).view(np.float32)
    scale = np.append(scale, np.array([2**-149, 2**-126, GREATEST, 1, 255, 3], np.float32))
    scale = np.append(scale, np.arange(1, 2000).astype(np.uint32).view(np.float32))
    exact = scale.astype(np.float64)[:, None]
    for width in range(1, 9):
        steps = 2**width - 1
        level = 2 * np.arange(2**width) - steps
        want = (exact * level / steps).astype(np.float32)
        assert same_bits((exact / steps * level).astype(np.float32), want)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("decay", [1.0, 0.7])
def test_dynamic_codes_are_the_nearest(form: str, decay: float) -> None:
    table = tree()
    size = table[127:].astype(np.float64)
    middle = (size[:-1] + size[1:]) / 2
    for case in range(60):
        bucket = int(np.random.default_rng(case).choice(BUCKETS))
        acc, scales, bits, out = run(case, form, "dynamic8", 8, bucket, decay=decay)
        n = len(acc)
        want = np.array([np.abs(x).max() for x in buckets_of(acc, bucket or n)], np.float32)
        assert same_bits(scales, want), case
        each = np.repeat(want, bucket or n)[:n]
        with np.errstate(divide="ignore", invalid="ignore"):
            y = (np.abs(acc).astype(np.float64) * (1 / each.astype(np.float64))).astype(np.float32)
        rank = np.where(each > 0, np.searchsorted(middle, y, side="left"), 0)
        code = np.where(acc < 0, 127 - np.minimum(rank, 127), 127 + rank)
        assert np.array_equal(unpacked(bits, n, 8), code), case
        if out is not None:
            assert same_bits(out.numpy(), acc - each * table[code]), case


@pytest.mark.parametrize("scale", SCALES)
def test_dynamic_codes_at_the_ends_of_steps(scale: float) -> None:
    rng, size = np.random.default_rng(0), tree()[127:].astype(np.float64)
    middle = (size[:-1] + size[1:]) / 2
    acc = near(rng, rng.choice(middle, 20_000) * scale, scale)
    bits = encode_codes(torch.from_numpy(acc), None, None, 1.0, "dynamic8", 8)[1]
    y = (np.abs(acc).astype(np.float64) * (1 / np.float64(scale))).astype(np.float32)
    rank = np.searchsorted(middle, y, side="left")
    code = np.where(acc < 0, 127 - np.minimum(rank, 127), 127 + rank)
    assert np.array_equal(unpacked(bits, len(acc), 8), code)


def test_dynamic_ties_go_to_the_smaller_magnitude() -> None:
    size = tree()[127:].astype(np.float64)
    middle = (size[:-1] + size[1:]) / 2
    exact = middle[middle.astype(np.float32) == middle].astype(np.float32)
    assert len(exact) > 5
    for sign in (1, -1):
        given = torch.from_numpy(np.append(sign * exact, np.float32(1)))
        code = encode_codes(given, None, None, 1.0, "dynamic8", 8)[1].numpy()[:-1].astype(int)
        assert np.array_equal(np.abs(code - 127), np.searchsorted(middle, exact))
    # just beyond and just before each midpoint
    up = np.nextafter(middle.astype(np.float32), np.float32(2))
    down = np.nextafter(middle.astype(np.float32), np.float32(0))
    for each, more in ((up, 1), (down, 0)):
        given = torch.from_numpy(np.append(each, np.float32(1)))
        code = encode_codes(given, None, None, 1.0, "dynamic8", 8)[1].numpy()[:-1].astype(int)
        assert np.array_equal(code - 127, np.arange(128) + more)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("table", ["float16", "bfloat16"])
def test_half_floats_are_torchs_but_saturate(form: str, table: str) -> None:
    dtype = getattr(torch, table)
    most = torch.finfo(dtype).max
    for case in range(60):
        acc, scales, bits, out = run(case, form, table, 16, decay=0.7)
        assert not len(scales)
        want = torch.from_numpy(acc).to(dtype).clamp(-most, most)
        assert bits.numpy().tobytes() == want.view(torch.int16).numpy().tobytes(), case
        if out is not None:
            assert same_bits(out.numpy(), acc - want.float().numpy()), case


@pytest.mark.parametrize("table", ["float16", "bfloat16"])
def test_half_floats_at_every_exponent(table: str) -> None:
    dtype = getattr(torch, table)
    high = torch.arange(0, 0x7F80, dtype=torch.int32) << 16
    low = torch.tensor([0, 1, 0xFFF, 0x1000, 0x1001, 0x7FFF, 0x8000, 0x8001, 0xFFFF])
    size = (high[:, None] | low.int()).flatten().view(torch.float32)
    x = torch.cat([size, -size])
    bits = encode_codes(x, None, None, 1.0, table, 16)[1]
    most = torch.finfo(dtype).max
    want = x.to(dtype).clamp(-most, most)
    assert bits.view(torch.int16).equal(want.view(torch.int16))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("decay", [1.0, 0.7])
def test_one_bit_sends_the_means_of_both_sides(form: str, decay: float) -> None:
    """Seide et al. 2014: the reconstruction that minimises the squared error, column by column."""
    for case in range(60):
        bucket = int(np.random.default_rng(case).choice(BUCKETS))
        acc, scales, bits, out = run(case, form, "values", 1, bucket, decay=decay)
        n = len(acc)
        parts = buckets_of(acc, bucket or n)[: len(scales) // 2]
        if len(parts) > 200:
            parts = parts[:200]  # the oracle's sums are slow
        means = [
            mean
            for x in parts
            for mean in (side_mean(x[~(x < 0)]), -side_mean(-x[x < 0]) if (x < 0).any() else 0.0)
        ]
        assert len(scales) == 2 * (-(-n // (bucket or n)))
        assert same_bits(scales[: len(means)], np.array(means, np.float32)), case
        negative = acc < 0
        assert bits.numpy().tobytes() == np.packbits(negative, bitorder="little").tobytes(), case
        if out is not None:
            column = np.arange(n) // (bucket or n)
            sent = scales.reshape(-1, 2)[column, negative.astype(int)]
            assert same_bits(out.numpy(), acc - sent), case


def side_mean(x: F32) -> np.float32:
    return oracle.exact_mean(np.abs(x)) if len(x) else np.float32(0)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("n", [10, 100_000])
@pytest.mark.parametrize("bucket", [0, 100])
@pytest.mark.parametrize("table", TABLES)
def test_what_is_refused_leaves_the_memory(table: str, bucket: int, form: str, n: int) -> None:
    width = {"values": 1, "uniform": 3, "dynamic8": 8}.get(table, 16)
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
        info = encode_codes(tensor, memory, out, 1.0, table, width, bucket)[-1].tolist()
        assert info[1:3] == [status, where]
        kept = out if form == "place" else memory
        if kept is not None:
            assert same_bits(kept.numpy(), held.numpy())


CORPUS = """
import hashlib, torch
import numpy as np
import test_encode_codes as t
for threads in (1, 2, 7):
    torch.set_num_threads(threads)
    one = hashlib.sha256()
    for case in range(60):
        tensor, held = (torch.from_numpy(x) for x in t.draw(case))
        for table, width, random, fit in (
            ("values", 1, False, False), ("uniform", case % 8 + 1, False, False),
            ("uniform", case % 8 + 1, True, True), ("dynamic8", 8, False, False),
            ("float16", 16, False, False), ("bfloat16", 16, False, False),
        ):
            for bucket in (0, t.BUCKETS[case % len(t.BUCKETS)]):
                for memory, out in ((held, torch.empty_like(held)), (None, held.clone())):
                    options = table, width, bucket, random, fit, case
                    for each in (*t.encode_codes(tensor, memory, out, 0.3, *options), out):
                        one.update(each.numpy().tobytes())
    print(one.hexdigest())
"""


def test_same_bytes_for_every_isa_and_thread_count() -> None:
    digests = {digest for printed in at_every_isa(CORPUS).values() for digest in printed}
    assert len(digests) == 1, digests


def test_flushing_denormals_changes_nothing() -> None:
    tiny = torch.from_numpy(np.random.default_rng(0).integers(-40, 40, 50_000) * 2.0**-149).float()

    def everything() -> list[bytes]:
        given = []
        for table, width in (("values", 1), ("uniform", 4), ("dynamic8", 8), ("float16", 16)):
            for bucket in (0, 64):
                out = torch.empty_like(tiny)
                given += [*encode_codes(tiny, tiny, out, 0.5, table, width, bucket), out]
        return [each.numpy().tobytes() for each in given]

    kept = everything()
    assert torch.set_flush_denormal(True)
    try:
        flushed = everything()
    finally:
        torch.set_flush_denormal(False)
    assert kept == flushed


@pytest.mark.parametrize("width", [1, 3, 8])
def test_the_mean_over_seeds_is_the_tensor(width: int) -> None:
    """Ends of the grid included: deviations in units of independent draws of these probabilities.

    Fixed seeds; with others each bound would fail about once in a million runs.
    """
    n, seeds, steps = 1000, 3000, 2**width - 1
    tensor = torch.randn(n, generator=torch.Generator().manual_seed(1))
    x = tensor.double()
    total = torch.zeros(n, dtype=torch.float64)
    for seed in range(seeds):
        scales, bits, _ = encode_codes(
            tensor, None, None, 1.0, "uniform", width, 100, True, False, seed
        )
        level = 2 * torch.from_numpy(unpacked(bits, n, width)) - steps
        total += scales.double().repeat_interleave(100) * level / steps
    step = 2 * scales.double().repeat_interleave(100) / steps
    fraction = (x / step + steps / 2) % 1
    ends = x.abs() == scales.double().repeat_interleave(100)
    assert ends.sum() == 10
    assert torch.allclose(total[ends] / seeds, x[ends], rtol=1e-12)  # never an inner level
    spread = step * (fraction * (1 - fraction) / seeds).sqrt()
    z = ((total / seeds - x) / spread)[~ends]
    assert z.abs().max() < 5.5
    assert abs(z.square().mean() - 1) < 5 * (2 / n) ** 0.5
    assert abs(z.mean()) < 5 * n**-0.5


def test_seeds_and_places_draw_independently() -> None:
    half = torch.zeros(20_000)
    half[::10_000] = 1.0  # so that every other element is -1 or 1 at even odds

    def draws(seed: int) -> Tensor:
        bits = encode_codes(half, None, None, 1.0, "uniform", 1, 10_000, True, False, seed)[1]
        return torch.from_numpy(2.0 * unpacked(bits, 20_000, 1) - 1).float()

    a, b, c = draws(0), draws(1), draws(2**62)
    for x, y in ((a, b), (a, c), (b, c), (a[1:], a[:-1]), (a[::2], a[1::2]), (a[64:], a[:-64])):
        assert abs(float((x * y).mean())) < 5 * len(x) ** -0.5


def test_ops_pass_opcheck() -> None:
    tensor, memory, out = torch.randn(1000), torch.randn(1000), torch.empty(1000)
    op = torch.ops.gcext.encode_codes.default
    for given in ((tensor, None, None), (tensor, memory, out), (tensor, None, out.zero_())):
        for table, width, fit in ((0, 1, False), (1, 3, True), (2, 8, False), (3, 16, False)):
            torch.library.opcheck(op, (*given, 1.0, table, width, 64, fit, fit, 7))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"tensor": torch.ones(10).double()}, "wrong dtype"),
        ({"out": torch.ones(9)}, "10 elements"),
        ({"table": 5}, "table must be in"),
        ({"width": 9}, "width must be one"),
        ({"table": 0, "width": 2}, "width must be one"),
        ({"bucket": -1}, "bucket must not be negative"),
        ({"table": 2, "width": 8, "fit": True}, "table must be uniform"),
    ],
)
def test_raw_ops_refuse_what_does_not_fit(change: dict[str, object], match: str) -> None:
    args: dict[str, object] = {"tensor": torch.ones(10), "memory": None, "out": torch.ones(10)}
    args |= {"decay": 1.0, "table": 1, "width": 4, "bucket": 64, "random": False, "fit": False}
    with pytest.raises(RuntimeError, match=match):
        torch.ops.gcext.encode_codes.default(*(args | change).values(), 0)
