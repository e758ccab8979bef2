"""What the packet tests share: goldens, random packets and damaged ones, comparisons."""

from __future__ import annotations

import ctypes
import json
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy_decoder as reference
import pytest
import wire_bodies as wire
import xxhash
from hypothesis import strategies as st

from gcext._packet.errors import DecodeError

V1 = Path(__file__).parent / "vectors" / "v1"
INDEX = json.loads((V1 / "index.json").read_text())


def golden(kind: str, name: str) -> bytes:
    return (V1 / kind / f"{name}.gcx").read_bytes()


def seal(message: bytes) -> bytes:
    """The message with its checksum repaired."""
    return message[:-8] + xxhash.xxh3_64_intdigest(message[:-8]).to_bytes(8, "little")


def code_of(decode: Callable[[Any], Any], message: bytes | bytearray) -> str | None:
    try:
        decode(message)
    except (DecodeError, reference.Refused) as error:
        return error.code
    return None


def ternary(rng: np.random.Generator, numel: int, k: int, scale: float = 0.5) -> wire.Body:
    dtype = np.int32 if numel < 2**31 else np.int64
    index = np.sort(rng.choice(numel, k, replace=False)).astype(dtype)
    value = np.where(rng.random(k) < 0.5, -scale, scale).astype(np.float32)
    return wire.Body("ternary", (numel,), index=index, value=value, scale=scale if k else 0.0)


def assert_equal(a: wire.Body, b: wire.Body) -> None:
    assert (a.method, a.shape, a.dtype, a.scale) == (b.method, b.shape, b.dtype, b.scale)
    for x, y in zip((a.index, a.value, *a.code), (b.index, b.value, *b.code), strict=True):
        assert type(x) is type(y)
        if isinstance(x, np.ndarray):
            assert x.dtype == y.dtype and x.tobytes() == y.tobytes()
        else:
            assert x == y
    assert len(a.members) == len(b.members)
    for x, y in zip(a.members, b.members, strict=True):
        assert_equal(x, y)


def assert_same_as_reference(body: wire.Body, read: dict[str, Any]) -> None:
    assert wire.METHODS[body.method] == read["method"]
    if body.method == "group":
        for member, other in zip(body.members, read["members"], strict=True):
            assert_same_as_reference(member, other)
        return
    assert body.shape == read["shape"] and wire.DTYPES[body.dtype] == read["dtype"]
    if body.method == "sum":
        for term, other in zip(body.members, read["terms"], strict=True):
            assert_same_as_reference(term, other)
        return
    if read["method"] > 5:
        assert_coded_as_reference(body, read)
        return
    assert body.value is not None
    assert body.value.tobytes() == read["value"].astype("<f4").tobytes()
    if body.index is not None:
        assert body.index.tolist() == read["index"]
        assert body.scale == read["scale"]
    if body.merged is not None:
        parts = len(body.merged.scales)
        places = [divmod(place, parts) for place in body.merged.place.tolist()]
        signs = body.merged.negative.tolist()
        assert [(i, j, s) for (i, j), s in zip(places, signs, strict=True)] == read["members"]
        assert body.merged.scales.tobytes() == read["scales"].tobytes()


