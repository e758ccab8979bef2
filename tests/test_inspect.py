"""`python -m gcext inspect`: every byte shown once, on sound packets and on damaged ones."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import wire_bodies as wire
from rich.console import Console

from gcext import inspect

V1 = Path(__file__).parent / "vectors" / "v1"
INDEX = json.loads((V1 / "index.json").read_text())


def shown(message: bytes) -> str:
    console = Console(width=140, record=True, file=io.StringIO())
    console.print(inspect.describe(message))
    return console.export_text()


@pytest.mark.parametrize("kind", ["valid", "invalid"])
def test_rows_cover_the_message_without_gap_or_overlap(kind: str) -> None:
    for name in INDEX[kind]:
        message = (V1 / kind / f"{name}.gcx").read_bytes()
        at = 0
        for row in inspect.rows(message):
            assert row.offset == at, name
            assert message[at : at + len(row.data)] == row.data
            at += len(row.data)
        assert at == len(message), name


def test_a_sound_packet_is_explained() -> None:
    text = shown((V1 / "valid" / "ternary-clustered.gcx").read_bytes())
    for expected in (
        "89 47 43 58",
        "2200 of 1000000",
        "tile 2",
        "b = 6",
        "checksum",
        "[3] +2",
        "bits an element",
    ):
        assert expected in text
    assert "refused" not in text


def test_members_and_parts_are_named() -> None:
    text = shown((V1 / "valid" / "group-with-merged.gcx").read_bytes())
    for expected in (
        "members[0].parts",
        "members[0].members.tiles",
        "members[3].values",
        "group of 4",
    ):
        assert expected in text


def test_supports_and_codes_are_named() -> None:
    for name, expected in {
        "random-float32": ("random elements", "seed", "30 of 600 elements", "30 float32"),
        "sign-k9": ("all elements", "scale", "9 bits, 1 is negative", "9 of 9 elements"),
        "levels-indices": ("indices", "3 steps", "16 elements share", "places.tiles", "levels.t"),
        "codes-uniform-3": ("uniform", "3 bits a code", "64 elements share a scale", "5 float32"),
        "codes-float16": ("float16", "16 bits a code", "1584 bits"),
        "powers-2-tiles": ("powers", "symbols in the prefix", "bits of 2 tiles", "4 bits each"),
        "levels2-indices": ("levels2", "3 steps", "16 elements share", "symbols.tiles", "stream"),
        "polar-rotated": (
            "soft frozen sets, rotated",
            "2^6 symbols",
            "32 bits a block",
            "256 bits",
        ),
        "dct-by-block": ("sparse coefficients, by block", "at most 4 coefficients", "44 bits"),
        "sum-sparse-ternary": (
            "2 packets",
            "terms[0].k",
            "terms[1].scale",
            "of sparse and ternary",
        ),
        "group-of-sums": ("members[1].terms[0].tiles", "tile 0, elements 0..1"),
    }.items():
        text = shown((V1 / "valid" / f"{name}.gcx").read_bytes())
        assert [word for word in expected if word not in text] == []


@pytest.mark.parametrize(("name", "code"), INDEX["invalid"].items())
def test_a_damaged_packet_shows_its_error(name: str, code: str) -> None:
    assert f"refused, {code}:" in shown((V1 / "invalid" / f"{name}.gcx").read_bytes())


def test_every_prefix_of_a_packet_can_be_inspected() -> None:
    names = ["group-3", "group-of-coded", "polar-rotated", "levels-indices", "group-of-sums"]
    for name in [*names, "powers-indices"]:
        message = (V1 / "valid" / f"{name}.gcx").read_bytes()
        for length in range(len(message)):
            rows = inspect.rows(message[:length])
            assert sum(len(row.data) for row in rows) == length


def test_long_sections_and_groups_are_cut_short() -> None:
    index = np.arange(0, 60_000, 2, dtype=np.int32)
    body = wire.Body("sparse", (60_000,), index=index, value=np.ones(30_000, np.float32))
    assert "26 more tiles" in shown(wire.pack(body))
    empty = wire.Body("ternary", (7,), index=index[:0], value=np.zeros(0, np.float32))
    assert len(inspect.rows(wire.pack(wire.Body("group", members=(empty,) * 500)))) < 300


def test_inspect_file_returns_whether_the_packet_is_valid(tmp_path: Path) -> None:
    console = Console(quiet=True)
    good = V1 / "valid" / "dense-0d.gcx"
    bad = tmp_path / "cut.gcx"
    bad.write_bytes(good.read_bytes()[:-1])
    assert inspect.inspect_file(good, console) == 0
    assert inspect.inspect_file(bad, console) == 1
    with pytest.raises(OSError):
        inspect.inspect_file(tmp_path / "absent.gcx", console)
