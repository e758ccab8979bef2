"""``python -m bench gpu``: every figure asked of the CUDA kernels, in one file.

A figure is a ratio within one interleaved run. ``identity`` rows compare bytes with the CPU's;
``speed`` rows time steps of training (the same gradient, the residual carried on) against every
formulation in PyTorch and the bare ``residual.add_(tensor)``, 3 words an element.
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

import gcext
from gcext import Packet

from . import internals, report
from .report import Row
from .timing import Variant, device_clock, interleave
from .variants import Formulation, formulations, topk

SIZES = (1, 31, 32, 33, 10**3, 10**5, 10**7, 10**8)
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
SPEEDS = ((10**4, 0.01), (10**6, 0.01), (10**7, 0.01), (10**8, 0.001), (10**8, 0.01), (10**8, 0.1))
# A ResNet-50's parameters, roughly: 53 convolutions, 107 small vectors, one matrix.
MODEL = [64 * 3 * 49, *[256] * 107, *[36_864, 65_536, 147_456, 262_144, 589_824] * 10,
         *[2_359_296, 1_048_576, 2_097_152], 2_048_000]  # fmt: skip
GROWTH_CALLS, REPLAYS = 10_000, 1000

Steps = dict[str, Callable[[], object]]


def timed(steps: Steps, device: str, seconds: float) -> dict[str, float]:
    """Return each step's milliseconds: the median over 9 rounds of calls made back to back."""
    variants = [Variant(name, step) for name, step in steps.items()]
    spreads = interleave(variants, 9, clock=device_clock(device), seconds=seconds)
    return {name: spread.median for name, spread in spreads.items()}


def identity(n: int, dtype: torch.dtype, device: str) -> Row:
    """Return whether message and residual have the CPU's bytes."""
    here, start = torch.randn(n).to(dtype), torch.randn(n)
    residuals = [start.clone(), start.to(device, copy=True)]
    messages = [
        gcext.stc(tensor, 0.01, residual=residual).to_bytes()
        for tensor, residual in zip((here, here.to(device)), residuals, strict=True)
    ]
    same = torch.equal(*(residual.cpu().view(torch.int32) for residual in residuals))
    extra = {
        "dtype": str(dtype).removeprefix("torch."), "bytes": len(messages[0]),
        "identical": same and messages[0] == messages[1],
    }  # fmt: skip
    return Row("identity", n, 0.01, device, extra=extra)


def carried(formulation: Formulation, tensor: Tensor, k: int) -> Callable[[], None]:
    """Return a step of training in PyTorch, which carries its residual on."""
    residual = torch.zeros_like(tensor)

    def step() -> None:
        nonlocal residual
        after = formulation(tensor, residual, k, True).residual
        assert after is not None
        residual = after

    return step


def speed(n: int, p: float, device: str, seconds: float = 0.05, compiled: bool = False) -> Row:
    """Return the times of a step, and its ratios to the bare addition and to PyTorch's best."""
    tensor, k = torch.randn(n, device=device), max(int(p * n), 1)
    residual, total = torch.zeros(n, device=device), torch.zeros(n, device=device)
    feedback, sending = (gcext.ErrorFeedback(f"stc:p={p!r}") for _ in range(2))
    pytorch = {each.name: carried(each.run, tensor, k) for each in formulations(compiled)}
    steps: Steps = {
        "stc": lambda: gcext.stc(tensor, p, residual=residual),
        "feedback": lambda: feedback.compress(tensor, "g"),
        "feedback_bytes": lambda: sending.compress(tensor, "g").to_bytes(),
        "floor": lambda: total.add_(tensor),
        **pytorch,
    }
    ms = timed(steps, device, seconds)
    best = min(pytorch, key=ms.__getitem__)
    usual = min(ms["topk"], ms["topk-inplace"])
    extra: dict[str, Any] = report.figures(ms, {}) | {
        "stc_of_add_bandwidth": ms["floor"] / ms["stc"],
        "feedback_of_add_bandwidth": ms["floor"] / ms["feedback"],
        "bytes_of_feedback": ms["feedback_bytes"] / ms["feedback"] - 1,
        "add_gb_per_s": 12 * n / ms["floor"] / 1e6,
        "speedup_topk": usual / ms["feedback"],
        "speedup_best": ms[best] / ms["feedback"],
    }
    extra["best"] = best
    return Row("speed", n, p, device, ms["stc"], ms["topk"], ms["floor"], extra)


