"""combine, gram and trimmed_mean of coded values: what they give of float32 values."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from isa_kit import at_every_isa
from packet_kit import dense as decoded
from packet_kit import single
from test_combine import expected as expected_sum
from test_gram import in_fixed_order
from test_robust import expected as expected_mean
from torch import Tensor

import gcext
from gcext import Packet
from gcext._native import ops
from gcext._native.codes import POWERS
from gcext._packet.codes import Code, Contents, Levels, Random, Signs
from gcext._packet.powers import Powers
from gcext._packet.tables import Codes
from gcext.aggregate import Mean, Median, TrimmedMean, Vote
from gcext.aggregate._sums import operands

# Around the tiles of trimmed_mean, of the decoder, of gram's counts and of combine.
SIZES = [0, 1, 7, 8, 9, 511, 513, 2047, 2049, 8191, 8193, 16383, 16384, 16385, 50_003]
DENORMAL = 3e-42


def packet(numel: int, coded: Tensor | Code, support: Random | None = None) -> Packet:
    method = "dense" if isinstance(coded, Tensor) else coded.method
    return Packet(method, (numel,), torch.float32, Contents(support, coded))


def signs(rng: np.random.Generator, numel: int, scale: float, k: int | None = None) -> Packet:
    """Signs of all elements, or of k random ones."""
    sent = numel if k is None else k
    minus = rng.random(sent) < (0.4 if scale else 0.0)  # a zero has no sign
    bits = torch.from_numpy(np.packbits(minus, bitorder="little"))
    support = None if k is None else Random(int(rng.integers(2**60)), k)
    return packet(numel, Signs(float(np.float32(scale)), bits), support)


def levels(rng: np.random.Generator, numel: int, bucket: int, share: float, steps: int) -> Packet:
    level = rng.integers(-steps, steps + 1, numel) * (rng.random(numel) < share)
    norms = rng.random(-(-numel // bucket) if 0 < bucket < numel else min(numel, 1), np.float32)
    norms[rng.random(len(norms)) < 0.2] = DENORMAL
    return packet(numel, Levels.of(torch.from_numpy(level), steps, bucket, torch.from_numpy(norms)))


def powers(rng: np.random.Generator, numel: int, scale: float, share: float = 0.9) -> Packet:
    power = rng.integers(100, 200, numel) * rng.choice([-1, 1], numel) * (rng.random(numel) < share)
    return packet(numel, Powers(scale, torch.from_numpy(power.astype(np.int16))))


def codes(
    rng: np.random.Generator, numel: int, table: str, width: int, bucket: int, k: int | None = None
) -> Packet:
    """Codes of all elements, or of k random ones."""
    sent = numel if k is None else k
    floats = {"values": 2**width, "uniform": 1, "dynamic8": 1}.get(table, 0)
    buckets = min(sent, 1) if bucket == 0 or bucket >= sent else -(-sent // bucket)
    scales = rng.random(floats * buckets, np.float32)
    drawn = torch.from_numpy(rng.integers(0, 2 ** min(width, 14), sent))  # of halves finite ones
    code = Codes.of(drawn, table, width, bucket, torch.from_numpy(scales) if floats else None)
    support = None if k is None else Random(int(rng.integers(2**60)), k)
    return packet(numel, code, support)


def mixed(seed: int, numel: int) -> list[Packet]:
    rng = np.random.default_rng(seed)
    return [
        signs(rng, numel, 0.75),
        levels(rng, numel, 0, 0.9, 3),
        signs(rng, numel, DENORMAL),
        packet(numel, torch.from_numpy(rng.standard_normal(numel).astype(np.float32))),
        levels(rng, numel, 100, 0.05, 127),
        signs(rng, numel, 1.3, numel // 3),
        gcext.stc(torch.from_numpy(rng.standard_normal(numel).astype(np.float32)), p=0.1),
        signs(rng, numel, 0.0),
        levels(rng, numel, 3, 0.5, 1),
        signs(rng, numel, 2.5),
        levels(rng, numel, 64, 0.0, 5),
        powers(rng, numel, 0.75),
        codes(rng, numel, "dynamic8", 8, 0),
        codes(rng, numel, "uniform", 3, 100),
        codes(rng, numel, "values", 1, 0),
        codes(rng, numel, "float16", 16, 0),
        codes(rng, numel, "values", 5, 33, numel // 3),
        packet(numel, Powers(1.0, torch.empty(0, dtype=torch.int16))),
        codes(rng, numel, "bfloat16", 16, 0, numel // 5),
        codes(rng, numel, "values", 0, 7),
    ]


def vectors_of(packets: list[Packet]) -> list[np.ndarray]:
    """The decoded tensors, by their definition."""
    out = []
    for each in packets:
        coded, value = each.coded, decoded(each).numpy()
        if isinstance(coded, Signs) and each.support is None:
            minus = np.unpackbits(coded.bits.numpy(), bitorder="little", count=each.numel)
            value = np.where(minus, -np.float32(coded.scale), np.float32(coded.scale))
        elif isinstance(coded, Levels):
            at = coded.at.numpy().astype(np.int64)
            norm = coded.norms.numpy()[at // coded.bucket if coded.bucket else 0 * at]
            value = np.zeros(each.numel, np.float32)
            value[at] = norm.astype(np.float64) * coded.level.numpy() / coded.steps
        out.append(value)
    return out


def exact_gram(packets: list[Packet], vectors: list[np.ndarray]) -> np.ndarray:
    """Integers where both packets are signs of all elements or both ternary, else sums in order."""
    out = np.zeros((len(packets), len(packets)))
    kind = [each.method if each.support is None else each.method == "ternary" for each in packets]
    for i, (one, x) in enumerate(zip(packets, vectors, strict=True)):
        for j, (other, y) in enumerate(zip(packets, vectors, strict=True)):
            pair = (one, other)
            if kind[i] == kind[j] and kind[i] in ("sign", True):
                scales = [e.coded.scale if isinstance(e.coded, Signs) else e.scale for e in pair]
                bits = [
                    np.sign(v) if s else np.ones_like(v)
                    for v, s in zip((x, y), scales, strict=True)
                ]
                count = int((bits[0].astype(np.int64) * bits[1].astype(np.int64)).sum())
                out[i, j] = scales[0] * scales[1] * count + 0.0
            else:
                out[i, j] = in_fixed_order(x, y) if len(x) else 0.0
    return out


def same(got: Tensor, want: np.ndarray) -> bool:
    return got.numpy().tobytes() == want.tobytes()


@pytest.mark.parametrize("numel", SIZES)
def test_exact_over_tiles_and_kinds(numel: int) -> None:
    packets = mixed(numel, numel)
    vectors = vectors_of(packets)
    none = torch.empty(0, dtype=torch.int32)
    pairs = [(none, torch.from_numpy(v)) for v in vectors]
    weights = [0.1, -3.7, 1.0, 1e-3, 0.3, 2.0, -1.0, -0.5, 7.0, 1 / 3, 1.0]
    weights += [0.7, -0.2, 3.0, 1e-2, 0.9, -2.5, 1.0, 0.4, -6.0]
    for chosen in (range(len(packets)), *[[i] for i in range(len(packets))], [1, 0], [9, 2, 0]):
        some, of = [packets[i] for i in chosen], [weights[i] for i in chosen]
        out = single(gcext.combine(some, of))
        assert same(out, expected_sum([pairs[i] for i in chosen], of, numel))
        want = exact_gram(some, [vectors[i] for i in chosen])
        assert same(gcext.gram(some), want)
    got = single(TrimmedMean(0.2).aggregate(dict(enumerate(packets))))
    assert same(got, expected_mean(pairs, len(packets) // 5, numel))


def test_signs_are_counted_in_planes_of_any_number() -> None:
    """From 64 packets on by tiles, where there are any; more columns than the planes hold."""
    rng = np.random.default_rng(0)
    for m, numel in ((3, 40_001), (65, 20_001)):
        packets = [signs(rng, numel, scale) for scale in rng.random(m)]
        assert same(gcext.gram(packets), exact_gram(packets, vectors_of(packets)))


@pytest.mark.parametrize("numel", [0, 1, 513, 20_001])
def test_no_value_is_beyond_the_limits(numel: int) -> None:
    """Sums of packets are finite, without a pass over them, where these are."""
    with_limits = 0
    for each in mixed(7, numel):
        limits = None if isinstance(each.coded, Tensor) else each.coded.limits
        if limits is None:
            continue
        with_limits += 1
        most = float(limits.abs().max()) if limits.numel() else 0.0
        assert float(decoded(each).abs().max() if numel else 0.0) <= most
    assert with_limits == 9


def test_wide_indices() -> None:
    rng = np.random.default_rng(1)
    narrow = levels(rng, 5000, 64, 0.5, 7)
    code = narrow.coded
    assert isinstance(code, Levels)
    wide = packet(5000, Levels(code.steps, code.bucket, code.norms, code.at.long(), code.level))
    other = signs(rng, 5000, 0.5)
    sums = [single(gcext.combine([each, other], [1, 2])) for each in (wide, narrow)]
    assert torch.equal(*sums)
    assert torch.equal(gcext.gram([wide, other]), gcext.gram([narrow, other]))


def test_same_bits_everywhere() -> None:
    script = """
