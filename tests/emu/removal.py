"""Removes each barrier, __syncwarp and fence of cuda/ in turn: does the race check notice?

`make cuda-removals` writes docs/cuda-race.md; `python -m emu.removal FILE ...`, with tests/ on
PYTHONPATH, writes what it says of some files of cuda/. What was run before with the same sources is
not run again (build/removals). It fails where a removal goes unnoticed that EXPLAINED does not
explain.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
BUILD = ROOT / "build" / "removals"
TREE = BUILD / "tree"
TABLE = ROOT / "docs" / "cuda-race.md"
STATEMENT = re.compile(r"__(syncthreads|syncwarp|threadfence)\w*\(")
SECONDS = 1500
_UNNOTICED = "not noticed"

# In place of a barrier that gives a value: the value, and no order.
UNORDERED = """
#define CUEMU_UNORDERED(name, op)                                             \\
  CUEMU_PLAIN inline int name(int x) {                                        \\
    ::cuemu::wait(::cuemu::State::in_barrier, ::cuemu::Op::op, 0, x != 0);    \\
    return static_cast<int>(::cuemu::barrier_result);                         \\
  }
CUEMU_UNORDERED(unordered_or, some)
CUEMU_UNORDERED(unordered_and, every)
CUEMU_UNORDERED(unordered_count, count)
"""

# Which kernels' tests run for a file that several have; the first that notices is enough.
USERS = {"common.cuh": ["select_chunks", "rice", "select"]}

# Of slow tests, those that run.
FEW = {
    "dct": "test_values or test_refuses or test_wide or ties",
    "robust": "same_bytes and not 1024",
    "vote": "same_bytes",
    "select": "(same_bytes and (normal or ties)) or refuses or concentrated",
}

# (file, function, statement): why it is not noticed when it is missing.
EXPLAINED: dict[tuple[str, str, int], str] = {
    ("dct.cu", "dct_choose_kernel", 1): (
        "redundant: the scan of the last tile ends with a barrier, behind which nothing of the "
        "block before is read"
    ),
    ("dct.cu", "dct_choose_kernel", 4): (
        "redundant: up to the next barrier a thread reads of the product what it wrote itself"
    ),
    ("dct.cu", "dct_inverse", 2): (
        "redundant: up to the next barrier a thread reads of the product what it wrote itself"
    ),
    ("combine.cu", "combine_sum_kernel", 3): (
        "the entries of a sound packet are elements of their own, so no lane meets another's; it "
        "orders the repeated indices of an unsound one"
    ),
    ("polar.cuh", "polar_encode_kernel", 1): (
        "redundant: what the group before reads last is written again only behind the barriers of "
        "`polar_scale_of` and `polar_root`"
    ),
    ("polar.cuh", "polar_decode_kernel", 1): (
        "redundant: a thread writes the words that it stored itself; only of the last group does "
        "it read others'"
    ),
    ("rice_pack.cuh", "rice_measure_kernel", 1): (
        "only its value is used: the scans around it order what is shared"
    ),
    ("rice_unpack.cuh", "rice_read_kernel", 2): (
        "redundant: `place` is written again only behind the barriers of the next tile's scan"
    ),
    ("rotate.cu", "rotate_round", 4): (
        "redundant: element i is thread i % kRotateThreads's in each of these passes, and in what "
        "reads them"
    ),
    ("select_finish.cuh", "narrow", 1): (
        "redundant: the scan in `find_from_top` has barriers before `found` is written, and the "
        "callers one before the counts are read"
    ),
    ("select_finish.cuh", "emit_share", 1): (
        "orders nothing: it keeps the lanes together, so that a row's pairs are stored side by side"
    ),
    ("select_stream.cuh", "select_stream_kernel", 5): (
        "redundant: `slab_of` and `full` are written before the barrier of their tile"
    ),
    ("select_tiny.cuh", "finish_tiny", 2): (
        "redundant beside the first barrier of `narrow`, behind which the counts are read"
    ),
}


class Removal(NamedTuple):
    """A statement, numbered within its function from 1, and where it is in its file."""

    file: str
    function: str
    number: int
    start: int
    text: str


def functions(text: str) -> list[tuple[int, str]]:
    """Return where each function of a file begins, and its name."""
    plain = re.sub(r"__launch_bounds__\([^)]*\)", lambda m: " " * len(m[0]), text)
    pattern = r"^(?:  )?(?:__global__|__device__|GCEXT_HD|template|inline)\b[^;{]*?\b(\w+)\("
    return [(m.start(), m[1]) for m in re.finditer(pattern, plain, re.MULTILINE)]


def removals(path: Path) -> list[Removal]:
    """Return the statements of a file that order something."""
    text = path.read_text()
    starts = functions(text)
    counts: dict[str, int] = {}
    found = []
    for match in STATEMENT.finditer(text):
        if "//" in text[text.rfind("\n", 0, match.start()) : match.start()]:
            continue
        name = [name for start, name in starts if start < match.start()][-1]
        counts[name] = counts.get(name, 0) + 1
        end = text.index(";", match.start())
        found.append(
            Removal(path.name, name, counts[name], match.start(), text[match.start() : end])
        )
    return found


def without(text: str, removal: Removal) -> str:
    """Return the file's text without the statement."""
    before, after = text[: removal.start], text[removal.start :]
    value = re.match(r"__syncthreads_(or|and|count)", after)
    if value:
        return before + "unordered_" + value[1] + after[value.end() :]
    return before + "(void)0" + after[len(removal.text) :]


