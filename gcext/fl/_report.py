"""A run on the terminal: a progress bar while it runs (stderr), a table at its end (stdout)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from gcext.fl._run import Record
from gcext.fl._settings import Settings

__all__ = ["table", "ticker"]

LOG_LINES = 10  # a run's progress where there is no terminal to draw a bar on


@contextmanager
def ticker(
    settings: Settings, console: Console, quiet: bool = False
) -> Iterator[Callable[[Record], None]]:
    """Yield what shows a round's record: a bar on a terminal, some plain lines in a log."""
    name, total, sent = f"{settings.method} seed {settings.seed}", settings.rounds, 0
    plain = not console.is_terminal
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[figures]}"),
        TimeRemainingColumn(),
        console=console,
        disable=quiet or plain,
    )

    def show(record: Record) -> None:
        nonlocal sent
        sent += record["up_bytes"] + record["down_bytes"]
        size = f"{sent / 1e6:.1f} MB" if sent >= 1e6 else f"{sent / 1e3:.1f} KB"
        figures, number = f"accuracy {record['accuracy']:.4f}, {size}", record["round"]
        bar.update(task, completed=number, figures=figures)
        if plain and not quiet and number % max(1, total // LOG_LINES) == 0:
            console.print(f"{name}: round {number}/{total}, {figures}", highlight=False)

    with bar:
        task = bar.add_task(name, total=total, figures="")
        yield show


def table(results: list[dict[str, Any]]) -> Table:
    """Return a row for each run; the last column is FedAvg's bytes per round over the run's."""
    rows = Table(title="Federated runs", title_justify="left")
    rows.add_column("method")
    for name in ("seed", "rounds to target", "accuracy", "MB up", "MB down"):
        rows.add_column(name, justify="right")
    rows.add_column("KB up a client and round", justify="right")
    base = next((r for r in results if r["settings"]["recipe"] in ("fedavg", "none")), None)
    if base is not None:
        rows.add_column("FedAvg / this: up, down", justify="right")
    for result in results:
        rows.add_row(*_row(result, base))
    return rows


def _row(result: dict[str, Any], base: dict[str, Any] | None) -> list[str]:
    rounds = result["rounds"]
    if not rounds:
        return [result["method"], str(result["seed"])]
    up, down = _per_round(result)
    uploads = sum(r["clients"] for r in rounds)
    reached = result["rounds_to_target"]
    goal = f"{100 * result['settings']['target']:g} %"
    row = [
        result["method"],
        str(result["seed"]),
        f"{reached} ({goal})" if reached else f"- of {len(rounds)} ({goal})",
        f"{100 * rounds[-1]['accuracy']:.2f} %",
        f"{up * len(rounds) / 1e6:.2f}",
        f"{down * len(rounds) / 1e6:.2f}",
        f"{up * len(rounds) / uploads / 1e3:.2f}",
    ]
    if base is not None and base["rounds"]:
        base_up, base_down = _per_round(base)
        less_down = f"{base_down / down:.1f}x" if down else "-"
        row.append(f"{base_up / up:.1f}x, {less_down}")
    return row


def _per_round(result: dict[str, Any]) -> tuple[float, float]:
    rounds = result["rounds"]
    up, down = (sum(r[f"{way}_bytes"] for r in rounds) for way in ("up", "down"))
    return up / len(rounds), down / len(rounds)
