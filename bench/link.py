"""``python -m bench link``: DDP over slow links, wall clock to a given loss, method by method.

Each rank is a process in a network namespace of its own, joined to a switch by a link of the given
rate (token bucket, both ways); see bench/link_net.py. Three measurements make a row:

* steps: a training without a limit on the links, until the held-out loss is at the target, at each
  learning rate; the best counts. Steps do not depend on the links: training is deterministic.
* step: the mean time of a step over the limited link, after a warm-up.
* compute: the same without any exchange.

Seconds to the loss are steps times step. ``--whole`` trains to the loss over the limited link
instead. The ceiling is what a method would reach if coding and latency took nothing:
``compute + bytes sent / link speed``; of_ceiling is that over the step measured.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from gcext._recipes.breakeven import parse_rate

from . import link_net as net
from . import options, report
from .link_rank import WARM, Job
from .link_run import train
from .link_tasks import TASKS
from .report import Row

METHODS = "none;fp16;powersgd:1;powersgd:4;stc:p=0.01;stc:p=0.001"
COLUMNS = {
    "task": "task", "ranks": "ranks", "link": "link", "method": "method", "lr": "lr",
    "steps": "steps", "step": "step_ms", "compute": "compute_ms", "kB a step": "kilobytes",
    "seconds": "seconds", "over none": "over_none", "ceiling": "ceiling", "of it": "of_ceiling",
}  # fmt: skip


def best(jobs: Iterable[Job]) -> dict[str, Any] | None:
    """Return what the job found that reached its loss in the fewest steps; None: none did."""
    found = [train(job, 0) for job in jobs]
    reached = [each for each in found if each["reached"]]
    return min(reached, key=lambda each: each["steps"], default=None)


def rows_of(
    task: str,
    ranks: int,
    rates: Sequence[int],
    methods: Sequence[str],
    lrs: Sequence[float],
    base: Job,
    timed: int,
    whole: bool,
    known: Sequence[dict[str, Any]],
    progress: Any,
) -> list[Row]:
    """Return a row for each rate and method of a task."""
    base = replace(base, task=task, ranks=ranks)
    lrs = lrs or TASKS[task](0, base.data_dir).lr
    settings: dict[str, tuple[float, int | None]] = {}
    for method in methods:
        progress(f"{task}, {ranks} ranks, {method}: steps to the loss")
        before = [
            each
            for each in known
            if (each["task"], each["ranks"], each["method"]) == (task, ranks, method)
        ]
        if before:
            settings[method] = before[0]["lr"], before[0]["steps"]
            continue
        found = best(replace(base, method=method, lr=lr) for lr in lrs)
        settings[method] = (found["job"]["lr"], found["steps"]) if found else (lrs[0], None)
    rows = []
    for rate in rates:
        link = f"{rate / 1e6:g}M" if rate else "none"
        progress(f"{task}, {ranks} ranks, {link}: computing")
        alone = replace(base, method="none", compute=True, steps=timed + WARM, target=0.0)
        compute = train(alone, rate)["step_ms"]
        plain: dict[str, float | None] = {}
        for method in methods:
            progress(f"{task}, {ranks} ranks, {link}, {method}: a step")
            lr, steps = settings[method]
            job = replace(base, method=method, lr=lr, steps=timed + WARM, target=0.0)
            found = train(replace(base, method=method, lr=lr) if whole else job, rate)
            step, sent = found["step_ms"], found["message_bytes"]
            seconds = None if steps is None else steps * step / 1e3
            seconds = found["seconds"] if whole and found["reached"] else seconds
            extra: dict[str, Any] = {
                "task": task,
                "ranks": ranks,
                "link": link,
                "method": method,
                "lr": lr,
                "steps": steps,
                "step_ms": step,
                "compute_ms": compute,
                "kilobytes": found["bytes_a_step"] / 1e3,
                "seconds": seconds,
                "whole": whole,
            }
            if method == "none":
                plain = {"step": step, "seconds": seconds}
            if plain.get("seconds") and seconds:
                extra["over_none"] = plain["seconds"] / seconds
            if plain.get("step") and rate and sent is not None:
                least = compute + 8e3 * sent / rate
                extra |= {"ceiling": plain["step"] / least, "of_ceiling": least / step}
            rows.append(Row("link", found["numel"], extra=extra))
    return rows


def command(
    task: Annotated[str, typer.Option(help=" | ".join(TASKS))] = "mnist,transformer",
    ranks: Annotated[str, typer.Option(help="Processes.")] = "2,4",
    rate: Annotated[str, typer.Option(help="Of a link, each way; none: no limit.")] = "10M,100M,1G",
    method: Annotated[
        str, typer.Option(help="Between semicolons: none, fp16, powersgd:RANK, or recipes.")
    ] = METHODS,
    lr: Annotated[str, typer.Option(help="Learning rates that each is tried at.")] = "",
    steps: Annotated[int, typer.Option(help="Most steps to the loss.", min=10)] = 600,
    timed: Annotated[int, typer.Option(help="Steps that are timed.", min=1)] = 20,
    target: Annotated[float | None, typer.Option(show_default="of the task")] = None,
    seed: Annotated[int, typer.Option(help="Of model and data.")] = 0,
    whole: Annotated[bool, typer.Option(help="Train to the loss over the limited link.")] = False,
    steps_from: Annotated[
        Path | None, typer.Option(help="Rows of an earlier run, whose steps are taken.")
    ] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Holds MNIST/raw.")] = None,
    json_: options.Json = None,
) -> None:
    """Train by DDP over slow links: seconds to a given loss, for each method."""
    tasks, counts = task.split(","), [int(each) for each in ranks.split(",")]
    rates = [0 if each == "none" else int(parse_rate(each)) for each in rate.split(",")]
    methods = [each.strip() for each in method.split(";")]
    if wrong := [each for each in tasks if each not in TASKS]:
        raise ValueError(f"bench: task must be one of {', '.join(TASKS)}, got {wrong[0]}.")
    if min(counts) < 2:
        raise ValueError(f"bench: ranks must be at least 2, got {min(counts)}.")
    lrs = [float(each) for each in lr.split(",") if each]
    known = [] if steps_from is None else json.loads(steps_from.read_text())
    net.enter(sys.argv[sys.argv.index("link") :])
    folder = None if data_dir is None else str(data_dir.resolve())
    base = Job(tasks[0], "none", 2, 0.0, steps, seed, target, data_dir=folder)
    found: list[Row] = []
    try:
        with Console(stderr=True).status("starting") as status:
            for name in tasks:
                for count in counts:
                    found += rows_of(
                        name, count, rates, methods, lrs, base, timed, whole, known, status.update
                    )
                    report.save(found, json_)  # an error in a later one does not lose these
    finally:
        report.show(found, COLUMNS, "DDP over slow links")
