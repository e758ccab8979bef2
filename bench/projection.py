"""``python -m bench server``: the projection of m packets, against dense PyTorch.

* loop: what FedFV publishes (Wang et al. 2021, Algorithm 2), loops over dense tensors.
* dense: packets made dense, Gram matrix by torch.mm, our coefficients, their sum by torch.mm.
* gcext: the packets as they are.

What would take too long or too much memory runs on a part and is multiplied: the loop on a few of
the clients, dense on the first of the elements. A row says by how much under ``extrapolated``.
"""

from __future__ import annotations

import json
import math
import multiprocessing
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor

import gcext
from bench import oracle, report
from bench.case import Variant
from bench.memory import growth
from bench.timing import interleave
from gcext.aggregate._project import kept, project

Row = dict[str, Any]

ALPHA = 0.1
# Above these a setting is left out, dense takes a part of the elements, the loop of the clients.
MOST_ENTRIES, MOST_DENSE, MOST_LOOPED = 200_000_000, 1_000_000_000, 3_000_000_000
WARM = 50_000


@dataclass(frozen=True)
class Server:
    """One setting: m ternary packets of d elements, a share p of them sent.

    A sixteenth of the elements holds half of the entries, as layers differ, and there clients of
    either parity agree with each other in three signs of four, so that updates conflict.
    """

    m: int
    d: int
    p: float
    seed: int = 0

    def packets(self) -> list[gcext.Packet]:
        generator = torch.Generator().manual_seed(self.seed)
        crowd = self.d // 16
        pattern = torch.randint(0, 2, (crowd,), generator=generator, dtype=torch.int8) * 2 - 1
        return [self._packet(i, crowd, pattern, generator) for i in range(self.m)]

    def _packet(
        self, client: int, crowd: int, pattern: Tensor, generator: torch.Generator
    ) -> gcext.Packet:
        within = _support(crowd, 8 * self.p, generator)
        index = torch.cat([within, _support(self.d - crowd, self.p * 8 / 15, generator) + crowd])
        sign = torch.randint(0, 2, (len(index),), generator=generator, dtype=torch.int8) * 2 - 1
        common = pattern[within.long()] * (1 if client % 2 else -1)
        agree = torch.randint(0, 2, (len(within),), generator=generator, dtype=torch.bool)
        sign[: len(within)] = torch.where(agree, common, sign[: len(within)])
        scale = float(np.float32(1 + client / self.m))
        return gcext.Packet("ternary", (self.d,), torch.float32, index, sign.float() * scale, scale)


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
    out: Tensor = gcext.aggregate.Projection(alpha=ALPHA).aggregate(by_client, losses)
    return out


def densify(packets: list[gcext.Packet], d: int) -> Tensor:
    """The first d elements of all packets, (m, d)."""
    out = torch.zeros(len(packets), d)
    for row, packet in zip(out, packets, strict=True):
        assert packet.index is not None
        count = int(torch.searchsorted(packet.index, d))
        row[packet.index[:count].long()] = packet.value[:count]
    return out


def dense(x: Tensor) -> Tensor:
    """The projection of dense rows: two products and our coefficients."""
    dots = torch.mm(x, x.T).double().numpy()
    weights = torch.from_numpy(project(dots, len(x), ALPHA, [])).float()
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


