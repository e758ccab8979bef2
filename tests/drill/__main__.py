"""``python -m tests.drill COMMAND``: what the tests run a share of, as a whole.

faults   every single fault of every message, and random schedules of them
kill     kill -9 at random points of federated runs, and full disks
soak     many rounds: memory and file handles stay
poison   a tenth of the clients send what no honest one does
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from . import faults, kill, poison, soak


def run_faults(options: argparse.Namespace) -> None:
    """Run every single fault and the random schedules, and print what there was."""
    singles = sum(1 for _ in faults.each_in_turn())
    with get_context("spawn").Pool(options.processes, torch.set_num_threads, (1,)) as pool:
        for name, call, numbers in (
            ("single faults", faults.single, range(0, singles, options.every)),
            ("random schedules", faults.schedule, range(options.schedules)),
        ):
            begin, total, done = time.monotonic(), Counter[str](), 0
            for counts in progress(pool.imap_unordered(call, numbers, 16), len(numbers)):
                total += counts
                done += 1
            seconds = time.monotonic() - begin
            print(f"{done} {name} in {seconds:.0f} s: every outcome that of the run without them")
            print(f"  {dict(sorted(total.items()))}")


def run_kills(options: argparse.Namespace) -> None:
    """Kill runs, and fill disks; print how often."""
    with tempfile.TemporaryDirectory() as name:
        begin, done = time.monotonic(), kill.kills(Path(name) / "kill", options.kills, options.seed)
        print(f"{done['kills']} kills in {done['runs']} runs, {time.monotonic() - begin:.0f} s")
        done = kill.fill(Path(name) / "limit", options.full, options.seed)
        print(f"a limit on the size of files: {dict(done)}")
        disk = Path(name) / "disk"
        if kill.mounted(disk, 1 << 20):
            try:
                done = kill.fill(disk, options.full, options.seed, disk=True)
                print(f"a full disk: {dict(done)}")
            finally:
                subprocess.run(["umount", str(disk)], check=True)
        else:
            print("a full disk: not tried, to mount one needs root")
    print("every model that of a run that nothing stopped")


def run_soak(options: argparse.Namespace) -> None:
    """Run many rounds and print what the process holds; exit with 1 where that grows."""
    with tempfile.TemporaryDirectory() as name:
        begin = time.monotonic()
        found = soak.soak(Path(name), options.rounds)
    for each in found:
        print(f"round {each.round:7,}  {each.kib:9,} KiB  {each.files} files  {each.disk:9,} bytes")
    early, late = found[len(found) // 4], found[-1]
    grown = late.kib - early.kib
    print(f"{time.monotonic() - begin:.0f} s; since round {early.round:,}: {grown:+,} KiB")
    sys.exit(grown > options.most or late.files != early.files)


def run_poison(options: argparse.Namespace) -> None:
    """Train with each poison and print what it did; exit with 1 where what is refused does much."""
    plain = poison.train(None, options.rounds)
    print(f"accuracy without the poisoned clients: {100 * plain.accuracy:.2f} %")
    for name in poison.POISONS:
        got = poison.train(name, options.rounds)
        same = torch.equal(got.model, plain.model)
        print(
            f"{name}: {100 * got.accuracy:.2f} %, {got.refused} refused, a round's update moved by "
            f"at most {got.moved:.3f}{', the same model' if same else ''}"
        )
        if name in poison.REFUSABLE and not same:
            sys.exit(1)


def progress(results: Iterable[Any], count: int) -> Iterator[Any]:
    """Yield the results; show how many there were."""
    for number, result in enumerate(results, 1):
        if number % 500 == 0:
            print(f"{number} of {count}", file=sys.stderr, flush=True)
        yield result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m tests.drill")
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("faults")
    command.add_argument("--schedules", type=int, default=10_000)
    command.add_argument("--every", type=int, default=1, help="one of so many single faults")
    command.add_argument("--processes", type=int, default=2)
    command.set_defaults(call=run_faults)
    command = commands.add_parser("kill")
    command.add_argument("--kills", type=int, default=1000)
    command.add_argument("--full", type=int, default=100, help="full disks of each kind")
    command.add_argument("--seed", type=int, default=0)
    command.set_defaults(call=run_kills)
    command = commands.add_parser("soak")
    command.add_argument("--rounds", type=int, default=10_000)
    command.add_argument("--most", type=int, default=2048, help="KiB that memory may grow")
    command.set_defaults(call=run_soak)
    command = commands.add_parser("poison")
    command.add_argument("--rounds", type=int, default=40)
    command.set_defaults(call=run_poison)
    options = parser.parse_args()
    options.call(options)


if __name__ == "__main__":
    main()
