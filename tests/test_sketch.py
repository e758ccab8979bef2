"""The count sketch against a transcription of its definition, and what is known of it."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
import torch
from emu.backends import same_bits
from isa_kit import at_every_isa
from numpy_values import mixed
from packet_kit import dense
from torch import Tensor

import gcext
from gcext._native.sketch import sketch, sketch_query
from gcext._packet.sketch import Sketch

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
SHAPES = [(1, 1), (1, 50), (2, 7), (3, 100), (4, 33), (5, 64), (64, 3)]


def places(i: int, rows: int, cols: int, seed: int) -> list[tuple[int, int]]:
    """The bucket and the sign of an element in each row."""
    found = []
    for r in range(rows):
        h = mixed(mixed(mixed(seed % 2**64) + r & 2**64 - 1) ^ i)
        found.append(((h >> 32) * cols >> 32, -1 if h & 1 else 1))
    return found


def table_of(x: F32, index: list[int], rows: int, cols: int, seed: int) -> tuple[F64, F64]:
    """The count sketch (Charikar, Chen & Farach-Colton 2002) in float64, and the cells' elements.

    That sum is the exact one, or off by less than all bounds below.
    """
    table, members = np.zeros((rows, cols)), np.zeros((rows, cols))
    for i, value in zip(index, x.astype(np.float64), strict=True):
        for r, (c, sign) in enumerate(places(i, rows, cols, seed)):
            table[r, c] += sign * value
            members[r, c] += 1
    return table, members


def estimates_of(table: F32, index: list[int], rows: int, cols: int, seed: int) -> F32:
    """The median over the rows; of an even number of them the mean of the two in the middle."""
    rows_of = table.reshape(rows, cols).astype(np.float64)
    every = [
        np.median([sign * rows_of[r, c] for r, (c, sign) in enumerate(places(i, rows, cols, seed))])
        for i in index
    ]
    return np.array(every).astype(np.float32)


def made(tensor: Tensor, rows: int, cols: int, seed: int, index: Tensor | None = None) -> Tensor:
    table, info = sketch(tensor, index, rows, cols, seed)
    assert info.tolist() == [tensor.numel(), 0, 0, 0]
    return table


def bound(x: F32, members: F64, table: F64) -> F64:
    """What csrc/sketch.h promises, and the float64 sum's own error."""
    n = max(len(x), 1)
    bits = min(50, 62 - math.ceil(math.log2(n)))
    largest = float(np.abs(x).max(initial=0))
    denormal = 2.0**-150
    return members * 2.0**-bits * largest + 2.0**-23.999 * np.abs(table) + denormal


def odd_values(n: int, seed: int) -> Tensor:
    """Magnitudes from denormals to 10^30, zeros of both signs."""
    noise = torch.Generator().manual_seed(seed)
    x = torch.randn(n, generator=noise) * 10.0 ** torch.randint(-44, 30, (n,), generator=noise)
    x[::7], x[1::7] = -0.0, 0.0
    return x


@pytest.mark.parametrize("kind", ["normal", "wide", "denormal", "zero"])
@pytest.mark.parametrize(("rows", "cols"), SHAPES)
@pytest.mark.parametrize("n", [1, 2, 63, 64, 65, 500])
def test_against_the_definition(n: int, rows: int, cols: int, kind: str) -> None:
    tensor = torch.randn(n) if kind == "normal" else odd_values(n, n)
    if kind == "denormal":
        tensor = torch.randint(-5, 6, (n,)) * 2.0**-149
    if kind == "zero":
        tensor = torch.full((n,), -0.0)
    seed = 1000 * rows + n - 500
    table, x = made(tensor, rows, cols, seed), tensor.numpy()
    want, members = table_of(x, list(range(n)), rows, cols, seed)
    assert (np.abs(table.numpy().reshape(rows, cols) - want) <= bound(x, members, want)).all()
    if kind in ("denormal", "zero"):
        assert np.array_equal(table.numpy().reshape(rows, cols), want.astype(np.float32))
    got = sketch_query(table, None, n, rows, cols, seed)
    again = estimates_of(table.numpy(), list(range(n)), rows, cols, seed)
    assert same_bits(got, torch.from_numpy(again) + 0.0)


