"""The benchmark itself: its oracle, which variants it refuses, what it writes."""

from __future__ import annotations

import json
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("typer")
pytest.importorskip("rich")

from typer.testing import CliRunner

import gcext
from bench import __main__ as cli
from bench import (
    codes,
    feedback,
    internals,
    options,
    oracle,
    recipes,
    report,
    rows,
    stc,
    timing,
    variants,
)
from bench.case import Problem, Selected, Setting
from bench.timing import Variant
from gcext import codec

FIELDS = {
    "name", "n", "p", "device", "gcext_ms", "torch_ms", "floor_ms", "speedup", "of_floor",
}  # fmt: skip
SMALL = Setting(20_000, 0.01)


@pytest.mark.parametrize(
    ("texts", "counts"),
    [
        (["10M"], [10_000_000]),
        (["1.5K,7", "2g"], [1500, 7, 2_000_000_000]),
        (["0.25k"], [250]),
    ],
)
def test_counts_have_suffixes(texts: list[str], counts: list[int]) -> None:
    assert options.parse_counts(texts) == counts


@pytest.mark.parametrize("text", ["", "M", "1.2345K", "-1", "1e6", "10T", "1,,2"])
def test_malformed_counts_raise(text: str) -> None:
    with pytest.raises(ValueError, match=r"bench: n must be a whole number, got .*\. Write"):
        options.parse_counts([text])


def test_oracle_against_brute_force() -> None:
    rng = np.random.default_rng(0)
    for k in (1, 2, 7, 50, 64):
        for _ in range(20):
            # Few magnitudes, so that ties and zeros abound, over the whole range of exponents.
            scale = np.float32(2.0 ** rng.integers(-149, 120))
            acc = (rng.integers(-4, 5, 64) * scale * rng.choice([1, 1.5], 64)).astype(np.float32)
            order = [i for i in np.argsort(-np.abs(acc), kind="stable")[:k] if acc[i] != 0]
            answer = oracle.stc(acc, None, k)
            assert answer.index.tolist() == sorted(order)
            total = sum((abs(Fraction(float(acc[i]))) for i in order), Fraction(0))
            exact = total / max(len(order), 1)
            for i, value in zip(answer.index, answer.value, strict=True):
                assert np.signbit(value) == np.signbit(acc[i])
                assert _nearest(abs(value), exact)
            dense = np.zeros_like(acc)
            dense[answer.index] = answer.value
            assert np.array_equal(answer.residual, acc - dense)


def _nearest(value: np.float32, exact: Fraction) -> bool:
    """No neighbour is closer, and of two as close, the even one."""
    off = abs(Fraction(float(value)) - exact)
    for towards in (np.float32(0), np.float32(np.inf)):
        near = np.nextafter(value, towards)
        other = abs(Fraction(float(near)) - exact)
        if other < off or (other == off and value.view(np.uint32) & 1):
            return False
    return True


def test_problem_has_no_tie_at_the_kth_place() -> None:
    for seed in range(20):
        problem = Problem(Setting(2000, 0.1, seed))
        acc = (problem.tensor + problem.start).abs().sort(descending=True).values
        assert acc[problem.setting.k - 1] > acc[problem.setting.k]
    values = np.array([1, 3, -3, 3, 2], np.float32)
    assert oracle.tie_losers(values, 2).tolist() == [3]
    assert oracle.tie_losers(values, 3).tolist() == []


@pytest.mark.parametrize("name", rows.ROWS)
@pytest.mark.parametrize("p", [1e-6, 0.01, 0.3, 1.0])
def test_every_variant_of_every_row_is_right(name: str, p: float) -> None:
    case = rows.ROWS[name](replace(SMALL, p=p, m=3), False)
    row = rows.measure(case, rounds=1, peak=False)
    assert row["refused"] == {}
    assert set(row["variants"]) == {variant.name for variant in case.variants}
    assert set(row.flat()) >= FIELDS and not row.failed
    assert row["speedup"] == row["torch_ms"] / row["gcext_ms"]
    assert row["of_floor"] == row["gcext_ms"] / row["floor_ms"]
    assert row["torch_best_ms"] <= row["torch_ms"]


@pytest.mark.parametrize("formulation", [variants.topk, variants.mask])
@pytest.mark.parametrize("ternary", [True, False])
def test_formulations_compile_whole(formulation: variants.Formulation, ternary: bool) -> None:
    problem = Problem(SMALL, ternary=ternary)
    compiled = torch.compile(formulation, fullgraph=True, dynamic=False, backend="eager")
    got = compiled(problem.tensor, problem.start.clone(), SMALL.k, ternary)
    assert problem.close(got) == ""


