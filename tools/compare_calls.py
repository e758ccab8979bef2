"""The fixed cost of a round trip in two source trees, built in place, in one interleaved run.

    python tools/compare_calls.py OLD NEW [--numel 1000] [--rounds 15]

A process for each tree; they take turns. Prints the median time of each call in microseconds, with
warm caches, and the median over the turns of new over old.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from pathlib import Path

CALLS = ("compress", "to_bytes", "from_bytes", "add_to_", "all four")

MEASURE = """
import sys, time
import torch, gcext

numel = int(sys.argv[1])
torch.manual_seed(0)
gradient, weights = torch.randn(numel), torch.zeros(numel)
sender, clock = gcext.ErrorFeedback("stc:p=0.01"), time.perf_counter

def once():
    begin = clock()
    packet = sender.compress(gradient, "weight")
    compressed = clock()
    message = packet.to_bytes()
    packed = clock()
    received = gcext.Packet.from_bytes(message, expect=(numel,))
    unpacked = clock()
    received.add_to_(weights, alpha=-1.0)
    end = clock()
    return compressed - begin, packed - compressed, unpacked - packed, end - unpacked, end - begin

for _ in range(500):
    once()
print("ready", flush=True)
for _ in sys.stdin:
    times = zip(*[once() for _ in range(2000)])
    print(*[1e6 * sorted(each)[len(each) // 2] for each in times], flush=True)
"""


class Tree:
    """A process that measures one tree when it is asked."""

    def __init__(self, path: Path, numel: int) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", MEASURE, str(numel)],
            cwd=path,
            env={**os.environ, "PYTHONPATH": str(path.resolve())},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.turns: list[list[float]] = []
        self._line()

    def _line(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            sys.exit("compare_calls: a tree could not be measured; see its error above.")
        return line

    def measure(self) -> None:
        """Take a turn."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        self.turns.append([float(text) for text in self._line().split()])

    def median(self, call: int) -> float:
        """Return the median over the turns, in microseconds."""
        return statistics.median(turn[call] for turn in self.turns)


def main() -> None:
    """Measure both trees and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--numel", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=15)
    given = parser.parse_args()
    old, new = Tree(given.old, given.numel), Tree(given.new, given.numel)
    for turn in range(given.rounds):
        for tree in (old, new) if turn % 2 else (new, old):
            tree.measure()
    for call, name in enumerate(CALLS):
        ratio = statistics.median(
            b[call] / a[call] for a, b in zip(old.turns, new.turns, strict=True)
        )
        was, now = old.median(call), new.median(call)
        print(f"{name:10} old {was:6.1f} us  new {now:6.1f} us  x{ratio:.2f}")
    for tree in (old, new):
        tree.process.kill()


if __name__ == "__main__":
    main()
