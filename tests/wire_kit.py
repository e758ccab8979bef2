"""What the packet tests share: goldens, random packets and damaged ones, comparisons."""

from __future__ import annotations

import ctypes
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy_decoder as twin
import pytest
import xxhash
from hypothesis import strategies as st

from gcext import wire
from gcext.errors import DecodeError

V1 = Path(__file__).parent / "vectors" / "v1"
INDEX = json.loads((V1 / "index.json").read_text())


def golden(kind: str, name: str) -> bytes:
    return (V1 / kind / f"{name}.gcx").read_bytes()


def seal(message: bytes) -> bytes:
    """The message with its checksum repaired."""
    return message[:-8] + xxhash.xxh3_64_intdigest(message[:-8]).to_bytes(8, "little")


def code_of(decode: Callable[[bytes], Any], message: bytes) -> str | None:
    try:
        decode(message)
    except (DecodeError, twin.Refused) as error:
        return error.code
    return None


def ternary(rng: np.random.Generator, numel: int, k: int, scale: float = 0.5) -> wire.Body:
    dtype = np.int32 if numel < 2**31 else np.int64
    index = np.sort(rng.choice(numel, k, replace=False)).astype(dtype)
    value = np.where(rng.random(k) < 0.5, -scale, scale).astype(np.float32)
    return wire.Body("ternary", (numel,), index=index, value=value, scale=scale if k else 0.0)


def assert_equal(a: wire.Body, b: wire.Body) -> None:
    assert (a.method, a.shape, a.dtype, a.scale) == (b.method, b.shape, b.dtype, b.scale)
    for x, y in ((a.index, b.index), (a.value, b.value)):
        assert (x is None) == (y is None)
        if x is not None and y is not None:
            assert x.dtype == y.dtype and x.tobytes() == y.tobytes()
    assert len(a.members) == len(b.members)
    for x, y in zip(a.members, b.members, strict=True):
        assert_equal(x, y)


def assert_twin(body: wire.Body, read: dict[str, Any]) -> None:
    assert wire.METHODS[body.method] == read["method"]
    if body.method == "group":
        for member, other in zip(body.members, read["members"], strict=True):
            assert_twin(member, other)
        return
    assert body.shape == read["shape"] and wire.DTYPES[body.dtype] == read["dtype"]
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


@st.composite
def bodies(draw: st.DrawFn, member: bool = False) -> wire.Body:
    kinds = ["dense", "sparse", "ternary", "merged"] + ([] if member else ["group"])
    method = draw(st.sampled_from(kinds))
    if method == "group":
        return wire.Body(
            "group", members=tuple(draw(st.lists(bodies(member=True), min_size=1, max_size=4)))
        )
    dtype = draw(st.sampled_from(sorted(wire.DTYPES)))
    finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
    if method == "dense":
        value = np.array(draw(st.lists(finite, max_size=20)), np.float32)
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


def peak_growth(call: Callable[[], object]) -> int:
    """How far the process's memory rises above where it stood, in bytes, C++ included.

    Heap that was freed earlier goes back to the system first: a call that takes it again would
    otherwise rise above nothing. The interpreter takes some of it back at its own times, so the
    least of three readings counts: what the call itself needs is in all of them.
    """
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is None or not reset.exists():
        pytest.skip("needs /proc and glibc")

    def read(key: str) -> int:
        return int(re.search(rf"{key}:\s+(\d+) kB", status.read_text())[1]) * 1024

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
