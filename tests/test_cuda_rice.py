"""The CUDA kernels of rice give the CPU's packets: emulated, and on a GPU if there is one."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
import torch
import wire_bodies as wire
from emu.backends import BACKENDS, same_bits
from emu.rice import Emu, Located, Pairs, make
from xxhash import xxh3_64_intdigest

import gcext._native.library  # noqa: F401  loads the CPU operators
from gcext import DecodeError, _wire

TILE = _wire.TILE
SCALE, SCALE_BITS = 0.5, 0x3F000000
COUNTS = [0, 1, 2, 31, 32, 33, TILE - 1, TILE, TILE + 1, 2 * TILE, 3 * TILE + 5, 7 * TILE - 3]
Index = npt.NDArray[Any]  # int32 or int64


def support(draw: random.Random, k: int) -> tuple[Index, int]:
    """Return k rising numbers with gaps of many sizes and patterns, and a limit above them."""
    generator = np.random.default_rng(draw.randrange(2**31))
    most = draw.choice([0, 1, 2, 10, 100, 10**4, 2**20])
    kind = draw.choice(["even", "mixed", "layers", "constant", "one jump"])
    gap = generator.integers(0, most + 1, k)
    if kind == "mixed":  # many scales in one tile: some q are long
        gap = (2.0 ** generator.uniform(0, np.log2(most + 1), k)).astype(np.int64) - 1
    elif kind == "layers":  # one scale for a run of numbers, whatever the tiles
        gap //= 1 + np.arange(k) // draw.choice([100, 1000, 3000]) ** 2 % 50
    elif kind == "constant":
        gap[:] = most
    elif kind == "one jump" and k:
        gap[draw.randrange(k)] += draw.choice([2**20, 2**40])
    index = np.cumsum(gap + 1) - 1
    limit = int(index[-1]) + 1 + draw.choice([0, 0, 1, 1000]) if k else draw.choice([0, 5])
    return index.astype(np.int32 if limit < 2**31 else np.int64), limit


def body_of(index: Index, limit: int, negative: npt.NDArray[np.bool_]) -> wire.Body:
    value = np.where(negative, np.float32(-SCALE), np.float32(SCALE))
    return wire.Body(
        "ternary", (limit,), index=index, value=value, scale=SCALE if index.size else 0.0
    )


def located(body: wire.Body) -> Located:
    """Return where the streams of a closed body are."""
    assert isinstance(body.encoded, wire.Located)
    k, begin, end, remainder_bytes, scale, _ = body.encoded
    return Located(begin, end, remainder_bytes, k, body.shape[0], scale)


class Case(NamedTuple):
    """What a packet is to hold, and how it is given."""

    index: Index  # type: ignore[assignment]  # hides tuple.index
    limit: int
    spare: int = 0  # entries of the arrays beyond the count
    counted: bool = True  # the count is in info


def compare(
    backend: str, cases: Sequence[Case], max_blocks: int = 1024, reverse: bool = False,
) -> None:  # fmt: skip
    """Hold both ways of a whole group to the CPU's bytes."""
    run, pairs, bodies = make(backend, max_blocks, reverse), [], []
    for index, limit, spare, counted in cases:
        k = index.size
        negative = np.random.default_rng(k).random(k) < 0.5
        bodies.append(body_of(index, limit, negative))
        there = np.concatenate([index, np.full(spare if counted else 0, -3, index.dtype)])
        value = torch.full((there.size,), float("nan"))
        value[:k] = torch.from_numpy(bodies[-1].value)
        info = torch.tensor([k, 0, 0, SCALE_BITS] if counted else [], dtype=torch.int64)
        pairs.append(Pairs(torch.from_numpy(there), value, info, limit))
    message = wire.pack(wire.Body("group", members=tuple(bodies)))
    members = wire.locate(message).members
    for packed, member, case in zip(run.pack(pairs), members, cases, strict=True):
        k = case.index.size
        assert (packed.wrong, packed.info) == (0, [k, 0, 0, SCALE_BITS if case.counted else 0])
        begin, end = located(member)[:2] if k else (0, 0)
        assert packed.streams == message[begin:end]
    closed = [(located(m), b) for m, b in zip(members, bodies, strict=True) if m.encoded]
    if not closed:
        return
    wide = any(case.index.dtype == np.int64 for case in cases)
    opened = run.unpack(message, [place for place, _ in closed], wide)
    for got, (_, body) in zip(opened, closed, strict=True):
        assert got.wrong == 0
        assert got.index.tolist() == body.index.tolist()
        assert same_bits(got.value, torch.from_numpy(body.value))


