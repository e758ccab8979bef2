"""``python -m bench gpu-count``: what the CUDA kernels do to memory, counted without a GPU.

The kernels run under tests/emu with a counter behind every access. Counts are no times: no cache,
queue or clock is modelled. Three figures of global memory, in words of 4 bytes an element:

    requested   sectors of 32 bytes that the accesses of warps ask for, a sector once an access
    block       distinct sectors of every block: what an ideal first-level cache would ask for
    once        distinct sectors of every launch: what memory gives at least, the second ideal
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

from . import options
from .gpu_cases import CASES
from .gpu_kit import Case, Kit, emulator

WORDS = 8  # of a sector


@dataclass
class Kernel:
    """What the launches of one kernel, or all of a case, did."""

    name: str
    launches: int = 0
    blocks: int = 0  # of the largest launch
    read: float = 0.0  # words an element, requested
    written: float = 0.0
    block: float = 0.0
    once: float = 0.0
    atomics: float = 0.0  # lanes an element, on global memory
    shared_atomics: float = 0.0
    meet: float = 0.0  # lanes of a warp on one address, over all atomics
    meet_most: int = 0
    conflicts: float = 0.0  # wavefronts an element beyond one a turn
    wavefronts: float = 0.0
    barriers: int = 0  # of all blocks
    barriers_most: int = 0  # of one block

    @property
    def requested(self) -> float:
        """Words an element, read and written."""
        return self.read + self.written


@dataclass
class Result:
    """A case, counted."""

    kernel: str
    name: str
    n: int
    floor: float  # words an element
    formula: str
    chain: int  # launches that wait for one another
    total: Kernel
    kernels: list[Kernel] = field(default_factory=list)
    lines: list[tuple[str, str, str, float]] = field(default_factory=list)

    @property
    def ratio(self) -> float:
        """Requested words over the floor."""
        return self.total.requested / self.floor


def kernel_of(name: str, launches: Sequence[Any], n: int) -> Kernel:
    """Return the sum of launches."""

    def total(*names: str) -> int:
        return sum(getattr(launch, each) for launch in launches for each in names)

    lanes = total("atomics", "shared_atomics")
    return Kernel(
        name,
        len(launches),
        max(launch.blocks for launch in launches),
        WORDS * total("read_sectors") / n,
        WORDS * total("write_sectors") / n,
        WORDS * total("block_reads", "block_writes") / n,
        WORDS * total("once_reads", "once_writes") / n,
        total("atomics") / n,
        total("shared_atomics") / n,
        lanes / total("atomic_addresses", "shared_atomic_addresses") if lanes else 0.0,
        max(max(launch.atomic_most, launch.shared_atomic_most) for launch in launches),
        total("conflicts") / n,
        total("wavefronts") / n,
        total("barriers"),
        max(launch.barriers_most for launch in launches),
    )


def count(case: Case, n: int | None = None, lines: int = 0) -> Result:
    """Run a case under the emulator; lines: how many places in the code to report."""
    n = case.n if n is None else n
    torch.manual_seed(0)
    with emulator().counting() as counted:
        kit = Kit(counted, False)
        floor = case.run(kit, n)
        n = kit.elements or n
        launches = counted.launches()
        places = counted.places() if lines else []
    streams = [launch.stream for launch in launches]
    names = dict.fromkeys(launch.name for launch in launches)
    kernels = [
        kernel_of(name, [launch for launch in launches if launch.name == name], n) for name in names
    ]
    places.sort(key=lambda place: -(place.sectors or place.conflicts))
    top = [place for place in places if place.sectors or place.conflicts][:lines]
    return Result(
        case.kernel, case.name, n, floor / n, case.floor,
        max(map(streams.count, streams), default=0), kernel_of("all", launches, n), kernels,
        [
            (place.name, place.KINDS[place.kind], place.line,
             (WORDS * place.sectors or place.conflicts) / n)
            for place in top
        ],
    )  # fmt: skip


def show(results: Iterable[Result], detail: bool, lines: bool) -> None:
    """Print a table; detail: a row for each kernel as well."""
    table = Table(caption="Counts under the emulator, not times. Words of 4 bytes an element.")
    for title in ("case", "n", "launches", "read", "written", "block", "once", "floor", "ratio"):
        table.add_column(title, justify="left" if title == "case" else "right", no_wrap=True)
    for title in ("atomics", "meet", "conflicts", "barriers"):
        table.add_column(title, justify="right", no_wrap=True)

    def row(each: Kernel, head: Sequence[str], floor: Sequence[str]) -> None:
        table.add_row(
            *head, str(each.launches), *(
                f"{x:.3f}" for x in (each.read, each.written, each.block, each.once)
            ), *floor, f"{each.atomics:.4f}+{each.shared_atomics:.3f}",
            f"{each.meet:.1f} <= {each.meet_most}", f"{each.conflicts:.3f}",
            f"{each.barriers} <= {each.barriers_most}",
        )  # fmt: skip

    for result in results:
        ends = (f"{result.floor:.3f}", f"{result.ratio:.2f}")
        row(result.total, (result.name, f"{result.n:,}"), ends)
        for each in result.kernels if detail else ():
            row(each, (f"  {each.name}, {each.blocks} blocks", ""), ("", ""))
    Console(width=200).print(table)
    for result in results if lines else ():
        typer.echo(f"\n{result.name}: {result.formula} at least")
        for name, kind, place, words in result.lines:
            typer.echo(f"  {words:8.4f} {kind:12} {name:28} {place}")
    typer.echo(
        "\nread, written: requested, a sector once an access of a warp; block: distinct sectors of"
        " each block; once: of each\nlaunch; atomics: lanes on global + on shared memory; meet:"
        " lanes of a warp on one address, mean <= most;\nconflicts: extra wavefronts of shared"
        " memory an element; barriers: of all blocks <= of one. Counts are no times."
    )


def page(results: Iterable[Result]) -> str:
    """Return the results as docs/results/cuda-counts.md."""
    titles = (
        "kernel", "case", "n", "launches", "read", "written", "block", "once", "at least", "",
        "ratio", "atomics, global + shared", "lanes meeting", "conflicts", "barriers of a block",
    )  # fmt: skip
    lines = [
        "# What the CUDA kernels ask of memory",
        "",
        "Written by `python -m bench gpu-count --page docs/results/cuda-counts.md`. **Counts under",
        "the emulator, not times**: no GPU took part. [CUDA](../cuda.md#what-was-counted) explains",
        "the columns. Words of 4 bytes an element; k: elements that are sent; m: packets.",
        "",
        "| " + " | ".join(titles) + " |",
        "|" + "---|" * len(titles),
    ]  # fmt: skip
    for each in results:
        total = each.total
        cells = (
            each.kernel, each.name, f"{each.n:,}", str(total.launches), f"{total.read:.3f}",
            f"{total.written:.3f}", f"{total.block:.3f}", f"{total.once:.3f}", each.formula,
            f"{each.floor:.3f}", f"{each.ratio:.2f}",
            f"{total.atomics:.4f} + {total.shared_atomics:.3f}",
            f"{total.meet:.1f}, most {total.meet_most}", f"{total.conflicts:.3f}",
            str(total.barriers_most),
        )  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def command(
    kernel: Annotated[
        list[str] | None, typer.Option(help="Base names in cuda/: select, or select,gram.")
    ] = None,
    n: Annotated[str, typer.Option(help="Elements of every case: 1M; each its own if ''.")] = "",
    detail: Annotated[bool, typer.Option(help="A row for each kernel too.")] = False,
    lines: Annotated[int, typer.Option(help="Places in the code with the most sectors.")] = 0,
    json_: options.Json = None,
    page_: Annotated[Path | None, typer.Option("--page", help="Where the table goes.")] = None,
) -> None:
    """Count what the CUDA kernels do to memory, without a GPU. Counts are no times."""
    emulator()
    wanted = [part for each in kernel or [] for part in each.split(",")]
    known = sorted({case.kernel for case in CASES})
    if unknown := [each for each in wanted if each not in known]:
        raise ValueError(f"bench: kernel must be of {', '.join(known)}, got {unknown[0]}.")
    elements = options.parse_count(n, "n") if n else None
    results = []
    with Console(stderr=True).status("starting") as status:
        for case in CASES:
            if wanted and case.kernel not in wanted:
                continue
            status.update(case.name)
            results.append(count(case, elements, lines))
    show(results, detail, lines > 0)
    if json_ is not None:
        json_.write_text(json.dumps([asdict(result) for result in results], indent=1) + "\n")
    if page_ is not None:
        page_.write_text(page(results))
