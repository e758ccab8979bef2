"""The CUDA kernels of rice give the CPU's packets: emulated, and on a GPU if there is one."""

from __future__ import annotations

import random

import numpy as np
import numpy.typing as npt
import pytest
import torch
from emu.backends import BACKENDS, same_bits
from emu.rice import Emu, make
from xxhash import xxh3_64_intdigest

import gcext._lib  # noqa: F401  loads the CPU operators
from gcext import DecodeError, _wire, wire

TILE = _wire.TILE
SCALE, SCALE_BITS = 0.5, 0x3F000000
COUNTS = [0, 1, 2, 31, 32, 33, TILE - 1, TILE, TILE + 1, 2 * TILE, 3 * TILE + 5, 7 * TILE - 3]
Index = npt.NDArray[np.int32] | npt.NDArray[np.int64]


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


def message_of(index: Index, limit: int, negative: npt.NDArray[np.bool_]) -> bytes:
    value = np.where(negative, np.float32(-SCALE), np.float32(SCALE))
    scale = SCALE if index.size else 0.0
    return wire.pack(wire.Body("ternary", (limit,), index=index, value=value, scale=scale))


def compare(
    backend: str, index: Index, limit: int, room: int = 0, max_blocks: int = 1024,
    reverse: bool = False,
) -> None:  # fmt: skip
    """Hold both ways to the CPU's bytes; `room` entries of the arrays are beyond the count."""
    k = index.size
    negative = np.random.default_rng(k).random(k) < 0.5
    message = message_of(index, limit, negative)
    run = make(backend, max_blocks, reverse)
    there = np.concatenate([index, np.full(room, -3, index.dtype)])
    value = torch.full((k + room,), float("nan"))
    value[:k] = torch.from_numpy(np.where(negative, np.float32(-SCALE), np.float32(SCALE)))
    info = [k, 0, 0, SCALE_BITS]
    packed = run.pack(torch.from_numpy(there), value, torch.tensor(info), limit)
    assert (packed.wrong, packed.info) == (0, info)
    if k == 0:
        assert packed.streams == b""
        return
    located = _wire.locate(message, xxh3_64_intdigest)
    assert located is not None
    begin, remainder_bytes = located[6:]
    assert packed.streams == message[begin:-8]
    wide = index.dtype == np.int64
    got_index, got_value, wrong = run.unpack(
        message, begin, remainder_bytes, k, limit, SCALE_BITS, wide
    )
    assert wrong == 0
    assert got_index.tolist() == index.tolist()
    assert same_bits(got_value, value[:k])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("seed", range(20))