def test_an_index_names_the_elements() -> None:
    """In any order, of either type and beyond 2^32; a name that comes twice adds up."""
    index = torch.tensor([7, 2**33 + 5, 0, 7, 2**62])
    value = torch.tensor([1.0, -2.0, 0.5, 0.25, 3.0])
    table = made(value, 5, 40, 9, index)
    want, _ = table_of(value.numpy(), index.tolist(), 5, 40, 9)
    assert np.array_equal(table.numpy().reshape(5, 40), want.astype(np.float32))
    got = sketch_query(table, index, 0, 5, 40, 9)
    assert np.array_equal(got.numpy(), estimates_of(table.numpy(), index.tolist(), 5, 40, 9))
    narrow = torch.tensor([3, 1, 2], dtype=torch.int32)
    dense = torch.tensor([0.0, 5.0, 6.0, 4.0])
    assert same_bits(made(torch.tensor([4.0, 5.0, 6.0]), 3, 8, 1, narrow), made(dense, 3, 8, 1))
    every = sketch_query(table, None, 30, 5, 40, 9)
    assert same_bits(sketch_query(table, torch.arange(30), 0, 5, 40, 9), every)
    assert same_bits(sketch_query(table, narrow, 0, 5, 40, 9), every[narrow.long()])


def test_sums_are_exact_within_the_range_of_the_unit() -> None:
    """One rounding at the end: against exact integers, with cancellation."""
    n = 3000
    big = torch.randint(-(2**23), 2**23, (n,), generator=torch.Generator().manual_seed(1)).float()
    big *= 2.0 ** torch.randint(-20, 1, (n,), generator=torch.Generator().manual_seed(2))
    table = made(big, 2, 1, 3)
    for r in range(2):
        signs = np.array([places(i, 2, 1, 3)[r][1] for i in range(n)])
        exact = math.fsum(signs * big.double().numpy())
        assert table[r] == np.float32(exact)


@pytest.mark.parametrize("n", [1000, 40_000])
def test_tables_add_up(n: int) -> None:
    """sketch(a) + sketch(b) is sketch(a + b) but for the roundings."""
    a, b = torch.randn(n), torch.randn(n) * 100
    both = (a + b).double() - a - b  # what float32 lost of the sum
    one, two, whole = (made(x, 5, 60, 4).double() for x in (a, b, a + b))
    lost = made(both.float(), 5, 60, 4).double()
    members = made(torch.ones(n), 5, 60, 4).abs() + n / 60 * 3  # more than there are
    units = members * 2.0 ** -min(50, 62 - math.ceil(math.log2(n))) * float((a + b).abs().max()) * 3
    rounding = 2.0**-23 * (one.abs() + two.abs() + whole.abs())
    assert ((one + two - whole + lost).abs() <= units + rounding).all()
    assert same_bits(made(4.0 * a, 5, 60, 4), 4.0 * made(a, 5, 60, 4))
    assert same_bits(made(-a, 5, 60, 4), -made(a, 5, 60, 4))


@pytest.mark.parametrize("rows", [1, 3, 4])
def test_the_mean_of_the_estimates_over_seeds_is_the_tensor(rows: int) -> None:
    """Each estimate is unbiased: of a row by its signs, of a median by their symmetry.

    The mean of T draws is off by a normal error of known size: its squared norm over all elements
    is below 1.3 of its expectation, but for a chance of less than 1e-6 (about n = 400 of them).
    """
    n, cols, seeds = 400, 50, 600
    x = torch.randn(n, generator=torch.Generator().manual_seed(0))
    draws = torch.stack(
        [sketch_query(made(x, rows, cols, s), None, n, rows, cols, s) for s in range(seeds)]
    ).double()
    squared = (draws - x).square().sum(1).mean()
    bias = (draws.mean(0) - x).square().sum()
    assert bias < 1.3 * squared / seeds
    if rows == 1:  # the variance is (|x|^2 - x_i^2) / cols
        want = (n - 1) / cols * float(x.double().square().sum())
        assert 0.9 < float(squared) / want < 1.1


