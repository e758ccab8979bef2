"""``python -m bench feedback``: ErrorFeedback of each codec, of float32 and bfloat16 tensors."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import torch
import typer
from rich.console import Console
from torch import Tensor

import gcext

from . import oracle, report, rows
from .case import Case, Problem, Setting
from .eager import EAGER
from .options import Counts, Json, Rounds, Seed, Threads, parse_counts, set_threads
from .timing import Variant

SPECS = ["stc:p=0.001", "stc:p=0.01", "stc:p=0.1", "dense", "randomk:p=0.01", "sign", "onebit"]
SPECS += ["terngrad", "qsgd", "dorefa", "natural", "int8", "bf16", "fp16"]
SPECS += ["strom:tau=2.5", "ajiheafield", "wangni", "sbc", "dryden", "sparseloco"]
# Bytes of an element that a pass must move beside its packet: tensor and residual in, the next
# residual out. What needs a number of all elements before it can code any, or leave what it lacks,
# reads, and leaves, the sum again.
PASS = 12
AGAIN = {"terngrad": 12, "wangni": 12, "onebit": 8}
# What the residual is multiplied with in the codec's method, and so in the floor, which then moves
# so many bytes of an element.
DECAY, DECAYED = {"sparseloco": 0.95}, 20
COLUMNS = {
    "codec": "name", "n": "n", "float32 ms": "gcext_ms", "bfloat16 ms": "bfloat16_ms",
    "floor ms": "floor_ms", "of floor": "of_floor", "B/element": "bytes_per_element",
    "of the floor of these": "of_own", "eager ms": "torch_ms", "speedup": "speedup",
    "faults": "page_faults",
}  # fmt: skip
TITLE = "a step with a residual; the floor is residual.add_(tensor), 12 bytes an element"


def case(spec: str, setting: Setting) -> Case:
    """A codec as ErrorFeedback runs it, rolled back outside the timed part, against eager."""
    codec = gcext.codec(spec)
    decay = DECAY.get(codec.name, 1.0)
    generator = torch.Generator().manual_seed(setting.seed + 1)
    steps = [setting.draw(generator) for _ in range(3)]
    problem = Problem(setting, ternary=False)
    brain = problem.tensor.bfloat16()

    def ours(name: str, tensor: Tensor) -> Variant:
        made = gcext.ErrorFeedback(codec, seed=setting.seed, decay=decay)
        for step in steps:
            made.compress(step.to(tensor.dtype), "g")
        before = made.residual("g")

        def reset() -> None:
            if made.pending:
                made.rollback("g")

        def check(packet: gcext.Packet) -> str:
            left = made.state_dict()["pending"]["g"]
            return _conserved(tensor.float() + decay * before, _dense(packet), left)

        return Variant(name, partial(made.compress, tensor, "g", commit=False), check, reset)

    def eager() -> tuple[Tensor, Tensor, Tensor]:
        total = torch.add(problem.tensor, problem.residual, alpha=decay)
        sent = EAGER[codec.name](total, codec)
        problem.residual.copy_(total - sent)
        return total, sent, problem.residual

    baseline = Variant("eager", eager, lambda got: _conserved(*got), problem.reset)
    wire = codec.encode(problem.tensor, seed=1).nbytes / setting.n
    own = PASS + AGAIN.get(codec.name, 0) + wire
    return Case(
        codec.spec,
        setting,
        ours("gcext", problem.tensor),
        (baseline,) if codec.name in EAGER else (),
        problem.floor(decay),
        also=(ours("bfloat16", brain),),
        facts={"bytes_per_element": own},
    )


def _dense(packet: gcext.Packet) -> Tensor:
    made = packet.to_dense(dtype=torch.float32)
    assert isinstance(made, Tensor)
    return made


def _conserved(total: Tensor, sent: Tensor, left: Tensor) -> str:
    """Return how what was sent and what is left differ from the sum beyond rounding, or ""."""
    scale = (sent.abs() + left.abs() + total.abs()).numpy()
    return oracle.departs("sent and left", (sent + left).numpy(), total.numpy(), scale)


def measure(spec: str, setting: Setting, rounds: int, progress: rows.Progress) -> report.Row:
    """Return the row of a codec."""
    row = rows.measure(case(spec, setting), rounds, peak=False, progress=progress)
    if row.gcext_ms and row.floor_ms:
        floor = DECAYED if gcext.codec(spec).name in DECAY else PASS
        own = row.extra["bytes_per_element"] / floor
        row.extra["of_own"] = round(row.gcext_ms / (row.floor_ms * own), 3)
    return row


def command(
    n: Counts = ["10M"],  # noqa: B006 (typer copies it)
    codec: Annotated[list[str], typer.Option(help="Spec; repeatable.")] = SPECS,
    threads: Threads = 0,
    rounds: Rounds = 0,
    seed: Seed = 0,
    variants: Annotated[bool, typer.Option(help="Show every variant.")] = False,
    json_: Json = None,
) -> None:
    """ErrorFeedback of each codec: of the bare pass, of its own bytes, of PyTorch's version."""
    set_threads(threads)
    found = []
    with Console(stderr=True).status("starting") as status:
        for count in parse_counts(n):
            for spec in codec:
                found.append(measure(spec, Setting(count, 1.0, seed), rounds, status.update))
    report.save(found, json_)
    report.show(found, COLUMNS, TITLE, variants)
    if any(row.failed for row in found):
        raise typer.Exit(1)