def test_same_bytes(backend: str, seed: int) -> None:
    draw = random.Random(seed)
    for _ in range(110):
        k = draw.choice(COUNTS) if draw.random() < 0.3 else int(4000 ** draw.random())
        index, limit = support(draw, k)
        room = min(draw.choice([0, 0, 1, 3000]), limit - k)
        compare(backend, index, limit, room, draw.choice([1, 2, 3, 1024]), draw.random() < 0.5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("exponent", range(0, 52, 3))
def test_gaps_of_every_size(backend: str, exponent: int) -> None:
    for gap in (2**exponent - 1, 2**exponent, 2**exponent + 1):
        k = min(TILE + 3, 2**52 // (gap + 2))
        index = np.arange(1, k + 1) * (gap + 1) - 1
        limit = int(index[-1]) + 1
        compare(backend, index.astype(np.int32) if limit < 2**31 else index, limit)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_schedule_is_not_seen(backend: str) -> None:
    index, limit = support(random.Random(3), 9 * TILE + 77)
    for max_blocks in range(1, 11):
        for reverse in (False, True):
            compare(backend, index, limit, 0, max_blocks, reverse)


def test_more_blocks_than_threads() -> None:
    index = np.cumsum(np.random.default_rng(0).geometric(0.3, 300 * TILE)) - 1
    compare("emu", index.astype(np.int32), int(index[-1]) + 1)


def test_wide_indices_below_the_limit_of_narrow_ones() -> None:
    index = np.arange(0, 30_000, 7)
    compare("emu", index, 30_000)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("status", [1, 2, 3])
def test_a_refused_selection_has_no_streams(backend: str, status: int) -> None:
    index, value = torch.arange(5, dtype=torch.int32), torch.ones(5)
    info = torch.tensor([0, status, 3, 0])
    packed = make(backend).pack(index, value, info, 9)
    assert packed == (0, [0, status, 3, 0], b"")


@pytest.mark.parametrize("backend", BACKENDS)
def test_wrong_indices_are_flagged(backend: str) -> None:
    good = torch.arange(0, 6000, 2, dtype=torch.int32)
    info = torch.tensor([3000, 0, 0, SCALE_BITS])
    for place, number in [(0, -1), (1, 0), (1024, 2046), (1024, 2045), (2999, 5999), (2998, 2**30)]:
        index = good.clone()
        index[place] = number
        packed = make(backend, 2).pack(index, torch.ones(3000), info, 5999)
        assert (packed.wrong, packed.streams) == (1, b""), (place, number)
    assert make(backend, 2).pack(good, torch.ones(3000), info, 5999).wrong == 0


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("seed", range(8))
def test_hostile_streams_are_judged_as_on_the_cpu(backend: str, seed: int) -> None:
    draw = random.Random(seed)
    judged = {True: 0, False: 0}
    for _ in range(60):
        index, limit = support(draw, draw.choice([1, 5, 40, TILE, TILE + 9, 3 * TILE]))
        if limit > 2**40:
            continue
        good = message_of(index, limit, np.zeros(index.size, bool))
        located = _wire.locate(good, xxh3_64_intdigest)
        assert located is not None
        begin = located[6]
        bad = bytearray(good[:-8])
        for _ in range(draw.choice([1, 1, 2, 5])):
            bad[draw.randrange(begin, len(bad))] ^= 1 << draw.randrange(8)
        message = bytes(bad) + xxh3_64_intdigest(bytes(bad)).to_bytes(8, "little")
        try:
            located = _wire.locate(message, xxh3_64_intdigest)
        except DecodeError:
            located = None
        if located is None:  # the structure is wrong, which the host finds
            continue
        try:
            body = wire.unpack(message)
        except DecodeError:
            body = None
        k, _, _, begin, remainder_bytes = located[3:]
        got_index, got_value, wrong = make(backend, draw.choice([1, 2, 1024])).unpack(
            message, begin, remainder_bytes, k, limit, SCALE_BITS, index.dtype == np.int64
        )
        assert wrong == (body is None)
        judged[body is None] += 1
        if body is not None and body.index is not None:
            assert got_index.tolist() == body.index.tolist()
            assert body.value is not None
            assert same_bits(got_value, torch.from_numpy(body.value))
    assert min(judged.values()) > 3


def test_nothing_outside_the_message_is_read() -> None:
    """Whatever the table says: the emulator would fault, or find the poison behind the message."""
    for seed in range(200):
        draw = random.Random(seed)
        k = draw.choice([1, 40, TILE, 2 * TILE + 1])
        message = draw.randbytes(draw.choice([16, 200, 3000]))
        Emu(2).unpack(message, draw.randrange(8), draw.randrange(2**40), k, 2**50, SCALE_BITS, True)


@pytest.mark.parametrize("share", [1e-4, 1e-3, 0.01, 0.1, 0.4, 1.0])
def test_the_bound_holds_and_is_near(share: float) -> None:
    """Whatever is copied beyond the streams is at most a ninth of them from 1000 elements up."""
    k = 30_000
    numel = int(k / share)
    kept = np.sort(np.random.default_rng(1).choice(numel, k, replace=False))
    message = message_of(kept.astype(np.int32), numel, np.zeros(k, bool))
    bound = Emu().bound(k, numel)
    assert bound >= len(message)
    if share <= 0.1:
        assert bound < 1.12 * len(message)
