"""Looks for the short message that costs its decoder most: time and memory, bytes to dense tensors.

    python tests/fuzz/cost_search.py [--seconds 300] [--seed 0] [--kind polar] [--json OUT.json]

For every kind of packet, contents are drawn at random and then changed a little at a time, keeping
what costs more: an evolutionary search by what is measured, not by what the budget counts. Every
message has at most 1 KB and is decoded with its shape expected and the default budget. What is
compared is

    time     5 ms + 10 ns for each element of the pinned shape: processor time of one thread, so
             that nothing else on the machine counts; the least of three
    memory   4 MB + 12 bytes for each, the growth of the resident set's peak

The worst of each kind is printed with its share of both bounds, and the work and memory it was
counted for; the exit status is 1 where one is above. Nothing that a process keeps helps: the orders
of polar codes are forgotten before each decode. Linux with glibc.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import math
import os
import random
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import gcext
from gcext._packet.codes import Code, Contents, Levels, Levels2, Random, Signs
from gcext._packet.packet import Packet
from gcext._packet.powers import Powers
from gcext._packet.sketch import Sketch
from gcext._packet.tables import Codes
from gcext._packet.transforms import Dct, LowRank
from gcext.polar import _design as design
from gcext.polar._values import Polar, chunks_of

# What is freed goes back to the system, so that the next call pays for it.
MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}

MOST_BYTES = 1024
MOST_NUMEL = 2_000_000
TIME = (5e-3, 10e-9)  # seconds, and for each element
MEMORY = (4e6, 12.0)  # bytes, and for each element

Genes = dict[str, int]


# Contents from numbers ------------------------------------------------------------------------


class TooLongError(Exception):
    """The contents do not fit the longest message."""


def fits(condition: bool) -> None:
    if not condition:
        raise TooLongError


def floats(n: int) -> Tensor:
    fits(n <= MOST_BYTES // 4)
    return torch.linspace(0.5, 1.0, max(n, 1))[:n].contiguous()


def some(count: int, limit: int, seed: int) -> Tensor:
    """``count`` rising indices below a limit: spread out, or in a run."""
    fits(count <= 8 * MOST_BYTES)
    count = min(count, limit)
    rng = np.random.default_rng(seed)
    if seed % 3 == 0:
        found = np.arange(count)
    elif count * 4 < limit:
        found = np.unique(rng.integers(0, limit, count))
    else:
        found = np.sort(rng.permutation(limit)[:count])
    return torch.from_numpy(found.astype(np.int32 if limit < 2**31 else np.int64))


def support(genes: Genes, kinds: str = "all indices random") -> tuple[Any, int]:
    """A support of the genes' element count, and how many it has."""
    n, choices = genes["numel"], kinds.split()
    kind = choices[genes["support"] % len(choices)]
    if kind == "all":
        return None, n
    k = min(genes["k"], n)
    if kind == "random":
        return Random(genes["seed"], k), k
    index = some(k, n, genes["seed"])
    return index, len(index)


def packet(method: str, genes: Genes, contents: Contents) -> Packet:
    shape: tuple[int, ...] = (genes["numel"],)
    if method in ("lowrank", "dct"):
        shape = view(genes)
    return Packet(method, shape, torch.float32, contents)


