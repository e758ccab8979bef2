"""Removes or inverts one check of the wire format at a time: which do the tests notice?

``python tests/fuzz/mutants.py``. All mutants are compiled into one library, each behind a number
that is chosen when it runs: a mutant costs the time of its tests alone. It is killed by the first
of these that fails; survivors are listed with their lines.

  fuzz     the fuzz driver, over the golden packets and the saved corpus, and some runs of its own
  tests    the tests of the wire format
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import sysconfig
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
WORK = ROOT / "build" / "mutants"
SLOWEST = 300  # seconds that the tests may take
TESTS = [
    "test_wire.py", "test_wire_expect.py", "test_wire_coded.py", "test_prefix.py", "test_merged.py",
    "test_sum.py", "test_coded_packets.py", "test_bits.py", "test_rice.py", "test_inspect.py",
    "test_lender.py", "test_budget.py",
]  # fmt: skip
# Tests that take seconds and look at what mutants do not change.
SLOW = ["instruction_set", "same_bits_everywhere", "changes_while", "many_members", "size_of"]

# What a check guards: the decoder's errors, the writer's, and a status that becomes one of them.
FAILS = re.compile(
    r"fail(?:_size)?\(|throw PackError|return RiceStatus::(?!ok)|take\(cursor->left\(\) \+ 1"
    r"|return false;"
)
# Checks that are calls, and conditions that are arguments.
CALLS = re.compile(
    r"^( +)((?:code\.)?(?:prefix\(\)\.)?(?:check_\w+|within)\((?:cursor|message|method|[^;]*)\);)",
    re.M,
)
RULES = re.compile(r"(\n +rule\()([^\"]*?)(, \")")
OTHERS = {
    "rice.cpp": [
        ("return beyond ? RiceStatus", "beyond", "fires"),
        ("return halves <= m && (", "halves <= m", "holds"),
        ("(tile.b == 0 || tile.zeros + tops > m)", "tile.zeros + tops > m", "holds"),
    ],
    "levels2.cpp": [
        ("if (counts.reach >", "counts.reach > static_cast<uint64_t>(body.k)", "fires"),
        ("(body.k) || counts.most >", "counts.most > fields.steps", "fires"),
        ("own &= place < k &&", "place < k", "holds"),
        ("own &= place < k &&", "std::abs(level[i]) <= body.levels.steps", "holds"),
    ],
    "windows.h": [
        ("bool is_right() const { return i", "i == n", "holds"),
        ("return i == n && at", "at == end", "holds"),
    ],
    "frame.cpp": [("if (expectation != nullptr) check_kind", "expectation != nullptr", "fires")],
}
# Sources of the Python seam, whose conditions guard what is packed.
WRITERS = ("packets.cpp", "groups.cpp", "pybind.cpp", "arrays.h", "names.h", "message.cpp")
HEADER = """#pragma once
extern "C" __attribute__((visibility("default"))) int gcext_mutant;
namespace gcext_mutants {
// A check's condition: as it is, inverted, or never true.
inline bool fires(int id, bool value) {
  if (__builtin_expect(gcext_mutant >> 1 != id, 1)) return value;
  return gcext_mutant & 1 ? !value : false;
}
// What must hold: as it is, inverted, or always true.
inline bool holds(int id, bool value) {
  if (__builtin_expect(gcext_mutant >> 1 != id, 1)) return value;
  return gcext_mutant & 1 ? !value : true;
}
}  // namespace gcext_mutants
"""
DEFINITION = """
#include <cstdlib>
int gcext_mutant =
    std::getenv("GCEXT_MUTANT") != nullptr ? std::atoi(std::getenv("GCEXT_MUTANT")) : -1;
