"""``python -m bench polar``: what polar coding reaches, and how fast.

Distortion against the bound and the published table, throughput on one core beside a copy of the
signs and py-polar-codes (where installed); and what polar_real.py does on real values.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

import numpy as np
import torch
import typer

from gcext import polar

from . import internals, options, polar_real, report
from .polar_real import RATES
from .report import Row
from .timing import Variant, interleave

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
    return internals.crossover(round(rate * (1 << 20)), 1 << 20) / 2**32


def distortion(blocks: int, lengths: list[int], seed: int = 0) -> list[Row]:
    """Return the mean Hamming distortion of random signs, for each N, rate and coder."""
    rows = []
    generator = torch.Generator().manual_seed(seed)
    for block in lengths:
        numel = block * blocks
        source = torch.randint(0, 256, (numel // 8,), dtype=torch.uint8, generator=generator)
        for name, longest, chosen in CODERS:
            for i, rate in enumerate(RATES) if block <= longest else ():
                coded = polar.encode(source, rate, block, packed=True, **chosen)
                wrong = internals.unpack(source ^ polar.decode(coded), numel)
                each = wrong.view(-1, block, 64).sum(1, dtype=torch.float64).view(-1) / block
                mean, deviation = float(each.mean()), float(each.std())  # over blocks
                extra = {
                    "coder": name, "block": block, "rate": rate, "blocks": blocks,
                    "distortion": mean, "standard_error": deviation / math.sqrt(blocks),
                    "bound": bound(rate),
                }  # fmt: skip
                if name == "randomised" and block in PUBLISHED:
                    published = PUBLISHED[block][i]
                    z = (published - mean) / (deviation / PUBLISHED_BLOCKS**0.5)
                    extra |= {"published": published, "published_z": z}
                rows.append(Row("polar-distortion", numel, extra=extra))
    return rows


def throughput(lengths: list[int], rounds: int = 31, symbols: int = 1 << 22) -> list[Row]:
    """Return Gsymbol/s on one core: packed signs to packed message and back, and real values."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        cells = product(lengths, (0.1, 0.5, 0.9))
        return [_throughput(block, rate, rounds, symbols) for block, rate in cells]
    finally:
        torch.set_num_threads(threads)


