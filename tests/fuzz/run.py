"""Builds and runs the fuzz targets: ``python tests/fuzz/run.py --seconds 600``.

Needs a C++17 compiler and make. With clang, ``--engine libfuzzer`` runs them under libFuzzer; else
the driver of this folder runs them, with the same mutations; it follows coverage, too.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
BUILD = ROOT / "build" / "fuzz"
SEEDS = [ROOT / "tests" / "vectors" / "v1" / kind for kind in ("valid", "invalid")]
CORPUS = HERE / "corpus"
SHARES = {"decode": 6, "round_trip": 1, "merge": 1, "inspect": 1, "aggregate": 3}
NO_CLANG = (
    "fuzz: libFuzzer needs clang and its runtime, found none. On Debian: "
    "apt-get install clang libclang-rt-14-dev (the number is clang's). Without: --engine own."
)


def compiler(variant: str) -> str:
    """Return the compiler of a variant; exit with the remedy where there is none."""
    if variant in ("libfuzzer", "msan"):
        if shutil.which("clang++") is None:
            sys.exit(NO_CLANG)
        return "clang++"
    for name in (os.environ.get("CXX", "c++"), "g++", "clang++"):
        if shutil.which(name.split()[-1]):
            return name
    sys.exit("fuzz: needs a C++17 compiler, found none. Install g++ or clang.")


def instruction_sets() -> str:
    """Return those that this processor's kernels are built for."""
    if platform.machine() in ("x86_64", "AMD64"):
        return "baseline avx2 avx512"
    return "baseline neon" if platform.machine() in ("aarch64", "arm64") else "baseline"


def build(variant: str, isas: str = "baseline", jobs: int | None = None) -> Path:
    """Build a variant of the Makefile beside; return its program."""
    cxx = compiler(variant)
    out = BUILD / f"{variant}-{Path(cxx.split()[-1]).name}-{isas.replace(' ', '-')}"
    launcher = "ccache " if shutil.which("ccache") and "ccache" not in cxx else ""
    done = subprocess.run(
        ["make", "-C", str(HERE), f"-j{jobs or os.cpu_count()}", f"VARIANT={variant}", f"OUT={out}",
         f"CXX={launcher}{cxx}", f"ISAS={isas}"],
        capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode != 0:
        sys.exit(f"fuzz: the build failed.\n{done.stdout[-2000:]}{done.stderr[-6000:]}")
    return out / {"tsan": "threads", "libfuzzer": "libfuzzer"}.get(variant, "fuzz")


def inputs_of(target: str) -> list[str]:
    """Return what a target starts from: the golden packets, and what earlier runs have found."""
    seeds = [] if target == "aggregate" else [str(folder) for folder in SEEDS]
    own = CORPUS / f"{target}.txt"
    return [*seeds, *([str(own)] if own.exists() else [])]


def run_target(program: Path, target: str, options: list[str]) -> dict[str, Any]:
    """Run one target of the own driver; return its report."""
    command = [str(program), target, *options, *inputs_of(target)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"fuzz: {' '.join(command)}\n{done.stdout[-2000:]}{done.stderr[-8000:]}")
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def run_all(
    program: Path, seconds: float, seed: int = 1, processes: int = 1, checksum: str = "repaired"
) -> list[dict[str, Any]]:
    """Run every target for its share of the seconds, so many at a time."""
    crashes = BUILD / "crashes"
    crashes.mkdir(parents=True, exist_ok=True)
    whole = sum(SHARES.values())

    def run(target: str) -> dict[str, Any]:
        share = seconds * SHARES[target] / whole
        options = [f"--seconds={share}", f"--seed={seed}", f"--crashes={crashes}"]
        split = [part for option in options for part in option.split("=", 1)]
        return run_target(program, target, [*split, "--checksum", checksum])

    with ThreadPoolExecutor(processes) as pool:
        return list(pool.map(run, SHARES))


def summed(reports: list[dict[str, Any]]) -> dict[str, Any]:
    """Return executions, rate and hits over all targets."""
    executions = sum(report["executions"] for report in reports)
    seconds = sum(report["seconds"] for report in reports)
    codes = reports[0]["refused"]
    return {
        "executions": executions,
        "seconds": round(seconds, 1),
        "executions_a_second": round(executions / max(seconds, 1e-9)),
        "by_target": {report["target"]: report["executions"] for report in reports},
        "refused": {code: sum(r["refused"][code] for r in reports) for code in codes},
        "accepted": [sum(r["accepted"][i] for r in reports) for i in range(17)],
        "operators": sum(report["operators"] for report in reports),
        "operators_refused": sum(report["operators_refused"] for report in reports),
        "slowest_ms": max(report["slowest_ms"] for report in reports),
    }


def run_libfuzzer(seconds: float) -> None:
    """Run every target under libFuzzer for its share."""
    program = build("libfuzzer", instruction_sets())
    for target, share in SHARES.items():
        corpus = BUILD / "libfuzzer-corpus" / target
        corpus.mkdir(parents=True, exist_ok=True)
        limit = max(1, round(seconds * share / sum(SHARES.values())))
        folders = [str(folder) for folder in SEEDS] if target != "aggregate" else []
        subprocess.run(
            [str(program), f"-max_total_time={limit}", "-max_len=65536", "-timeout=10",
             "-print_final_stats=1", f"-artifact_prefix={BUILD}/", str(corpus), *folders],
            env={**os.environ, "GCEXT_FUZZ_TARGET": target}, check=True,
        )  # fmt: skip


def run_threads(rounds: int) -> None:
    """Run every CPU operator on several threads, under ThreadSanitizer."""
    subprocess.run([str(build("tsan", instruction_sets())), str(rounds)], check=True)


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--checksum", choices=["repaired", "left"], default="repaired")
    parser.add_argument("--engine", choices=["own", "libfuzzer"], default="own")
    parser.add_argument("--variant", choices=["asan", "plain", "msan"], default="asan")
    parser.add_argument("--threads", type=int, metavar="ROUNDS", help="ThreadSanitizer instead")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.threads is not None:
        return run_threads(options.threads)
    if options.engine == "libfuzzer":
        return run_libfuzzer(options.seconds)
    isas = "baseline" if options.variant == "msan" else instruction_sets()
    program = build(options.variant, isas)
    if shutil.which("clang++") is None:
        print(NO_CLANG, file=sys.stderr)
    reports = run_all(program, options.seconds, options.seed, options.processes, options.checksum)
    result = {"seed": options.seed, "variant": options.variant, **summed(reports)}
    print(json.dumps(result, indent=1))
    if options.json is not None:
        with contextlib.suppress(FileExistsError):
            options.json.parent.mkdir(parents=True)
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    return None


if __name__ == "__main__":
    main()