def _spoil(row: str, change: Any) -> report.Row:
    """Measure a row whose gcext gives what ``change`` makes of its output."""
    case = rows.ROWS[row](SMALL, False)

    def run() -> Any:
        return change(case.gcext.run())

    wrong = replace(case, gcext=replace(case.gcext, run=run))
    return rows.measure(wrong, rounds=1, peak=False)


def _last_bit(value: torch.Tensor) -> torch.Tensor:
    value.view(torch.int32)[0] ^= 1
    return value


def test_a_wrong_bit_is_refused_and_not_timed() -> None:
    def spoil(packet: Any) -> Any:
        _last_bit(packet.coded)
        return packet

    row = _spoil("stc", spoil)
    assert row["gcext_ms"] is None and row["speedup"] is None and row["of_floor"] is None
    assert row["refused"]["gcext"].startswith("values: 1 of 200 differ, first at 0")
    assert "gcext" not in row["variants"] and row["torch_ms"] > 0
    assert row.failed
    assert any("gcext refused: values" in note for note in report.notes([row]))


def test_a_wrong_bit_in_any_row_is_refused() -> None:
    changes = {
        "stc-plain": lambda packet: _last_bit(packet.coded) is not None and packet,
        "select": lambda out: (out[0], _last_bit(out[1]), out[2]),
        "combine": _last_bit,
        "gram": lambda dots: dots.mul_(1 + 1e-15),
        "rice": lambda streams: (streams[0], streams[1], streams[2][:-1] + b"\x80"),
        "bits-pack": lambda plane: bytes([plane[0] ^ 1]) + plane[1:],
        "bits-unpack": lambda value: value[::-1],
    }
    for name, change in changes.items():
        row = _spoil(name, change)
        assert "gcext" in row["refused"], name
        assert "AttributeError" not in row["refused"]["gcext"], name  # the change was made
        assert row.failed, name


def test_a_wrong_residual_is_refused() -> None:
    problem = Problem(SMALL)
    right = stc._stc_variant(problem, "gcext")

    def run() -> Any:
        packet = right.run()
        problem.residual[17] += 1
        return packet

    case = replace(stc.stc(SMALL, False), gcext=right)
    assert rows.measure(case, rounds=1, peak=False)["refused"] == {}
    case = replace(case, gcext=replace(right, run=run))
    why = rows.measure(case, rounds=1, peak=False)["refused"]["gcext"]
    assert why.startswith("residual: 1 of 20000 differ, first at 17")


def test_baselines_must_give_the_indices_exactly_and_nearly_the_values() -> None:
    problem = Problem(SMALL)
    right = variants.topk(problem.tensor, problem.start.clone(), SMALL.k, True)
    assert right.indices is not None and right.residual is not None
    assert problem.close(right) == ""
    short = Selected(right.indices[1:], right.values[1:], None)
    assert problem.close(short).startswith("indices")
    assert problem.close(right._replace(values=right.values * 1.0001)) != ""
    assert problem.close(right._replace(values=-right.values)) != ""
    assert problem.close(right._replace(residual=right.residual + 1)) != ""


def test_a_variant_that_raises_is_refused_by_its_error() -> None:
    def fails() -> None:
        raise RuntimeError("no compiler\nand much more")

    case = stc.stc(SMALL, False)
    extra = Variant("compiled-topk", fails, lambda _: "", compiled=True)
    row = rows.measure(replace(case, baselines=(*case.baselines, extra)), rounds=1, peak=False)
    assert row["refused"] == {"compiled-topk": "RuntimeError: no compiler"}
    assert row["torch_compiled_ms"] is None and not row.failed


def test_rice_decoder_reads_both_writers() -> None:
    index = np.cumsum(np.random.default_rng(1).geometric(0.02, 5000)) - 1
    native = internals.rice_pack(index, int(index[-1]) + 1)
    assert codes._numpy_rice(index) == native
    assert oracle.rice_decode(native, index.size, internals.TILE).tolist() == index.tolist()


def test_interleaving_resets_before_every_call() -> None:
    calls: list[str] = []

    def variant(name: str) -> Variant:
        return Variant(
            name, lambda: calls.append(name), lambda _: "", lambda: calls.append(f"reset {name}")
        )

    spreads = timing.interleave([variant(name) for name in "abc"], rounds=8, seed=1)
    assert set(spreads) == set("abc")
    assert all(s.low <= s.median <= s.high for s in spreads.values())
    assert calls[::2] == [f"reset {name}" for name in calls[1::2]]
    by_round = [tuple(calls[1::2][i : i + 3]) for i in range(0, 24, 3)]
    assert all(sorted(each) == list("abc") for each in by_round)
    assert len(set(by_round)) > 1


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
def test_peak_memory_sees_the_dense_temporaries() -> None:
    setting = Setting(4_000_000, 0.01)
    usual = rows.peak_of("stc", "topk", setting)
    ours = rows.peak_of("stc", "gcext", setting)
    if usual is None or ours is None:
        pytest.skip("this kernel does not reset the peak")
    assert usual >= 3 * 4 * setting.n
    assert ours < 4 * setting.n