def measure(server: Server, rounds: int, say: Callable[[str], None], baselines: bool = True) -> Row:
    """Return the row of a setting: medians in milliseconds, of interleaved runs."""
    m, d = server.m, server.d
    say(f"m={m} d={report.short(d)} p={server.p:g}: making packets")
    packets = server.packets()
    messages = [packet.to_bytes() for packet in packets]
    dots = gcext.gram(packets)
    weights = project(dots.numpy(), m, ALPHA, []).tolist()
    runs: dict[str, Callable[[], object]] = {
        "gcext": partial(aggregate, packets),
        "gram": partial(gcext.gram, packets),
        "project": partial(project, dots.numpy(), m, ALPHA, []),
        "combine": partial(gcext.combine, packets, weights),
        "decode": lambda: [gcext.Packet.from_bytes(message) for message in messages],
    }
    factor: dict[str, float] = {}
    if baselines:
        theirs, factor = _baselines(server, packets)
        runs |= theirs
    say(f"m={m} d={report.short(d)} p={server.p:g}: timing")
    spreads = interleave([Variant(name, run, str) for name, run in runs.items()], rounds)
    ms = {name: spreads[name].median * factor.get(name, 1) for name in runs}
    entries = sum(packet.k for packet in packets)
    row: Row = {
        "name": "server",
        "m": m,
        "n": d,
        "p": server.p,
        "entries": entries,
        **{f"{name}_ms": each for name, each in ms.items()},
        "gcext_over_decode": ms["gcext"] / ms["decode"],
    }
    if baselines:
        row |= {
            "loop_over_gcext": ms["loop"] / ms["gcext"],
            "dense_over_gcext": (ms["densify"] + ms["dense"]) / ms["gcext"],
            "ready_dense_over_gcext": ms["dense"] / ms["gcext"],
            "mm_over_gram": ms["mm"] / ms["gram"],
        }
    return row | {
        "quartiles_ms": {name: (spreads[name].low, spreads[name].high) for name in runs},
        "extrapolated": {name: times for name, times in factor.items() if times != 1},
        "packets_bytes": 8 * entries,
        "rounds": rounds,
        "seed": server.seed,
        **report.machine(),
    }


