"""``python -m bench``: gcext against PyTorch and the floor, held to the oracle first."""

from __future__ import annotations

import sys

try:
    import typer
    from rich.console import Console
except ImportError:
    sys.exit("bench: the command line needs typer and rich. Run pip install 'gcext[fl]'.")

import json
import os
import re
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Annotated

import torch

from bench import gpu, polar, projection, report
from bench.rows import ENTRIES, HELP, ROWS

app = typer.Typer(help=__doc__, no_args_is_help=True, pretty_exceptions_enable=False)

Counts = Annotated[list[str], typer.Option(help="Elements: 10M, or 1M,10M; repeatable.")]
Shares = Annotated[list[str], typer.Option(help="Share that travels: 0.01; likewise.")]
_COUNTS, _SHARES = ["10M"], ["0.01"]
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}


def parse_counts(texts: list[str]) -> list[int]:
    """Return the numbers of ``["10M,1.5K", "7"]``; K, M and G are powers of a thousand."""
    return [_count(part) for text in texts for part in text.split(",")]


def parse_shares(texts: list[str]) -> list[float]:
    """Return the numbers of ``["0.01,0.1"]``."""
    try:
        return [float(part) for text in texts for part in text.split(",")]
    except ValueError:
        given = ",".join(texts)
        raise ValueError(f"bench: p must be numbers, got {given!r}. Write 0.01,0.1.") from None


def _count(text: str) -> int:
    match = re.fullmatch(r"(\d+)(?:\.(\d+))?([KMG]?)", text.strip(), re.IGNORECASE)
    if match is not None:
        whole, fraction, suffix = match[1], match[2] or "", match[3].upper()
        scaled, unit = int(whole + fraction) * _UNITS[suffix], int("1" + "0" * len(fraction))
        if scaled % unit == 0:
            return scaled // unit
    raise ValueError(f"bench: n must be a whole number, got {text!r}. Write 10M, 1.5K or 1000.")


def run(
    entry: str,
    counts: list[int],
    shares: list[float],
    *,
    seed: int = 0,
    m: int = 10,
    rounds: int | None = None,
    compiled: bool = True,
    peak: bool = True,
    progress: report.Progress = lambda _: None,
) -> list[report.Row]:
    """Return the rows of an entry, for every n and every p."""
    rows = []
    settings = [report.make_setting(n, p, seed, m) for n, p in product(counts, shares)]
    for setting, name in product(settings, ENTRIES[entry]):
        progress(f"{name}: n={report.short(setting.n)} p={setting.p:g}")
        # Each row compiles for its own shape; without this they count as one function's recompiles.
        torch.compiler.reset()
        case = ROWS[name](setting, compiled)
        rows.append(report.measure(case, rounds, peak, progress))
        del case
    return rows


def _command(entry: str) -> Callable[..., None]:
    def command(
        n: Counts = _COUNTS,
        p: Shares = _SHARES,
        device: Annotated[str, typer.Option(help="Only cpu so far.")] = "cpu",
        threads: Annotated[int, typer.Option(help="0: all cores.", min=0)] = 0,
        rounds: Annotated[int, typer.Option(help="Interleaved repeats; 0: by n.", min=0)] = 0,
        seed: Annotated[int, typer.Option(help="Of the data.")] = 0,
        m: Annotated[int, typer.Option(help="Packets, of combine and gram.")] = 10,
        compile: Annotated[bool, typer.Option(help="Time torch.compile too.")] = True,
        peak: Annotated[bool, typer.Option(help="Measure peak memory too.")] = True,
        variants: Annotated[bool, typer.Option(help="Show every variant.")] = False,
        json_: Annotated[Path | None, typer.Option("--json", help="Where rows go.")] = None,
    ) -> None:
        screen, aside = Console(), Console(stderr=True)
        if not screen.is_terminal:
            screen = Console(width=132)
        try:
            if device != "cpu":
                raise ValueError(f"bench: device must be cpu, got {device}. Leave --device out.")
            counts, shares = parse_counts(n), parse_shares(p)
            torch.set_num_threads(threads or len(os.sched_getaffinity(0)))
            with aside.status("starting") as status:
                rows = run(
                    entry, counts, shares, seed=seed, m=m, rounds=rounds or None, compiled=compile,
                    peak=peak, progress=status.update,
                )  # fmt: skip
        except ValueError as error:
            aside.print(str(error), style="red", highlight=False, markup=False, soft_wrap=True)
            raise typer.Exit(2) from None
        if json_ is not None:
            json_.write_text(json.dumps(rows, indent=1) + "\n")
        at = rows[0]
        screen.print(
            f"{at['cpu']}, {at['threads']} threads, {at['isa']}, torch {at['versions']['torch']}",
            highlight=False,
        )
        screen.print(report.table(rows))
        for row in rows if variants else []:
            screen.print(report.details(row))
        for note in report.notes(rows):
            screen.print(note, highlight=False, markup=False, soft_wrap=True)
        if any(report.failed(row) for row in rows):
            raise typer.Exit(1)

    return command


for _entry in ENTRIES:
    app.command(_entry, help=HELP[_entry])(_command(_entry))

app.command("polar")(polar.command)
app.command("gpu")(gpu.command)
app.command("server")(projection.command)


if __name__ == "__main__":
    app(prog_name="python -m bench")
