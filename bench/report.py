"""The row of every command, and rows as a table and as JSON."""

from __future__ import annotations

import functools
import json
import os
import platform
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

import gcext


@dataclass
class Row:
    """One measurement. Times are milliseconds, medians; None: refused, or not measured.

    extra: further fields, of which two have a meaning for every row: ``refused``, the variants
    that were wrong and how; ``extrapolated``, those measured on a part, and by how much.
    """

    name: str
    n: int | None
    p: float | None = None
    device: str = "cpu"
    gcext_ms: float | None = None
    torch_ms: float | None = None
    floor_ms: float | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    machine: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        self.machine = machine(self.device)

    @property
    def failed(self) -> bool:
        """Whether gcext itself was wrong."""
        return "gcext" in self.extra.get("refused", {})

    @property
    def where(self) -> str:
        """The row's name, n and p."""
        return f"{self.name} n={_cell('n', self.n)} p={_cell('p', self.p)}"

    def flat(self) -> dict[str, Any]:
        """Return what the JSON holds: the fixed fields, the further ones and the machine's."""
        fixed = ("name", "n", "p", "device", "gcext_ms", "torch_ms", "floor_ms")
        return {
            **{key: getattr(self, key) for key in fixed},
            "speedup": _ratio(self.torch_ms, self.gcext_ms),
            "of_floor": _ratio(self.gcext_ms, self.floor_ms),
            **self.extra,
            **self.machine,
        }

    def __getitem__(self, key: str) -> Any:
        return self.flat()[key]


def machine(device: str = "cpu") -> dict[str, Any]:
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
        **(_gpu() if device == "cuda" else {}),
    }


def figures(ms: Mapping[str, float], ratios: Mapping[str, tuple[str, str]]) -> dict[str, float]:
    """Return each time as ``<name>_ms``, and the ratios whose two times are there."""
    quotients = {
        name: ms[over] / ms[under]
        for name, (over, under) in ratios.items()
        if over in ms and under in ms
    }
    return {f"{name}_ms": each for name, each in ms.items()} | quotients


@functools.cache
def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


@functools.cache
def _gpu() -> dict[str, Any]:
    info, chip = gcext.build_info(), torch.cuda.get_device_properties(0)
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    driver = "unknown: no nvidia-smi on PATH"
    if shutil.which(query[0]) is not None:
        driver = subprocess.run(query, capture_output=True, text=True).stdout.split("\n")[0]
    return {
        "chip": chip.name,
        "capability": f"{chip.major}.{chip.minor}",
        "memory_bytes": chip.total_memory,
        "driver": driver,
        "cuda_of_torch": torch.version.cuda,
        "nvcc": info["cuda_compiler"],
        "cuda_archs": info["cuda_archs"],
    }


def save(rows: Sequence[Row], path: Path | None) -> None:
    """Write the rows as a JSON list, where there is a path."""
    if path is not None:
        path.write_text(json.dumps([row.flat() for row in rows], indent=1) + "\n")


def show(
    rows: Sequence[Row],
    columns: Mapping[str, str] | None = None,
    title: str = "",
    variants: bool = False,
) -> Console:
    """Print machine, rows and notes; returns the screen.

    Without columns: one table a name, of all fields. variants: every variant of each row, too.
    """
    screen = Console()
    if not screen.is_terminal:
        screen = Console(width=200)
    if rows:
        at = rows[0].machine
        line = f"{at.get('chip', at['cpu'])}, {at['threads']} threads, {at['isa']}"
        screen.print(f"{line}, torch {at['versions']['torch']}", highlight=False)
    if columns is not None:
        screen.print(table([row.flat() for row in rows], columns, title))
    for name in dict.fromkeys(row.name for row in rows) if columns is None else ():
        these = [row.flat() for row in rows if row.name == name]
        hidden = {"name", "device", *rows[0].machine}
        there = (key for row in these for key, value in row.items() if value is not None)
        keys = [key for key in there if key not in hidden and "_best_" not in key]
        screen.print(table(these, {key.replace("_", " "): key for key in keys}, name))
    for row in rows if variants else ():
        screen.print(details(row))
    for note in notes(rows):
        screen.print(note, highlight=False, markup=False, soft_wrap=True)
    return screen


def table(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str], title: str) -> Table:
    """Return one line for each row, of the fields that columns name; *: extrapolated."""
    out = Table(title=title, title_justify="left")
    for name in columns:
        out.add_column(name, justify="left" if name in ("row", "variant") else "right")
    for row in rows:
        scaled = row.get("extrapolated", {})
        cells = (
            _cell(key, row.get(key)) + "*" * (key.removesuffix("_ms") in scaled)
            for key in columns.values()
        )
        out.add_row(*cells, style="red" if "gcext" in row.get("refused", {}) else "")
    return out


def details(row: Row) -> Table:
    """Return every variant of a row: quartiles and peak memory."""
    rows = [{"variant": name, **figures} for name, figures in row["variants"].items()]
    columns = {
        "variant": "variant", "median ms": "ms", "q1": "q1_ms", "q3": "q3_ms", "peak": "peak_bytes",
    }  # fmt: skip
    return table(rows, columns, f"{row.where}, {row['rounds']} rounds")


def notes(rows: Sequence[Row]) -> list[str]:
    """Return what the reader of the table must know."""
    out = []
    for row in rows:
        at = row.flat()
        refused = at.get("refused", {})
        out += [f"{row.where}: {name} refused: {why}" for name, why in refused.items()]
        if row.name in ("stc-wire", "rice"):
            beside = (("entropy_bytes", "by entropy"), ("torch_bytes", "by torch.save"))
            also = "".join(f", {at[key]:.0f} {what}" for key, what in beside if key in at)
            out.append(f"{row.where}: {at['bytes']} bytes{also}")
        if at.get("stc_ms") and row.gcext_ms:
            out.append(f"{row.where}: {row.gcext_ms / at['stc_ms']:.2f}x of stc, which made it")
    busy = max((row.machine["load"] for row in rows), default=0)
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


def _ratio(a: float | None, b: float | None) -> float | None:
    return a / b if a is not None and b else None


def _cell(key: str, value: Any) -> str:
    if value is None:
        return "-"
    if key == "n":
        return short(value)
    if key.endswith("peak_bytes"):
        return f"{value / 1e6:.1f} MB"
    if not isinstance(value, float):
        return str(value)
    if key in ("p", "rate"):
        return f"{value:g}"
    digits = ".4f" if 1e-4 <= abs(value) < 1 else ".0f" if abs(value) >= 1e4 else ".4g"
    return f"{value:{digits}}" + "x" * (key in ("speedup", "of_floor"))