def test_command_writes_the_rows(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    done = CliRunner().invoke(
        cli.app,
        ["stc", "--n", "1K,2K", "--p", "0.01", "--p", "0.1", "--device", "cpu", "--threads", "1",
         "--rounds", "1", "--no-compile", "--no-peak", "--json", str(out)],
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    written = json.loads(out.read_text())
    assert all(set(row) >= FIELDS for row in written)
    assert [(row["n"], row["p"], row["name"]) for row in written] == [
        (n, p, name)
        for n in (1000, 2000)
        for p in (0.01, 0.1)
        for name in ("stc", "stc-ef", "stc-plain", "stc-wire")
    ]
    assert all(row["device"] == "cpu" and row["threads"] == 1 for row in written)
    assert all(row["stc_ms"] > 0 for row in written if row["name"] == "stc-wire")
    assert "of floor" in done.output


def test_command_fails_where_gcext_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(setting: Setting, compiled: bool) -> Any:
        case = stc.select(setting, compiled)
        return replace(case, gcext=replace(case.gcext, check=lambda _: "values: 1 of 2 differ"))

    monkeypatch.setitem(rows.ROWS, "select", wrong)
    args = ["select", "--n", "1K", "--rounds", "1", "--no-compile", "--no-peak"]
    done = CliRunner().invoke(cli.app, args)
    assert done.exit_code == 1
    assert "gcext refused: values: 1 of 2 differ" in done.output


@pytest.mark.parametrize(
    ("args", "rule"),
    [
        (["--n", "x"], "bench: n must be a whole number"),
        (["--n", "0"], "bench: n must be at least 1"),
        (["--p", "0"], "bench: p must be in (0, 1]"),
        (["--p", "x"], "bench: p must be numbers"),
        (["--device", "cuda"], "bench: device must be cpu"),
    ],
)
def test_command_reports_what_is_wrong(args: list[str], rule: str) -> None:
    done = CliRunner().invoke(cli.app, ["stc", *args])
    assert done.exit_code == 2
    assert rule in done.output


@pytest.mark.parametrize("spec", feedback.SPECS)
def test_every_variant_of_feedback_conserves_the_sum(spec: str) -> None:
    case = feedback.case(spec, Setting(9_000, 1.0))
    assert [each.name for each in case.variants] == ["gcext", "eager", "bfloat16", "floor"]
    for variant in case.variants:
        for _ in range(2):
            variant.reset()
            assert variant.check(variant.run()) == ""


def test_feedback_counts_the_bytes_that_a_codec_must_move() -> None:
    row = feedback.measure("terngrad", Setting(9_000, 1.0), 3, lambda _: None)
    packet = codec("terngrad").encode(torch.randn(9_000), seed=0)
    bytes_ = row.extra["bytes_per_element"]
    assert bytes_ == pytest.approx(24 + packet.nbytes / 9_000, rel=0.01)
    assert row.gcext_ms and row.floor_ms
    assert row.extra["of_own"] == pytest.approx(row.gcext_ms / row.floor_ms * 12 / bytes_, rel=0.01)


def test_the_recipes_command_times_every_part_of_a_round(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    specs = ["stc:p=0.1", "powersgd"]
    args = ["recipes", "--n", "4K", "--rounds", "2", "--json", str(path)]
    for spec in specs:
        args += ["--recipe", spec]
    assert CliRunner().invoke(cli.app, args).exit_code == 0
    found = json.loads(path.read_text())
    assert [(row["name"], row["n"]) for row in found] == [(spec, 4000) for spec in specs]
    for row in found:
        names = ["gcext_ms", "floor_ms", *(f"{part}_ms" for part in recipes.PARTS[1:])]
        assert all(row[name] > 0 for name in names)
    assert found[0]["bits"] == pytest.approx(0.1 * 5, rel=0.3)  # some five an element sent
    assert set(recipes.named([])) == set(gcext.recipes()) - {"fedavg"}


def test_the_feedback_command_writes_a_row_a_codec(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    sizes, codecs = ["--n", "2K,3K", "--rounds", "3"], ["--codec", "sign", "--codec", "qsgd:bits=2"]
    args = ["feedback", *sizes, *codecs, "--json", str(path)]
    assert CliRunner().invoke(cli.app, args).exit_code == 0
    found = json.loads(path.read_text())
    assert [(row["name"], row["n"]) for row in found] == [
        (spec, n) for n in (2000, 3000) for spec in ("sign", "qsgd:bits=2,bucket=512")
    ]
    assert all(row["bfloat16_ms"] > 0 and not row["refused"] for row in found)
