"""``python -m bench polar``: what polar coding reaches, and how fast.

Distortion against the bound and the published table, throughput on one core beside a copy of the
signs and py-polar-codes (where installed); and what polar_real.py does on real values.
"""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table

import gcext
from bench import polar_real
from bench.polar_real import RATES, Row
from gcext import polar
from gcext._native import ops
from gcext.polar import _design as design

# Mean distortion as published, by N and rate. In full each figure is a whole number of wrong
# symbols in three blocks: so many were averaged.
PUBLISHED_BLOCKS = 3
PUBLISHED = {
    256: (0.3737, 0.2409, 0.1445, 0.0794, 0.0260),
    512: (0.3665, 0.2161, 0.1315, 0.0729, 0.0221),
    1024: (0.3532, 0.2139, 0.1315, 0.0645, 0.0202),
    2048: (0.3558, 0.2181, 0.1291, 0.0685, 0.0200),
}
# Coders beside the default one: name, longest block, options.
CODERS: tuple[tuple[str, int, dict[str, Any]], ...] = (
    ("default", 1 << 20, {}),
    ("min-sum", 1 << 20, {"linear": False}),
    ("randomised", 8192, {"seed": 1}),
    ("list 4", 2048, {"list_size": 4}),
    ("list 32", 1024, {"list_size": 32}),
)


def bound(rate: float) -> float:
    """Return the distortion D with rate = 1 - h2(D)."""
    return design.crossover(round(rate * (1 << 20)), 1 << 20) / 2**32