def includes(stem: str) -> set[str]:
    """Return the files of cuda/ that a kernel's .cu includes, itself among them."""
    found: set[str] = set()
    names = [f"{stem}.cu"]
    while names:
        name = names.pop()
        path = ROOT / "cuda" / name
        if name not in found and path.exists():
            found.add(name)
            names += re.findall(r'^#include "([\w.]+)"', path.read_text(), re.MULTILINE)
    return found


def kernels_of(file: str) -> list[str]:
    """Return the kernels whose tests run when something of the file is removed."""
    stems = [path.stem for path in sorted((ROOT / "cuda").glob("*.cu"))]
    return USERS.get(file) or [stem for stem in stems if file in includes(stem)]


def check(stem: str) -> str:
    """Return what a kernel's tests notice in the tree, empty for nothing."""
    tests = [ROOT / "tests" / f"test_{kind}{stem}.py" for kind in ("cuda_", "")]
    test = next(str(each) for each in tests if each.exists())
    command = [
        sys.executable, "-m", "pytest", "-x", "-q", "-s", "-p", "emu.race",
        "-p", "no:cacheprovider", "-m", "not cuda", test,
    ]  # fmt: skip
    if stem in FEW:
        command += ["-k", FEW[stem]]
    environment = os.environ | {
        "PYTHONPATH": str(ROOT / "tests"), "GCEXT_EMU_HOOKS": "race", "GCEXT_EMU_TREE": str(TREE),
    }  # fmt: skip
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=SECONDS
        )
    except subprocess.TimeoutExpired:
        return f"no end within {SECONDS} s"
    if done.returncode == 0:
        return ""
    text = done.stdout + done.stderr
    if "emu: " in text and "failed." in text:
        raise SystemExit(text)
    race = re.search(r"race in (\w+): (.*? at \S+), (.*? at \S+),", text)
    if race:
        one, other = (text[: text.index(" by ")] for text in race.groups()[1:])
        return f"race in `{race[1]}`: {one}, {other}"
    abort = re.search(r"cuemu: ([\w ]+)", text)
    if abort:
        return f"abort: {abort[1]}"
    if "Fatal Python error: Illegal instruction" in text:
        return "abort: an index out of bounds"  # or what else GCC's sanitizer traps
    if "std::bad_alloc" in text:  # recorded accesses without end
        return "abort: no memory left"
    if "Fatal Python error: Segmentation fault" in text:
        return "abort: an address outside memory"
    if "FAILED" in text:
        return "wrong result"
    raise SystemExit(text)


