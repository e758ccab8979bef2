"""``python -m gcext compare``: several methods, the same seeds, one table and one plot."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from operator import itemgetter
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

from gcext._recipes import recipe
from gcext.fl._cli import LOG_WIDTH, _writable, _write_json
from gcext.fl._data import DATASETS, Data, Part, load
from gcext.fl._plot import check
from gcext.fl._plot import plot as draw
from gcext.fl._report import ticker
from gcext.fl._run import Diverged, Record, run
from gcext.fl._settings import DEFAULTS, Settings

__all__ = ["compare", "split_methods", "validation"]

Run = dict[str, Any]  # as --json has it; "search", where rates were searched
Search = dict[str, Any]  # {"rounds": int, "accuracy": [[rate, accuracy], ..]}
HELD_OUT = 10  # one of so many training samples is for the choice of a learning rate


def compare(
    methods: Annotated[str, typer.Option(help="Specs with commas between them: stc:p=0.1,sign.")],
    data: Annotated[str, typer.Option(help=" | ".join(DATASETS))] = "digits",
    data_dir: Annotated[
        Path | None, typer.Option(help="Holds MNIST/raw, FashionMNIST/raw or cifar-10-batches-bin.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Runs a method: seeds 0, 1, ..")] = 1,
    lr: Annotated[
        str, typer.Option(help="Learning rate; of several, the best for each method is searched.")
    ] = "0.1",
    search_rounds: Annotated[
        int | None, typer.Option(min=1, help="Rounds of a search.", show_default="a third")
    ] = None,
    clients: Annotated[int | None, typer.Option(show_default="by data")] = None,
    participation: Annotated[float | None, typer.Option(show_default="by data")] = None,
    rounds: Annotated[int | None, typer.Option(show_default="by data")] = None,
    batch: Annotated[int, typer.Option(help="Minibatch of local SGD.")] = 64,
    split: Annotated[str, typer.Option(help="shards | iid | dirichlet:BETA")] = "shards",
    target: Annotated[float | None, typer.Option(show_default="by data")] = None,
    threads: Annotated[int | None, typer.Option(min=1, show_default="all cores")] = None,
    json_path: Annotated[
        Path | None, typer.Option("--json", help="Write all runs, each when it is done.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Keep the runs that --json holds; make the others.")
    ] = False,
    plot: Annotated[Path | None, typer.Option(help="Draw accuracy by rounds and bytes.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
) -> None:
    """Train by several methods from the same seeds, and compare accuracy, rounds, bytes and time.

    Of several learning rates each method gets the one with the best accuracy on a tenth of the
    training data, which is held out, after a shorter run of seed 0. A run whose loss ceases to be
    finite ends there, is kept, and counts as diverged. A comparison that was stopped goes on with
    --resume.
    """
    errors = Console(stderr=True)
    try:
        if data not in DEFAULTS:
            raise ValueError(f"compare: data must be one of {', '.join(DATASETS)}, got {data}.")
        usual = DEFAULTS[data]
        specs, rates = split_methods(methods), _rates(lr)
        for spec in specs:
            recipe(spec)
        held = _runs_of(json_path) if resume else []
        _writable(json_path, plot)
        if plot is not None:
            check(plot)
        base = Settings(
            data=data,
            method=specs[0],
            recipe=specs[0],
            clients=clients if clients is not None else int(usual["clients"]),
            participation=participation if participation is not None else usual["participation"],
            rounds=rounds if rounds is not None else int(usual["rounds"]),
            lr=rates[0],
            batch=batch,
            split=split,
            target=target if target is not None else usual["target"],
        )
        images = load(data, data_dir)
        results: list[Run] = []
        try:
            for spec in specs:
                plan = replace(base, method=spec, recipe=spec)
                found = None
                if len(rates) > 1:
                    short = replace(plan, rounds=search_rounds or max(1, base.rounds // 3))
                    found = _search(short, rates, images, threads, held)
                    if not quiet:
                        errors.print(f"{spec}: {_chosen(found)}", highlight=False)
                    plan = replace(plan, lr=_best(found))
                for seed in range(seeds):
                    one = replace(plan, seed=seed)
                    made = next((each for each in held if _is_of(each, one, found)), None)
                    if made is None:
                        with ticker(one, errors, quiet) as show:
                            made = _finished(one, images, threads, show)
                        if found is not None:
                            made["search"] = found
                        held.append(made)
                        if json_path is not None:  # what comes later does not lose it
                            _write_json(json_path, held)
                    results.append(made)
        finally:
            if results:
                wide = None if Console().is_terminal else LOG_WIDTH
                Console(width=wide).print(_table(specs, results))
        if plot is not None:
            draw(results, plot)
    except (ValueError, OSError, ImportError) as error:
        errors.print(f"error: {error}", style="red", highlight=False, markup=False, soft_wrap=True)
        raise typer.Exit(2) from error


def split_methods(text: str) -> list[str]:
    """Return the specs in a text; a comma before ``key=`` belongs to a spec.

    >>> split_methods("stc:p=0.1,sign,pstc:p=0.1,tau=2,ef21:p=0.1,down=stc:p=0.1,none")
    ['stc:p=0.1', 'sign', 'pstc:p=0.1,tau=2', 'ef21:p=0.1,down=stc:p=0.1', 'none']
    """
    specs: list[str] = []
    for part in text.split(","):
        if specs and "=" in part.partition(":")[0]:
            specs[-1] += f",{part}"
        else:
            specs.append(part)
    return list(dict.fromkeys(specs))


def validation(data: Data) -> Data:
    """Return data whose test part is held out of the training part; the test part is not there."""
    held = torch.arange(len(data.train)) % HELD_OUT == 0

    def part(index: torch.Tensor) -> Part:
        return Part(data.train.images[index], data.train.labels[index])

    return replace(data, train=part(~held), test=part(held))


def _rates(text: str) -> list[float]:
    try:
        return [float(each) for each in text.split(",")]
    except ValueError:
        raise ValueError(
            f"compare: lr must be numbers with commas between them, got {text!r}."
        ) from None


def _runs_of(path: Path | None) -> list[Run]:
    """Return the runs that a file holds; none where there is none."""
    if path is None:
        raise ValueError("compare: --resume needs the file of the runs, got none. Give --json.")
    if not path.exists():
        return []
    try:
        runs = json.loads(path.read_text())
        if all(each["settings"] and isinstance(each["rounds"], list) for each in runs):
            return list(runs)
    except (ValueError, TypeError, KeyError):
        pass
    raise ValueError(
        f"compare: --resume needs a file that --json wrote, got {path}. Give another, or leave "
        "--resume out."
    )


def _is_of(made: Run, settings: Settings, search: Search | None) -> bool:
    """Whether a run is the one that these settings and this search would make."""
    asked = {name: value for name, value in asdict(settings).items() if name != "epochs"}
    return made.get("search") == search and asked.items() <= made["settings"].items()


def _finished(
    plan: Settings, data: Data, threads: int | None, show: Callable[[Record], None] | None
) -> Run:
    """Return a run, up to where it diverged."""
    try:
        return run(plan, data, threads=threads, progress=show)
    except Diverged as stop:
        if stop.result is None:
            raise
        return stop.result


def _search(
    plan: Settings,
    rates: Sequence[float],
    data: Data,
    threads: int | None,
    held: Sequence[Run],
) -> Search:
    """Return the accuracy of each rate on held-out data, 0 where it diverges.

    Not searched again where a run of ``held`` that differs in rate, seed and rounds only has it.
    """
    free = {"lr", "seed", "rounds", "epochs", "target"}
    asked = {name: value for name, value in asdict(plan).items() if name not in free}
    for each in held:
        search: Search = each.get("search", {"rounds": 0, "accuracy": []})
        alike = search["rounds"] == plan.rounds and [r for r, _ in search["accuracy"]] == [*rates]
        if alike and asked.items() <= each["settings"].items():
            return search
    found = []
    for rate in rates:
        try:
            result = run(replace(plan, lr=rate), validation(data), threads=threads)
            accuracy = max(each["accuracy"] for each in result["rounds"][-3:])
        except ValueError:  # the loss is not finite
            accuracy = 0.0
        found.append([rate, accuracy])
    return {"rounds": plan.rounds, "accuracy": found}


def _best(search: Search) -> float:
    rate, _ = max(search["accuracy"], key=itemgetter(1))
    return float(rate)


def _chosen(search: Search) -> str:
    tried = ", ".join(f"{rate:g} {100 * accuracy:.2f} %" for rate, accuracy in search["accuracy"])
    return f"learning rate {_best(search):g} of {tried}"


def _accuracy(percent: Sequence[float], runs: int) -> str:
    """Return the mean of the runs that ended, in brackets least to greatest; how many diverged."""
    text = f"{sum(percent) / len(percent):.2f} %" if percent else "-"
    if percent[1:]:
        text += f" ({min(percent):.2f}..{max(percent):.2f})"
    lost = runs - len(percent)
    return f"{text}, {lost} of {runs} diverged" if lost else text


def _table(specs: Sequence[str], results: list[Run]) -> Table:
    """Return a row for each method: means over its seeds, of those that did not diverge."""
    rows = Table(title="Methods compared", title_justify="left")
    rows.add_column("method")
    for name in ("lr", "accuracy", "rounds to target", "MB up", "MB down", "s encode", "s decode"):
        rows.add_column(name, justify="right")
    for spec in specs:
        runs = [each for each in results if each["method"] == spec]
        if not runs:
            continue
        ended = [each for each in runs if not each.get("diverged")]
        last = [100 * each["rounds"][-1]["accuracy"] for each in ended]
        reached = [each["rounds_to_target"] for each in runs]
        goal = f"{100 * runs[0]['settings']['target']:g} %"

        def mean(values: Sequence[float]) -> float:
            return sum(values) / len(values)

        def megabytes(way: str, runs: list[Run] = ended or runs) -> str:
            sums = [sum(each[f"{way}_bytes"] for each in run["rounds"]) for run in runs]
            return f"{mean(sums) / 1e6:.2f}"

        rows.add_row(
            spec,
            f"{runs[0]['settings']['lr']:g}",
            _accuracy(last, len(runs)),
            f"{', '.join(str(each or '-') for each in reached)} ({goal})",
            megabytes("up"),
            megabytes("down"),
            f"{mean([each['encode_seconds'] for each in runs]):.2f}",
            f"{mean([each['decode_seconds'] for each in runs]):.2f}",
        )
    return rows