def test_buckets_and_signs_are_fair_and_rows_independent() -> None:
    """Chi-squared within five standard deviations; no two rows or elements agree too often."""
    n, rows, cols = 20_000, 4, 16
    one = np.zeros((rows, n), np.int64), np.zeros((rows, n), np.int64)
    for i in range(n):
        for r, (c, sign) in enumerate(places(i, rows, cols, 12345)):
            one[0][r, i], one[1][r, i] = c, sign
    for r in range(rows):
        counts = np.bincount(one[0][r], minlength=cols)
        assert abs(((counts - n / cols) ** 2 / (n / cols)).sum() - cols) < 5 * math.sqrt(2 * cols)
        assert abs(one[1][r].sum()) < 5 * math.sqrt(n)
        assert abs((one[1][r][1:] * one[1][r][:-1]).sum()) < 5 * math.sqrt(n)
        for other in range(r):
            same = (one[0][r] == one[0][other]).sum()
            assert abs(same - n / cols) < 5 * math.sqrt(n / cols)
            assert abs((one[1][r] * one[1][other]).sum()) < 5 * math.sqrt(n)


def test_heavy_hitters_are_recovered() -> None:
    """Twenty elements above the noise by far: the largest estimates, and close."""
    n, rows, cols = 20_000, 5, 2000
    x = torch.randn(n, generator=torch.Generator().manual_seed(3))
    heavy = torch.arange(20) * 997
    x[heavy] = torch.where(torch.arange(20) % 2 == 0, 100.0, -100.0)
    estimates = sketch_query(made(x, rows, cols, 6), None, n, rows, cols, 6)
    assert sorted(estimates.abs().topk(20).indices.tolist()) == heavy.tolist()
    noise = math.sqrt((n + 20 * 100.0**2) / cols)
    assert (estimates[heavy] - x[heavy]).abs().max() < 4 * noise


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_reported(bad: float) -> None:
    for n, where in ((1, 0), (100_000, 77_777)):
        tensor = torch.randn(n)
        tensor[where], tensor[-1] = bad, bad
        assert sketch(tensor, None, 3, 10, 0)[1].tolist() == [0, 1, where, 0]
    big = torch.full((4,), 3e38)
    info = sketch(big, torch.zeros(4, dtype=torch.int64), 1, 1, 0)[1]
    assert info.tolist() == [0, 8, 0, 0]
    assert not made(torch.empty(0), 3, 10, 0).any()


DIGEST = """
import hashlib, torch
from test_sketch import made, odd_values, sketch_query
for threads in (1, 2, 7):
    torch.set_num_threads(threads)
    digest = hashlib.sha256()
    for n in (1, 1000, 200_001):
        for rows, cols in ((1, 3), (4, 500), (5, 20_000), (64, 9)):
            for x in (odd_values(n, n), torch.randn(n, generator=torch.Generator().manual_seed(n))):
                table = made(x, rows, cols, n)
                digest.update(table.numpy())
                digest.update(sketch_query(table, None, n, rows, cols, n).numpy())
    print(digest.hexdigest())
"""


def test_the_same_bytes_at_every_instruction_set_and_number_of_threads() -> None:
    seen = {digest for printed in at_every_isa(DIGEST).values() for digest in printed}
    assert len(seen) == 1


def test_operators() -> None:
    x, index = torch.randn(100), torch.arange(100, dtype=torch.int32)
    table = made(x, 3, 20, 1)
    for at in (None, index):
        torch.library.opcheck(torch.ops.gcext.sketch.default, (x, at, 3, 20, 1))
        torch.library.opcheck(torch.ops.gcext.sketch_query.default, (table, at, 100, 3, 20, 1))
    for rows, cols, rule in ((0, 5, "rows"), (65, 5, "rows"), (1, 0, "cols"), (1, 2**31, "cols")):
        with pytest.raises(RuntimeError, match=f"{rule} must be in"):
            sketch(x, None, rows, cols, 0)
    with pytest.raises(RuntimeError, match="every element of tensor"):
        sketch(x, index[:5], 3, 20, 0)
    with pytest.raises(RuntimeError, match="rows \\* cols = 60 cells, got 59"):
        sketch_query(table[:59], None, 5, 3, 20, 0)


# The codec -----------------------------------------------------------------------------------


def coded(packet: gcext.Packet) -> Sketch:
    assert isinstance(packet.coded, Sketch)
    return packet.coded