def assert_coded_as_reference(body: wire.Body, read: dict[str, Any]) -> None:
    if isinstance(body.index, np.ndarray):
        assert body.index.tolist() == read["index"] and read["seed"] is None
    else:
        assert body.index == (None if read["seed"] is None else (read["seed"], read["k"]))

    def same(array: np.ndarray, other: np.ndarray) -> bool:
        return array.tolist() == np.asarray(other).tolist()

    def plane(array: np.ndarray, other: np.ndarray) -> bool:
        return same(array, np.packbits(other, bitorder="little"))

    if body.method == "random":
        assert body.value is not None and body.value.tobytes() == read["value"].tobytes()
    elif body.method == "sign":
        scale, signs = body.code
        assert scale == read["scale"] and plane(signs, read["signs"])
    elif body.method == "powers":
        scale, power = body.code
        assert scale == read["scale"] and same(power, read["power"])
    elif body.method == "sketch":
        *kind, table = body.code
        assert kind == [read["rows"], read["cols"], read["hash"]]
        assert table.tobytes() == read["table"].tobytes()
    elif body.method in ("levels", "levels2"):
        steps, bucket, norms, at, level = body.code
        assert (steps, bucket) == (read["steps"], read["bucket"])
        assert same(norms, read["norms"])
        assert same(at, read["at"]) and same(level, read["level"])
    elif body.method == "codes":
        table, width, bucket, factors, packed = body.code
        tables = ["values", "uniform", "dynamic8", "float16", "bfloat16"]
        assert (tables.index(table), width, bucket) == (
            read["table"],
            read["width"],
            read["bucket"],
        )
        assert plane(packed, read["plane"]) and factors.tobytes() == read["scales"].tobytes()
    elif body.method == "lowrank":
        _, _, rank, left, right = body.code
        assert rank == read["rank"]
        assert (
            left.tobytes() == read["left"].tobytes() and right.tobytes() == read["right"].tobytes()
        )
    elif body.method == "dct":
        _, _, *code, at, value, scale, by_block = body.code
        assert [*code, scale, by_block] == [
            read[name] for name in ("block", "ternary", "scale", "by_block")
        ]
        assert same(at, read["coefficient"]) and value.tobytes() == read["value"].tobytes()
    else:
        message, *code, scale, seed = body.code
        assert code == [read["block"], read["kept"], read["soft"]] and seed == read["rotation"]
        assert plane(message, read["message"]) and same(scale, read["scale"])


def mutate(rng: np.random.Generator, message: bytes) -> bytes:
    """A damaged body under a right checksum."""
    body = bytearray(message[5:-8])
    for _ in range(int(rng.integers(1, 4))):
        at = (
            int(rng.integers(0, max(1, min(len(body), 80))))
            if rng.random() < 0.7
            else int(rng.integers(0, len(body) + 1))
        )
        what = int(rng.integers(0, 5))
        if what == 0 and at < len(body):
            body[at] ^= 1 << int(rng.integers(0, 8))
        elif what == 1 and at < len(body):
            body[at] = int(rng.choice([0, 1, 2, 127, 128, 255]))
        elif what == 2:
            del body[at : at + int(rng.integers(1, 4))]
        elif what == 3:
            body[at:at] = bytes(rng.integers(0, 256, int(rng.integers(1, 4)), dtype=np.uint8))
        else:
            del body[at:]
    return seal(message[:5] + bytes(body) + bytes(8))


FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)


