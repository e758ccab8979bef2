"""The packet format: what is accepted, what is refused, and that two decoders agree on both."""

from __future__ import annotations

import ctypes
import hashlib
import math
import os
import re
import subprocess
import sys
import threading
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import numpy_decoder as reference
import pytest
import wire_bodies as wire
from hypothesis import given, settings
from wire_kit import (
    INDEX,
    MIB,
    V1,
    assert_equal,
    assert_same_as_reference,
    bodies,
    code_of,
    golden,
    mutate,
    peak_growth,
    seal,
    ternary,
)

from gcext import _wire
from gcext._packet.errors import DecodeError

PAGE = Path(__file__).parent.parent / "docs" / "wire-format.md"


# Goldens -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", INDEX["valid"])
def test_valid_golden(name: str) -> None:
    message = golden("valid", name)
    body = wire.unpack(message)
    assert wire.pack(body) == message
    assert_same_as_reference(body, reference.decode(message))


@pytest.mark.parametrize(("name", "code"), INDEX["invalid"].items())
def test_invalid_golden(name: str, code: str) -> None:
    message = golden("invalid", name)
    with pytest.raises(DecodeError) as caught:
        wire.unpack(message)
    assert caught.value.code == code
    assert 0 <= caught.value.offset <= len(message)
    assert caught.value.field and str(caught.value.offset) in str(caught.value)
    assert code_of(reference.decode, message) == code


def test_goldens_reach_every_code_and_are_all_listed() -> None:
    listed = set(re.findall(r"`(\w+)`", PAGE.read_text().split("| code | |")[1].split("\n\n")[0]))
    callers = {"expect", "budget"}  # what they refuse
    assert listed - callers == set(INDEX["invalid"].values())
    for kind in ("valid", "invalid"):
        assert {path.stem for path in (V1 / kind).iterdir()} == set(INDEX[kind])


@pytest.mark.parametrize("name", INDEX["valid"])
def test_every_prefix_and_every_bit_flip_is_refused(name: str) -> None:
    message = golden("valid", name)
    flipped = bytearray(message)

    def prefixes() -> None:
        for length in range(len(message)):
            assert code_of(wire.unpack, message[:length]) is not None

    def flips() -> None:
        for bit in range(8 * len(message)):
            flipped[bit >> 3] ^= 1 << (bit & 7)
            assert code_of(wire.unpack, flipped) in ("magic", "version", "checksum")
            flipped[bit >> 3] ^= 1 << (bit & 7)

    for batch in (prefixes, flips):
        assert peak_growth(batch) < MIB


@pytest.mark.parametrize("size", [2 * MIB, 8 * MIB, 16 * MIB])
def test_the_memory_meter_sees_native_memory_made_and_freed(size: int) -> None:
    libc = ctypes.CDLL(None)
    libc.malloc.restype = ctypes.c_void_p
    libc.malloc.argtypes = [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]

    def allocate() -> None:
        block = libc.malloc(size)
        ctypes.memset(block, 1, size)
        libc.free(block)

    for _ in range(3):  # freed blocks raise malloc's limits: later ones stay in the heap
        allocate()
    assert peak_growth(allocate) > size - MIB / 2
    assert peak_growth(lambda: None) < MIB / 2


# Two decoders --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", INDEX["valid"])
def test_decoders_agree_on_damaged_packets(name: str) -> None:
    message = golden("valid", name)
    rng = np.random.default_rng(len(message))
    for _ in range(120 if len(message) < 600 else 25):
        damaged = mutate(rng, message)
        code = code_of(wire.unpack, damaged)
        assert code == code_of(reference.decode, damaged), damaged.hex()
        if code is None:
            assert wire.pack(wire.unpack(damaged)) == damaged