@pytest.mark.parametrize("spec", ["sketch", "sketch:rows=4,cols=30,hash=7", "sketch:rows=1,p=1"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(), (0,), (1,), (7,), (30, 40), (3, 0, 2)])
def test_any_shape_and_dtype(spec: str, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    codec, tensor = gcext.codec(spec), torch.randn(shape).to(dtype)
    packet = codec.encode(tensor)
    code = coded(packet)
    assert (packet.method, packet.shape, packet.dtype) == ("sketch", shape, dtype)
    assert same_bits(code.table, made(tensor.float().flatten(), *code.kind))
    want = sketch_query(code.table, None, tensor.numel(), *code.kind).view(shape)
    again = gcext.Packet.from_bytes(packet.to_bytes(), expect=shape)
    assert again == packet and again.dtype == dtype and coded(again).kind == code.kind
    for each in (packet, again):
        assert same_bits(dense(each), want) and each.k == tensor.numel()
    strided = torch.randn(60, 40).t()[::2, 1::2]
    assert codec.encode(strided) == codec.encode(strided.contiguous())
    assert codec.encode(tensor, seed=3) == packet and not codec.stochastic
    assert codec.encode([tensor, strided]) == [packet, codec.encode(strided)]


def test_the_size_is_that_of_the_sums() -> None:
    for spec, cols in (("sketch:p=0.1", 20_000), ("sketch:rows=7,p=0.01", 1428)):
        codec = gcext.codec(spec)
        packet = codec.encode(torch.randn(10**6))
        assert coded(packet).cols == cols
        assert 0 < packet.nbytes - 4 * coded(packet).table.numel() <= 32
    assert coded(gcext.codec("sketch").encode(torch.ones(49))).cols == 1  # at least
    assert coded(gcext.codec("sketch:cols=99").encode(torch.ones(49))).cols == 99


def test_sketches_of_packets_add_up() -> None:
    codec = gcext.codec("sketch:rows=3,cols=90,hash=11")
    tensors = [torch.randn(500) for _ in range(3)]
    one = coded(codec.encode(tensors[0]))
    table = sum(coded(codec.encode(tensor)).table for tensor in tensors)
    assert isinstance(table, Tensor)
    whole = dense(codec.encode(tensors[0] + tensors[1] + tensors[2]))
    assert torch.allclose(Sketch(*one.kind, table).decode(500), whole, atol=1e-4)


def test_what_the_codec_refuses() -> None:
    codec, tensor, residual = gcext.codec("sketch"), torch.randn(100), torch.zeros(100)
    tensor[17] = float("nan")
    with pytest.raises(ValueError, match="sketch: tensor must be finite in float32, got nan at"):
        codec.encode(tensor)
    with pytest.raises(ValueError, match="sums of the sketch must be finite in float32"):
        gcext.codec("sketch:rows=30,cols=1").encode(torch.full((3,), 3e38))
    fine = torch.randn(100)
    for call in (
        lambda: codec.encode(fine, residual),
        lambda: codec.encode([fine], [residual]),
        lambda: codec.advance(fine, residual, residual.clone()),
        lambda: gcext.ErrorFeedback("sketch"),
        lambda: gcext.recipe("sketch:feedback=true"),
    ):
        with pytest.raises(ValueError, match="sketch: error feedback needs a codec that declares"):
            call()
    assert not residual.any()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ("rows=0", r"rows must be in \[1, 64\]"),
        ("rows=65", r"rows must be in \[1, 64\]"),
        ("p=0", r"p must be in \(0, 1\]"),
        ("cols=-1", r"cols must be in \[0, 2147483647\]"),
        ("cols=2147483648", "cols must be in"),
        ("hash=-1", r"hash must be in \[0, 4294967295\]"),
        ("hash=4294967296", "hash must be in"),
        ("seed=1", "unknown option seed. It takes rows, p, cols, hash"),
    ],
)
def test_invalid_specs_raise(options: str, match: str) -> None:
    with pytest.raises(ValueError, match=f"sketch: {match}"):
        gcext.codec(f"sketch:{options}")


def test_specs_round_trip() -> None:
    for spec in ("sketch:rows=5,p=0.1,cols=0,hash=0", "sketch:rows=4,p=1.0,cols=9,hash=4294967295"):
        assert gcext.codec(spec).spec == spec


def test_denormals_are_kept_whatever_the_flush_mode() -> None:
    codec, tensor = gcext.codec("sketch:rows=4,cols=7"), torch.arange(-9, 9) * 2.0**-149
    packet, values = codec.encode(tensor), dense(codec.encode(tensor))
    try:
        if not torch.set_flush_denormal(True):
            pytest.skip("no flush mode here")
        flushed = codec.encode(tensor)
        again = dense(flushed)
    finally:
        torch.set_flush_denormal(False)
    assert flushed == packet and same_bits(again, values) and values.any()
