"""Fixed-width codes: values by the formulas, on every instruction set and CUDA; the class Codes."""

from __future__ import annotations

import random
from fractions import Fraction
from typing import Any

import pytest
import torch
from codes_kit import TABLES, WIDTHS, case
from emu.backends import BACKENDS, same_bits
from emu.codes import Emu, make
from isa_kit import at_every_isa
from numpy_reader import round_to_f32
from packet_kit import dense
from torch import Tensor

import gcext
from gcext import Packet
from gcext._native.codes import code_values
from gcext._packet.codes import Contents
from gcext._packet.tables import Codes

# Around the blocks that are unpacked at a time, and the last bytes of a plane.
SIZES = [0, 1, 7, 8, 9, 31, 1016, 1017, 1023, 1024, 1025, 2048, 2049, 5003, 50_001]


@pytest.mark.parametrize("table", TABLES)
def test_values_are_those_of_the_formulas(table: str) -> None:
    draw = random.Random(table)
    for width in WIDTHS[table]:
        for n in SIZES:
            each = case(1, n, table, width, draw.choice([0, 1, 3, 100, 600, 5000]))
            got = code_values(each.bits, each.scales, n, table, width, each.bucket)
            assert same_bits(got, each.expected()), (width, n)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("table", TABLES)
def test_same_bytes(backend: str, table: str) -> None:
    draw = random.Random(table)
    for width in WIDTHS[table]:
        for n in (0, 1, 3, 4, 5, 1023, 1024, 1025, 4097):
            each = case(0, n, table, width, draw.choice([0, 1, 2, 7, 100, 1024]))
            run = make(backend, draw.choice([1, 2, 1024]), draw.random() < 0.5)
            want = code_values(each.bits, each.scales, n, table, width, each.bucket)
            assert same_bits(run.code_values(*each.arguments), want)


def dynamic8() -> Tensor:
    return Codes.of(torch.arange(256), "dynamic8", 8, scales=torch.ones(1)).decode(256)


def test_dynamic8_is_the_dynamic_tree_type_of_the_paper() -> None:
    """A byte as the paper reads it: sign, zeros, a one, the rest a fraction of [0.1, 1]."""
    positive = {0: Fraction(0), 1: Fraction(1)}  # no one at all: 0; the code that would be -0: 1
    for byte in range(2, 129):
        digits = f"{byte - 1:07b}"
        zeros = digits.index("1")
        rest = digits[zeros + 1 :]
        middle = Fraction(2 * int(rest or "0", 2) + 1, 2 << len(rest))
        positive[byte] = (Fraction(1, 10) + Fraction(9, 10) * middle) / 10**zeros
    exact = sorted([*positive.values(), *(-x for x in positive.values() if 0 < x < 1)])
    table = dynamic8()
    assert table.tolist() == [round_to_f32(x) for x in exact]
    assert bool((table.diff() > 0).all())
    assert table[127] == 0 and table[255] == 1


def test_a_16_bit_float_is_itself() -> None:
    words = torch.arange(2**16, dtype=torch.int32)
    for dtype, table in ((torch.float16, "float16"), (torch.bfloat16, "bfloat16")):
        want = words.to(torch.int16).view(dtype).float()
        got = Codes.of(words, table, 16).decode(2**16)
        assert same_bits(got[want.isfinite()], want[want.isfinite()])
        held = words[want.isfinite()]
        packet = Packet("codes", held.shape, dtype, Contents(None, Codes.of(held, table, 16)))
        assert same_bits(dense(Packet.from_bytes(packet.to_bytes())), want[want.isfinite()])


DIGEST = """
import hashlib, torch, gcext
from codes_kit import TABLES, WIDTHS, case
from gcext._native.codes import code_values
cases = [
    case(2, n, table, width, bucket)
    for table in TABLES for width in WIDTHS[table]
    for n, bucket in ((100_003, 0), (70_000, 512), (5000, 33))
]
torch.set_flush_denormal(True)
for threads in (1, 3):
    torch.set_num_threads(threads)
    digest = hashlib.sha256()
    for each in cases:
        got = code_values(each.bits, each.scales, each.n, each.table, each.width, each.bucket)
        digest.update(got.numpy().tobytes())
    print(digest.hexdigest())
"""


def test_the_same_bits_at_every_instruction_set_and_number_of_threads() -> None:
    printed = at_every_isa(DIGEST)
    assert len({digest for words in printed.values() for digest in words}) == 1, printed


def packet(coded: Codes, numel: int) -> Packet:
    return Packet("codes", (numel,), torch.float32, Contents(None, coded))


