"""Budgets: what a message costs is counted before it is decoded, and refused above a limit."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from wire_kit import INDEX, MIB, golden, peak_growth

import gcext
from gcext import Budget, DecodeError, Packet
from gcext._packet.codes import Contents, Levels, Random, Signs
from gcext._packet.sketch import Sketch
from gcext._packet.tables import Codes
from gcext.aggregate import MaxK, Mean, Message, Round, Rounds
from gcext.polar import _design as design
from gcext.polar._values import Polar

N = 10**8
FLOAT = torch.float32


def polar(block: int, kept: int, soft: bool = True, numel: int = 1) -> Packet:
    bits = kept * -(-numel // block)
    message = torch.zeros((bits + 7) // 8, dtype=torch.uint8)
    return Packet(
        "polar", (numel,), FLOAT, Contents(None, Polar(message, block, kept, soft, torch.ones(1)))
    )


def zeros(k: int, numel: int, seed: int = 1) -> Packet:
    """Levels over a random support, all of them 0."""
    none = torch.zeros(0, dtype=torch.int32)
    code = Levels(1, 0, torch.ones(min(k, 1)), none, none.short())
    return Packet("levels", (numel,), FLOAT, Contents(Random(seed, k), code))


def constant(numel: int) -> Packet:
    code = Codes("values", 0, 0, torch.ones(1), torch.zeros(0, dtype=torch.uint8))
    return Packet("codes", (numel,), FLOAT, Contents(None, code))


def sketch(rows: int, numel: int) -> Packet:
    code = Sketch(rows, 3, 7, torch.ones(3 * rows))
    return Packet("sketch", (numel,), FLOAT, Contents(None, code))


COSTLY = {
    "design": lambda: polar(1 << 20, 9),
    "design of signs": lambda: polar(1 << 20, 9, soft=False),
    "long block": lambda: polar(1 << 20, 0),
    "designs": lambda: Packet.group([polar(1024, k, soft=False) for k in range(1, 40)]),
    "drawn zeros": lambda: zeros(N, N),
    "sum": lambda: Packet.sum([constant(N)] * 64),
    "drawn sum": lambda: Packet.sum([zeros(N // 8, N, i) for i in range(20)]),
    "sketch": lambda: sketch(64, N),
    "huge": lambda: constant(2**62),
    "huge group": lambda: Packet.group([constant(2**62), constant(2**62), constant(2**62)]),
}


@pytest.mark.parametrize("name", COSTLY)
def test_a_short_message_that_costs_much_is_refused_before_anything_is_made(name: str) -> None:
    packet = COSTLY[name]()
    message, shape = packet.to_bytes(), packet.shape
    assert len(message) <= 1024
    design._ORDERS.clear()
    least = Budget.needed(message)
    allowed = Budget.default(shape, len(message))
    if "huge" not in name:
        assert not allowed.admits(least)
        with pytest.raises(DecodeError) as caught:
            Packet.from_bytes(message, expect=shape)
        assert caught.value.code == "budget"
        assert caught.value.field.endswith("method")
        assert message[caught.value.offset] == _method(packet, caught.value.field)
        assert "budget=gcext.Budget" in str(caught.value)

        def refused(message: bytes = message, shape: Any = shape) -> None:
            with pytest.raises(DecodeError):
                Packet.from_bytes(message, expect=shape)

        assert peak_growth(refused) < MIB
    for smaller in (Budget(work=10**5), Budget(memory=1000)):
        with pytest.raises(DecodeError, match="must be at most"):
            Packet.from_bytes(message, budget=smaller)
    assert (
        Packet.from_bytes(message, expect=shape, budget=Budget()) == packet
    )  # decoding is deferred
    assert Packet.from_bytes(message, expect=shape, budget=least) == packet
    assert Packet.from_bytes(message) == packet
    assert len(design._ORDERS) == 0


def _method(packet: Packet, field: str) -> int:
    single = packet.members[int(field.split("[")[1].split("]")[0])] if packet.members else packet
    return {"polar": 9, "levels": 8, "sum": 12, "sketch": 14, "codes": 10}[single.method]


@pytest.mark.parametrize("name", INDEX["valid"])
def test_the_default_budget_admits_every_golden(name: str) -> None:
    message = golden("valid", name)
    packet = Packet.from_bytes(message)
    assert Packet.from_bytes(message, expect=packet) == packet
    needed = Budget.needed(packet)
    assert needed == Budget.needed(message) == Budget.needed(bytearray(message))
    assert Packet.from_bytes(message, budget=needed) == packet
    for least in (Budget(work=needed.work - 1), Budget(memory=needed.memory - 1)):  # type: ignore[operator]
        with pytest.raises(DecodeError) as caught:
            Packet.from_bytes(message, budget=least)
        assert caught.value.code == "budget"


@pytest.mark.parametrize(
    "spec",
    [
        *("stc:p=0.01", "topk:p=0.1", "randomk:p=0.5", "sign", "dense", "natural", "qsgd:bits=2"),
        *("terngrad", "fp16", "sketch:p=0.02", "sketch:p=0.5", "dct", "lowrank:rank=4"),
        *("polar:rate=0.5", "polar:rate=0.1", "polar:rate=0.37,block=1024"),
        *("polar:rate=0.37,block=8192", "polar:rate=0.3,block=65536"),
        *("polar:rate=0.5,select=randomk,p=0.2", "polar:rate=0.3,rotate=false"),
        *("repeat:rounds=4,codec=stc:p=0.1", "repeat:rounds=8,codec=sign"),
    ],
)
@pytest.mark.parametrize("numel", [1, 10, 1000, 100_000, 1_000_000])
def test_the_default_budget_admits_what_codecs_make(spec: str, numel: int) -> None:
    codec = gcext.codec(spec)
    x = torch.randn(numel).view(-1, 10) if numel > 10 else torch.randn(numel)
    message = codec.encode(x, seed=1 if codec.stochastic else None).to_bytes()
    Packet.from_bytes(message, expect=x.shape)


def test_the_counted_sets_of_polar_codes_are_those_that_are_not_shipped() -> None:
    tables = json.loads(design.TABLES.read_text())
    for kind in ("signs", "values"):
        shipped = {tuple(map(int, name.split("/"))) for name in tables[kind]}
        for level in range(5, 14):
            block = 1 << level
            free = {kept for kept, its in shipped if its == block} | {0, block}
            for kept in {*free, *(k + 1 for k in free if k < block), *(k - 1 for k in free if k)}:
                soft = kind == "values"  # of which all orders are shipped
                cheap = work_of(polar(block, kept, soft)) < 100 * block + 100_000
                assert cheap == (soft or kept in free), (kind, kept, block)
    assert work_of(polar(1 << 14, 13_107)) > 10**7


def work_of(*packets: Packet) -> int:
    needed = Budget.needed(Packet.group(packets)).work
    assert needed is not None
    return needed


def test_a_design_is_counted_once_a_message() -> None:
    n = 1 << 14
    one, two = (
        work_of(polar(n, 13_107)),
        work_of(polar(n, 13_107), polar(n, 13_108)),
    )  # of one tenth
    other = work_of(polar(n, 13_107), polar(n, 14_746))
    assert two < 1.1 * one and 1.9 * one < other
    signs = work_of(polar(1024, 300, soft=False), polar(1024, 301, soft=False))
    assert signs > 1.9 * work_of(polar(1024, 300, soft=False))


def test_codes_of_the_process_cost_no_design() -> None:
    block, kept = 1 << 17, 93_000  # 0.71
    assert work_of(polar(block, kept)) > 10**8
    gcext.codec(f"polar:rate={kept / block},block={block}")
    for shorter in (block, block // 2, block // 8):
        assert work_of(polar(shorter, round(kept / block * shorter))) < 10**7
    assert work_of(polar(block, kept // 2)) > 10**8
    assert work_of(polar(2 * block, 2 * kept)) > 10**8


def test_counts_stay_at_the_largest_number() -> None:
    most = 2**63 - 1
    assert Budget.needed(sketch(64, 2**62)) == Budget(most, most)
    assert Budget.default([(2**62,), (2**62,), (-5, 3)], 10**9) == Budget(most, most)
    assert Budget.default((), 0) == Budget.default((1,), 0)
    assert Packet.from_bytes(sketch(64, 2**62).to_bytes(), budget=Budget(10**30, 10**30)).k == 2**62


def test_budgets_are_checked() -> None:
    for bad in (-1, 1.5, True, "9"):
        with pytest.raises(ValueError, match="work must be a whole number from 0 up"):
            Budget(work=bad)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="memory must be"):
            Budget(memory=bad)  # type: ignore[arg-type]
    message = constant(3).to_bytes()
    with pytest.raises(TypeError, match=r"budget must be a gcext.Budget or None, got 10"):
        Packet.from_bytes(message, budget=10)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="budget must be"):
        Round(Mean(), budget=10)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="budget must be"):
        MaxK(1, budget=10)  # type: ignore[arg-type]
    with pytest.raises(DecodeError, match="frame"):
        Budget.needed(b"")
    with pytest.raises(ValueError, match="expect must be a shape"):
        Budget.default("abc", 1)
    assert Budget().admits(Budget.needed(sketch(64, 2**62)))
    assert not Budget(work=1).admits(Budget())


def test_other_errors_come_first() -> None:
    message = zeros(N, N).to_bytes()
    for expect, code in (((N + 1,), "expect"), ([(N,)], "expect"), ((N,), "budget")):
        with pytest.raises(DecodeError) as caught:
            Packet.from_bytes(message, expect=expect)
        assert caught.value.code == code
    with pytest.raises(DecodeError) as caught:
        Packet.from_bytes(message[:-1], expect=(N,))
    assert caught.value.code == "checksum"


def test_a_round_refuses_what_is_beyond_its_budget() -> None:
    costly, cheap = zeros(N, N), gcext.codec("sign").encode(torch.ones(8))
    for given in (costly, costly.to_bytes()):
        with pytest.raises(ValueError, match=r"budget|Budget"):
            Round(Mean(), budget=Budget(work=10**6)).add(7, given)
    with pytest.raises(DecodeError):
        Round(Mean(), expect=(N,)).add(7, costly.to_bytes())
    round = Round(Mean(), expect=(8,), budget=Budget(work=10**6, memory=10**5))
    assert round.add(7, cheap.to_bytes()) and round.add(8, cheap)
    with pytest.raises(ValueError, match="from client 9"):
        Round(Mean(), budget=Budget(memory=1)).add(9, cheap)
    assert torch.equal(torch.as_tensor(round.finish()), torch.ones(8))
    rounds = Rounds(Mean(), run=1, budget=Budget(memory=1))
    message = Message(1, client=9, round=rounds.begin(), packet=cheap).to_bytes()
    with pytest.raises(DecodeError, match="memory must be at most 1"):
        rounds.add(9, message)


def test_maxk_counts_every_element_that_is_drawn() -> None:
    drawn = zeros(50, 1000)
    for packet in (drawn, Packet.sum([drawn, zeros(50, 1000, 2)]), Packet.group([drawn])):
        with pytest.raises(ValueError, match=r"may hold 49 elements, got (50|100) from client 5"):
            MaxK(49).aggregate({5: packet})
        MaxK(100).aggregate({5: packet})
    some = gcext.stc(torch.randn(1000), p=0.01)
    MaxK(10).aggregate({5: Packet.sum([some, some])})  # of a sum, the union
    with pytest.raises(ValueError, match="MaxK: a packet must be within Budget"):
        MaxK(10, budget=Budget(work=10)).aggregate({5: some})
    MaxK(10, budget=Budget.needed(some)).aggregate({5: some})


def test_an_error_in_the_contents_is_found_within_a_budget() -> None:
    bits = torch.zeros(1, dtype=torch.uint8)
    message = Packet("sign", (8,), FLOAT, Contents(None, Signs(1.0, bits))).to_bytes()
    with pytest.raises(DecodeError) as caught:
        Packet.from_bytes(message[:-9] + message[-8:], budget=Budget(math.floor(1e18)))
    assert caught.value.code == "checksum"
