"""``python -m bench recipes``: what a round of each recipe takes, part by part, at both ends."""

from __future__ import annotations

import resource
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any, TypeVar

import torch
import typer
from rich.console import Console
from torch import Tensor

import gcext

from .options import Counts, Json, Seed, Threads, parse_counts, set_threads
from .report import Row, save, show

_Result = TypeVar("_Result")
WARM = 3  # rounds before the clock counts: then there are residuals, and memory to use again
PARTS = ("encode", "pack", "unpack", "update", "answer")
COLUMNS = {
    "recipe": "name", "n": "n", "bits": "bits", "encode ms": "gcext_ms", "of floor": "of_floor",
    "pack ms": "pack_ms", "unpack ms": "unpack_ms", "update ms": "update_ms",
    "answer ms": "answer_ms", "faults": "page_faults",
}  # fmt: skip
TITLE = (
    "medians; encode, pack and unpack of one client's packet, the server's update from those of "
    "all, its answer; the floor is residual.add_(tensor); faults are of a whole round"
)


@dataclass
class Watch:
    """Times of the parts of rounds, in milliseconds, and the pages that each round was given."""

    times: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    faults: list[int] = field(default_factory=list)

    def time(self, part: str, call: Callable[[], _Result]) -> _Result:
        """Return what a call returns."""
        before, start = _faults(), time.perf_counter()
        result = call()
        self.times[part].append(1e3 * (time.perf_counter() - start))
        if part != "floor":
            self.faults[-1] += _faults() - before
        return result


def measure(spec: str, n: int, clients: int, rounds: int, seed: int) -> Row:
    """Return the row of a recipe: rounds of clients with gradients of their own, and the floor."""
    recipe = gcext.recipe(spec)
    generator = torch.Generator().manual_seed(seed)
    rows = max(n // 1000, 1)  # a matrix, as for low rank
    tensors = [torch.randn(rows, n // rows, generator=generator) for _ in range(clients)]
    residual = torch.zeros_like(tensors[0])
    senders = [recipe.up.sender(seed=client) for client in range(clients)]
    server, down = recipe.up.receiver(), recipe.down.sender(seed=clients)
    watch, bits = Watch(), 0.0
    for number in range(WARM + rounds):
        if number == WARM:
            watch = Watch()
        watch.faults.append(0)
        watch.time("floor", partial(residual.add_, tensors[0]))
        packets: dict[int, gcext.Packet] = {}
        for client, (sender, tensor) in enumerate(zip(senders, tensors, strict=True)):
            packet = watch.time("encode", partial(sender.compress, tensor, "g"))
            message = watch.time("pack", packet.to_bytes)
            unpack = partial(gcext.Packet.from_bytes, message, expect=tensor)
            packets[client] = watch.time("unpack", unpack)
            bits = 8 * len(message) / tensor.numel()
        losses = dict.fromkeys(packets, 1.0)
        update = watch.time("update", partial(server.aggregate, packets, losses=losses))
        assert isinstance(update, Tensor)
        watch.time("answer", partial(down.compress, update, "g"))
    ms = {part: statistics.median(times) for part, times in watch.times.items()}
    extra: dict[str, Any] = {f"{part}_ms": ms[part] for part in PARTS[1:]}
    extra |= {"bits": round(bits, 3), "clients": clients, "rounds": rounds, "seed": seed}
    extra["page_faults"] = statistics.median(watch.faults)
    return Row(spec, rows * (n // rows), gcext_ms=ms["encode"], floor_ms=ms["floor"], extra=extra)


def _faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def named(specs: Sequence[str]) -> list[str]:
    """Return the recipes asked for, by default all but those under another's name."""
    return list(specs) or [name for name in gcext.recipes() if name != "fedavg"]


def command(
    n: Counts = ["10M"],  # noqa: B006 (typer copies it)
    recipe: Annotated[list[str], typer.Option(help="Spec; repeatable.", show_default="all")] = [],  # noqa: B006
    clients: Annotated[int, typer.Option(help="Of a round.", min=1)] = 3,
    threads: Threads = 0,
    rounds: Annotated[int, typer.Option(help="Rounds that count.", min=1)] = 5,
    seed: Seed = 0,
    json_: Json = None,
) -> None:
    """Rounds of each recipe: encode, pack, unpack, the server's update, its answer; page faults."""
    set_threads(threads)
    found = []
    with Console(stderr=True).status("starting") as status:
        for count in parse_counts(n):
            for spec in named(recipe):
                status.update(f"{spec}: n={count}")
                found.append(measure(spec, count, clients, rounds, seed))
    save(found, json_)
    show(found, COLUMNS, TITLE)
