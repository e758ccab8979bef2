"""``python -m gcext fl``: the loop on the command line."""

from __future__ import annotations

import json
import os
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from gcext.fl._data import DATASETS, load
from gcext.fl._plot import check
from gcext.fl._plot import plot as draw
from gcext.fl._report import table, ticker
from gcext.fl._run import Diverged, Interrupted, run
from gcext.fl._settings import DEFAULTS, Settings, complete
from gcext.fl._workers import uninterrupted

__all__ = ["fl"]

ENGINES = ("builtin", "flower")
LOG_WIDTH = 130  # of the table where no terminal gives one
INTERRUPTED = 130  # the shell's code for a process ended by SIGINT


def fl(
    data: Annotated[str, typer.Option(help=" | ".join(DATASETS))] = "digits",
    data_dir: Annotated[
        Path | None, typer.Option(help="Holds MNIST/raw, FashionMNIST/raw or cifar-10-batches-bin.")
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            help="fedavg | stc | pstc | any recipe or codec; repeat to compare.",
            show_default="pstc",
        ),
    ] = None,
    p: Annotated[float, typer.Option(help="Share of elements sent, for a bare method name.")] = 0.1,
    alpha: Annotated[float, typer.Option(help="Share of clients that keep their update.")] = 0.1,
    tau: Annotated[int, typer.Option(help="Earlier rounds that conflicts are sought in.")] = 1,
    clients: Annotated[int | None, typer.Option(show_default="by data")] = None,
    participation: Annotated[
        float | None, typer.Option(help="Share of clients drawn a round.", show_default="by data")
    ] = None,
    rounds: Annotated[int | None, typer.Option(show_default="by data")] = None,
    seed: Annotated[
        list[int] | None, typer.Option(help="Repeat for several.", show_default="0")
    ] = None,
    lr: Annotated[float, typer.Option(help="Learning rate of local SGD.")] = 0.1,
    batch: Annotated[int, typer.Option(help="Minibatch of local SGD.")] = 64,
    epochs: Annotated[
        int | None, typer.Option(help="Local epochs.", show_default="the recipe's: 1")
    ] = None,
    split: Annotated[str, typer.Option(help="shards | iid | dirichlet:BETA")] = "shards",
    target: Annotated[
        float | None, typer.Option(help="Accuracy to be reached.", show_default="by data")
    ] = None,
    stop_at_target: Annotated[bool, typer.Option("--stop-at-target")] = False,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Clients trained at once.", show_default="all cores")
    ] = None,
    json_path: Annotated[
        Path | None, typer.Option("--json", help="Write all figures, a list of runs.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw accuracy by rounds and bytes.")] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="Directory for checkpoints, one file a run.")
    ] = None,
    checkpoint_every: Annotated[int, typer.Option(min=1, help="Rounds between checkpoints.")] = 20,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from --checkpoint.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
    engine: Annotated[
        str, typer.Option(help="builtin | flower: clients are nodes of Flower's simulation.")
    ] = "builtin",
) -> None:
    """Train by federated learning over compressed packets, and count every byte."""
    errors = Console(stderr=True)
    results: list[dict[str, Any]] = []
    paths: list[Path | None] = []
    diverged: list[str] = []
    stopped = False
    try:
        if engine not in ENGINES:
            raise ValueError(f"fl: engine must be one of {', '.join(ENGINES)}, got {engine}.")
        if engine == "flower" and checkpoint is not None:
            raise ValueError(
                "fl: --engine flower keeps clients' states on its nodes, got --checkpoint. "
                "Use the built-in engine."
            )
        if data not in DEFAULTS:
            raise ValueError(f"fl: data must be one of {', '.join(DATASETS)}, got {data}.")
        usual = DEFAULTS[data]
        share = participation if participation is not None else usual["participation"]
        plans = [
            Settings(
                data=data,
                method=name,
                recipe=complete(name, p, alpha, tau),
                clients=clients if clients is not None else int(usual["clients"]),
                participation=share,
                rounds=rounds if rounds is not None else int(usual["rounds"]),
                seed=one,
                lr=lr,
                batch=batch,
                epochs=epochs,
                split=split,
                target=target if target is not None else usual["target"],
                stop_at_target=stop_at_target,
            )
            for name in dict.fromkeys(method or ["pstc"])
            for one in dict.fromkeys(seed or [0])
        ]
        _writable(json_path, plot)
        if plot is not None:
            check(plot)
        paths = _paths(checkpoint, len(plans), resume)
        images = load(data, data_dir)
        try:
            for settings, path in zip(plans, paths, strict=True):
                with ticker(settings, errors, quiet) as show:
                    try:
                        if engine == "flower":
                            result = import_module("gcext.flower").simulate(
                                settings, images, data_dir=data_dir, threads=threads, progress=show
                            )
                        else:
                            result = run(
                                settings,
                                images,
                                threads=threads,
                                path=path,
                                resume=resume and path is not None and path.exists(),
                                every=checkpoint_every,
                                progress=show,
                            )
                    except Interrupted as stop:
                        result, stopped = stop.result, True
                    except Diverged as stop:
                        if stop.result is None:
                            raise
                        result = stop.result
                        diverged.append(f"{settings.method}, seed {settings.seed}: {stop}")
                    results.append(result)
                if stopped:
                    break
        finally:  # an error in a later run does not lose the earlier ones
            if results:
                with uninterrupted():
                    _report(results, json_path)
        if plot is not None and any(r["rounds"] for r in results):
            draw(results, plot)
    except (ValueError, OSError, ImportError) as error:
        _print_error(errors, error)
        raise typer.Exit(2) from error
    except KeyboardInterrupt:
        stopped = True
    for text in diverged:
        _print_error(errors, text)
    if stopped:
        ending = _ending(results, paths)
        errors.print(ending, highlight=False, markup=False, soft_wrap=True)
        raise typer.Exit(INTERRUPTED)
    if diverged:
        raise typer.Exit(2)