"""


@dataclass
class Mutant:
    """One change: `number` is what gcext_mutant is set to."""

    number: int
    where: str
    what: str
    text: str
    side: str
    killed: str = ""


def blanked(code: str) -> str:
    """Return the code with comments and strings as blanks, every place as it was."""
    token = re.compile(r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\])*"|\'(?:\\.|[^\'\\])*\'', re.S)
    return token.sub(lambda found: " " * len(found[0]), code)


def closing(code: str, at: int) -> int:
    """Return the place of the bracket that closes the one at `at`."""
    pairs, depth = {"(": ")", "{": "}"}, 0
    for i in range(at, len(code)):
        depth += (code[i] == code[at]) - (code[i] == pairs[code[at]])
        if depth == 0:
            return i
    raise ValueError("no closing bracket")


def alternatives(code: str, begin: int, end: int) -> list[tuple[int, int]]:
    """Return the operands of the `||` of a condition that are in no bracket."""
    parts, depth, first = [], 0, begin
    for i in range(begin, end):
        depth += (code[i] in "([{") - (code[i] in ")]}")
        if depth == 0 and code[i] == "?":
            return [(begin, end)]
        if depth == 0 and code[i : i + 2] == "||":
            parts.append((first, i))
            first = i + 2
    return [*parts, (first, end)]


def places(path: Path, code: str) -> list[tuple[int, int, str, str]]:
    """Return what to wrap: begin, end, by what, and whose check it is."""
    plain = blanked(code)
    found = []
    for match in re.finditer(r"\bif \(", plain):
        open_at = match.end() - 1
        close = closing(plain, open_at)
        rest = close + 1 + len(plain[close + 1 :]) - len(plain[close + 1 :].lstrip())
        if plain[rest] == "{":
            guarded = code[rest : closing(plain, rest)]
        else:
            guarded = code[rest : plain.index(";", rest) + 1]
        if re.match(r"(if|for|while|switch)\b", guarded) or ";" in plain[open_at:close]:
            continue
        if not FAILS.search(guarded):
            continue
        side = "writer" if "PackError" in guarded or path.name in WRITERS else "decoder"
        found += [(a, b, "fires", side) for a, b in alternatives(plain, open_at + 1, close)]
    for match in RULES.finditer(code):
        found.append((match.start(2), match.end(2), "holds", "decoder"))
    for match in CALLS.finditer(code):
        if plain[match.start(2)] != " ":
            side = "decoder" if re.search("cursor|within|code", match[2]) else "writer"
            found.append((match.start(2), match.end(2) - 1, "call", side))
    for around, what, by in OTHERS.get(path.name, []):
        at = code.index(around)
        at = code.index(what, at)
        found.append((at, at + len(what), by, "decoder"))
    return sorted(set(found))


def transform(source: Path, target: Path, mutants: list[Mutant]) -> None:
    """Write a source with all its mutants."""
    code = source.read_text()
    out, last = [], 0
    for begin, end, by, side in places(source, code):
        if begin < last:
            continue
        number = mutants[-1].number // 2 + 1 if mutants else 0
        text = " ".join(code[begin:end].split())
        line = code.count("\n", 0, begin) + 1
        where = f"{source.relative_to(ROOT / 'csrc')}:{line}"
        out.append(code[last:begin])
        if by == "call":
            out.append(f"if (gcext_mutants::holds({number}, false)) {{}} else {code[begin:end]}")
            mutants.append(Mutant(2 * number, where, "removed", text, side))
        else:
            out.append(f"gcext_mutants::{by}({number}, static_cast<bool>({code[begin:end]}))")
            mutants.append(Mutant(2 * number, where, "removed", text, side))
            mutants.append(Mutant(2 * number + 1, where, "inverted", text, side))
        last = end
    out.append(code[last:])
    target.write_text("".join(out))


def write_sources() -> list[Mutant]:
    """Write csrc/ with every mutant of the wire format."""
    shutil.rmtree(WORK / "csrc", ignore_errors=True)
    shutil.copytree(ROOT / "csrc", WORK / "csrc")
    mutants: list[Mutant] = []
    wire = sorted([*(ROOT / "csrc" / "wire").glob("*.cpp"), *(ROOT / "csrc" / "wire").glob("*.h")])
    for source in [*wire, ROOT / "csrc" / "rice.cpp"]:
        transform(source, WORK / "csrc" / source.relative_to(ROOT / "csrc"), mutants)
    (WORK / "csrc" / "mutant.h").write_text(HEADER)
    isa = WORK / "csrc" / "common" / "isa.cpp"
    isa.write_text(isa.read_text() + DEFINITION)
    return mutants


def launcher() -> list[str]:
    return ["ccache"] if shutil.which("ccache") else []


def build_driver(jobs: int) -> Path:
    """Build the fuzz driver over the mutated sources, with sanitizers.

    Some checks are for a buffer that changes after it was checked: without one of them numbers may
    be read beside it, which is nothing that a program without sanitizers notices.
    """
    out = WORK / "driver"
    cxx = " ".join([*launcher(), os.environ.get("CXX", "g++")])
    subprocess.run(
        ["make", "-s", "-C", str(HERE), f"-j{jobs}", "VARIANT=asan", f"OUT={out}",
         f"CXX={cxx} -include {WORK}/csrc/mutant.h", f"CSRC={WORK}/csrc"],
        check=True,
    )  # fmt: skip
    return out / "fuzz"


def build_extension(jobs: int) -> Path:
    """Build _wire over the mutated sources, in a copy of the package; return the copy's folder."""
    import pybind11

    tree = WORK / "tree"
    shutil.rmtree(tree, ignore_errors=True)
    (tree / "gcext").mkdir(parents=True)
    for entry in (ROOT / "gcext").iterdir():
        if not entry.name.startswith("_wire.") or entry.suffix == ".pyi":
            (tree / "gcext" / entry.name).symlink_to(entry)
    objects = WORK / "objects"
    objects.mkdir(exist_ok=True)
    flags = ["-std=c++17", "-O1", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-include",
             f"{WORK}/csrc/mutant.h", f"-I{pybind11.get_include()}",
             f"-I{sysconfig.get_path('include')}", f"-I{WORK}/csrc"]  # fmt: skip
    cxx = [*launcher(), os.environ.get("CXX", "g++")]
    sources = [*(WORK / "csrc" / "wire").glob("*.cpp"), WORK / "csrc" / "rice.cpp"]
    sources.append(WORK / "csrc" / "common" / "isa.cpp")
    commands = [[*cxx, *flags, "-c", str(s), "-o", str(objects / f"{s.stem}.o")] for s in sources]
    for name in ("bits", "rice"):
        body = ["-DGCEXT_ISA=baseline", "-x", "c++", "-c", str(WORK / "csrc" / f"{name}.inl")]
        commands.append([*cxx, *flags, *body, "-o", str(objects / f"{name}-body.o")])
    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(lambda command: subprocess.run(command, check=True), commands))
    target = tree / "gcext" / f"_wire{sysconfig.get_config_var('EXT_SUFFIX')}"
    subprocess.run(
        [cxx[-1], "-shared", "-o", str(target), *map(str, objects.glob("*.o"))], check=True
    )
    return tree


