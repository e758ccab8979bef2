"""``python -m bench server``: the projection of m packets, against dense PyTorch.

* loop: what FedFV publishes (Wang et al. 2021, Algorithm 2), loops over dense tensors.
* dense: packets made dense, Gram matrix by torch.mm, our coefficients, their sum by torch.mm.
* gcext: the packets as they are.

What would take too long or too much memory runs on a part and is multiplied: the loop on a few of
the clients, dense on the first of the elements. A row has the factors under ``extrapolated``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from rich.console import Console
from torch import Tensor

import gcext

from . import internals, options, oracle, report, rows
from .case import Case, Setting
from .memory import peak_bytes
from .report import Row
from .rows import Progress
from .timing import Variant

ALPHA = 0.1
# Above these a setting is left out, dense takes a part of the elements, the loop of the clients.
MOST_ENTRIES, MOST_DENSE, MOST_LOOPED = 200_000_000, 1_000_000_000, 3_000_000_000
WARM = 50_000

RATIOS = {
    "gcext_over_decode": ("gcext", "decode"),
    "loop_over_gcext": ("loop", "gcext"),
    "dense_over_gcext": ("torch", "gcext"),
    "ready_dense_over_gcext": ("dense", "gcext"),
    "mm_over_gram": ("mm", "gram"),
}
COLUMNS = {
    "m": "m", "d": "n", "p": "p",
    **{name: f"{name}_ms" for name in
       ("gcext", "gram", "project", "combine", "decode", "densify", "dense", "mm", "loop")},
    "loop/gcext": "loop_over_gcext", "dense/gcext": "dense_over_gcext",
    "ready/gcext": "ready_dense_over_gcext", "mm/gram": "mm_over_gram",
    "gcext/decode": "gcext_over_decode", "peak": "gcext_peak_bytes", "dense's": "dense_peak_bytes",
}  # fmt: skip


def make_packets(setting: Setting) -> list[gcext.Packet]:
    """Return m ternary packets of n elements, each element sent with probability p on average.

    A sixteenth of the elements holds half of the entries, as layers differ, and there clients of
    either parity agree with each other in three signs of four, so that updates conflict.
    """
    generator, n = setting.generator(), setting.n
    crowd = n // 16

    def signs(count: int) -> Tensor:
        return torch.randint(0, 2, (count,), generator=generator, dtype=torch.int8) * 2 - 1

    def packet(client: int) -> gcext.Packet:
        within = _support(crowd, 8 * setting.p, generator)
        beyond = _support(n - crowd, setting.p * 8 / 15, generator) + crowd
        index = torch.cat([within, beyond])
        sign = signs(len(index))
        common = pattern[within.long()] * (1 if client % 2 else -1)
        agree = torch.randint(0, 2, (len(within),), generator=generator, dtype=torch.bool)
        sign[: len(within)] = torch.where(agree, common, sign[: len(within)])
        scale = float(np.float32(1 + client / setting.m))
        return internals.ternary(n, index, sign.float() * scale, scale)

    pattern = signs(crowd)
    return [packet(client) for client in range(setting.m)]


def _support(n: int, p: float, generator: torch.Generator) -> Tensor:
    """Each of n elements with probability p, by geometric gaps."""
    count = int(n * p + 6 * math.sqrt(n * p) + 10)
    gaps = torch.empty(count).geometric_(p, generator=generator)
    index = gaps.to(torch.int64).cumsum(0) - 1
    return index[index < n].to(torch.int32)


def aggregate(packets: list[gcext.Packet]) -> Tensor:
    """From packets to the dense result; losses rise with the clients' numbers."""
    by_client = dict(enumerate(packets))
    losses = {client: float(client) for client in by_client}
    out = gcext.aggregate.Projection(alpha=ALPHA).aggregate(by_client, losses)
    assert isinstance(out, Tensor)
    return out