def _throughput(block: int, rate: float, rounds: int, symbols: int) -> Row:
    numel = 64 * block * max(1, symbols // (64 * block))
    signs = torch.randint(0, 256, (numel // 8,), dtype=torch.uint8)
    values = torch.randn(numel)
    to, values_to = torch.empty_like(signs), torch.empty_like(values)

    def hard(**more: Any) -> polar.Coded:
        return polar.encode(signs, rate, block, packed=True, **more)

    def soft(**more: Any) -> polar.Coded:
        return polar.encode(values, rate, block, soft=True, **more)

    coded = hard()
    runs: dict[str, Callable[[], object]] = {
        "encode": hard,
        "encode_min_sum": lambda: hard(linear=False),
        "encode_soft": soft,
        "encode_soft_min_sum": lambda: soft(linear=False),
        "decode": lambda: polar.decode(coded),
        "memcpy": lambda: to.copy_(signs),
        "copy_values": lambda: values_to.copy_(values),
    }
    for run in runs.values():
        run()
    # The processor's time of this thread: by the wall clock a run of a millisecond on a busy
    # machine is now and then one of thirty.
    variants = [Variant(name, run) for name, run in runs.items()]
    spreads = interleave(variants, rounds, clock=time.thread_time)
    extra: dict[str, Any] = {"block": block, "rate": rate}
    for name, spread in spreads.items():
        extra[f"{name}_gsymbols"] = numel / spread.median / 1e6
        extra[f"{name}_best_gsymbols"] = numel / spread.best / 1e6
    ms = {name: spread.median for name, spread in spreads.items()}
    extra |= {
        "of_memcpy": ms["memcpy"] / ms["encode"],
        "decode_of_memcpy": ms["memcpy"] / ms["decode"],
        "soft_of_copy": ms["copy_values"] / ms["encode_soft"],
    }
    other_ms = _py_polar_codes_ms(block, rate, numel)
    if other_ms is not None:
        extra |= {"baseline": "py-polar-codes", "py_polar_codes_gsymbols": numel / other_ms / 1e6}
    return Row("polar-throughput", numel, None, "cpu", ms["encode"], other_ms, ms["memcpy"], extra)


def _py_polar_codes_ms(block: int, rate: float, numel: int, blocks: int = 4) -> float | None:
    """Return the time of py-polar-codes' SC decoder as an encoder, or None without it.

    Measured on ``blocks`` and multiplied. Its indices are ours with the bits reversed. It gets our
    frozen set, LLRs of the test channel.
    """
    try:
        from polarcodes.SCD import SCD
    except ImportError:
        return None
    levels, d = block.bit_length() - 1, bound(rate)
    frozen = internals.frozen_set(block, round(rate * block)).nonzero().flatten().tolist()
    indices = np.array([int(f"{i:0{levels}b}"[::-1], 2) for i in frozen])
    problem = SimpleNamespace(N=block, n=levels, frozen=indices, likelihoods=None)
    weight = math.log((1 - d) / d)
    rng = np.random.default_rng(0)
    start = time.thread_time()
    for _ in range(blocks):
        problem.likelihoods = np.where(rng.random(block) < 0.5, -weight, weight)
        SCD(problem).decode()
    return (time.thread_time() - start) * 1e3 * numel / (blocks * block)


def plot(rows: list[Row], path: Path) -> None:
    """Draw the distortions against the bound R = 1 - h2(D), and how far above it they are."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 5))
    rates = [i / 200 for i in range(1, 200)]
    flat = [row.flat() for row in rows if row.name == "polar-distortion"]
    left.plot([bound(r) for r in rates], rates, "k-", label="bound R = 1 - h2(D)")
    right.axhline(0, color="k")
    for coder, block in sorted({(row["coder"], row["block"]) for row in flat}):
        if coder == "min-sum" or (coder != "default" and block != 1024):
            continue
        points = [row for row in flat if (row["coder"], row["block"]) == (coder, block)]
        d, r = [row["distortion"] for row in points], [row["rate"] for row in points]
        left.plot(d, r, ".--", linewidth=0.8, label=f"{coder}, N = {block}")
        right.plot(r, [x / bound(y) - 1 for x, y in zip(d, r, strict=True)], ".-", linewidth=0.8)
    left.set(xlabel="mean Hamming distortion D", ylabel="rate R (bits a symbol)")
    right.set(xlabel="rate R (bits a symbol)", ylabel="D / D(R) - 1", ylim=(-0.02, 0.75))
    left.legend(fontsize="small")
    figure.savefig(path, dpi=110, bbox_inches="tight")
    pyplot.close(figure)


PARTS = ("distortion", "throughput", "cosine", "bias", "variance")


def command(
    part: Annotated[list[str] | None, typer.Option(help=f"Of {', '.join(PARTS)}.")] = None,
    blocks: Annotated[str, typer.Option(help="Of each distortion: a multiple of 64.")] = "2048",
    block: Annotated[
        list[str] | None,
        typer.Option(help="N: 1024, or 256,1024; repeatable.", show_default="256 to 8192"),
    ] = None,
    data: Annotated[str, typer.Option(help="Whose updates: digits, mnist, ..")] = "digits",
    data_dir: Annotated[Path | None, typer.Option(help="Where its files are.")] = None,
    json_: options.Json = None,
    plot_: options.Plot = None,
) -> None:
    """Measure distortion, throughput, squared cosine, bias and variance of polar coding."""
    count = options.parse_count(blocks, "blocks")
    if count < 64 or count % 64:
        raise ValueError(f"bench: blocks must be a multiple of 64, got {count}.")
    lengths = options.parse_counts(block or ["256,512,1024,2048,8192"], "block")
    parts = part or list(PARTS)
    if unknown := sorted(set(parts) - set(PARTS)):
        raise ValueError(f"bench: part must be of {', '.join(PARTS)}, got {unknown[0]}.")
    needs_real = not {"cosine", "bias", "variance"}.isdisjoint(parts)
    real = polar_real.updates(data, data_dir) if needs_real else []
    measures: dict[str, Callable[[], list[Row]]] = {
        "distortion": lambda: distortion(count, lengths),
        "throughput": lambda: throughput([256, 1024, 8192]),
        "cosine": lambda: polar_real.cosine(real),
        "bias": lambda: polar_real.bias(real),
        "variance": lambda: polar_real.variance(real),
    }
    rows = [row for name in PARTS if name in parts for row in measures[name]()]
    screen = report.show(rows)
    if needs_real and not real:
        screen.print(f"{data}: no such data here, so no real updates. Give --data and --data-dir.")
    report.save(rows, json_)
    if plot_ is not None:
        plot(rows, plot_)
