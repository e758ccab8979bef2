"""One picture for several runs: accuracy against rounds, bytes up and all bytes."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

__all__ = ["check", "plot"]


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

    A method has a colour, its seeds share it; the dashed line is the target.  The suffix of
    ``path`` chooses the format.  Raises ImportError without matplotlib, ValueError for a suffix it
    cannot write.
    """
    check(path)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 4), layout="constrained")
    FigureCanvasAgg(figure)
    by_rounds, by_up, by_bytes = figure.subplots(1, 3, sharey=True)
    methods = list(dict.fromkeys(result["method"] for result in results))
    for method, seed, result in ((r["method"], r["seed"], r) for r in results):
        rounds = result["rounds"]
        up = itertools.accumulate(r["up_bytes"] for r in rounds)
        sent = itertools.accumulate(r["up_bytes"] + r["down_bytes"] for r in rounds)
        accuracy = [100 * r["accuracy"] for r in rounds]
        first = next(r for r in results if r["method"] == method)["seed"] == seed
        style: dict[str, Any] = {
            "color": f"C{methods.index(method) % 10}",
            "label": method if first else None,
            "linewidth": 1.2,
            "alpha": 1.0 if first else 0.6,
        }
        by_rounds.plot([r["round"] for r in rounds], accuracy, **style)
        by_up.plot([total / 1e6 for total in up], accuracy, **style)
        by_bytes.plot([total / 1e6 for total in sent], accuracy, **style)
    for axes in (by_rounds, by_up, by_bytes):
        for target in sorted({r["settings"]["target"] for r in results}):
            axes.axhline(100 * target, color="grey", linewidth=0.8, linestyle="--")
        axes.grid(alpha=0.3)
    by_rounds.set(xlabel="round", ylabel="test accuracy (%)")
    by_up.set(xlabel="MB sent up", xscale="log")
    by_bytes.set(xlabel="MB sent, up and down", xscale="log")
    by_rounds.legend(loc="lower right")
    figure.suptitle(", ".join(dict.fromkeys(r["settings"]["data"] for r in results)))
    figure.savefig(path, dpi=150)