import hashlib, torch, gcext
from gcext.aggregate import TrimmedMean
from test_coded_packets import mixed
packets = mixed(5, 100_003)
torch.set_flush_denormal(True)
for threads in (1, 2, 7):
    torch.set_num_threads(threads)
    made = [
        gcext.combine(packets, [0.1 * i for i in range(len(packets))]),
        gcext.gram(packets),
        TrimmedMean(0.3).aggregate(dict(enumerate(packets))),
    ]
    print(hashlib.sha256(b"".join(x.numpy().tobytes() for x in made)).hexdigest())
"""
    printed = at_every_isa(script)
    assert len({word for words in printed.values() for word in words}) == 1, printed


@pytest.mark.parametrize("spec", ["sign", "qsgd:bits=2,bucket=64", "terngrad"])
def test_aggregates_as_if_it_were_float32(spec: str) -> None:
    generator = torch.Generator().manual_seed(0)
    codec = gcext.codec(spec)
    seeds = [None if spec == "sign" else i for i in range(5)]
    coded = [codec.encode(torch.randn(33_000, generator=generator), seed=i) for i in seeds]
    plain = [gcext.codec("dense").encode(decoded(each)) for each in coded]
    for aggregator in (Mean(), TrimmedMean(0.2), Median()):
        both = [single(aggregator.aggregate(dict(enumerate(each)))) for each in (coded, plain)]
        assert torch.equal(*both)
    voted = single(Vote().aggregate(dict(enumerate(coded))))
    assert torch.equal(voted, torch.stack([decoded(each).sign() for each in coded]).sum(0).sign())


def test_bad_codes_are_refused() -> None:
    at, level = torch.tensor([1, 9]).int(), torch.tensor([1, -2], dtype=torch.int16)
    none, bits, norms = torch.empty(0).int(), torch.zeros(2, dtype=torch.uint8), torch.ones(2)

    def refused(match: str, index: Tensor, value: Tensor, *codes: object) -> None:
        given = ops.Codes(*codes)  # type: ignore[arg-type]
        for call in (
            lambda: ops.combine([index], [value], [1.0], 10, given),
            lambda: ops.trimmed_mean([index], [value], 0, 10, given),
            lambda: ops.gram([index], [value], given.scale or [0.0], 10, given),
        ):
            with pytest.raises(RuntimeError, match=match):
                call()

    refused("one for each of 10 values, got 1 bytes", none, bits[:1], [1.0])
    refused("one for each of 2 values, got 2 bytes", at, bits, [1.0])
    refused("wrong dtype", at, bits.char(), [1.0])
    refused("finite and not negative", none, bits, [-1.0])
    refused("finite and not negative", none, bits, [float("nan")])
    refused("levels need norms", at, level)
    refused("levels need norms", at, level, [0.0], [norms], [], [5])
    refused("cover every element, got 2 for 10", at, level, [0.0], [norms], [3], [4])
    refused("cover every element, got 0", at, level, [0.0], [norms[:0]], [3], [0])
    refused("and steps 0", at, level, [0.0], [norms], [0], [5])
    refused("one length, or index none", none, level, [0.0], [norms], [3], [5])
    refused("powers must be in .*, packet 0 has", none, torch.full((10,), 279).short(), [1.0], None,
            [], [], [POWERS])  # fmt: skip
    refused("finite and not negative", none, torch.ones(10).short(), [-1.0], None, [], [], [POWERS])
    refused("that of int16 values, got 5", none, bits, [1.0], None, [], [], [5])
    refused("that of int16 values, got 6", none, bits, [1.0], None, [], [], [6])
    refused("codes need norms", none, bits, [0.0], None, [], [], [0])
    refused("of 1 to 16 bits, got 0", none, bits, [0.0], [norms], [0], [0], [0])
    refused("one for each of 10 values, got 2 bytes", none, bits, [0.0], [norms], [2], [0], [1])
    refused("width must be", none, torch.zeros(20).byte(), [0.0], [norms], [16], [0], [1])
    refused("scales must be", none, bits, [0.0], [norms], [1], [4], [1])
    refused("rise strictly", at.flip(0), level, [0.0], [norms], [3], [5])
    refused("rise strictly", at + 1, level, [0.0], [norms], [3], [5])
    with pytest.raises(RuntimeError, match="need a scale"):
        ops.combine([none], [bits], [1.0], 10)


@pytest.mark.parametrize("numel", [*SIZES, 200_001])
def test_values(numel: int) -> None:
    rng = np.random.default_rng(numel)
    packets = [signs(rng, numel, 0.3), signs(rng, numel, DENORMAL), levels(rng, numel, 0, 0.8, 9)]
    packets += [levels(rng, numel, bucket, 0.8, 2**15 - 1) for bucket in (1, 100, 5000)]
    for each, vector in zip(packets, vectors_of(packets), strict=True):
        assert same(decoded(each), vector + np.float32(0))  # added to zeros: no -0
    code, scales = packets[0].coded, rng.random(numel // 64 + 1, np.float32)
    assert isinstance(code, Signs)
    got = ops.unpack_signs(code.bits, numel, 0.0, torch.from_numpy(scales), 64)
    assert same(got, np.repeat(scales, 64)[:numel] * np.sign(vectors_of(packets[:1])[0]))


def test_bad_values_are_refused() -> None:
    bits, norms = torch.zeros(2, dtype=torch.uint8), torch.ones(2)
    at, level = torch.tensor([1, 9]).int(), torch.tensor([1, -2], dtype=torch.int16)
    for match, call in {
        "bits must be one for each": lambda: ops.unpack_signs(bits, 17, 1.0, None, 0),
        "a multiple of 8": lambda: ops.unpack_signs(bits, 16, 0.0, norms, 4),
        "got 2 for runs of 8": lambda: ops.unpack_signs(
            torch.cat([bits, bits[:1]]), 17, 0.0, norms, 8
        ),
        r"within \[0, 8\)": lambda: ops.level_values(norms, at, level, 4, 1),
        r"within \[0, 0\)": lambda: ops.level_values(norms[:0], at, level, 0, 1),
        "steps must be in": lambda: ops.level_values(norms, at, level, 5, 0),
        "at must name every level": lambda: ops.level_values(norms, at[:1], level, 5, 1),
    }.items():
        with pytest.raises(RuntimeError, match=match):
            call()


def test_opcheck() -> None:
    packets = mixed(3, 100)
    index, value, codes = operands(packets)
    assert {v.dtype for v in value} == {torch.float32, torch.uint8, torch.int16}
    weights = [1.0] * len(value)
    for operator, arguments in (
        (torch.ops.gcext.combine, (index, value, weights, 100, *codes)),
        (torch.ops.gcext.gram, (index, value, codes.scale, 100, *codes[1:])),
        (torch.ops.gcext.trimmed_mean, (index, value, 2, 100, *codes)),
        (torch.ops.gcext.unpack_signs, (value[0], 100, 0.5, None, 0)),
        (torch.ops.gcext.unpack_signs, (value[0], 100, 0.0, torch.rand(3), 40)),
        (torch.ops.gcext.level_values, ((codes.norms or [])[1], index[1], value[1], 0, 3)),
    ):
        torch.library.opcheck(operator.default, arguments)
