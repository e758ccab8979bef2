"""``python -m bench gpu``: every figure asked of the CUDA kernels, with the machine, in one file.

A figure is a ratio within one interleaved run. ``identity`` rows compare bytes with the CPU's;
``speed`` rows time steps of training (the same gradient, the residual carried on) against every
formulation in PyTorch and the bare ``residual.add_(tensor)``, 3 words an element.
"""

from __future__ import annotations

import json
import random
import shutil
import statistics
import subprocess
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

import gcext
from bench.variants import formulations, topk
from gcext import Packet

Row = dict[str, Any]

SIZES = (1, 31, 32, 33, 10**3, 10**5, 10**7, 10**8)
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
SPEEDS = ((10**4, 0.01), (10**6, 0.01), (10**7, 0.01), (10**8, 0.001), (10**8, 0.01), (10**8, 0.1))
# A ResNet-50's parameters, roughly: 53 convolutions, 107 small vectors, one matrix.
MODEL = [64 * 3 * 49, *[256] * 107, *[36_864, 65_536, 147_456, 262_144, 589_824] * 10,
         *[2_359_296, 1_048_576, 2_097_152], 2_048_000]  # fmt: skip
GROWTH_CALLS, REPLAYS = 10_000, 1000


def machine() -> Row:
    """Return the chip, the driver and the versions."""
    info = gcext.build_info()
    row = {
        "gcext": info["gcext"], "torch": info["torch"], "cuda_of_torch": torch.version.cuda,
        "nvcc": info["cuda_compiler"], "cuda_archs": info["cuda_archs"],
    }  # fmt: skip
    if torch.cuda.is_available():
        there = torch.cuda.get_device_properties(0)
        row |= {
            "chip": there.name,
            "capability": f"{there.major}.{there.minor}",
            "memory_bytes": there.total_memory,
            "driver": driver(),
        }
    return row


def driver() -> str:
    """Return the driver's version as nvidia-smi says it, where there is one."""
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    if shutil.which(query[0]) is None:
        return "unknown: no nvidia-smi on PATH"
    return subprocess.run(query, capture_output=True, text=True).stdout.split("\n")[0]


def identity(n: int, dtype: torch.dtype, device: str) -> Row:
    """Return whether message and residual have the CPU's bytes."""
    here = torch.randn(n).to(dtype)
    residuals = [torch.randn(n), torch.empty(0, device=device)]
    residuals[1] = residuals[0].to(device, copy=True)
    messages = [
        gcext.stc(tensor, 0.01, residual=residual).to_bytes()
        for tensor, residual in zip((here, here.to(device)), residuals, strict=True)
    ]
    same = torch.equal(*(residual.cpu().view(torch.int32) for residual in residuals))
    return {
        "n": n, "dtype": str(dtype).removeprefix("torch."), "bytes": len(messages[0]),
        "identical": same and messages[0] == messages[1],
    }  # fmt: skip


def interleaved(steps: dict[str, Callable[[], object]], device: str, seconds: float) -> Row:
    """Return each step's milliseconds: the median over rounds of calls made back to back."""

    def run(step: Callable[[], object], calls: int) -> float:
        _synchronize(device)
        start = time.perf_counter()
        for _ in range(calls):
            step()
        _synchronize(device)
        return (time.perf_counter() - start) * 1e3 / calls

    for step in steps.values():
        run(step, 3)
    calls = {name: max(1, int(seconds * 1e3 / run(step, 3))) for name, step in steps.items()}
    times: dict[str, list[float]] = {name: [] for name in steps}
    order, shuffle = list(steps), random.Random(0).shuffle
    for _ in range(9):
        shuffle(order)
        for name in order:
            times[name].append(run(steps[name], calls[name]))
    return {name: statistics.median(each) for name, each in times.items()}


