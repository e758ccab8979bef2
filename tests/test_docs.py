"""What the documents show: links resolve, code runs, commands and their options exist."""

from __future__ import annotations

import doctest
import functools
import os
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
AT_TOP = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")]
# Read while tests are collected, also in tests/fakegpu's copy, which does not have them all.
PAGES = [*filter(Path.exists, AT_TOP), *sorted((ROOT / "docs").rglob("*.md"))]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))

FENCE = re.compile(r"^```(\S*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]\n]*\]\(([^)\s]+)\)")
SOURCE = re.compile(r"`((?:csrc|cuda|tests|gcext|tools|bench|examples|docs)/[\w./*-]+)`")
INVENTED = re.compile(r"absmax|NAME")  # files of an example
COMMAND = re.compile(r"(?:python -m (gcext|bench)|(?:^    |`)gcext)\b([^`\n]*)", re.MULTILINE)


def _id(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub and MyST make them."""
    text = FENCE.sub("", page.read_text())
    headings = re.findall(r"^#{1,4} +(.+?) *$", text, re.MULTILINE)
    slugs: set[str] = set()
    for heading in headings:
        slug = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        slugs.add(next(s for i in range(99) if (s := f"{slug}-{i}" if i else slug) not in slugs))
    return slugs


def broken_links(page: Path) -> list[str]:
    """Return the links of a page whose file or anchor does not exist."""
    broken = []
    for target in LINK.findall(re.sub(r"`[^`\n]*`", "", FENCE.sub("", page.read_text()))):
        if re.match(r"[a-z]+:", target):
            continue  # another site
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        missing_file = not file.exists()
        if missing_file or (anchor and anchor not in anchors(file)):
            broken.append(target)
    return broken


def missing_sources(page: Path) -> list[str]:
    """Return the files and folders of this repository that a page names and that do not exist."""
    named = [name for name in SOURCE.findall(page.read_text()) if not INVENTED.search(name)]
    return [name for name in named if not any(ROOT.glob(name.rstrip("/")))]


def run_code(page: Path, namespace: dict[str, Any]) -> int:
    """Run a page's Python blocks and doctests in order, in one namespace; return how many."""
    text = page.read_text()
    blocks = [(m[1], m[2], text.count("\n", 0, m.start(2))) for m in FENCE.finditer(text)]
    count = 0
    for language, code, line in blocks:
        if language not in ("python", "pycon"):
            continue
        count += 1
        if ">>>" not in code:
            exec(compile("\n" * line + code, str(page), "exec"), namespace)
            continue
        test = doctest.DocTestParser().get_doctest(code, {}, page.name, str(page), line)
        test.globs = namespace
        output: list[str] = []
        runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
        failed = runner.run(test, out=output.append, clear_globs=False).failed
        assert not failed, "".join(output)
    return count


def has_code(page: Path) -> bool:
    """Whether a page has blocks that ``run_code`` runs."""
    return any(match[1] in ("python", "pycon") for match in FENCE.finditer(page.read_text()))


def run_script(script: Path, *arguments: str, cwd: Path) -> None:
    """Run a Python file in a process of its own; warnings are errors, as in all tests."""
    done = subprocess.run(
        [sys.executable, "-W", "error", str(script), *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr


def commands(text: str) -> Iterator[tuple[str, list[str]]]:
    """Yield the module and the arguments of each command line in a text.

    ``python -m gcext``, ``python -m bench``, ``gcext`` and ``gcext bench``.
    """
    joined = re.sub(r"\\\n\s*", " ", text)
    for module, rest in COMMAND.findall(joined):
        if rest[:1] in ("", " "):  # not a name that begins so: gcext.stc, gcext/
            arguments = shlex.split(rest, comments=True)
            inner = not module and arguments[:1] == ["bench"]
            yield ("bench", arguments[1:]) if inner else (module or "gcext", arguments)


@functools.cache
def help_of(module: str, command: str) -> str:
    """Return the help of one command; the width keeps an option's name in one piece."""
    done = subprocess.run(
        [sys.executable, "-m", module, command, "--help"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"},
    )
    assert done.returncode == 0, f"python -m {module} {command}: {done.stderr}"
    return done.stdout


def unknown_options(module: str, arguments: list[str]) -> list[str]:
    """Return the arguments that the command line does not know."""
    if not arguments or not arguments[0].isalpha():
        return []  # the module alone, in prose
    text = help_of(module, arguments[0])
    options = {part.partition("=")[0] for part in arguments[1:] if part.startswith("--")}
    known = set(re.findall(r"--[\w-]+", text))
    return sorted(options - known)


@pytest.mark.parametrize("page", PAGES, ids=_id)
def test_links_resolve(page: Path) -> None:
    assert not broken_links(page)
    assert not missing_sources(page)


@pytest.mark.parametrize("page", [page for page in PAGES if has_code(page)], ids=_id)
def test_code_runs(page: Path, tmp_path: Path) -> None:
    """In a process of its own, since pages register codecs and aggregators."""
    run_script(Path(__file__), str(page), cwd=tmp_path)


@pytest.mark.parametrize("page", PAGES, ids=_id)
def test_commands_exist(page: Path) -> None:
    for module, arguments in commands(page.read_text()):
        assert not unknown_options(module, arguments), (module, arguments)


@pytest.mark.parametrize("script", EXAMPLES, ids=_id)
def test_examples_run(script: Path, tmp_path: Path) -> None:
    run_script(script, cwd=tmp_path)
    assert len(script.read_text().splitlines()) <= 80


def test_the_picture_is_what_its_script_draws() -> None:
    drawn = runpy.run_path(str(ROOT / "tools" / "draw_architecture.py"))
    assert drawn["TARGET"].read_text() == drawn["draw"]()


def test_there_is_something_to_check() -> None:
    assert set(AT_TOP) < set(PAGES)
    assert len(EXAMPLES) >= 2
    assert sum(map(has_code, PAGES)) >= 5
    assert sum(len(LINK.findall(page.read_text())) for page in PAGES) > 20
    assert sum(len(list(commands(page.read_text()))) for page in PAGES) > 10


def test_links_that_are_broken_are_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# One *heading*\n\n[a](#one-heading) [b](#two) [c](none.md) [d](page.md#no)\n")
    assert broken_links(page) == ["#two", "none.md", "page.md#no"]
    page.write_text("`csrc/wire/` has `tests/test_docs.py` and `csrc/none.cpp`\n")
    assert missing_sources(page) == ["csrc/none.cpp"]


def test_code_that_fails_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```python\nx = 1\n```\n\n```pycon\n>>> x + 1\n2\n```\n")
    assert run_code(page, {}) == 2
    page.write_text("```python\nx = 1\nassert x == 2\n```\n")
    with pytest.raises(AssertionError):
        run_code(page, {})
    page.write_text("```pycon\n>>> 1 + 1\n3\n```\n")
    with pytest.raises(AssertionError, match="Expected"):
        run_code(page, {})
    script = tmp_path / "script.py"
    script.write_text("import sys\nsys.exit('wrong')\n")
    with pytest.raises(AssertionError, match="wrong"):
        run_script(script, cwd=tmp_path)


def test_commands_that_do_not_exist_are_found() -> None:
    text = "    python -m gcext fl --p 0.1 \\\n      --seed 0\n`python -m gcext fl --q 1` and so on"
    good, bad = commands(text)
    assert good == ("gcext", ["fl", "--p", "0.1", "--seed", "0"]) and not unknown_options(*good)
    assert unknown_options(*bad) == ["--q"]
    console = list(commands("    gcext bench stc --n 1M  # so\n`gcext fl --q` not `gcext.stc --x`"))
    assert console == [("bench", ["stc", "--n", "1M"]), ("gcext", ["fl", "--q"])]
    with pytest.raises(AssertionError, match="nothing"):
        unknown_options("gcext", ["nothing"])


if __name__ == "__main__":
    run_code(Path(sys.argv[1]), {"__name__": "docs"})
