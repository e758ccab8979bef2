"""Prints how many branches of the decoder the fuzzer takes: ``python tests/fuzz/coverage.py``.

Counted by gcov over a build without optimization. Branches that only an exception takes (no memory,
thrown through) are left out. The decoder is csrc/wire without the writers; see WRITERS.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fuzz.run import ROOT, build, run_target

# Functions that write packets, and the words of errors that only they raise.
WRITERS = re.compile(
    r"\bput_|pack_|\bmerge\(|unmerge|Writer|BitSink|BitWriter|Message|Message::|check_floats|"
    r"check_count\(|check_indices|check_sent|check_padding|check_norms|magnitude_of|class_of|"
    r"words_of_all|code_of<|Sets::number|"
    r"Tile<|rice_gaps|rice_choose|rice_write|write_wide|half_sum|shifted_sum|bucket_fits_out|"
    r"fits_blocks|refuse_level"
)
# Made once a process: what branches there are is threads at once and the instruction set.
ONCE = re.compile(r"\s*static const .*=")


def branches(out: Path) -> dict[tuple[str, int, str], list[bool]]:
    """Return for every line and function whether each of its branches was taken."""
    taken: dict[tuple[str, int, str], list[bool]] = {}
    objects = sorted(out.glob("csrc_wire_*.gcda")) + sorted(out.glob("csrc_rice*.gcda"))
    with tempfile.TemporaryDirectory() as folder:
        for data in objects:
            done = subprocess.run(
                ["gcov", "--json-format", "--stdout", "--branch-probabilities", str(data)],
                cwd=folder, capture_output=True, text=True, check=True,
            )  # fmt: skip
            for text in done.stdout.splitlines():
                if text.startswith("{"):
                    add(json.loads(text), taken)
    return taken


def add(report: dict[str, Any], taken: dict[tuple[str, int, str], list[bool]]) -> None:
    """Add one object's counts; a line of a header is taken where any object takes it."""
    for file in report["files"]:
        name = str(Path(file["file"]))
        if "/csrc/" not in name or ("/wire/" not in name and not name.endswith("rice.cpp")):
            continue
        names = {f["name"]: f["demangled_name"] for f in file["functions"]}
        source = (ROOT / "csrc" / name.split("/csrc/")[1]).read_text().splitlines()
        for line in file["lines"]:
            some = [b["count"] > 0 for b in line["branches"] if not b["throw"]]
            if not some or ONCE.match(source[line["line_number"] - 1]):
                continue
            function = names.get(line.get("function_name", ""), "")
            around = (
                f["demangled_name"]
                for f in file["functions"]
                if f["start_line"] <= line["line_number"] <= f["end_line"]
            )
            function = function or next(around, "")  # of a lambda of a template it has no name
            # Copies of a template count as one.
            key = (name.split("/csrc/")[1], line["line_number"], re.sub(r"<[^<>]*>", "", function))
            pairs = itertools.zip_longest(taken.get(key, []), some, fillvalue=False)
            taken[key] = [a or b for a, b in pairs]


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--missing", action="store_true", help="list the lines")
    options = parser.parse_args()
    program = build("coverage")
    for stale in program.parent.glob("*.gcda"):
        stale.unlink()
    for target, share in (("decode", 0.8), ("merge", 0.2)):
        seconds = str(options.seconds * share)
        for checksum in ("repaired", "left"):
            part = seconds if checksum == "repaired" else "1"
            run_target(program, target, ["--seconds", part, "--seed", str(options.seed),
                                         "--checksum", checksum])  # fmt: skip
    total: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for (file, line, function), some in sorted(branches(program.parent).items()):
        writer = WRITERS.search(function) is not None
        for group in (file, "all of csrc/wire", "writers" if writer else "decoder"):
            total[group][0] += sum(some)
            total[group][1] += len(some)
        if options.missing and not writer and not all(some):
            source = (ROOT / "csrc" / file).read_text().splitlines()[line - 1].strip()
            print(f"{file}:{line}: {sum(some)} of {len(some)}: {source}")
    for group, (hit, count) in sorted(total.items()):
        print(f"{group:24} {hit:5} of {count:5} branches  {100 * hit / count:6.2f} %")


if __name__ == "__main__":
    main()