def distortion(blocks: int, lengths: list[int], seed: int = 0) -> list[Row]:
    """Return the mean Hamming distortion of random signs, for each N, rate and coder."""
    rows = []
    generator = torch.Generator().manual_seed(seed)
    for block in lengths:
        numel = block * blocks
        source = torch.randint(0, 256, (numel // 8,), dtype=torch.uint8, generator=generator)
        for name, longest, options in CODERS:
            for i, rate in enumerate(RATES) if block <= longest else ():
                coded = polar.encode(source, rate, block, packed=True, **options)
                wrong = ops.polar_unpack(source ^ polar.decode(coded), numel).view(
                    blocks // 64, block, 64
                )
                each = wrong.sum(1, dtype=torch.float64).view(-1) / block  # by block
                rows.append(
                    {
                        "name": "polar-distortion",
                        "coder": name,
                        "block": block,
                        "rate": rate,
                        "blocks": blocks,
                        "distortion": float(each.mean()),
                        "standard_error": float(each.std()) / math.sqrt(blocks),
                        "bound": bound(rate),
                    }
                )
                if name == "randomised" and block in PUBLISHED:
                    rows[-1]["published"] = PUBLISHED[block][i]
                    off = PUBLISHED[block][i] - float(each.mean())
                    rows[-1]["published_z"] = off / (float(each.std()) / PUBLISHED_BLOCKS**0.5)
    return rows


def _seconds(runs: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Return the processor's seconds of every run, interleaved, on this thread.

    By the wall clock a run of a millisecond on a busy machine is now and then one of thirty: the
    scheduler's time, and the longer the run the likelier.
    """
    for run in runs.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.thread_time()
            run()
            times[name].append(time.thread_time() - start)
    return times


def throughput(lengths: list[int], rounds: int = 31, symbols: int = 1 << 22) -> list[Row]:
    """Return Gsymbol/s on one core: packed signs to packed message and back, and real values."""
    rows = []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for block in lengths:
            for rate in (0.1, 0.5, 0.9):
                rows.append(_throughput(block, rate, rounds, symbols))
    finally:
        torch.set_num_threads(threads)
    return rows


def _throughput(block: int, rate: float, rounds: int, symbols: int) -> Row:
    numel = 64 * block * max(1, symbols // (64 * block))
    signs = torch.randint(0, 256, (numel // 8,), dtype=torch.uint8)
    values, to = torch.randn(numel), torch.empty_like(signs)
    values_to = torch.empty_like(values)
    coded = polar.encode(signs, rate, block, packed=True)
    times = _seconds(
        {
            "encode": lambda: polar.encode(signs, rate, block, packed=True),
            "encode_min_sum": lambda: polar.encode(signs, rate, block, packed=True, linear=False),
            "encode_soft": lambda: polar.encode(values, rate, block, soft=True),
            "encode_soft_min_sum": lambda: polar.encode(
                values, rate, block, soft=True, linear=False
            ),
            "decode": lambda: polar.decode(coded),
            "memcpy": lambda: to.copy_(signs),
            "copy_values": lambda: values_to.copy_(values),
        },
        rounds,
    )
    row: Row = {"name": "polar-throughput", "block": block, "rate": rate, "n": numel}
    row["isa"] = gcext.build_info()["isa"]
    for name, each in times.items():
        row[f"{name}_gsymbols"] = numel / statistics.median(each) / 1e9
        row[f"{name}_best_gsymbols"] = numel / min(each) / 1e9
    row["of_memcpy"] = row["encode_gsymbols"] / row["memcpy_gsymbols"]
    row["decode_of_memcpy"] = row["decode_gsymbols"] / row["memcpy_gsymbols"]
    row["soft_of_copy"] = row["encode_soft_gsymbols"] / row["copy_values_gsymbols"]
    rival = _rival(block, rate)
    if rival is not None:
        row["py_polar_codes_gsymbols"] = rival / 1e9
        row["speedup"] = row["encode_gsymbols"] * 1e9 / rival
    return row


def _rival(block: int, rate: float, blocks: int = 4) -> float | None:
    """Return symbols a second of py-polar-codes' SC decoder as an encoder, or None without it.

    Its indices are ours with the bits reversed. It gets our frozen set, LLRs of the test channel.
    """
    try:
        from polarcodes.SCD import SCD
    except ImportError:
        return None
    levels, d = block.bit_length() - 1, bound(rate)
    frozen = design.frozen_set(block, round(rate * block)).nonzero().flatten().tolist()
    problem = SimpleNamespace(
        N=block,
        n=levels,
        frozen=np.array([int(f"{i:0{levels}b}"[::-1], 2) for i in frozen]),
        likelihoods=None,
    )
    weight = math.log((1 - d) / d)
    rng = np.random.default_rng(0)
    start = time.thread_time()
    for _ in range(blocks):
        problem.likelihoods = np.where(rng.random(block) < 0.5, -weight, weight)
        SCD(problem).decode()
    return blocks * block / (time.thread_time() - start)


def plot(rows: list[Row], path: Path) -> None:
    """Draw the distortions against the bound R = 1 - h2(D), and how far above it they are."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 5))
    rates = [i / 200 for i in range(1, 200)]
    left.plot([bound(r) for r in rates], rates, "k-", label="bound R = 1 - h2(D)")
    right.axhline(0, color="k")
    curves = [row for row in rows if row["name"] == "polar-distortion"]
    for coder, block in sorted({(row["coder"], row["block"]) for row in curves}):
        if coder == "min-sum" or (coder != "default" and block != 1024):
            continue
        points = [row for row in curves if (row["coder"], row["block"]) == (coder, block)]
        d, r = [row["distortion"] for row in points], [row["rate"] for row in points]
        left.plot(d, r, ".--", linewidth=0.8, label=f"{coder}, N = {block}")
        right.plot(r, [x / bound(y) - 1 for x, y in zip(d, r, strict=True)], ".-", linewidth=0.8)
    left.set(xlabel="mean Hamming distortion D", ylabel="rate R (bits a symbol)")
    right.set(xlabel="rate R (bits a symbol)", ylabel="D / D(R) - 1", ylim=(-0.02, 0.75))
    left.legend(fontsize="small")
    figure.savefig(path, dpi=110, bbox_inches="tight")
    pyplot.close(figure)


def _print(screen: Console, rows: list[Row]) -> None:
    for name in dict.fromkeys(row["name"] for row in rows):
        these = [row for row in rows if row["name"] == name]
        table = Table(title=name, title_justify="left")
        keys = [key for row in these for key in row if key != "name" and "_best_" not in key]
        keys = list(dict.fromkeys(keys))
        for key in keys:
            table.add_column(key, justify="right")
        for row in these:
            cells = (row.get(key) for key in keys)
            table.add_row(*(f"{c:.4f}" if isinstance(c, float) else str(c or "-") for c in cells))
        screen.print(table)


PARTS = ("distortion", "throughput", "cosine", "bias", "variance")


def command(
    part: Annotated[list[str] | None, typer.Option(help=f"Of {', '.join(PARTS)}.")] = None,
    blocks: Annotated[
        int, typer.Option(help="Blocks of each distortion: a multiple of 64.")
    ] = 2048,
    block: Annotated[list[int] | None, typer.Option(help="N; repeatable. 256 to 8192.")] = None,
    data: Annotated[str, typer.Option(help="Whose updates: digits, mnist, ..")] = "digits",
    data_dir: Annotated[Path | None, typer.Option(help="Where its files are.")] = None,
    json_: Annotated[Path | None, typer.Option("--json", help="Where rows go.")] = None,
    plot_: Annotated[Path | None, typer.Option("--plot", help="Where the plot goes.")] = None,
) -> None:
    """Measure distortion, throughput, squared cosine, bias and variance of polar coding."""
    if blocks < 64 or blocks % 64:
        raise typer.BadParameter(f"bench: blocks must be a multiple of 64, got {blocks}.")
    parts = part or list(PARTS)
    if unknown := sorted(set(parts) - set(PARTS)):
        raise typer.BadParameter(f"bench: part must be of {', '.join(PARTS)}, got {unknown[0]}.")
    needs_real = not {"cosine", "bias", "variance"}.isdisjoint(parts)
    real = polar_real.updates(data, data_dir) if needs_real else []
    measures: dict[str, Callable[[], list[Row]]] = {
        "distortion": lambda: distortion(blocks, block or [256, 512, 1024, 2048, 8192]),
        "throughput": lambda: throughput([256, 1024, 8192]),
        "cosine": lambda: polar_real.cosine(real),
        "bias": lambda: polar_real.bias(real),
        "variance": lambda: polar_real.variance(real),
    }
    rows = [row for name in PARTS if name in parts for row in measures[name]()]
    screen = Console(width=200)
    _print(screen, rows)
    if needs_real and not real:
        screen.print(f"{data}: no such data here, so no real updates. Give --data and --data-dir.")
    if json_ is not None:
        json_.write_text(json.dumps(rows, indent=1) + "\n")
    if plot_ is not None:
        plot(rows, plot_)


if __name__ == "__main__":
    typer.run(command)