def speed(n: int, p: float, device: str, seconds: float = 0.05, compiled: bool = False) -> Row:
    """Return the times of a step, and its ratios to the bare addition and to PyTorch's best."""
    tensor, k = torch.randn(n, device=device), max(int(p * n), 1)
    residual = torch.zeros(n, device=device)
    floor = torch.zeros(n, device=device)
    feedback, sending = (gcext.ErrorFeedback(f"stc:p={p!r}") for _ in range(2))
    pytorch = {f"{each.name}_ms": each.run for each in formulations(compiled)}
    carried = {name: torch.zeros(n, device=device) for name in pytorch}

    def step_of(name: str) -> Callable[[], None]:
        def step() -> None:
            after = pytorch[name](tensor, carried[name], k, True).residual
            assert after is not None
            carried[name] = after

        return step

    steps: dict[str, Callable[[], object]] = {
        "stc_ms": lambda: gcext.stc(tensor, p, residual=residual),
        "feedback_ms": lambda: feedback.compress(tensor, "g"),
        "feedback_bytes_ms": lambda: sending.compress(tensor, "g").to_bytes(),
        "floor_ms": lambda: floor.add_(tensor),
        **{name: step_of(name) for name in pytorch},
    }
    row = {"n": n, "p": p, **interleaved(steps, device, seconds)}
    best = min(pytorch, key=row.__getitem__)
    return row | {
        "stc_of_add_bandwidth": row["floor_ms"] / row["stc_ms"],
        "feedback_of_add_bandwidth": row["floor_ms"] / row["feedback_ms"],
        "bytes_of_feedback": row["feedback_bytes_ms"] / row["feedback_ms"] - 1,
        "add_gb_per_s": 12 * n / row["floor_ms"] / 1e6,
        "speedup_topk": min(row["topk_ms"], row["topk-inplace_ms"]) / row["feedback_ms"],
        "speedup_best": row[best] / row["feedback_ms"],
        "best": best.removesuffix("_ms"),
    }


