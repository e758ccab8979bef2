"""Options that several commands share, and what they are parsed to."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import torch

try:
    import typer
    from rich.console import Console
except ImportError:
    sys.exit("bench: the command line needs typer and rich. Run pip install 'gcext[fl]'.")

Counts = Annotated[list[str], typer.Option(help="Elements: 10M, or 1M,10M; repeatable.")]
Packets = Annotated[list[str], typer.Option(help="Packets: 100, or 20,100; repeatable.")]
Shares = Annotated[list[str], typer.Option(help="Share that is sent: 0.01; likewise.")]
Threads = Annotated[int, typer.Option(help="0: all cores.", min=0)]
Rounds = Annotated[int, typer.Option(help="Interleaved repeats; 0: by n.", min=0)]
Seed = Annotated[int, typer.Option(help="Of the data.")]
Peak = Annotated[bool, typer.Option(help="Measure peak memory too.")]
Json = Annotated[Path | None, typer.Option("--json", help="Where rows go.")]
Plot = Annotated[Path | None, typer.Option("--plot", help="Where the plot goes.")]

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}


def parse_counts(texts: list[str], name: str = "n") -> list[int]:
    """Return the numbers of ``["10M,1.5K", "7"]``; K, M and G are powers of a thousand."""
    return [parse_count(part, name) for text in texts for part in text.split(",")]


def parse_count(text: str, name: str) -> int:
    """Return the number of ``"1.5K"``; name is the option's, for the error."""
    match = re.fullmatch(r"(\d+)(?:\.(\d+))?([KMG]?)", text.strip(), re.IGNORECASE)
    if match is not None:
        whole, fraction, suffix = match[1], match[2] or "", match[3].upper()
        scaled, unit = int(whole + fraction) * _UNITS[suffix], int("1" + "0" * len(fraction))
        if scaled % unit == 0:
            return scaled // unit
    raise ValueError(f"bench: {name} must be a whole number, got {text!r}. Write 10M, 1.5K or 100.")


def parse_shares(texts: list[str]) -> list[float]:
    """Return the numbers of ``["0.01,0.1"]``."""
    try:
        return [float(part) for text in texts for part in text.split(",")]
    except ValueError:
        given = ",".join(texts)
        raise ValueError(f"bench: p must be numbers, got {given!r}. Write 0.01,0.1.") from None


def set_threads(threads: int) -> None:
    """Let torch use as many threads, or all cores."""
    torch.set_num_threads(threads or len(os.sched_getaffinity(0)))


@contextmanager
def exits_on_error() -> Iterator[None]:
    """Print the message of a ValueError and exit with 2."""
    try:
        yield
    except ValueError as error:
        aside = Console(stderr=True)
        aside.print(str(error), style="red", highlight=False, markup=False, soft_wrap=True)
        raise typer.Exit(2) from None