def draw_case(draw: random.Random) -> Case:
    k = draw.choice(COUNTS) if draw.random() < 0.3 else int(4000 ** draw.random())
    index, limit = support(draw, k)
    spare = min(draw.choice([0, 0, 1, 3000]), limit - k)
    return Case(index, limit, spare, draw.random() < 0.7)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("seed", range(20))
def test_same_bytes(backend: str, seed: int) -> None:
    draw = random.Random(seed)
    for _ in range(80):
        cases = [draw_case(draw) for _ in range(draw.choice([1, 1, 1, 2, 3]))]
        compare(backend, cases, draw.choice([1, 2, 3, 1024]), draw.random() < 0.5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("count", [52, 53, 54, 106, 170])
def test_as_many_as_a_launch_holds_and_more(backend: str, count: int, reverse: bool) -> None:
    """53 packets go in one launch: the numbers of the blocks run on through several."""
    draw = random.Random(count)
    small = [Case(*support(draw, draw.choice([0, 1, 5, 300]))) for _ in range(count - 2)]
    large = [Case(*support(draw, draw.choice([TILE + 1, 5 * TILE]))) for _ in range(2)]
    cases = small + large
    draw.shuffle(cases)
    compare(backend, cases, draw.choice([1, 3, 1024]), reverse)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("exponent", range(0, 52, 3))
def test_gaps_of_every_size(backend: str, exponent: int) -> None:
    for gap in (2**exponent - 1, 2**exponent, 2**exponent + 1):
        k = min(TILE + 3, 2**52 // (gap + 2))
        index = np.arange(1, k + 1) * (gap + 1) - 1
        limit = int(index[-1]) + 1
        compare(backend, [Case(index.astype(np.int32) if limit < 2**31 else index, limit)])


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_schedule_changes_no_byte(backend: str) -> None:
    index, limit = support(random.Random(3), 9 * TILE + 77)
    for max_blocks in range(1, 11):
        for reverse in (False, True):
            compare(backend, [Case(index, limit)], max_blocks, reverse)


def test_more_blocks_than_threads() -> None:
    index = np.cumsum(np.random.default_rng(0).geometric(0.3, 300 * TILE)) - 1
    few = Case(np.arange(3, dtype=np.int32), 9)
    compare("emu", [few, Case(index.astype(np.int32), int(index[-1]) + 1), few])


def test_wide_indices_below_the_limit_of_narrow_ones() -> None:
    index = np.arange(0, 30_000, 7)
    compare("emu", [Case(index, 30_000)])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("status", [1, 2, 3])
def test_a_refused_selection_has_no_streams(backend: str, status: int) -> None:
    index, value = torch.arange(5, dtype=torch.int32), torch.ones(5)
    bad, good = torch.tensor([5, status, 3, 0]), torch.tensor([5, 0, 0, SCALE_BITS])
    refused, packed = make(backend).pack(
        [Pairs(index, value, bad, 9), Pairs(index, value, good, 9)]
    )
    assert refused == (0, [5, status, 3, 0], b"")
    assert packed.streams


@pytest.mark.parametrize("backend", BACKENDS)
def test_wrong_indices_are_flagged(backend: str) -> None:
    good = torch.arange(0, 6000, 2, dtype=torch.int32)
    value, info = torch.ones(3000), torch.tensor([3000, 0, 0, SCALE_BITS])
    run = make(backend, 2)
    (want,) = run.pack([Pairs(good, value, info, 5999)])
    assert want.wrong == 0
    for place, number in [(0, -1), (1, 0), (1024, 2046), (1024, 2045), (2999, 5999), (2998, 2**30)]:
        index = good.clone()
        index[place] = number
        group = [Pairs(each, value, info, 5999) for each in (good, index, good)]
        before, packed, after = run.pack(group)
        assert (packed.wrong, packed.streams) == (1, b""), (place, number)
        assert before == after == want


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("seed", range(8))
def test_damaged_streams_are_validated_as_on_the_cpu(backend: str, seed: int) -> None:
    draw = random.Random(seed)
    refusals = {True: 0, False: 0}
    for _ in range(60):
        cases = [
            support(draw, draw.choice([1, 5, 40, TILE, TILE + 9, 3 * TILE]))
            for _ in range(draw.choice([1, 2, 4]))
        ]
        if any(limit > 2**40 for _, limit in cases):
            continue
        bodies = [body_of(index, limit, np.zeros(index.size, bool)) for index, limit in cases]
        good = wire.pack(wire.Body("group", members=tuple(bodies)))
        places = [located(member) for member in wire.locate(good).members]
        bad, hit = bytearray(good[:-8]), draw.choice(places)
        for _ in range(draw.choice([1, 1, 2, 5])):
            bad[draw.randrange(hit.begin, hit.end)] ^= 1 << draw.randrange(8)
        message = bytes(bad) + xxh3_64_intdigest(bytes(bad)).to_bytes(8, "little")
        try:
            members = wire.locate(message).members
        except DecodeError:  # the structure is wrong, which the host finds
            continue
        run = make(backend, draw.choice([1, 2, 1024]))
        wide = any(index.dtype == np.int64 for index, _ in cases)
        opened = run.unpack(message, [located(member) for member in members], wide)
        try:
            valid = wire.unpack(message).members
        except DecodeError:
            valid = None
        assert any(got.wrong for got in opened) == (valid is None)
        refusals[valid is None] += 1
        for got, place, body in zip(opened, places, valid or bodies, strict=True):
            if valid is None and place == hit:
                continue
            assert got.index.tolist() == body.index.tolist()
            assert same_bits(got.value, torch.from_numpy(body.value))
    assert min(refusals.values()) > 3


def test_nothing_outside_the_message_is_read() -> None:
    """Whatever the table says: the emulator would fault, or find the poison behind the message."""
    for seed in range(200):
        draw = random.Random(seed)
        k = draw.choice([1, 40, TILE, 2 * TILE + 1])
        message = draw.randbytes(draw.choice([16, 200, 3000]))
        remainder_bytes = [draw.choice([0, 5, len(message)]), draw.randrange(2**40)]
        places = [
            Located(draw.randrange(8), len(message) - 8, each, k, 2**50, SCALE_BITS)
            for each in remainder_bytes
        ]
        Emu(2).unpack(message, places)


def streams_bytes(index: Index, numel: int) -> int:
    message = wire.pack(body_of(index, numel, np.zeros(index.size, bool)))
    place = located(wire.locate(message))
    return place.end - place.begin


@pytest.mark.parametrize("share", [1e-4, 1e-3, 0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0])
def test_the_bound_holds_and_is_near(share: float) -> None:
    """Whatever is copied beyond the streams is at most 7 % of them."""
    k = 30_000
    numel = int(k / share)
    kept = np.sort(np.random.default_rng(1).choice(numel, k, replace=False))
    size, bound = streams_bytes(kept.astype(np.int32), numel), Emu().bound(k, numel)
    assert size <= bound < 1.07 * size


def test_the_bound_holds_for_any_gaps_and_fewer_of_them() -> None:
    draw, run = random.Random(0), Emu()
    for _ in range(3000):
        k = draw.choice([1, 2, 7, 8, 1000, TILE, TILE + 1, 3000])
        index, numel = support(draw, k)
        kept = index[: draw.choice([k, k, draw.randint(1, k)])]
        assert streams_bytes(kept, numel) <= run.bound(k, numel), (k, numel, kept)