@pytest.mark.parametrize("table", TABLES)
def test_aggregates_as_if_it_were_float32(table: str) -> None:
    torch.manual_seed(0)
    numel = 3001
    each = 8 if table == "values" else 1 if table in ("uniform", "dynamic8") else 0
    width = {"values": 3, "uniform": 5, "dynamic8": 8}.get(table, 16)
    packets = []
    for bucket in (0, 64, 1000) if each else (0, 0, 0):
        buckets = -(-numel // bucket) if bucket else 1
        codes = torch.randint(0, 0x4200 if width == 16 else 1 << width, (numel,))
        scales = torch.rand(each * buckets)
        packets.append(packet(Codes.of(codes, table, width, bucket, scales), numel))
    plain = [gcext.codec("dense").encode(dense(each)) for each in packets]
    other = gcext.stc(torch.randn(numel), p=0.1)
    for some, same in (((*packets, other), (*plain, other)), (packets[:1], plain[:1])):
        weights = [0.5, -1.0, 2.0, 3.0][: len(some)]
        assert torch.equal(gcext.gram(some), gcext.gram(same))
        assert torch.equal(gcext.combine(some, weights), gcext.combine(same, weights))  # type: ignore[arg-type]
        trimmed = [gcext.aggregate.Median().aggregate(dict(enumerate(x))) for x in (some, same)]
        assert torch.equal(*trimmed)  # type: ignore[arg-type]
    target = torch.randn(numel)
    assert torch.equal(
        packets[1].add_to_(target.clone(), alpha=-2.0), plain[1].add_to_(target.clone(), alpha=-2.0)
    )
    group = Packet.from_bytes(Packet.group(packets).to_bytes())
    assert all(map(torch.equal, group.to_dense(), [dense(each) for each in packets]))


def test_the_class() -> None:
    scales = torch.tensor([2.0])
    assert Codes.of(torch.tensor([1, 0]), "uniform", 1, 2, scales).bucket == 0
    empty = Codes.of(torch.empty(0, dtype=torch.int64), "float16", 16)
    assert packet(empty, 0).nbytes == 20 and empty.decode(0).shape == (0,)
    one_mean = Codes.of(torch.zeros(5, dtype=torch.int64), "values", 0, scales=scales)
    assert one_mean.bits.numel() == 0 and one_mean.decode(5).tolist() == [2.0] * 5
    for match, code, table, width in (
        (r"codes must be in \[0, 2\^3\)", [8], "uniform", 3),
        (r"codes must be in \[0, 2\^3\)", [-1], "uniform", 3),
        ("table must be one of values, uniform, dynamic8, float16, bfloat16", [1], "int8", 8),
    ):
        with pytest.raises(ValueError, match=match):
            Codes.of(torch.tensor(code), table, width, scales=scales)


@pytest.mark.parametrize(
    ("table", "width", "bits_an_element"),
    [("dynamic8", 8, 8), ("uniform", 3, 3), ("float16", 16, 16)],
)
def test_a_packet_is_its_codes_and_scales(table: str, width: int, bits_an_element: int) -> None:
    n, bucket = 10**6, 0 if width == 16 else 4096
    scales = torch.ones(-(-n // bucket) if bucket else 0)
    size = packet(Codes.of(torch.ones(n).int(), table, width, bucket, scales), n).nbytes
    assert 0 <= size - n * bits_an_element // 8 - 4 * len(scales) <= 32


def test_a_device_decodes_as_the_cpu_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """The class reaches the kernel, which the emulator runs."""
    coded = Codes.of(torch.arange(200) % 8, "uniform", 3, 64, torch.rand(4))
    want = coded.decode(200)

    class Operator:
        default = staticmethod(Emu().code_values)

    monkeypatch.setattr(torch.ops.gcext, "code_values", Operator)
    assert same_bits(coded.decode(200), want)


def test_operator() -> None:
    each = case(3, 100, "uniform", 3, 33)
    op = torch.ops.gcext.code_values.default
    torch.library.opcheck(op, each.arguments)
    bits, scales, n, table, width, bucket = each.arguments
    wrong: dict[str, tuple[Any, ...]] = {
        r"table must be in \[0, 5\)": (bits, scales, n, 5, width, bucket),
        "one that the table has, got 9": (bits, scales, n, table, 9, bucket),
        "one that the table has, got 8": (bits, scales, n, 3, 8, bucket),
        "n must be in": (bits, scales, -1, table, width, bucket),
        "bucket must not be negative": (bits, scales, n, table, width, -1),
        "bits: wrong dtype": (bits.char(), scales, n, table, width, bucket),
        "scales: wrong dtype": (bits, scales.double(), n, table, width, bucket),
        "bits must be 3 for each value, got 38 bytes for 102": (bits, scales, 102, 1, 3, 0),
        "scales must be 1 for each of 5 buckets, got 4": (bits, scales, n, table, width, 20),
        "scales must be 8 for each of 1 buckets": (bits, scales, n, 0, width, 0),
    }
    for match, arguments in wrong.items():
        with pytest.raises(RuntimeError, match=match):
            op(*arguments)