def batch(sizes: Sequence[int], device: str, seconds: float = 0.05) -> Row:
    """Return the times of a whole model: a list in one call, tensor by tensor, eager PyTorch."""
    tensors = [torch.randn(n, device=device) for n in sizes]
    first, second = ([torch.zeros_like(t) for t in tensors] for _ in range(2))
    eager = [carried(topk, tensor, max(tensor.numel() // 100, 1)) for tensor in tensors]
    steps: Steps = {
        "list": lambda: gcext.stc(tensors, 0.01, residual=first),
        "singles": lambda: [
            gcext.stc(t, 0.01, residual=r) for t, r in zip(tensors, second, strict=True)
        ],
        "topk": lambda: [step() for step in eager],
    }
    ms = timed(steps, device, seconds)
    ratios = {"speedup_singles": ("singles", "list"), "speedup_usual": ("topk", "list")}
    extra = {"tensors": len(tensors), **report.figures(ms, ratios)}
    return Row("batch", sum(sizes), 0.01, device, ms["list"], ms["topk"], extra=extra)


def packing(sizes: Sequence[int], device: str, seconds: float = 0.05) -> Row:
    """Return the times of a whole model on its way to bytes and back, and whether they are right.

    encode alone; encode and pack; open: where the packets are, and on the host, which fetches or
    sends the pairs of each.
    """
    here = [torch.randn(n) for n in sizes]
    tensors = [tensor.to(device) for tensor in here]
    want = Packet.group(gcext.stc(here, 0.01)).to_bytes()

    def group() -> Packet:
        return Packet.group(gcext.stc(tensors, 0.01))

    steps: Steps = {
        "encode": lambda: gcext.stc(tensors, 0.01),
        "encode_pack": lambda: group().to_bytes(),
        "encode_pack_on_host": lambda: group().to("cpu").to_bytes(),
        "open": lambda: Packet.from_bytes(want, device=device),
        "open_on_host": lambda: Packet.from_bytes(want).to(device),
    }
    ms = timed(steps, device, seconds)
    opened = Packet.from_bytes(want, device=device)
    extra = {
        "tensors": len(tensors),
        "bytes": len(want),
        **report.figures(ms, {}),
        "pack_of_encode": ms["encode_pack"] / ms["encode"] - 1,
        "identical": want == group().to_bytes() == Packet.group(opened.members).to_bytes(),
    }
    return Row("packing", sum(sizes), 0.01, device, ms["encode_pack"], extra=extra)


def server(m: int, n: int, p: float, device: str, seconds: float = 0.05) -> Row:
    """Return the times of all dot products of m ternary packets: as packets, as dense rows."""
    tensors = [torch.randn(n, device=device) for _ in range(m)]
    packets = [gcext.stc(tensor, p) for tensor in tensors]
    rows = torch.stack([internals.dense(packet) for packet in packets])
    del tensors
    steps: Steps = {"gram": lambda: gcext.gram(packets), "mm": lambda: torch.mm(rows, rows.T)}
    ms = timed(steps, device, seconds)
    dots, dense = gcext.gram(packets), torch.mm(rows, rows.T).double()
    norms = dots.diagonal().sqrt()
    largest = float(((dots - dense) / torch.outer(norms, norms)).abs().max())
    ratios = report.figures(ms, {"speedup_mm": ("mm", "gram")})
    extra = {"m": m, **ratios, "largest_difference": largest}
    return Row("gram", n, p, device, ms["gram"], ms["mm"], extra=extra)


def memory(n: int, device: str, calls: int = GROWTH_CALLS) -> Row:
    """Return growth over many calls, and the peak beyond inputs and outputs in words an element."""
    tensor, residual = torch.randn(n, device=device), torch.zeros(n, device=device)
    gcext.stc(tensor, 0.01, residual=residual)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    packet = gcext.stc(tensor, 0.01, residual=residual)
    peak = torch.cuda.max_memory_allocated() - before - 8 * packet.k
    del packet
    before = torch.cuda.memory_allocated()
    for _ in range(calls):
        gcext.stc(tensor, 0.01, residual=residual)
    torch.cuda.synchronize()
    growth = torch.cuda.memory_allocated() - before
    extra = {"calls": calls, "growth_bytes": growth, "peak_words_per_element": peak / 4 / n}
    return Row("memory", n, 0.01, device, extra=extra)


def replays(n: int, count: int = REPLAYS) -> Row:
    """Return how many replays of a captured encode, each on fresh data, gave the CPU's bytes."""
    tensor, residual = torch.randn(n, device="cuda"), torch.zeros(n, device="cuda")
    mirror = torch.zeros(n)
    gcext.stc(tensor, 0.01, residual=residual)  # loads the kernels
    residual.zero_()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        packet = gcext.stc(tensor, 0.01, residual=residual)
    residual.zero_()
    right = 0
    for _ in range(count):
        fresh = torch.randn(n)
        tensor.copy_(fresh)
        graph.replay()
        want = gcext.stc(fresh, 0.01, residual=mirror).to_bytes()
        right += packet.to_bytes() == want and torch.equal(residual.cpu(), mirror)
    return Row("graph", n, 0.01, "cuda", extra={"replays": count, "identical": right})


def tests(xml: Path) -> dict[str, int] | None:
    """Return what ``make gpu-test`` left: how many tests ran, failed, were skipped."""
    if not xml.exists():
        return None
    suite = ElementTree.parse(xml).getroot()[0]
    return {name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")}


def command(
    json_: Annotated[Path, typer.Option("--json", help="Where all of it goes.")],
    compiled: Annotated[bool, typer.Option(help="PyTorch under torch.compile, too.")] = False,
    large: Annotated[bool, typer.Option(help="Also 2^31+5 elements: 80 GB.")] = False,
    tested: Annotated[str, typer.Option("--report", help="pytest's XML.")] = "build/gpu-test.xml",
) -> None:
    """Measure and check the first GPU, for about five minutes."""
    if why := gcext.build_info()["why_no_cuda"]:
        raise ValueError(f"bench: needs a CUDA device, got none: {why}")
    sizes = (*SIZES, 2**31 + 5) if large else SIZES
    counts = tests(Path(tested))
    rows = [Row("tests", None, device="cuda", extra=dict(counts))] if counts else []
    measures: list[Callable[[], Row]] = [
        *(partial(identity, n, dtype, "cuda") for n, dtype in product(sizes, DTYPES)),
        *(partial(speed, n, p, "cuda", compiled=compiled) for n, p in SPEEDS),
        partial(batch, MODEL, "cuda"),
        partial(packing, MODEL, "cuda"),
        partial(server, 100, 10**7, 0.01, "cuda"),
        partial(server, 1000, 338_006, 0.1, "cuda"),
        partial(memory, 10**6, "cuda"),
        partial(memory, 10**8, "cuda", 100),
        partial(replays, 10**6),
    ]
    for measure in measures:
        rows.append(measure())
        typer.echo(rows[-1].where, err=True)
        report.save(rows, json_)  # what there is, should the rest fail
    report.show(rows)
    if any(row.extra.get("identical", True) != row.extra.get("replays", True) for row in rows):
        raise typer.Exit(1)
