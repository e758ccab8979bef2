"""One picture for several runs: accuracy against rounds, bytes up and all bytes."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gcext._recipes import recipes

__all__ = ["check", "plot"]

Series = npt.NDArray[np.float64]

SMOOTH = 15  # parts of a run: a line is the mean over a window of one of them
# Of matplotlib's tab20, the strong ones first.
_COLOURS = [*range(0, 20, 2), *range(1, 20, 2)]
_DASHES = ["-", "--", ":", "-."]


def check(path: Path) -> None:
    """Raise ImportError without matplotlib, ValueError for a suffix that it cannot write."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
    except ImportError as error:
        raise ImportError(
            "plot: --plot needs matplotlib, got no such module. Run pip install 'gcext[all]'."
        ) from error
    suffixes = FigureCanvasAgg.get_supported_filetypes()
    suffix = path.suffix.removeprefix(".").lower()
    if suffix and suffix not in suffixes:  # without one it is matplotlib's own choice
        raise ValueError(
            f"plot: the suffix must be one of {', '.join(sorted(suffixes))}, got {suffix}. "
            "Correct --plot."
        )


def plot(results: list[dict[str, Any]], path: Path) -> None:
    """Draw test accuracy against rounds and the megabytes sent so far, up alone and up plus down.

    A line is a running mean, over the measured accuracy, faint; of several seeds it is their mean,
    in a band from the least to the greatest, without those that diverged. A method has the same
    colour in every picture, and several settings of it, and methods of one colour, differ by their
    dashes. The grey line is the target. The suffix of ``path`` chooses the format. Raises
    ImportError without matplotlib, ValueError for a suffix it cannot write.
    """
    check(path)
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    all_axes = figure.subplots(1, 3, sharey=True)
    methods = list(dict.fromkeys(result["method"] for result in results))
    for method in methods:
        runs = [r for r in results if r["method"] == method and r["rounds"]]
        if not runs:
            continue
        runs = [r for r in runs if not r.get("diverged")] or runs
        again, place = divmod(_place(runs[0]), len(_COLOURS))
        colour = colormaps["tab20"](_COLOURS[place])
        alike = [m for m in methods if _base(_run_of(results, m)) == _base(runs[0])]
        dashes = _DASHES[(again + alike.index(method)) % len(_DASHES)]
        style: dict[str, Any] = {"color": colour, "linestyle": dashes}
        least, mean, greatest = _accuracy(runs)
        for axes, x in zip(all_axes, _positions(runs, len(mean)), strict=True):
            axes.fill_between(x, least, greatest, color=colour, alpha=0.15, linewidth=0)
            axes.plot(x, mean, color=colour, alpha=0.3, linewidth=0.6)
            axes.plot(x, _smooth(mean), label=method, linewidth=1.6, **style)
    for axes in all_axes:
        for target in sorted({r["settings"]["target"] for r in results}):
            axes.axhline(100 * target, color="grey", linewidth=0.8)
        axes.grid(alpha=0.3)
    by_rounds, by_up, by_bytes = all_axes
    by_rounds.set(xlabel="round", ylabel="test accuracy (%)")
    by_up.set(xlabel="MB sent up", xscale="log")
    by_bytes.set(xlabel="MB sent, up and down", xscale="log")
    lines, labels = by_rounds.get_legend_handles_labels()
    if lines:
        figure.legend(lines, labels, loc="outside lower center", ncols=min(len(lines), 6))
    figure.suptitle(_title(results), fontsize=11)
    figure.savefig(path, dpi=150)


def _base(run: dict[str, Any]) -> str:
    """Return the name of a run's recipe, without options."""
    return str(run["settings"]["recipe"]).partition(":")[0]


def _run_of(results: Sequence[dict[str, Any]], method: str) -> dict[str, Any]:
    return next(r for r in results if r["method"] == method)


def _place(run: dict[str, Any]) -> int:
    """Return the place of a run's recipe among all; FedAvg has two names."""
    known = [name for name in recipes() if name != "fedavg"]
    name = "none" if _base(run) == "fedavg" else _base(run)
    return known.index(name) if name in known else len(known)


def _accuracy(runs: Sequence[dict[str, Any]]) -> tuple[Series, Series, Series]:
    """Return the least, mean and greatest accuracy of each round that all runs have, in percent."""
    rounds = min(len(run["rounds"]) for run in runs)
    each = np.array([[100 * r["accuracy"] for r in run["rounds"][:rounds]] for run in runs])
    return each.min(axis=0), each.mean(axis=0), each.max(axis=0)


def _positions(runs: Sequence[dict[str, Any]], rounds: int) -> tuple[Series, Series, Series]:
    """Return the rounds' numbers, and the megabytes up and in all so far, as means of the runs."""

    def megabytes(*keys: str) -> Series:
        sums = [
            list(itertools.accumulate(sum(r[key] for key in keys) for r in run["rounds"][:rounds]))
            for run in runs
        ]
        total: Series = np.mean(sums, axis=0) / 1e6
        return total

    numbers = np.array([r["round"] for r in runs[0]["rounds"][:rounds]], dtype=np.float64)
    return numbers, megabytes("up_bytes"), megabytes("up_bytes", "down_bytes")


def _smooth(values: Series) -> Series:
    """Return the mean over a window around each value, narrower towards both ends."""
    half = len(values) // SMOOTH // 2
    sums = np.concatenate([[0.0], np.cumsum(values)])
    at = np.arange(len(values))
    reach = np.minimum(np.minimum(at, len(values) - 1 - at), half)
    smooth: Series = (sums[at + reach + 1] - sums[at - reach]) / (2 * reach + 1)
    return smooth


def _title(results: Sequence[dict[str, Any]]) -> str:
    """Return the settings that all runs share."""
    every = [r["settings"] for r in results]

    def shared(key: str, text: str) -> list[str]:
        values = {s.get(key) for s in every}
        return [text.format(value) for value in values] if len(values) == 1 else []

    share = {s["participation"] for s in every}
    by_epochs = not any(s.get("local_steps") for s in every)
    seeds = len({r["seed"] for r in results})
    parts = [
        ", ".join(dict.fromkeys(s["data"] for s in every)),
        *shared("clients", "{} clients"),
        *([f"{100 * share.pop():g} % a round"] if len(share) == 1 else []),
        *shared("split", "split {}"),
        *shared("lr", "lr {:g}"),
        *shared("batch", "batch {}"),
        *(shared("epochs", "local epochs {}") if by_epochs else []),
        f"{seeds} seeds" if seeds > 1 else f"seed {results[0]['seed']}",
    ]
    return " · ".join(parts)
