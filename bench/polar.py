"""``python -m bench polar``: what polar coding reaches, and how fast.

Distortion against the bound and the published table, throughput on one core beside a copy of the
signs and py-polar-codes (where installed), squared cosine and variance at equal bytes beside sparse
ternary compression and subsampled signs.
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
from torch import Tensor

import gcext
from gcext import _polar_design as design
from gcext import _polar_ops as ops
from gcext import polar

Row = dict[str, Any]

RATES = (0.1, 0.3, 0.5, 0.7, 0.9)
# Mean distortion as published for randomised rounding, by N and rate.
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
                wrong = ops.unpack(source ^ polar.decode(coded), numel).view(
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
                        "published": PUBLISHED[block][i] if block in PUBLISHED else None,
                    }
                )
    return rows


def _seconds(runs: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Return the times of every run, interleaved."""
    for run in runs.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
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
        },
        rounds,
    )
    row: Row = {"name": "polar-throughput", "block": block, "rate": rate, "n": numel}
    row["isa"] = gcext.build_info()["isa"]
    for name, each in times.items():
        row[f"{name}_gsymbols"] = numel / statistics.median(each) / 1e9
        row[f"{name}_best_gsymbols"] = numel / min(each) / 1e9
    row["of_memcpy"] = row["encode_gsymbols"] / row["memcpy_gsymbols"]
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
    start = time.perf_counter()
    for _ in range(blocks):
        problem.likelihoods = np.where(rng.random(block) < 0.5, -weight, weight)
        SCD(problem).decode()
    return blocks * block / (time.perf_counter() - start)


def _squared_cosine(x: Tensor, y: Tensor) -> float:
    x, y = x.double(), y.double()
    norms = float(x.square().sum() * y.square().sum())
    return float(x @ y) ** 2 / norms if norms else 0.0


def cosine(block: int = 8192, blocks: int = 128, seed: int = 0) -> list[Row]:
    """Return cos^2 of the decoded and the original vector, at equal true bytes."""
    generator = torch.Generator().manual_seed(seed)
    n = block * blocks
    gaussian = torch.randn(n, generator=generator)
    uniform = torch.rand(n, generator=generator) - 0.5
    laplace = -uniform.sign() * torch.log1p(-2 * uniform.abs())
    rows = []
    for source, x in (("gaussian", gaussian), ("laplace", laplace)):
        for rate in RATES:
            coded = polar.encode(x, rate, block, soft=True)
            plain = polar.encode(x < 0, rate, block)
            kept = round(rate * n)
            rotated = polar.encode_rotated(x, rate, block, seed=seed)
            share, packet = _stc_of_size(x, coded.nbytes)
            rows.append(
                {
                    "name": "polar-cosine",
                    "source": source,
                    "block": block,
                    "rate": rate,
                    "bytes": coded.nbytes,
                    "weighted": _squared_cosine(x, 1.0 - 2.0 * polar.decode(coded)),
                    "plain": _squared_cosine(x, 1.0 - 2.0 * polar.decode(plain)),
                    "rotated": _squared_cosine(x, rotated.to_dense()),
                    "signs": _squared_cosine(x, torch.cat([x[:kept].sign(), 0 * x[kept:]])),
                    "stc": _squared_cosine(x, packet.to_dense()),
                    "stc_p": share,
                    "stc_bytes": packet.nbytes,
                }
            )
    return rows


def _stc_of_size(x: Tensor, nbytes: int) -> tuple[float, gcext.Packet]:
    """Return the largest share whose packet is no longer than nbytes, and the packet."""
    low, high = 0.0, 1.0
    best = gcext.stc(x, p=1e-6)
    for _ in range(14):
        p = (low + high) / 2
        packet = gcext.stc(x, p=p)
        if packet.nbytes <= nbytes:
            low, best = p, packet
        else:
            high = p
    return low, best


def variance(n: int = 1 << 16, draws: int = 16, block: int = 1024, seed: int = 0) -> list[Row]:
    """Return E|estimate - x|^2 / |x|^2 of the rotated coder and of subsampled rotated signs."""
    x = torch.randn(n, generator=torch.Generator().manual_seed(seed))
    norm = float(x.double().square().sum())
    rows = []
    for rate in (0.5, 0.25, 0.1):
        error, mean = 0.0, torch.zeros(n, dtype=torch.float64)
        for draw in range(draws):
            estimate = polar.encode_rotated(x, rate, block, seed=draw).to_dense().double()
            error += float((estimate - x).square().sum()) / norm / draws
            mean += estimate / draws
        signs = math.pi / 2 / rate - 1  # of R*n random rotated coordinates, scaled to be unbiased
        rows.append(
            {
                "name": "polar-variance",
                "block": block,
                "rate": rate,
                "n": n,
                "polar": error,
                "subsampled_signs": signs,
                "ratio": error / signs,
                "of_the_mean_times_draws": float((mean - x).square().sum()) / norm * draws,
                "draws": draws,
            }
        )
    return rows


def plot(rows: list[Row], path: Path) -> None:
    """Draw the distortions against the bound R = 1 - h2(D)."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 5))
    rates = [i / 200 for i in range(1, 200)]
    axes.plot([bound(r) for r in rates], rates, "k-", label="bound 1 - h2(D)")
    curves = [row for row in rows if row["name"] == "polar-distortion"]
    for coder, block in sorted({(row["coder"], row["block"]) for row in curves}):
        points = [row for row in curves if (row["coder"], row["block"]) == (coder, block)]
        axes.plot(
            [row["distortion"] for row in points],
            [row["rate"] for row in points],
            ".--",
            label=f"{coder}, N = {block}",
        )
    axes.set(xlabel="mean Hamming distortion D", ylabel="rate R (bits a symbol)")
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=150, bbox_inches="tight")
    pyplot.close(figure)


def _print(screen: Console, rows: list[Row]) -> None:
    for name in dict.fromkeys(row["name"] for row in rows):
        these = [row for row in rows if row["name"] == name]
        table = Table(title=name, title_justify="left")
        keys = [key for key in these[0] if key != "name" and "_best_" not in key]
        for key in keys:
            table.add_column(key, justify="right")
        for row in these:
            cells = (row.get(key) for key in keys)
            table.add_row(*(f"{c:.4f}" if isinstance(c, float) else str(c or "-") for c in cells))
        screen.print(table)


def command(
    blocks: Annotated[
        int, typer.Option(help="Blocks of each distortion: a multiple of 64.")
    ] = 2048,
    block: Annotated[list[int] | None, typer.Option(help="N; repeatable. 256 to 8192.")] = None,
    json_: Annotated[Path | None, typer.Option("--json", help="Where rows go.")] = None,
    plot_: Annotated[Path | None, typer.Option("--plot", help="Where the plot goes.")] = None,
) -> None:
    """Measure distortion, throughput, squared cosine and variance of polar coding."""
    if blocks < 64 or blocks % 64:
        raise typer.BadParameter(f"bench: blocks must be a multiple of 64, got {blocks}.")
    rows = distortion(blocks, block or [256, 512, 1024, 2048, 8192])
    rows += throughput([256, 1024, 8192]) + cosine() + variance()
    _print(Console(width=200), rows)
    if json_ is not None:
        json_.write_text(json.dumps(rows, indent=1) + "\n")
    if plot_ is not None:
        plot(rows, plot_)


if __name__ == "__main__":
    typer.run(command)