def _print_error(console: Console, text: object) -> None:
    console.print(f"error: {text}", style="red", highlight=False, markup=False, soft_wrap=True)


def _report(results: list[dict[str, Any]], json_path: Path | None) -> None:
    if json_path is not None:
        _write_json(json_path, results)
    terminal = Console().is_terminal
    Console(width=None if terminal else LOG_WIDTH).print(table(results))


def _ending(results: list[dict[str, Any]], paths: list[Path | None]) -> str:
    """Return what there is after Ctrl-C, and how to go on."""
    if not results:
        return "fl: interrupted before the first round; nothing was lost."
    last, saved = results[-1], paths[len(results) - 1]
    if not last["interrupted"]:
        done = f"fl: interrupted after {len(results)} of {len(paths)} runs; the table holds them. "
    else:
        number, planned = len(last["rounds"]), last["settings"]["rounds"]
        kept = "no checkpoint was written" if saved is None else f"{saved} holds that round"
        done = f"fl: interrupted after round {number} of {planned}; {kept}. "
    if saved is None:
        return done + "Give --checkpoint DIR next time."
    return done + "Go on with the same command and --resume."


def _writable(*paths: Path | None) -> None:
    """Raise ValueError where a result could not be written, before the first round."""
    for path in filter(None, paths):
        if path.is_dir() or not os.access(path.parent, os.W_OK):
            raise ValueError(f"fl: results need a writable file, got {path}.")


def _paths(folder: Path | None, count: int, resume: bool) -> list[Path | None]:
    """Return the checkpoint of every run, in the order of the command line."""
    if folder is None:
        if resume:
            raise ValueError("fl: --resume needs a directory, got none. Give --checkpoint DIR.")
        return [None] * count
    paths = [folder / f"run-{i}.checkpoint" for i in range(1, count + 1)]
    there = [path for path in paths if path.exists()]
    if resume and not there:
        raise ValueError(
            f"fl: --resume needs a checkpoint, got none in {folder}. Leave --resume out."
        )
    if there and not resume:
        raise ValueError(
            f"fl: a checkpoint is never overwritten by another run, got {there[0]}. "
            "Give --resume, or another --checkpoint."
        )
    return list(paths)


def _write_json(path: Path, results: list[dict[str, Any]]) -> None:
    path.write_text(json.dumps(results, indent=1) + "\n")
