"""``python -m bench race``: the same training by several methods over slow links, side by side."""

from __future__ import annotations

import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from gcext._recipes.breakeven import parse_rate

from . import link_net as net
from .link_rank import Job
from .link_run import Run
from .link_tasks import TASKS

WIDTH = 24  # of a bar


def lane(run: Run, target: float) -> tuple[str, ProgressBar, str, float | None]:
    """Return a method, its way from the first loss to the target, its figures, and its seconds."""
    seen = run.progress()
    if not seen:
        return run.job.method, ProgressBar(1, 0, width=WIDTH), "starting", None
    first, last = seen[0]["loss"], seen[-1]
    done = last["loss"] <= target
    way = 1.0 if done else (first - last["loss"]) / max(first - target, 1e-9)
    figures = (
        f"loss {last['loss']:.2f} step {last['step']:3} {last['seconds']:5.1f} s "
        f"{last['bytes'] / 1e6:5.2f} MB"
    )
    bar = ProgressBar(1, min(max(way, 0.0), 1.0), width=WIDTH)
    return run.job.method, bar, figures, last["seconds"] if done else None


def command(
    rate: Annotated[str, typer.Option(help="Of every link, each way.")] = "10M",
    method: Annotated[
        str, typer.Option(help="Between semicolons: none, fp16, powersgd:RANK, or recipes.")
    ] = "none;fp16;stc:p=0.01",
    task: Annotated[str, typer.Option(help=" | ".join(TASKS))] = "digits",
    ranks: Annotated[int, typer.Option(min=2)] = 2,
    lr: Annotated[float, typer.Option(help="Of all.")] = 0.03,
    target: Annotated[float | None, typer.Option(show_default="of the task")] = None,
    steps: Annotated[int, typer.Option(help="At most.", min=10)] = 600,
    data_dir: Annotated[Path | None, typer.Option(help="Holds MNIST/raw.")] = None,
) -> None:
    """Show several trainings at once, each over links of its own, until all are at the loss."""
    if task not in TASKS:
        raise ValueError(f"bench: task must be one of {', '.join(TASKS)}, got {task}.")
    speed = int(parse_rate(rate))
    net.enter(sys.argv[sys.argv.index("race") :])
    folder = None if data_dir is None else str(data_dir.resolve())
    goal = TASKS[task](0, folder).target if target is None else target
    jobs = [
        Job(task, each.strip(), ranks, lr, steps, target=goal, data_dir=folder, every=5)
        for each in method.split(";")
    ]
    screen = Console()
    with ExitStack() as stack:
        runs = [stack.enter_context(Run(job, speed, f"s{i}")) for i, job in enumerate(jobs)]

        def picture() -> Group:
            title = f"{task}, {ranks} ranks, links of {rate}: until the loss is {goal:g}"
            table = Table(title=title, title_justify="left", show_header=False, box=None)
            for _ in range(3):
                table.add_column(no_wrap=True)
            lanes = [lane(run, goal) for run in runs]
            for name, bar, figures, _ in lanes:
                table.add_row(name, bar, figures)
            ends = {name: end for name, _, _, end in lanes if end is not None}
            first = min(ends, key=lambda name: ends[name], default=None)
            line = "" if first is None else f"{first} was there after {ends[first]:.1f} s"
            others = [f"{name} {ends[name] / ends[first]:.1f}x" for name in ends if name != first]  # type: ignore[index]
            return Group(table, Text(", ".join([line, *others]) if line else ""))

        with Live(picture(), console=screen, refresh_per_second=8) as live:
            while True in {run.running() for run in runs}:  # asks each: one may have failed
                live.update(picture())
                time.sleep(0.1)
            live.update(picture())
        for run in runs:
            run.result()