def batch(sizes: Iterable[int], device: str, seconds: float = 0.05) -> Row:
    """Return the times of a whole model: a list in one call, tensor by tensor, eager PyTorch."""
    tensors = [torch.randn(n, device=device) for n in sizes]
    first, second, third = ([torch.zeros_like(t) for t in tensors] for _ in range(3))

    def eager() -> None:
        for i, tensor in enumerate(tensors):
            after = topk(tensor, third[i], max(tensor.numel() // 100, 1), True).residual
            assert after is not None
            third[i] = after

    steps: dict[str, Callable[[], object]] = {
        "list_ms": lambda: gcext.stc(tensors, 0.01, residual=first),
        "singles_ms": lambda: [
            gcext.stc(t, 0.01, residual=r) for t, r in zip(tensors, second, strict=True)
        ],
        "topk_ms": eager,
    }
    row = interleaved(steps, device, seconds)
    return {
        "tensors": len(tensors), **row,
        "speedup_singles": row["singles_ms"] / row["list_ms"],
        "speedup_usual": row["topk_ms"] / row["list_ms"],
    }  # fmt: skip


def packing(sizes: Iterable[int], device: str, seconds: float = 0.05) -> Row:
    """Return the times of a whole model on its way to bytes and back, and whether they are right.

    encode alone; encode and pack; open: where the packets are, and on the host, which fetches or
    sends the pairs of each.
    """
    here = [torch.randn(n) for n in sizes]
    tensors = [tensor.to(device) for tensor in here]
    want = Packet.group(gcext.stc(here, 0.01)).to_bytes()

    def group() -> Packet:
        return Packet.group(gcext.stc(tensors, 0.01))

    steps: dict[str, Callable[[], object]] = {
        "encode_ms": lambda: gcext.stc(tensors, 0.01),
        "encode_pack_ms": lambda: group().to_bytes(),
        "encode_pack_on_host_ms": lambda: group().to("cpu").to_bytes(),
        "open_ms": lambda: Packet.from_bytes(want, device=device),
        "open_on_host_ms": lambda: Packet.from_bytes(want).to(device),
    }
    row = interleaved(steps, device, seconds)
    opened = Packet.from_bytes(want, device=device)
    return {
        "tensors": len(tensors), "bytes": len(want), **row,
        "pack_of_encode": row["encode_pack_ms"] / row["encode_ms"] - 1,
        "identical": want == group().to_bytes() == Packet.group(opened.members).to_bytes(),
    }  # fmt: skip


def server(m: int, n: int, p: float, device: str, seconds: float = 0.05) -> Row:
    """Return the times of all dot products of m ternary packets: as packets, as dense rows."""
    tensors = [torch.randn(n, device=device) for _ in range(m)]
    packets = [gcext.stc(tensor, p) for tensor in tensors]
    rows = torch.stack([packet.to_dense() for packet in packets])
    del tensors
    steps: dict[str, Callable[[], object]] = {
        "gram_ms": lambda: gcext.gram(packets),
        "mm_ms": lambda: torch.mm(rows, rows.T),
    }
    row = {"m": m, "n": n, "p": p, **interleaved(steps, device, seconds)}
    dots, dense = gcext.gram(packets), torch.mm(rows, rows.T).double()
    norms = dots.diagonal().sqrt()
    return row | {
        "speedup_mm": row["mm_ms"] / row["gram_ms"],
        "largest_difference": float(((dots - dense) / torch.outer(norms, norms)).abs().max()),
    }


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
    return {
        "n": n, "calls": calls, "growth_bytes": torch.cuda.memory_allocated() - before,
        "peak_words_per_element": peak / 4 / n,
    }  # fmt: skip


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
    return {"n": n, "replays": count, "identical": right}


def tests(report: Path) -> Row | None:
    """Return what ``make gpu-test`` left: how many tests ran, failed, were skipped."""
    if not report.exists():
        return None
    suite = ElementTree.parse(report).getroot()[0]
    return {name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")}


def _synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def command(
    json_: Annotated[Path, typer.Option("--json", help="Where all of it goes.")],
    compiled: Annotated[bool, typer.Option(help="PyTorch under torch.compile, too.")] = False,
    large: Annotated[bool, typer.Option(help="Also 2^31+5 elements: 80 GB.")] = False,
    report: Annotated[Path, typer.Option(help="pytest's XML.")] = Path("build/gpu-test.xml"),
) -> None:
    """Measure and check the first GPU, for about five minutes."""
    if why := gcext.build_info()["why_no_cuda"]:
        typer.echo(f"bench: needs a CUDA device, got none: {why}", err=True)
        raise typer.Exit(2)
    sizes = (*SIZES, 2**31 + 5) if large else SIZES
    result: Row = {"machine": machine(), "tests": tests(report)}
    parts: dict[str, Callable[[], Any]] = {
        "identity": lambda: [identity(n, dtype, "cuda") for n in sizes for dtype in DTYPES],
        "speed": lambda: [speed(n, p, "cuda", compiled=compiled) for n, p in SPEEDS],
        "batch": lambda: batch(MODEL, "cuda"),
        "packing": lambda: packing(MODEL, "cuda"),
        "gram": lambda: [server(100, 10**7, 0.01, "cuda"), server(1000, 338_006, 0.1, "cuda")],
        "memory": lambda: [memory(10**6, "cuda"), memory(10**8, "cuda", 100)],
        "graph": lambda: replays(10**6),
    }
    for name, part in parts.items():
        typer.echo(name, err=True)
        result[name] = part()
        json_.write_text(json.dumps(result, indent=1) + "\n")  # what there is, should the rest fail
    typer.echo(json.dumps(result["speed"], indent=1))
    wrong = [row for row in result["identity"] if not row["identical"]]
    right = result["packing"]["identical"] and result["graph"]["identical"] == REPLAYS
    if wrong or not right:
        raise typer.Exit(1)