def densify(packets: list[gcext.Packet], d: int) -> Tensor:
    """The first d elements of all packets, (m, d)."""
    out = torch.zeros(len(packets), d)
    for row, packet in zip(out, packets, strict=True):
        index, value = internals.pairs(packet)
        count = int(torch.searchsorted(index, d))
        row[index[:count].long()] = value[:count]
    return out


def dense(x: Tensor) -> Tensor:
    """The projection of dense rows: two products and our coefficients."""
    dots = torch.mm(x, x.T).double().numpy()
    weights = torch.from_numpy(internals.project(dots, len(x), ALPHA, [])).float()
    return torch.mm(weights[None], x)[0]


def loop(x: Tensor, free: int) -> Tensor:
    """FedFV's loops over the rows: the first ``free`` are projected, the others kept."""
    changed = list(x)
    for i in range(free):
        for j in range(len(x)):
            if j == i:
                continue
            dot = torch.dot(x[j], changed[i])
            if dot < 0:
                changed[i] = changed[i] - x[j] * dot / (x[j].norm() ** 2)
    mean = sum(changed[1:], changed[0]) / len(x)
    return torch.mul(mean, x.mean(0).norm() / mean.norm())


def measure(
    setting: Setting, rounds: int, progress: Progress, baselines: bool = True, peak: bool = False
) -> Row:
    """Return the row of a setting, whose torch_ms is what dense takes from packets on."""
    progress(f"m={setting.m} d={report.short(setting.n)} p={setting.p:g}: making packets")
    row = rows.measure(_case(setting, baselines), rounds, False, progress)
    ms = {name: figures["ms"] for name, figures in row["variants"].items()}
    if {"densify", "dense"} <= ms.keys():
        ms["torch"] = row.torch_ms = ms["densify"] + ms["dense"]
        row.extra["baseline"] = "densify + dense"
    row.extra |= report.figures(ms, RATIOS) | (_peaks(setting) if peak else {})
    return row


