"""The Rice sections, against a bit-by-bit writer that tries every parameter."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy_decoder as reference
import pytest
import wire_bodies as wire
from wire_kit import code_of, seal

from gcext import _wire


def best(gaps: list[int]) -> int:
    """The parameter of the shortest code, the smallest on a tie, by trying all."""
    return min(range(63), key=lambda b: (len(gaps) * (b + 1) + sum(g >> b for g in gaps), b))


def section(index: list[int]) -> tuple[bytes, bytes, bytes]:
    table, remainders, unary = b"", "", ""
    previous = -1
    for first in range(0, len(index), _wire.TILE):
        gaps = []
        for i in index[first : first + _wire.TILE]:
            gaps.append(i - previous - 1)
            previous = i
        b = best(gaps)
        table += bytes([b]) + sum(g >> b for g in gaps).to_bytes(2, "little")
        remainders += "".join(str(g >> bit & 1) for g in gaps for bit in range(b))
        unary += "".join("0" * (g >> b) + "1" for g in gaps)

    def plane(bits: str) -> bytes:
        return np.packbits([int(x) for x in bits], bitorder="little").tobytes() if bits else b""

    return table, plane(remainders), plane(unary)


def supports() -> dict[str, tuple[int, list[int]]]:
    rng = np.random.default_rng(3)
    cases: dict[str, tuple[int, list[int]]] = {
        "none": (10, []),
        "all": (2500, list(range(2500))),
        "first": (2**62, [0]),
        "last": (2**63 - 1, [2**63 - 2]),
        "both ends": (2**63 - 1, [0, 2**63 - 2]),
        "32-bit gaps": (2**33, [2**32 - 1, 2**33 - 1]),
        "33-bit gaps": (2**33 + 2, [2**32, 2**33 + 1]),
        "one far": (2**40, [*range(1000), 2**40 - 1]),
        "steps": (10**6, list(range(0, 10**6, 333))),
        "powers": (2**62, [2**i for i in range(62)]),
    }
    for numel in (100, 5000, 10**6, 2**31 - 1, 2**31 + 5, 2**50):
        for k in (1, 2, 63, 64, 1023, 1024, 1025, 3000):
            if k <= numel:
                picked = (
                    rng.choice(numel, k, replace=False)
                    if numel < 10**7
                    else rng.integers(0, numel, k)
                )
                cases[f"{k} of {numel}"] = numel, sorted(set(picked.tolist()))
    return cases


CASES = supports()


@pytest.mark.parametrize("name", CASES)
def test_section_is_the_shortest_code(name: str) -> None:
    numel, index = CASES[name]
    expected = section(index)
    dtypes: tuple[Any, ...] = (np.int32, np.int64) if numel < 2**31 else (np.int64,)
    for dtype in dtypes:
        assert _wire.rice_pack(np.array(index, dtype), numel) == expected


@pytest.mark.parametrize("name", CASES)
def test_section_reads_back(name: str) -> None:
    numel, index = CASES[name]
    array = np.array(index, np.int32 if numel < 2**31 else np.int64)
    value = np.ones(len(index), np.float32)
    back = wire.unpack(wire.pack(wire.Body("sparse", (numel,), index=array, value=value)))
    assert back.index is not None and back.index.dtype == array.dtype
    assert back.index.tolist() == index


def test_layered_supports_pay_less_than_one_parameter_would() -> None:
    rng = np.random.default_rng(0)
    dense = rng.choice(20_000, 8_000, replace=False)
    thin = 20_000 + rng.choice(980_000, 2_000, replace=False)
    index = np.sort(np.concatenate([dense, thin])).astype(np.int32)
    size = sum(map(len, _wire.rice_pack(index, 10**6)))
    gaps = np.diff(index, prepend=-1) - 1
    single = min(len(gaps) * (b + 1) + int((gaps >> b).sum()) for b in range(20)) / 8
    assert size < 0.8 * single


@pytest.mark.parametrize(
    ("index", "b", "code"),
    [(2**40, 39, None), (2**40, 40, "tile"), (2**45 - 1, 44, None), (2**45, 44, "index")],
)
def test_a_gap_beyond_32_bits_is_held_to_every_rule(index: int, b: int, code: str | None) -> None:
    """One index below 2^45: the parameter must be the shortest code's, the number in range."""
    remainder = (index & (1 << b) - 1).to_bytes(-(-b // 8), "little")
    zeros = index >> b
    head = bytes.fromhex("89474358 01 03 01 80808080808008 01 0000003f")
    body = bytes([b, zeros, 0]) + remainder + bytes([1 << zeros]) + b"\0"
    message = seal(head + body + bytes(8))
    assert code_of(wire.unpack, message) == code
    assert code_of(reference.decode, message) == code
