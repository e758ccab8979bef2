"""The rows that are made of cases: which there are, and how a case becomes a row."""

from __future__ import annotations

import resource
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from typing import Any

import torch

from . import batch, codes, packets, refuse, stc
from .case import Case, Setting
from .memory import peak_bytes
from .report import Row, short
from .timing import Variant, default_rounds, interleave

Progress = Callable[[str], None]

ROWS: dict[str, Callable[[Setting, bool], Case]] = {
    "stc": stc.stc,
    "stc-ef": stc.stc_ef,
    "stc-plain": stc.stc_plain,
    "stc-wire": stc.stc_wire,
    "select": stc.select,
    "batch": batch.batch,
    "batch-wire": batch.batch_wire,
    "rice": codes.rice,
    "bits-pack": codes.bits_pack,
    "bits-unpack": codes.bits_unpack,
    "combine": packets.combine,
    "gram": packets.gram,
    "vote": packets.vote,
    "refuse": refuse.refuse,
}

# Commands: what --help shows, and the rows.
ENTRIES: dict[str, tuple[str, Sequence[str]]] = {
    "stc": (
        "Sparse ternary compression whole: in place, two slots, without memory, and as bytes.",
        ("stc", "stc-ef", "stc-plain", "stc-wire"),
    ),
    "select": ("The fused accumulate and exact top-k alone.", ("select",)),
    "batch": (
        "A model of --m tensors as a list, against one by one (torch) and one flat tensor (floor).",
        ("batch", "batch-wire"),
    ),
    "rice": ("Sorted indices to Rice-coded gaps, against NumPy.", ("rice",)),
    "bits": (
        "Fixed-width planes, to bytes and back, against NumPy.",
        ("bits-pack", "bits-unpack"),
    ),
    "combine": ("The weighted sum of m packets.", ("combine",)),
    "gram": ("All dot products of m packets.", ("gram",)),
    "vote": ("The majority of m packets of signs.", ("vote",)),
    "refuse": (
        "A message refused after its last field, against decoding it; and refused sooner.",
        ("refuse",),
    ),
    "all": ("Every row.", tuple(ROWS)),
}

COLUMNS = {
    "row": "name", "n": "n", "p": "p", "data": "data", "gcext ms": "gcext_ms",
    "floor ms": "floor_ms", "of floor": "of_floor", "torch ms": "torch_ms", "speedup": "speedup",
    "best ms": "torch_best_ms", "compiled": "torch_compiled_ms", "peak": "gcext_peak_bytes",
    "torch's": "torch_peak_bytes",
}  # fmt: skip
TITLE = "milliseconds are medians; peak is beyond the inputs"
# Elements of the small problem that runs before memory is measured: enough for threads to start.
_WARM = 1 << 18


def run(
    entry: str,
    settings: Sequence[Setting],
    *,
    rounds: int = 0,
    baselines: bool = True,
    compiled: bool = True,
    peak: bool = True,
    progress: Progress = lambda _: None,
) -> list[Row]:
    """Return the rows of an entry for every setting; baselines: also PyTorch's formulations."""
    rows = []
    for setting, name in product(settings, ENTRIES[entry][1]):
        progress(f"{name}: n={short(setting.n)} p={setting.p:g} {setting.data}")
        # Each row compiles for its own shape; without this they count as one function's recompiles.
        torch.compiler.reset()
        case = ROWS[name](setting, compiled)
        if not baselines:
            case = replace(case, baselines=())
        rows.append(measure(case, rounds, peak, progress))
    return rows


def measure(
    case: Case, rounds: int = 0, peak: bool = True, progress: Progress = lambda _: None
) -> Row:
    """Return the row of a case; rounds: 0 leaves them to n.

    Only variants whose output agrees with the oracle are timed; ``refused`` has the reason why
    the others are not. The check is also the first call, in which compiled variants are compiled.
    """
    setting = case.setting
    refused: dict[str, str] = {}
    for variant in case.variants:
        progress(f"{case.name}: checking {variant.name}")
        if why := _refusal(variant):
            refused[variant.name] = why
    timed = [variant for variant in case.variants if variant.name not in refused]
    rounds = rounds or default_rounds(setting.n)
    progress(f"{case.name}: timing {len(timed)} variants, {rounds} rounds")
    variants: dict[str, dict[str, Any]] = {
        name: {
            "ms": spread.median,
            "q1_ms": spread.low,
            "q3_ms": spread.high,
            "min_ms": spread.best,
        }
        for name, spread in interleave(timed, rounds, setting.seed).items()
    }
    faults = page_faults(case.gcext) if case.gcext in timed else None
    for variant in timed if peak else ():
        if variant is not case.floor:
            progress(f"{case.name}: memory of {variant.name}")
            variants[variant.name]["peak_bytes"] = peak_of(case.name, variant.name, setting)

    def figure(name: str | None, key: str = "ms") -> Any:
        return variants.get(name or "", {}).get(key)

    def fastest(among: Sequence[Variant]) -> str | None:
        names = [variant.name for variant in among if variant.name in variants]
        return min(names, key=figure, default=None)

    usual, best = next((each.name for each in case.baselines), None), fastest(case.baselines)
    compiled = fastest([variant for variant in case.baselines if variant.compiled])
    extra = {
        "torch_best": best,
        "torch_best_ms": figure(best),
        "torch_compiled_ms": figure(compiled),
        "gcext_peak_bytes": figure("gcext", "peak_bytes"),
        "torch_peak_bytes": figure(usual, "peak_bytes"),
        "baseline": usual,
        "floor": case.floor and case.floor.does,
        "k": setting.k, "seed": setting.seed, "data": setting.data, "rounds": rounds,
        "page_faults": faults,
        **case.facts,
        **{f"{also.name}_ms": figure(also.name) for also in case.also},
        "variants": variants,
        "refused": refused,
        "extrapolated": {each.name: each.factor for each in timed if each.factor != 1},
    }  # fmt: skip
    ours, theirs, floor = (figure(name) for name in ("gcext", usual, "floor"))
    return Row(case.name, setting.n, setting.p, "cpu", ours, theirs, floor, extra)


def page_faults(variant: Variant) -> float:
    """Return the median of the pages that a call has to be given, over some calls."""
    counts = []
    for _ in range(9):
        variant.reset()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        result = variant.run()
        counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
        del result
    return statistics.median(counts)


def peak_of(row: str, variant: str, setting: Setting) -> int | None:
    """Return the bytes that a variant of a row takes beyond its inputs."""
    small = replace(setting, n=min(setting.n, _WARM))
    return peak_bytes(partial(_prepare, row, variant), small, setting)


def _prepare(row: str, name: str, setting: Setting) -> Callable[[], object]:
    case = ROWS[row](setting, name.startswith("compiled-"))
    variant = next(each for each in case.variants if each.name == name)
    if variant.compiled:  # compiling takes far more than running
        variant.reset()
        variant.run()
    variant.reset()
    return variant.run


def _refusal(variant: Variant) -> str:
    """Return "" where the variant may be timed, else why not."""
    try:
        variant.reset()
        return variant.check(variant.run())
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        return f"{type(error).__name__}: {lines[0]}"