def test_decoders_agree_on_every_flip_under_a_right_checksum() -> None:
    seen = set()
    for name in (
        "ternary-k9",
        "sparse-k9",
        "dense-0d",
        "merged-cancels",
        "merged-one-empty",
        "group-3",
        *("random-values-edge", "sign-k9", "sign-random", "levels-4-steps", "levels-indices"),
        *("levels-norms-edge", "polar-soft", "polar-indices", "polar-rotated-hard"),
        *("sum-disjoint-empty", "sum-rounds-in-order", "sum-0d"),
        *("codes-values-3", "codes-uniform-edge", "codes-dynamic8-edge", "codes-bucket-1"),
        *("codes-zeros-5-bits", "codes-float16-edge", "codes-bfloat16-edge", "group-of-codes"),
        *("sketch-0d", "group-of-sketches"),
    ):
        message = golden("valid", name)
        for bit in range(40, 8 * (len(message) - 8)):
            damaged = bytearray(message)
            damaged[bit >> 3] ^= 1 << (bit & 7)
            repaired = seal(bytes(damaged))
            code = code_of(wire.unpack, repaired)
            seen.add(code)
            assert code == code_of(reference.decode, repaired), repaired.hex()
            if code is None:
                assert wire.pack(wire.unpack(repaired)) == repaired
    assert {None, "tile", "unary", "padding", "k", "truncated", "member", "scale", "value"} <= seen
    assert {"support", "steps", "bucket", "level", "polar", "table", "width", "sketch"} <= seen


@settings(max_examples=300, deadline=None)
@given(bodies())
def test_round_trip(body: wire.Body) -> None:
    message = wire.pack(body)
    back = wire.unpack(message)
    assert_equal(body, back)
    assert wire.pack(back) == message
    assert_same_as_reference(back, reference.decode(message))


def test_the_example_of_the_documentation_is_a_packet() -> None:
    block = re.search(r"```hex\n(.*?)```", PAGE.read_text(), re.S)
    assert block is not None
    message = b"".join(bytes.fromhex(line[:26]) for line in block[1].splitlines())
    body = wire.unpack(message, expect_shape=(4, 250))
    assert body.index is not None and body.value is not None
    assert body.index.tolist() == [3, 4, 130, 700]
    assert body.value.tolist() == [0.5, -0.5, -0.5, 0.5]
    assert wire.pack(body) == message


# Size ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("p", [0.1, 0.01, 0.001])
def test_random_support_is_within_two_percent_of_entropy(p: float) -> None:
    n = 10**6
    bound = n * (-(p * math.log2(p) + (1 - p) * math.log2(1 - p)) + p) / 8
    for seed in range(3):
        size = len(wire.pack(ternary(np.random.default_rng(seed), n, int(p * n))))
        assert bound < size <= 1.02 * bound + 32


