"""From a case to its row: check, time, weigh; and rows as a table."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.table import Table

import gcext
from bench.case import Case, Setting, Variant
from bench.memory import peak_bytes
from bench.timing import default_rounds, interleave

Row = dict[str, Any]
Progress = Callable[[str], None]


def measure(
    case: Case, rounds: int | None = None, peak: bool = True, progress: Progress = lambda _: None
) -> Row:
    """Return the row of a case. Times are medians in milliseconds; None: refused, or not there.

    Only variants whose output agrees with the oracle are timed; ``refused`` says why the others
    are not. The check is also the first call, in which compiled variants are compiled.
    """
    setting = case.setting
    refused: dict[str, str] = {}
    for variant in case.variants:
        progress(f"{case.name}: checking {variant.name}")
        if why := _refusal(variant):
            refused[variant.name] = why
    timed = [variant for variant in case.variants if variant.name not in refused]
    rounds = rounds or default_rounds(setting.n)
    progress(f"{case.name}: timing {len(timed)} variants, {rounds} rounds")
    spreads = interleave(timed, rounds, setting.seed) if timed else {}
    threads = torch.get_num_threads()
    variants: dict[str, dict[str, Any]] = {}
    for variant in timed:
        ms, low, high = spreads[variant.name]
        variants[variant.name] = {"ms": ms, "q1_ms": low, "q3_ms": high}
        if peak and variant is not case.floor:
            progress(f"{case.name}: memory of {variant.name}")
            bytes_ = peak_bytes(case.name, setting, variant.name, threads)
            variants[variant.name]["peak_bytes"] = bytes_

    def field(variant: Variant, key: str) -> Any:
        return variants.get(variant.name, {}).get(key)

    def fastest(among: tuple[Variant, ...]) -> str | None:
        names = [variant.name for variant in among if variant.name in variants]
        return min(names, key=lambda name: variants[name]["ms"], default=None)

    usual, best = case.baselines[0], fastest(case.baselines)
    compiled = fastest(tuple(variant for variant in case.baselines if variant.compiled))
    ours, floor, theirs = (field(each, "ms") for each in (case.gcext, case.floor, usual))
    return {
        "name": case.name,
        "n": setting.n,
        "p": setting.p,
        "device": "cpu",
        "gcext_ms": ours,
        "torch_ms": theirs,
        "floor_ms": floor,
        "speedup": _ratio(theirs, ours),
        "of_floor": _ratio(ours, floor),
        "torch_best": best,
        "torch_best_ms": variants[best]["ms"] if best else None,
        "torch_compiled_ms": variants[compiled]["ms"] if compiled else None,
        "gcext_peak_bytes": field(case.gcext, "peak_bytes"),
        "torch_peak_bytes": field(usual, "peak_bytes"),
        "baseline": usual.name,
        "floor": case.floor_is,
        "k": setting.k,
        "seed": setting.seed,
        "rounds": rounds,
        **case.facts,
        **{f"{also.name}_ms": field(also, "ms") for also in case.also},
        "variants": variants,
        "refused": refused,
        **machine(),
    }


def failed(row: Row) -> bool:
    """Return whether gcext itself was wrong."""
    return row["gcext_ms"] is None


def machine() -> Row:
    """Return what a figure depends on beside the code."""
    info = gcext.build_info()
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "isa": info["isa"],
        "compiler": info["compiler"],
        "load": round(os.getloadavg()[0], 2),
        "versions": {
            "gcext": info["gcext"],
            "torch": torch.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
    }


def table(rows: list[Row]) -> Table:
    """Return the figures of rows, one line each."""
    out = Table(title="milliseconds are medians; peak is beyond the inputs", title_justify="left")
    out.add_column("row", no_wrap=True)
    for name in (
        "n", "p", "gcext ms", "floor ms", "of floor", "torch ms", "speedup", "best ms", "compiled",
        "peak", "torch's",
    ):  # fmt: skip
        out.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        out.add_row(
            row["name"], short(row["n"]), f"{row['p']:g}", _number(row["gcext_ms"]),
            _number(row["floor_ms"]), _number(row["of_floor"], "x"), _number(row["torch_ms"]),
            _number(row["speedup"], "x"), _number(row["torch_best_ms"]),
            _number(row["torch_compiled_ms"]), _bytes(row["gcext_peak_bytes"]),
            _bytes(row["torch_peak_bytes"]), style="red" if failed(row) else "",
        )  # fmt: skip
    return out


def details(row: Row) -> Table:
    """Return every variant of a row: quartiles and peak memory."""
    title = f"{row['name']}  n={short(row['n'])} p={row['p']:g}  {row['rounds']} rounds"
    out = Table(title=title, title_justify="left")
    for name in ("variant", "median ms", "q1", "q3", "peak"):
        out.add_column(name, justify="left" if name == "variant" else "right", no_wrap=True)
    for name, at in row["variants"].items():
        figures = (_number(at[key]) for key in ("ms", "q1_ms", "q3_ms"))
        out.add_row(name, *figures, _bytes(at.get("peak_bytes")))
    return out


def notes(rows: list[Row]) -> list[str]:
    """Return what the reader of the table must know."""
    out = []
    for row in rows:
        where = f"{row['name']} n={short(row['n'])} p={row['p']:g}"
        out += [f"{where}: {name} refused: {why}" for name, why in row["refused"].items()]
        if "bytes" in row:
            beside = "".join(
                f", {row[key]:.0f} {what}"
                for key, what in (("entropy_bytes", "by entropy"), ("torch_bytes", "by torch.save"))
                if key in row
            )
            out.append(f"{where}: {row['bytes']} bytes{beside}")
        if row.get("stc_ms") and row["gcext_ms"]:
            out.append(f"{where}: {row['gcext_ms'] / row['stc_ms']:.2f}x of stc, which made it")
    busy = max((row["load"] for row in rows), default=0)
    cores = os.cpu_count() or 1
    if busy > cores + 0.5:
        out.append(f"the machine was busy: load {busy:.1f} on {cores} cores. Measure again.")
    return out


def short(n: int) -> str:
    """Return 10M for 10000000, and other numbers as they are."""
    for suffix, unit in (("G", 10**9), ("M", 10**6), ("K", 10**3)):
        if n and n % unit == 0:
            return f"{n // unit}{suffix}"
    return str(n)


def make_setting(n: int, p: float, seed: int, m: int) -> Setting:
    """Return a setting, or raise ValueError with the rule that it breaks."""
    if n < 1:
        raise ValueError(f"bench: n must be at least 1, got {n}. Raise --n.")
    if not 0 < p <= 1:
        raise ValueError(f"bench: p must be in (0, 1], got {p:g}. Choose a share.")
    if m < 1:
        raise ValueError(f"bench: m must be at least 1, got {m}. Raise --m.")
    return Setting(n, p, seed, m)


def _refusal(variant: Variant) -> str:
    """Return "" where the variant may be timed, else why not."""
    try:
        variant.reset()
        return variant.check(variant.run())
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        return f"{type(error).__name__}: {lines[0]}"


def _ratio(a: float | None, b: float | None) -> float | None:
    return a / b if a is not None and b else None


def _number(value: float | None, unit: str = "") -> str:
    if value is None:
        return "-"
    return f"{value:.4f}{unit}" if value < 0.1 else f"{value:.2f}{unit}"


def _bytes(value: int | None) -> str:
    return "-" if value is None else f"{value / 1e6:.1f} MB"


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