def noticed_by_driver(driver: Path, mutant: int, runs: int) -> bool:
    """Whether the driver fails under the mutant."""
    for target in ("decode", "merge"):
        inputs = [str(ROOT / "tests" / "vectors" / "v1" / kind) for kind in ("valid", "invalid")]
        corpus = HERE / "corpus" / f"{target}.txt"
        command = [str(driver), target, "--runs", str(runs), "--crashes", str(WORK), *inputs]
        command += [str(corpus)] if corpus.exists() else []
        limits = "detect_leaks=0:max_allocation_size_mb=8000:hard_rss_limit_mb=8000"
        try:
            done = subprocess.run(
                command, env={**os.environ, "GCEXT_MUTANT": str(mutant), "ASAN_OPTIONS": limits},
                capture_output=True, timeout=60 + runs / 200,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return True
        if done.returncode != 0:
            return True
    return False


def serve_tests(tree: Path) -> None:
    """Read mutants from stdin; for each run the tests in a child; write whether they failed."""
    sys.path[:0] = [str(tree), str(ROOT / "tests"), str(ROOT)]
    import pytest

    import gcext
    from gcext import _wire

    assert Path(gcext.__file__).is_relative_to(tree), gcext.__file__
    switch = ctypes.c_int.in_dll(ctypes.CDLL(str(_wire.__file__)), "gcext_mutant")
    files = [str(ROOT / "tests" / name) for name in TESTS]
    quick = " and ".join(f"not {name}" for name in SLOW)
    arguments = ["-x", "-q", "-p", "no:cacheprovider", "-k", quick, *files]
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            sink = os.open(os.devnull, os.O_WRONLY)
            os.dup2(sink, 1)
            os.dup2(sink, 2)
            resource.setrlimit(resource.RLIMIT_AS, (24 << 30, 24 << 30))
            switch.value = int(line)
            os._exit(1 if pytest.main(arguments) != 0 else 0)
        deadline = time.time() + SLOWEST
        while (status := os.waitpid(child, os.WNOHANG))[0] == 0:
            if time.time() > deadline:
                os.kill(child, 9)
                deadline += SLOWEST
            time.sleep(0.02)
        answers.write(f"{int(status[1] != 0)}\n")
        answers.flush()


class Tests:
    """A server of tests, asked for one mutant after another."""

    def __init__(self, tree: Path) -> None:
        command = [sys.executable, str(Path(__file__).resolve()), "--serve", str(tree)]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)

    def notice(self, mutant: int) -> bool:
        """Whether the tests fail under the mutant."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(f"{mutant}\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip() == "1"


def report(mutants: list[Mutant], path: Path) -> None:
    """Write and print what is known."""
    path.write_text(json.dumps([asdict(each) for each in mutants], indent=1) + "\n")
    for side in ("decoder", "writer"):
        some = [m for m in mutants if m.killed and (m.side == side)]
        dead = [m for m in some if m.killed != "survived"]
        by = {name: sum(m.killed == name for m in dead) for name in ("fuzz", "tests")}
        print(f"{side}: {len(dead)} of {len(some)} killed, {by}")
    for each in mutants:
        if each.killed == "survived":
            print(f"  {each.number:4} {each.where:24} {each.what:8} {each.side:7} {each.text}")


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--runs", type=int, default=20000, help="of the driver, for each mutant")
    parser.add_argument("--limit", type=float, default=1e9, help="seconds")
    parser.add_argument("--only", nargs="+", type=int, help="these mutants")
    parser.add_argument("--stages", nargs="+", default=["fuzz", "tests"])
    parser.add_argument("--json", type=Path, default=WORK / "mutants.json")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve is not None:
        return serve_tests(options.serve)
    end = time.time() + options.limit
    mutants = write_sources()
    chosen = [m for m in mutants if options.only is None or m.number in options.only]
    print(f"{len(mutants)} mutants")
    if "fuzz" in options.stages:
        driver = build_driver(options.jobs)
        if noticed_by_driver(driver, -1, options.runs):
            sys.exit("the driver fails without a mutant")

        def try_driver(mutant: Mutant) -> None:
            if time.time() < end:
                noticed = noticed_by_driver(driver, mutant.number, options.runs)
                mutant.killed = "fuzz" if noticed else "survived"

        with ThreadPoolExecutor(options.jobs) as pool:
            list(pool.map(try_driver, chosen))
        report(mutants, options.json)
    if "tests" in options.stages:
        tree = build_extension(options.jobs)
        servers = [Tests(tree) for _ in range(options.jobs)]
        if servers[0].notice(-1):
            sys.exit("the tests fail without a mutant")
        left = [m for m in chosen if m.killed != "fuzz"]

        def try_tests(server: Tests) -> None:
            while left and time.time() < end:
                mutant = left.pop(0)
                mutant.killed = "tests" if server.notice(mutant.number) else "survived"

        with ThreadPoolExecutor(options.jobs) as pool:
            list(pool.map(try_tests, servers))
    return report(mutants, options.json)


if __name__ == "__main__":
    main()