def view(genes: Genes) -> tuple[int, ...]:
    cols = min(max(genes["cols"], 1), max(genes["numel"], 1))
    return (genes["numel"] // cols, cols)


def dense(genes: Genes) -> Packet:
    return packet("dense", genes, Contents(None, floats(genes["numel"])))


def sparse(genes: Genes) -> Packet:
    index = some(genes["k"], genes["numel"], genes["seed"])
    return packet("sparse", genes, Contents(index, floats(len(index))))


def ternary(genes: Genes) -> Packet:
    index = some(genes["k"], genes["numel"], genes["seed"])
    value = torch.ones(len(index))
    return packet("ternary", genes, Contents(index, value, 1.0 if len(index) else 0.0))


def merged(genes: Genes) -> Packet:
    parts = 2 + genes["parts"] % 200
    fits(parts * max(genes["k"], 1) <= 20_000)
    return Packet.merge(
        [ternary({**genes, "seed": genes["seed"] // 3 * 3 + i % 2 * i}) for i in range(parts)]
    )


def randomk(genes: Genes) -> Packet:
    where, k = support(genes, "random")
    return packet("random", genes, Contents(where, floats(k)))


def sign(genes: Genes) -> Packet:
    where, k = support(genes, "all random")
    fits(k <= 8 * MOST_BYTES)
    return packet(
        "sign", genes, Contents(where, Signs(1.0, torch.zeros((k + 7) // 8, dtype=torch.uint8)))
    )


def levels(genes: Genes, kind: type[Levels] = Levels) -> Packet:
    where, k = support(genes)
    places = some(genes["places"], k, genes["seed"])
    steps = 1 + genes["steps"] % 32767
    bucket = genes["bucket"] if 0 < genes["bucket"] < k else 0
    norms = floats(-(-k // bucket) if bucket else min(k, 1))
    level = torch.ones(len(places), dtype=torch.int16)
    if genes["seed"] % 2:
        level = torch.from_numpy(
            np.random.default_rng(genes["seed"])
            .integers(1, steps + 1, len(places))
            .astype(np.int16)
        )
    at = places.to(torch.int32 if genes["numel"] < 2**31 else torch.int64)
    return packet(kind.method, genes, Contents(where, kind(steps, bucket, norms, at, level)))


def levels2(genes: Genes) -> Packet:
    return levels(genes, Levels2)


def polar(genes: Genes) -> Packet:
    where, sent = support(genes)
    block = 1 << 5 + genes["block"] % 16
    kept = genes["kept"] % (block + 1)
    rotated = bool(genes["flags"] & 2)
    chunks = chunks_of(sent, block) if rotated else [(0, sent)]
    symbols = sum(size for _, size in chunks)
    bits = kept * -(-symbols // block)
    fits(bits <= 8 * MOST_BYTES)
    message = torch.zeros((bits + 7) // 8, dtype=torch.uint8)
    scale, seed = floats(len(chunks)), genes["seed"] if rotated else None
    code = Polar(message, block, kept, bool(genes["flags"] & 1), scale, seed)
    return packet("polar", genes, Contents(where, code))


TABLES = ("values", "uniform", "dynamic8", "float16", "bfloat16")


def codes(genes: Genes) -> Packet:
    where, k = support(genes)
    table = TABLES[genes["table"] % 5]
    width = {"values": genes["width"] % 9, "uniform": 1 + genes["width"] % 8, "dynamic8": 8}.get(
        table, 16
    )
    bucket = genes["bucket"] if 0 < genes["bucket"] < k and width < 16 else 0
    buckets = -(-k // bucket) if bucket else min(k, 1)
    scales = floats(
        {"values": buckets << width, "uniform": buckets, "dynamic8": buckets}.get(table, 0)
    )
    fits(k * width <= 8 * MOST_BYTES)
    bits = torch.zeros((k * width + 7) // 8, dtype=torch.uint8)
    return packet("codes", genes, Contents(where, Codes(table, width, bucket, scales, bits)))


def powers(genes: Genes) -> Packet:
    where, k = support(genes)
    if genes["flags"] & 1:
        return packet(
            "powers", genes, Contents(where, Powers(1.0, torch.empty(0, dtype=torch.int16)))
        )
    fits(k <= 8 * MOST_BYTES)
    rng = np.random.default_rng(genes["seed"])
    power = torch.from_numpy((100 + rng.integers(0, 1 + genes["width"] % 9, k)).astype(np.int16))
    return packet("powers", genes, Contents(where, Powers(1.0, power)))


def lowrank(genes: Genes) -> Packet:
    rows, cols = view(genes)
    rank = genes["rank"] % (min(rows, cols) + 1)
    return packet(
        "lowrank",
        genes,
        Contents(None, LowRank(rows, cols, rank, floats(rows * rank), floats(cols * rank))),
    )


def sketch(genes: Genes) -> Packet:
    rows = 1 + genes["rows"] % 64
    cols = 1 + genes["cols"] % (MOST_BYTES // 4 // rows)
    return packet(
        "sketch", genes, Contents(None, Sketch(rows, cols, genes["seed"], floats(rows * cols)))
    )


def by_block(rows: int, cols: int, edge: int, most: int) -> Tensor:
    """The last coefficients of each block, so many of them."""
    parts = -(-rows // edge), -(-cols // edge)
    fits(parts[0] * parts[1] <= 8 * MOST_BYTES)
    lengths = [
        [n // m + (part < n % m) for part in range(m)]
        for n, m in zip((rows, cols), parts, strict=True)
    ]
    ends = np.cumsum([h * w for h in lengths[0] for w in lengths[1]], dtype=np.int64)
    counts = np.minimum(most, np.diff(ends, prepend=0))
    found = [np.arange(end - count, end) for end, count in zip(ends, counts, strict=True)]
    return torch.from_numpy(np.concatenate([*found, ends[:0]]).astype(np.int32))


def dct(genes: Genes) -> Packet:
    rows, cols = view(genes)
    ternary, blocks = bool(genes["flags"] & 1), bool(genes["flags"] & 2)
    edge = 1 + genes["edge"] % 64
    if blocks:
        index = by_block(rows, cols, edge, 1 + genes["seed"] % 8)
    else:
        index = some(genes["k"], rows * cols, genes["seed"])
    value = torch.ones(len(index)) if ternary else floats(len(index))
    scale = 1.0 if ternary and len(index) else 0.0
    code: Code = Dct(rows, cols, edge, ternary, index, value, scale, blocks)
    return packet("dct", genes, Contents(None, code))


SINGLE: dict[str, Callable[[Genes], Packet]] = {
    "dense": dense, "sparse": sparse, "ternary": ternary, "merged": merged, "random": randomk,
    "sign": sign, "levels": levels, "polar": polar, "codes": codes, "powers": powers,
    "lowrank": lowrank, "sketch": sketch, "dct": dct, "levels2": levels2,
}  # fmt: skip
TERMS = (
    "dense",
    "sparse",
    "ternary",
    "random",
    "sign",
    "levels",
    "polar",
    "codes",
    "powers",
    "levels2",
)
KINDS = (*SINGLE, "group", "sum")


@dataclass
class Candidate:
    """What a message is made of: the genes of one packet, of a group or sum one for each in it."""

    kind: str
    parts: list[tuple[str, Genes]]
    score: float = -1.0
    report: dict[str, Any] = field(default_factory=dict)

    def packet(self) -> Packet:
        made = [SINGLE[kind](genes) for kind, genes in self.parts]
        if self.kind == "group":
            return Packet.group(made)
        return Packet.sum(made) if self.kind == "sum" else made[0]


NUMBERS = (0, 1, 2, 3, 31, 64, 255, 1000, 4096, 65536, 10**5, 10**6)
NAMES = (
    "numel", "k", "seed", "support", "places", "steps", "bucket", "block", "kept", "flags", "table",
    "width", "cols", "rank", "rows", "edge", "parts",
)  # fmt: skip


def number(rng: random.Random) -> int:
    if rng.random() < 0.5:
        return rng.choice(NUMBERS)
    return int(math.exp(rng.random() * math.log(MOST_NUMEL)))


def genes(rng: random.Random) -> Genes:
    return {name: number(rng) for name in NAMES}


def changed(rng: random.Random, old: Genes) -> Genes:
    new = dict(old)
    for name in rng.sample(NAMES, rng.randint(1, 3)):
        x = new[name]
        new[name] = rng.choice((x + 1, max(x - 1, 0), x * 2, x // 2, x * 9 // 8, number(rng)))
    new["numel"] = min(new["numel"], MOST_NUMEL)
    return new


def born(rng: random.Random, kind: str) -> Candidate:
    if kind in SINGLE:
        return Candidate(kind, [(kind, genes(rng))])
    count = rng.choice((2, 3, 8, 64)) if kind == "sum" else rng.choice((1, 2, 10, 60, 300))
    part = genes(rng)
    parts = []
    one = rng.choice(TERMS if kind == "sum" else tuple(SINGLE))
    for _ in range(count):
        if rng.random() < 0.2:
            one = rng.choice(TERMS if kind == "sum" else tuple(SINGLE))
        parts.append(
            (one, {**changed(rng, part), **({"numel": part["numel"]} if kind == "sum" else {})})
        )
    return Candidate(kind, parts)


def bred(rng: random.Random, parent: Candidate) -> Candidate:
    parts = list(parent.parts)
    if parent.kind in SINGLE:
        return Candidate(parent.kind, [(parent.kind, changed(rng, parts[0][1]))])
    most = 64 if parent.kind == "sum" else 330
    roll = rng.random()
    if roll < 0.25 and len(parts) < most:
        parts += [
            (parts[-1][0], changed(rng, parts[-1][1])) for _ in range(rng.choice((1, len(parts))))
        ]
        parts = parts[:most]
    elif roll < 0.4 and len(parts) > 2:
        parts.pop(rng.randrange(len(parts)))
    elif roll < 0.7:  # the same change everywhere
        name, x = rng.choice(NAMES), number(rng)
        parts = [(kind, {**its, name: x}) for kind, its in parts]
    else:
        at = rng.randrange(len(parts))
        parts[at] = (parts[at][0], changed(rng, parts[at][1]))
    if parent.kind == "sum":
        numel = parts[0][1]["numel"]
        parts = [(kind, {**its, "numel": numel}) for kind, its in parts]
    return Candidate(parent.kind, parts)


# What is measured -----------------------------------------------------------------------------

_TRIM = ctypes.CDLL(None).malloc_trim


def resident(key: str) -> int:
    found = re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def forget() -> None:
    design._ORDERS.clear()
    design._SETS.clear()


def decoded(message: bytes, shape: Any) -> Any:
    return gcext.Packet.from_bytes(message, expect=shape).to_dense()


def measure(candidate: Candidate) -> bool:
    """Fill in the score of a candidate; False where it is no message, or refused."""
    try:
        made = candidate.packet()
        message = made.to_bytes()
    except (TooLongError, ValueError):  # no packet of such contents
        return False
    if len(message) > MOST_BYTES or made.numel > MOST_NUMEL:
        return False
    shape, numel = made.shape, made.numel
    del made
    seconds = math.inf
    allowed = TIME[0] + TIME[1] * numel
    for _ in range(3):
        forget()
        start = time.process_time()
        try:
            result = decoded(message, shape)
        except gcext.DecodeError as error:
            assert error.code == "budget", (error, message.hex())
            return False
        seconds = min(seconds, time.process_time() - start)
        del result
        if seconds < allowed / 3:
            break
    forget()
    _TRIM(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    result = decoded(message, shape)
    grown = resident("VmHWM") - before
    del result
    most = MEMORY[0] + MEMORY[1] * numel
    needed = gcext.Budget.needed(message)
    candidate.score = max(seconds / allowed, grown / most)
    candidate.report = {
        "kind": candidate.kind, "numel": numel, "bytes": len(message), "ms": seconds * 1e3,
        "time_share": seconds / allowed, "mb": grown / 1e6, "memory_share": grown / most,
        "work": needed.work, "memory": needed.memory, "message": message.hex(),
    }  # fmt: skip
    return True


def search(kind: str, seconds: float, rng: random.Random) -> dict[str, Any]:
    """Return the report of the worst message of a kind, and how many were decoded and refused."""
    pool: list[Candidate] = []
    worst: dict[str, dict[str, Any]] = {}
    decoded_count = refused = 0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        parent = rng.choice(pool) if pool and rng.random() < 0.8 else None
        child = born(rng, kind) if parent is None else bred(rng, parent)
        if not measure(child):
            refused += 1
            continue
        decoded_count += 1
        pool = sorted([*pool, child], key=lambda each: -each.score)[:24]
        for share in ("time_share", "memory_share"):
            if share not in worst or child.report[share] > worst[share][share]:
                worst[share] = child.report
    return {"kind": kind, "decoded": decoded_count, "refused": refused, **worst}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", choices=KINDS)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    if any(os.environ.get(key) != value for key, value in MALLOC.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **MALLOC})
    torch.set_num_threads(1)
    kinds = (given.kind,) if given.kind else KINDS
    rows = []
    print(
        f"{'kind':8} {'decoded':>8} {'refused':>8}   slowest: ms, of bound, elements, work"
        "      largest: MB, of bound, elements, counted MB"
    )
    for number, kind in enumerate(kinds):
        row = search(kind, given.seconds / len(kinds), random.Random(given.seed * 1000 + number))
        rows.append(row)
        slow, large = row.get("time_share", {}), row.get("memory_share", {})
        if slow:
            print(
                f"{kind:8} {row['decoded']:8} {row['refused']:8}   "
                f"{slow['ms']:8.2f} {slow['time_share']:5.2f} {slow['numel']:10} "
                f"{slow['work']:11}   "
                f"{large['mb']:8.2f} {large['memory_share']:5.2f} {large['numel']:10} "
                f"{large['memory'] / 1e6:9.2f}",
                flush=True,
            )
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1) + "\n")
    shares = [
        row[share][share]
        for row in rows
        for share in ("time_share", "memory_share")
        if share in row
    ]
    print(f"worst: {max(shares):.2f} of a bound")
    return int(max(shares) > 1)


if __name__ == "__main__":
    raise SystemExit(main())