def run(removal: Removal, kept: dict[str, str]) -> str:
    """Return what notices the removal, from `kept` where its sources have been run."""
    path = TREE / "cuda" / removal.file
    text = path.read_text()
    digest = hashlib.sha256(without(text, removal).encode())
    stems = kernels_of(removal.file)
    for name in sorted({file for stem in stems for file in includes(stem)} - {removal.file}):
        digest.update((ROOT / "cuda" / name).read_bytes())
    for name in ("race.cpp", "race.h", "cuemu.h"):
        digest.update((HERE / name).read_bytes())
    key = digest.hexdigest()
    if key not in kept:
        path.write_text(without(text, removal))
        try:
            kept[key] = next(filter(None, map(check, stems)), "")
        finally:
            path.write_text(text)
            for made in (TREE / "build" / "emu").glob("*"):
                if not made.name.startswith("race-"):
                    made.unlink()
        (BUILD / "kept.json").write_text(json.dumps(kept, indent=1))
    return kept[key]


def row(removal: Removal, noticed: str) -> str:
    """Return a removal's row of the page."""
    why = EXPLAINED.get((removal.file, removal.function, removal.number), "**not explained**")
    found = noticed or f"{_UNNOTICED}: {why}"
    return f"| `{removal.function}` | {removal.number}: `{removal.text}` | {found} |"


def rows_of(page: str) -> dict[str, list[str]]:
    """Return the rows of a page by file."""
    parts = re.split(r"^## (.*)$", page, flags=re.MULTILINE)
    return {
        file: re.findall(r"^\| `.*$", text, re.MULTILINE)
        for file, text in zip(parts[1::2], parts[2::2], strict=True)
    }


def page_of(rows: dict[str, list[str]]) -> str:
    """Return the page of these rows."""
    every = [each for file in rows.values() for each in file]
    noticed = sum(f"| {_UNNOTICED}: " not in each for each in every)
    lines = [
        "# Races in the CUDA kernels",
        "",
        "Each barrier, `__syncwarp` and fence of `cuda/`, removed alone, and what the race check",
        "(`make cuda-race`, see [testing](testing.md)) says of the kernels without it.",
        "`make cuda-removals` writes this page.",
        "",
        f"{len(every)} statements, {noticed} noticed.",
    ]
    for file, here in sorted(rows.items()):
        lines += ["", f"## {file}", "", "| function | statement | without it |", "|---|---|---|"]
        lines += here
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run what has to be run, write the page."""
    BUILD.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(TREE, ignore_errors=True)
    for folder in ("cuda", "csrc"):
        shutil.copytree(ROOT / folder, TREE / folder)
    shutil.copytree(HERE, TREE / "tests" / "emu", ignore=shutil.ignore_patterns("*.py", "__*"))
    with (TREE / "tests" / "emu" / "cuemu.h").open("a") as header:
        header.write(UNORDERED)
    store = BUILD / "kept.json"
    kept: dict[str, str] = json.loads(store.read_text()) if store.exists() else {}
    asked = set(sys.argv[1:])
    rows = []
    for path in sorted((ROOT / "cuda").glob("*.cu*")):
        for removal in removals(path):
            if asked and path.name not in asked:
                continue
            noticed = run(removal, kept)
            print(f"{path.name} {removal.function} {removal.number}: {noticed or '-'}", flush=True)
            rows.append((removal, noticed))
    found = rows_of(TABLE.read_text()) if asked else {}
    for name in {removal.file for removal, _ in rows}:
        found[name] = [row(*each) for each in rows if each[0].file == name]
    TABLE.write_text(page_of(found))
    print(f"The table is in {TABLE}.")
    open_ = [
        removal for removal, noticed in rows
        if not noticed and (removal.file, removal.function, removal.number) not in EXPLAINED
    ]  # fmt: skip
    if open_:
        sys.exit("\n".join(f"not noticed: {r.file} {r.function} {r.number}" for r in open_))


if __name__ == "__main__":
    main()