def _baselines(
    server: Server, packets: list[gcext.Packet]
) -> tuple[dict[str, Callable[[], object]], dict[str, float]]:
    """Return what to time, and what its times must be multiplied by, after a look at the answers.

    Raises ValueError where one gives another answer than the packets do.
    """
    m, d = server.m, server.d
    part = min(d, MOST_DENSE // m)
    few = m if m * m * d <= MOST_LOOPED else max(3, min(8, MOST_LOOPED // (8 * d)))
    free = m - kept(m, ALPHA) if few == m else few - 1
    x = densify(packets, part)
    clients = densify(packets[:few], d)
    answers = {"dense": dense(x)} if part == d else {}  # of other elements it is another one
    if few == m:
        answers["loop"] = loop(clients, free)
    right = aggregate(packets).numpy()
    for name, got in answers.items():
        if why := oracle.departs(name, got.numpy(), right, 100 * float(np.abs(right).max())):
            raise ValueError(f"bench: {why}.")
    runs: dict[str, Callable[[], object]] = {
        "densify": partial(densify, packets, part),
        "dense": partial(dense, x),
        "mm": lambda: torch.mm(x, x.T),
        "loop": partial(loop, clients, free),
    }
    pairs = (m - kept(m, ALPHA)) * (m - 1)
    factor = {"loop": 1.0 if few == m else pairs / (free * (few - 1))}
    return runs, factor | dict.fromkeys(("densify", "dense", "mm"), d / part)


def peaks(server: Server) -> Row:
    """Return the bytes that each way takes beyond the packets, in a process of its own each."""
    out: Row = {}
    for name in ("gcext", "dense"):
        if name == "dense" and server.m * server.d > MOST_DENSE:
            continue
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            out[f"{name}_peak_bytes"] = pool.apply(_peak, (server, name, torch.get_num_threads()))
    return out


def _peak(server: Server, name: str, threads: int) -> int | None:
    torch.set_num_threads(threads)

    def run(at: Server, packets: list[gcext.Packet]) -> Tensor:
        return aggregate(packets) if name == "gcext" else dense(densify(packets, at.d))

    small = Server(2, WARM, server.p)  # what a library allocates once is not the call's
    run(small, small.packets())
    packets = server.packets()
    return growth(lambda: run(server, packets))


def exponents(rows: list[Row], key: str) -> dict[str, float]:
    """Return a, b, c of ``key`` = const * m^a * d^b * p^c, by least squares of the logarithms."""
    x = np.array([[math.log(row[axis]) for axis in ("m", "n", "p")] + [1.0] for row in rows])
    y = np.log([row[key] for row in rows])
    fit = np.linalg.lstsq(x, y, rcond=None)[0]
    return dict(zip(("m", "d", "p"), fit[:3].tolist(), strict=True))


def plot(rows: list[Row], path: Path) -> None:
    """Draw time against non-zeros: the whole, and the two baselines."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    marks = {20: "o", 100: "s", 1000: "^"}
    for key, colour, label in (
        ("gcext_ms", "C0", "gcext, packets to dense result"),
        ("dense_ms", "C1", "dense PyTorch, already dense"),
        ("loop_ms", "C3", "published loop"),
    ):
        for m in sorted({row["m"] for row in rows}):
            these = [row for row in rows if row["m"] == m]
            axes.loglog(
                [row["entries"] for row in these if key in row],
                [row[key] for row in these if key in row],
                marks.get(m, "x"),
                color=colour,
                markersize=5,
                label=f"{label}, m = {m}",
            )
    axes.set(xlabel="non-zeros of all packets", ylabel="milliseconds")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="x-small")
    figure.savefig(path, dpi=150)


def _table(rows: list[Row]) -> Table:
    out = Table(title="milliseconds are medians; * is extrapolated", title_justify="left")
    columns = {
        "gcext": "gcext_ms", "gram": "gram_ms", "project": "project_ms", "combine": "combine_ms",
        "decode": "decode_ms", "dense": "dense_ms", "mm": "mm_ms", "loop": "loop_ms",
        "loop/gcext": "loop_over_gcext", "dense/gcext": "dense_over_gcext",
        "ready/gcext": "ready_dense_over_gcext", "mm/gram": "mm_over_gram",
        "gcext/decode": "gcext_over_decode",
    }  # fmt: skip
    for name in ("m", "d", "p", *columns, "peak MB"):
        out.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        cells = [
            f"{row[key]:.4g}" + "*" * (name in row["extrapolated"]) if key in row else "-"
            for name, key in columns.items()
        ]
        peak = row.get("gcext_peak_bytes")
        out.add_row(
            str(row["m"]), report.short(row["n"]), f"{row['p']:g}", *cells,
            "-" if peak is None else f"{peak / 1e6:.1f}",
        )  # fmt: skip
    return out


def command(
    m: Annotated[list[int] | None, typer.Option(help="Packets; repeatable.")] = None,
    n: Annotated[list[int] | None, typer.Option(help="Elements; repeatable.")] = None,
    p: Annotated[list[float] | None, typer.Option(help="Share that is sent; repeatable.")] = None,
    rounds: Annotated[int, typer.Option(help="Interleaved repeats.", min=1)] = 3,
    threads: Annotated[int, typer.Option(help="0: as torch has it.", min=0)] = 0,
    baselines: Annotated[bool, typer.Option(help="Time PyTorch too.")] = True,
    peak: Annotated[bool, typer.Option(help="Measure peak memory too.")] = True,
    json_: Annotated[Path | None, typer.Option("--json", help="Where rows go.")] = None,
    plot_: Annotated[Path | None, typer.Option("--plot", help="Where the plot goes.")] = None,
) -> None:
    """Measure the projection of m packets against the published loop and dense PyTorch."""
    if threads:
        torch.set_num_threads(threads)
    rows = []
    aside = Console(stderr=True)
    with aside.status("starting") as status:
        for server in (Server(*each) for each in product(
            m or [20, 100, 1000], n or [300_000, 10_000_000, 100_000_000], p or [0.001, 0.01, 0.1]
        )):  # fmt: skip
            if server.m * server.d * server.p > MOST_ENTRIES:
                aside.print(f"left out, too large: {server}", highlight=False)
                continue
            row = measure(server, rounds, status.update, baselines)
            rows.append(row | (peaks(server) if peak else {}))
            if json_ is not None:
                json_.write_text(json.dumps(rows, indent=1) + "\n")
    screen = Console(width=200)
    screen.print(_table(rows))
    if len(rows) > 4:
        for key in ("gcext_ms", "gram_ms", "combine_ms"):
            fit = exponents(rows, key)
            screen.print(key, " ".join(f"{axis}^{fit[axis]:.2f}" for axis in fit), highlight=False)
    if plot_ is not None:
        plot(rows, plot_)