def test_header_and_checksum_stay_within_32_bytes() -> None:
    body = ternary(np.random.default_rng(0), 10**8, 1000)
    table, remainders, unary = _wire.rice_pack(body.index, 10**8)
    streams = len(table) + len(remainders) + len(unary) + 125
    assert len(wire.pack(body)) - streams <= 32
    for k, head in ((127, 23), (128, 24), (16383, 24), (16384, 25)):
        body_k = ternary(np.random.default_rng(0), 10**6, k)
        table, remainders, unary = _wire.rice_pack(body_k.index, 10**6)
        content = len(table) + len(remainders) + len(unary) + -(-k // 8)
        assert len(wire.pack(body_k)) - content == head
    member = len(wire.pack(wire.Body("group", members=(body, body)))) - 15
    assert member - 2 * streams <= 2 * 12  # a few bytes for each member of a group


# Hostile bytes -------------------------------------------------------------------------------


def test_an_error_costs_no_memory_even_at_the_end_of_a_long_packet() -> None:
    rng = np.random.default_rng(0)
    part = ternary(rng, 10**7, 10**6)
    group = wire.Body("group", members=(part, part))
    dense = wire.Body("dense", (10**6,), value=np.ones(10**6, np.float32))
    bits = rng.integers(0, 256, 10**6, dtype=np.uint8)
    sign = wire.Body("sign", (8 * 10**6,), code=(0.5, bits))
    level = rng.integers(1, 4, 10**6).astype(np.int16)
    norms = np.ones(1, np.float32)
    levels = wire.Body("levels", (10**7,), code=(3, 0, norms, part.index, level))
    polar = wire.Body("polar", (1 << 24,), code=(bits[: 1 << 19], 1024, 256, True, norms, None))
    codes = wire.Body("codes", (10**6,), code=("uniform", 8, 0, norms, bits))
    merged = wire.merge([part, ternary(rng, 10**7, 10**6)])
    table = wire.Body("sketch", (10**9,), code=(5, 200_000, 1, dense.value))
    for body in (part, group, dense, merged, sign, levels, polar, codes, table):
        message = bytearray(wire.pack(body))
        message[-9:-8] = b"\xff\xff" if body.method not in ("dense", "sketch") else b"\x7f\x00"
        damaged = seal(bytes(message))

        def refused(damaged: bytes = damaged) -> None:
            assert code_of(wire.unpack, damaged) in ("length", "value", "padding")

        refused()
        assert peak_growth(refused) < MIB
        tracemalloc.start()
        refused()
        assert tracemalloc.get_traced_memory()[1] < MIB
        tracemalloc.stop()


@pytest.mark.parametrize("name", [name for name in INDEX["invalid"] if name.startswith("bomb")])
def test_a_huge_declared_size_allocates_nothing(name: str) -> None:
    message = golden("invalid", name)
    code_of(wire.unpack, message)
    tracemalloc.start()
    code_of(wire.unpack, message)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < MIB
    assert peak_growth(lambda: code_of(wire.unpack, message)) < MIB


@pytest.mark.parametrize("method", ["ternary", "levels", "levels2", "powers"])
def test_a_buffer_that_changes_while_it_is_read_is_never_a_crash(method: str) -> None:
    part = ternary(np.random.default_rng(0), 10**6, 10**5)
    if method == "powers":
        power = np.random.default_rng(0).integers(-160, 161, 10**6).astype(np.int16)
        part = wire.Body("powers", (10**6,), code=(1.0, power))
    elif method != "ternary":
        at = np.setdiff1d(np.arange(10**6, dtype=np.int32), part.index)
        level = np.resize(np.arange(1, 8, dtype=np.int16), len(at))
        part = wire.Body(method, (10**6,), code=(7, 100, np.ones(10**4, np.float32), at, level))
    message = bytearray(wire.pack(part))
    stop = threading.Event()

    def scribble() -> None:
        rng = np.random.default_rng(1)
        while not stop.is_set():
            at = int(rng.integers(12, len(message) - 8))
            message[at] ^= 255
            message[at] ^= 255

    def build(*parts: Any, **named: Any) -> Any:
        return parts, named

    writer = threading.Thread(target=scribble)
    writer.start()
    try:
        # A digest that always matches, so that the damage reaches the decoder.
        digest = int.from_bytes(message[-8:], "little")
        outcomes = {
            code_of(lambda m: _wire.unpack(m, lambda _: digest, build), message)
            for _ in range(300 if method == "ternary" else 60)
        }
    finally:
        stop.set()
        writer.join()
    allowed = {None, "tile", "unary", "index", "padding", "truncated", "length", "code"}
    assert outcomes <= allowed | ({"level", "scale", "value"} if method != "ternary" else set())


def test_any_contiguous_buffer_is_read() -> None:
    message = golden("valid", "ternary-k65")
    for buffer in (bytearray(message), memoryview(message)):
        assert_equal(wire.unpack(buffer), wire.unpack(message))
    with pytest.raises((BufferError, ValueError, TypeError)):
        wire.unpack(memoryview(message)[::2])


@pytest.mark.parametrize("message", ["abc", None, 7, [1, 2]])
def test_what_is_no_buffer_is_named(message: Any) -> None:
    with pytest.raises(
        TypeError, match=rf"must be bytes.*, got {type(message).__name__}\. Pass"
    ) as caught:
        wire.unpack(message)
    assert "incompatible" not in str(caught.value)


# What pack refuses ---------------------------------------------------------------------------


def test_pack_refuses_arrays_that_are_no_packet() -> None:
    index, value = np.array([1, 4], np.int32), np.array([2, -2], np.float32)

    def body(**changed: Any) -> wire.Body:
        fields = {"method": "ternary", "shape": (6,), "index": index, "value": value, "scale": 2.0}
        return wire.Body(**{**fields, **changed})

    assert len(wire.pack(body())) == 26
    wrong = {
        "strictly": body(index=np.array([4, 1], np.int32)),
        "repetition": body(index=np.array([4, 4], np.int64)),
        "rise strictly from 0": body(index=np.array([-1, 4], np.int32)),
        "below the number of elements 6": body(index=np.array([1, 6], np.int32)),
        "as long as index": body(value=value[:1]),
        "array of int64": body(index=index.astype(np.int16)),
        "array of float32": body(value=value.astype(np.float64)),
        "contiguous": body(value=np.array([2, 0, -2, 0], np.float32)[::2]),
        "one-dimensional": body(value=value.reshape(2, 1)),
        "positive and finite": body(scale=0.0),
        "scale must be positive": body(scale=math.nan),
        "0 where nothing": body(index=index[:0], value=value[:0]),
        "15 dimensions": body(shape=(1,) * 15 + (6,)),
        "at least 0": body(shape=(-6,)),
        "below 2": body(shape=(2**62, 2)),
        "finite and not zero": body(method="sparse", value=np.array([2, 0], np.float32)),
        "must be finite": wire.Body("dense", (1,), value=np.array([np.nan], np.float32)),
        "a value per element": wire.Body("dense", (2,), value=value[:1]),
        "one of dense": body(method="spares"),
        "one of float32": body(dtype="int8"),
        "at least one member": wire.Body("group"),
        "needs its members": body(method="merged"),
    }
    for text, case in wrong.items():
        with pytest.raises(ValueError, match=text):
            wire.pack(case)


# One answer on every instruction set -----------------------------------------------------------

_DIGEST = """
import hashlib, sys
import numpy as np
from pathlib import Path
from gcext import _wire
import wire_bodies as wire
h = hashlib.sha256()
def add(body):
    message = wire.pack(body)
    h.update(message)
    back = wire.unpack(message)
    for array in (back.index, back.value, *back.code):
        h.update(array.tobytes() if isinstance(array, np.ndarray) else repr(array).encode())
for path in sorted(Path(sys.argv[1]).glob("valid/*.gcx")):
    add(wire.unpack(path.read_bytes()))
rng = np.random.default_rng(7)
for numel in (3000, 10**6, 2**31 - 1, 2**31, 2**45):
    for k in (1, 15, 16, 17, 1023, 1024, 1025, 5000):
        for power in (1, 4):
            index = np.unique((numel * rng.random(k) ** power).astype(np.int64))
            index = index.astype(np.int32 if numel < 2**31 else np.int64)
            value = np.where(rng.random(len(index)) < 0.5, -1, 1).astype(np.float32)
            add(wire.Body("ternary", (numel,), index=index, value=value, scale=1.0))
print(h.hexdigest())
"""


def test_every_instruction_set_gives_the_same_bytes() -> None:
    digests = {}
    for isa in ("baseline", "avx2", "avx512", "neon"):
        environment = {**os.environ, "GCEXT_ISA": isa, "PYTHONPATH": os.pathsep.join(sys.path)}
        run = subprocess.run(
            [sys.executable, "-c", _DIGEST, str(V1)],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if run.returncode == 0:
            digests[isa] = run.stdout.strip()
        else:
            assert "must be one that this processor and build have" in run.stderr
    assert "baseline" in digests
    assert len(set(digests.values())) == 1
    assert all(len(digest) == hashlib.sha256().digest_size * 2 for digest in digests.values())