@st.composite
def coded_bodies(draw: st.DrawFn, method: str, dtype: str) -> wire.Body:
    kinds = {"random": ["drawn"], "sign": ["all", "drawn"]}
    support = draw(st.sampled_from(kinds.get(method, ["all", "indices", "drawn"])))
    k = draw(st.integers(0, 200))
    numel = k if support == "all" else draw(st.one_of(st.integers(k, 900), st.just(2**45)))
    wide = numel >= 2**31
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    index: Any = None
    if support == "drawn":
        index = wire.Drawn(draw(st.integers(0, 2**64 - 1)), k)
    elif support == "indices":
        index = np.sort(rng.choice(min(numel, 10**5), k, replace=False))
        index = index.astype(np.int64 if wide else np.int32)
    scales = st.floats(min_value=0, max_value=2.0**116, width=32).map(abs)

    def floats(strategy: st.SearchStrategy[float], count: int) -> np.ndarray:
        return np.array(draw(st.lists(strategy, min_size=count, max_size=count)), np.float32)

    def plane(count: int) -> np.ndarray:
        return np.packbits(rng.integers(0, 2, count, dtype=np.uint8), bitorder="little")

    code: tuple[Any, ...]
    if method == "random":
        return wire.Body(method, (numel,), dtype, index, floats(FINITE, k))
    if method == "sign":
        scale = float(draw(scales))
        code = scale, plane(k) if scale > 0 else 0 * plane(k)
    elif method == "powers":
        # Few and many symbols, as far as 2^127 of a scale below 2.
        around, spread = draw(st.integers(1, 277)), draw(st.sampled_from([0, 1, 5, 300]))
        power = np.clip(around + np.rint(spread * rng.standard_normal(k)), 1, 277)
        power *= rng.choice([-1, 0, 1], k, p=draw(st.sampled_from([[0.5, 0, 0.5], [0, 0.9, 0.1]])))
        scale = draw(st.floats(min_value=2.0**-149, max_value=1.5, width=32))
        code = scale, power.astype(np.int16)[: k if power.any() else 0]
    elif method in ("levels", "levels2"):
        steps = draw(st.one_of(st.integers(1, 4), st.integers(1, 32767)))
        bucket = draw(st.integers(k // 20 + 1, k - 1)) if k > 3 and draw(st.booleans()) else 0
        norms = floats(scales, -(-k // bucket) if bucket else min(k, 1))
        sent = (rng.random(k) < draw(st.sampled_from([0, 0.1, 0.9, 1]))) & (
            norms[np.arange(k) // bucket if bucket else np.zeros(k, int)] > 0
        )
        at = np.flatnonzero(sent).astype(np.int64 if wide else np.int32)
        level = rng.integers(1, steps, len(at), endpoint=True) * rng.choice([-1, 1], len(at))
        code = steps, bucket, norms, at, level.astype(np.int16)
    elif method == "codes":
        widths = {"values": (0, 8), "uniform": (1, 8), "dynamic8": (8, 8)}
        table = draw(st.sampled_from([*widths, "float16", "bfloat16"]))
        width = draw(st.integers(*widths.get(table, (16, 16))))
        bucket = draw(st.integers(k // 20 + 1, k - 1)) if k > 3 and draw(st.booleans()) else 0
        bucket = bucket if table in widths else 0
        buckets = -(-k // bucket) if bucket else min(k, 1)
        if table == "values":
            factors = rng.standard_normal(buckets << width).astype(np.float32)
        else:
            factors = floats(scales, buckets if table in widths else 0)
        top = {"float16": 0x7C00, "bfloat16": 0x7F80}.get(table, 1 << width)
        each = rng.integers(0, top, k) | rng.integers(0, 2, k) * 0x8000 * (width == 16)
        if table in ("uniform", "dynamic8"):
            zero = (factors == 0)[np.arange(k) // (bucket or max(k, 1))]
            each = np.where(zero, 127 if table == "dynamic8" else 1 << (width - 1), each)
        plane_of = (each[:, None] >> np.arange(width) & 1).astype(np.uint8).reshape(-1)
        code = table, width, bucket, factors, np.packbits(plane_of, bitorder="little")
    else:
        block = 2 ** draw(st.integers(5, 8))
        kept = draw(st.integers(0, block))
        rotated = draw(st.booleans())
        size = max(64, block, 1 << max(k - 1, 0).bit_length()) if k else 0
        symbols = size if rotated else k
        factors = floats(scales, int(k > 0) if rotated else 1)
        seed = draw(st.integers(0, 2**64 - 1)) if rotated else None
        code = plane(kept * -(-symbols // block)), block, kept, draw(st.booleans()), factors, seed
    return wire.Body(method, (numel,), dtype, index, code=code)


KINDS = ((1, 6), (1, 20), (0, 2**64 - 1))  # of a sketch: rows, cols, seed


@st.composite
def sum_bodies(draw: st.DrawFn, dtype: str) -> wire.Body:
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    numel = draw(st.integers(1, 60))

    def term(method: str) -> wire.Body:
        if method == "ternary":
            return replace(ternary(rng, numel, draw(st.integers(0, numel))), dtype=dtype)
        if method == "sign":
            plane = np.packbits(rng.integers(0, 2, numel, dtype=np.uint8), bitorder="little")
            return wire.Body(method, (numel,), dtype, code=(0.25, plane))
        k = numel if method == "dense" else draw(st.integers(0, numel))
        value = rng.normal(size=k).astype(np.float32)
        index: Any = None
        if method == "random":
            index = wire.Drawn(draw(st.integers(0, 2**64 - 1)), k)
        elif method == "sparse":
            index = np.sort(rng.choice(numel, k, replace=False)).astype(np.int32)
        return wire.Body(method, (numel,), dtype, index, value)

    methods = st.sampled_from(["dense", "sparse", "ternary", "random", "sign"])
    terms = draw(st.lists(methods.map(term), min_size=2, max_size=4))
    return wire.Body("sum", (numel,), dtype, members=tuple(terms))


@st.composite
def bodies(draw: st.DrawFn, member: bool = False) -> wire.Body:
    kinds = ["dense", "sparse", "ternary", "merged", "random", "sign", "levels", "polar", "codes"]
    kinds += ["powers", "levels2", "sum", "sketch"]
    method = draw(st.sampled_from(kinds + ([] if member else ["group"])))
    if method == "group":
        return wire.Body(
            "group", members=tuple(draw(st.lists(bodies(member=True), min_size=1, max_size=4)))
        )
    dtype = draw(st.sampled_from(sorted(wire.DTYPES)))
    if method == "sum":
        return draw(sum_bodies(dtype))
    if method in ("random", "sign", "levels", "polar", "codes", "powers", "levels2"):
        return draw(coded_bodies(method, dtype))
    if method == "sketch":
        rows, cols, seed = (draw(st.integers(low, high)) for low, high in KINDS)
        cells = draw(st.lists(FINITE, min_size=rows * cols, max_size=rows * cols))
        code = rows, cols, seed, np.array(cells, np.float32)
        return wire.Body(method, (draw(st.integers(0, 2**63 - 1)),), dtype, code=code)
    if method == "dense":
        value = np.array(draw(st.lists(FINITE, max_size=20)), np.float32)
        return wire.Body("dense", (len(value),), dtype, value=value)
    numel = draw(st.one_of(st.integers(0, 3000), st.integers(0, 2**63 - 1)))
    numbers = st.integers(0, numel - 1) if numel else st.nothing()
    positive = st.floats(min_value=2.0**-149, max_value=2.0**120, width=32)

    def part(scale: float) -> wire.Body:
        picked = draw(st.sets(numbers, max_size=40)) if numel else set()
        index = np.array(sorted(picked), np.int32 if numel < 2**31 else np.int64)
        signs = draw(st.lists(st.booleans(), min_size=len(index), max_size=len(index)))
        value = np.array([-scale if s else scale for s in signs], np.float32)
        return wire.Body("ternary", (numel,), dtype, index, value, scale if len(index) else 0.0)

    if method == "merged":
        scales = draw(st.lists(positive, min_size=2, max_size=5))
        if numel * len(scales) < 2**63:
            return wire.merge([part(scale) for scale in scales])
    body = part(draw(positive))
    if method != "sparse":
        return body
    magnitudes = draw(st.lists(positive, min_size=len(body.value), max_size=len(body.value)))
    value = np.copysign(np.array(magnitudes, np.float32), body.value)
    return wire.Body("sparse", body.shape, dtype, body.index, value)


MIB = 1 << 20


_MMAP_THRESHOLD = -3  # M_MMAP_THRESHOLD of malloc.h


def peak_growth(call: Callable[[], object]) -> int:
    """How far the process's memory rises above where it stood, in bytes, C++ included.

    Heap that was freed earlier goes back to the system first: a call that takes it again would
    otherwise rise above nothing. Larger blocks get mappings of their own from now on, since a
    thread that was once refused memory takes it from an arena that is not given back. The
    interpreter takes some of it back at its own times, so the least of three readings counts: what
    the call itself needs is in all of them.
    """
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    libc = ctypes.CDLL(None)
    trim = getattr(libc, "malloc_trim", None)
    if trim is None or not reset.exists():
        pytest.skip("needs /proc and glibc")
    libc.mallopt(_MMAP_THRESHOLD, 64 * 1024)

    def read(key: str) -> int:
        found = re.search(rf"{key}:\s+(\d+) kB", status.read_text())
        assert found is not None
        return int(found[1]) * 1024

    least = sys.maxsize
    for _ in range(3):
        trim(0)
        reset.write_text("5")
        before = read("VmRSS")
        call()
        least = min(least, read("VmHWM") - before)
        if least < MIB // 2:
            break
    return least
