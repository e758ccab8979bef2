"""What a person sees: a progress bar while it runs (stderr), a table at the end (stdout)."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from gcext.fl.run import Record
from gcext.fl.settings import Settings

__all__ = ["Ticker", "table"]

LOG_LINES = 10  # a run's progress where there is no terminal to draw a bar on


class Ticker:
    """One run's progress: a bar on a terminal, some plain lines in a log; a context manager."""

    def __init__(self, settings: Settings, console: Console, quiet: bool = False) -> None:
        self.settings = settings
        self.console = console
        self.plain = not console.is_terminal
        self.quiet = quiet
        self.sent = 0
        self.name = f"{settings.method} seed {settings.seed}"
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(),
            console=console,
            disable=quiet or self.plain,
        )

    def __enter__(self) -> Ticker:
        self.bar.start()
        self.task = self.bar.add_task(self.name, total=self.settings.rounds, figures="")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.bar.stop()

    def __call__(self, record: Record) -> None:
        self.sent += record["up_bytes"] + record["down_bytes"]
        figures = f"accuracy {record['accuracy']:.4f}, {_size(self.sent)}"
        number, total = record["round"], self.settings.rounds
        self.bar.update(self.task, completed=number, figures=figures)
        if self.plain and not self.quiet and number % max(1, total // LOG_LINES) == 0:
            self.console.print(f"{self.name}: round {number}/{total}, {figures}", highlight=False)


def table(results: list[dict[str, Any]]) -> Table:
    """One row a run; the last two columns say how many times less than FedAvg it sent per round."""
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


def _size(count: float) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.1f} KB"