def _case(setting: Setting, baselines: bool) -> Case:
    m, n = setting.m, setting.n
    packets = make_packets(setting)
    messages = [packet.to_bytes() for packet in packets]
    dots = gcext.gram(packets).numpy()
    weights = internals.project(dots, m, ALPHA, []).tolist()
    also: tuple[Variant, ...] = (
        Variant("gram", partial(gcext.gram, packets)),
        Variant("project", partial(internals.project, dots, m, ALPHA, [])),
        Variant("combine", partial(gcext.combine, packets, weights)),
        Variant("decode", lambda: [gcext.Packet.from_bytes(message) for message in messages]),
    )
    entries = sum(packet.k for packet in packets)
    facts = {"m": m, "entries": entries, "packets_bytes": 8 * entries}
    ours = Variant("gcext", partial(aggregate, packets))
    if not baselines:
        return Case("server", setting, ours, (), None, also, facts)

    part = min(n, MOST_DENSE // m)
    few = m if m * m * n <= MOST_LOOPED else max(3, min(8, MOST_LOOPED // (8 * n)))
    projected = m - internals.kept(m, ALPHA)
    free = projected if few == m else few - 1
    x, clients = densify(packets, part), densify(packets[:few], n)
    right = aggregate(packets).numpy()

    def check(got: Tensor) -> str:
        return oracle.departs("sum", got.numpy(), right, 100 * float(np.abs(right).max()))

    def unchecked(_: Tensor) -> str:  # of a part the answer is another one
        return ""

    scale = 1.0 if few == m else projected * (m - 1) / (free * (few - 1))
    theirs = (
        Variant("dense", partial(dense, x), check if part == n else unchecked, factor=n / part),
        Variant(
            "loop", partial(loop, clients, free), check if few == m else unchecked, factor=scale
        ),
    )
    also += (
        Variant("densify", partial(densify, packets, part), factor=n / part),
        Variant("mm", lambda: torch.mm(x, x.T), factor=n / part),
    )
    return Case("server", setting, ours, theirs, None, also, facts)


def _peaks(setting: Setting) -> dict[str, int | None]:
    """Return the bytes that each way takes beyond the packets."""
    ways = ("gcext", "dense") if setting.m * setting.n <= MOST_DENSE else ("gcext",)
    small = Setting(WARM, setting.p, m=2)
    return {f"{way}_peak_bytes": peak_bytes(partial(_prepare, way), small, setting) for way in ways}


def _prepare(way: str, setting: Setting) -> Callable[[], Tensor]:
    packets = make_packets(setting)
    if way == "gcext":
        return partial(aggregate, packets)
    return lambda: dense(densify(packets, setting.n))


def exponents(points: list[Row], key: str) -> dict[str, float]:
    """Return a, b, c of ``key`` = const * m^a * d^b * p^c, by least squares of the logarithms."""
    x = np.array([[math.log(row[axis]) for axis in ("m", "n", "p")] + [1.0] for row in points])
    y = np.log([row[key] for row in points])
    fit = np.linalg.lstsq(x, y, rcond=None)[0]
    return dict(zip(("m", "d", "p"), fit[:3].tolist(), strict=True))


def plot(points: list[Row], path: Path) -> None:
    """Draw time against non-zeros: the whole, and the two baselines."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.set(xlabel="non-zeros of all packets", ylabel="milliseconds", xscale="log", yscale="log")
    marks = {20: "o", 100: "s", 1000: "^"}
    curves = {
        "gcext_ms": ("C0", "gcext, packets to dense result"),
        "dense_ms": ("C1", "dense PyTorch, already dense"),
        "loop_ms": ("C3", "published loop"),
    }
    flat = [row.flat() for row in points]
    for (key, (colour, label)), m in product(curves.items(), sorted({row["m"] for row in flat})):
        these = [row for row in flat if row["m"] == m and key in row]
        entries, ms = [row["entries"] for row in these], [row[key] for row in these]
        mark, what = marks.get(m, "x"), f"{label}, m = {m}"
        axes.plot(entries, ms, mark, color=colour, markersize=5, label=what)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="x-small")
    figure.savefig(path, dpi=150)


def command(
    m: options.Packets = ["20", "100", "1000"],  # noqa: B006
    n: options.Counts = ["300K", "10M", "100M"],  # noqa: B006
    p: options.Shares = ["0.001", "0.01", "0.1"],  # noqa: B006
    rounds: Annotated[int, typer.Option(help="Interleaved repeats.", min=1)] = 3,
    threads: options.Threads = 0,
    baselines: Annotated[bool, typer.Option(help="Time PyTorch too.")] = True,
    peak: options.Peak = True,
    json_: options.Json = None,
    plot_: options.Plot = None,
) -> None:
    """Measure the projection of m packets against the published loop and dense PyTorch."""
    options.set_threads(threads)
    found: list[Row] = []
    aside = Console(stderr=True)
    sizes = (options.parse_counts(m, "m"), options.parse_counts(n), options.parse_shares(p))
    settings = [Setting(n=each[1], p=each[2], m=each[0]) for each in product(*sizes)]
    with aside.status("starting") as status:
        for setting in settings:
            if setting.m * setting.n * setting.p > MOST_ENTRIES:
                aside.print(f"left out, too large: {setting}", highlight=False)
                continue
            found.append(measure(setting, rounds, status.update, baselines, peak))
            report.save(found, json_)
    screen = report.show(found, COLUMNS, "milliseconds are medians; * is extrapolated")
    if len(found) > 4:
        for key in ("gcext_ms", "gram_ms", "combine_ms"):
            fit = exponents(found, key)
            screen.print(key, " ".join(f"{axis}^{fit[axis]:.2f}" for axis in fit), highlight=False)
    if plot_ is not None:
        plot(found, plot_)
    if any(row["refused"] for row in found):
        raise typer.Exit(1)
