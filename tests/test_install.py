"""From sources to an installed package: sdist, wheel, console command, and what is missing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import gcext

ROOT = Path(__file__).parents[1]
GENERATED = {"PKG-INFO", "setup.cfg"}  # by setuptools; and *.egg-info
EPOCH = "315532800"  # 1980-01-01, as in tools/wheels.py
ONE_LINE = "import gcext, torch; print(gcext.__file__); gcext.stc(torch.randn(9))"
CPU_BUILD = "pip install torch --index-url https://download.pytorch.org/whl/cpu"


def python(*arguments: str | Path, **settings: str | Path) -> subprocess.CompletedProcess[str]:
    """Run this Python; settings: cwd, and environment variables."""
    cwd = settings.pop("cwd", ROOT)
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "GCEXT_TORCH_DIR", "CXX")}
    env |= {name: str(value) for name, value in settings.items()}
    program = settings.get("PROGRAM", sys.executable)
    command = [str(part) for part in (program, *arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=env)


@pytest.fixture(scope="module")
def no_git(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A PATH whose git fails, and fails the tests that used it."""
    folder = tmp_path_factory.mktemp("bin")
    git = folder / "git"
    git.write_text(f"#!/bin/sh\ntouch {folder}/used\nexit 127\n")
    git.chmod(0o755)
    yield f"{folder}:{os.environ['PATH']}"
    assert not (folder / "used").exists(), "a build asked git"


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory, no_git: str) -> Path:
    """The sdist of these sources, unpacked."""
    pytest.importorskip("build", reason="needs the extra build")
    folder = tmp_path_factory.mktemp("sdist")
    options = ("--sdist", "--no-isolation", "--outdir", folder)
    done = python("-m", "build", *options, ROOT, PATH=no_git)
    assert done.returncode == 0, done.stdout + done.stderr
    (archive,) = folder.glob("*.tar.gz")
    subprocess.run(["tar", "xzf", archive, "-C", folder], check=True)
    return folder / f"gcext-{gcext.__version__}"


def files_of(tree: Path) -> set[str]:
    names = {path.relative_to(tree).as_posix() for path in tree.rglob("*") if path.is_file()}
    return {name for name in names if ".egg-info/" not in name} - GENERATED


def test_the_sdist_holds_what_builds_and_tests_it(tree: Path) -> None:
    files = files_of(tree)
    for name in ("CMakeLists.txt", "LICENSE", "Makefile", "pyproject.toml", ".ci/run"):
        assert name in files
    for folder in ("bench", "csrc", "cuda", "docs", "examples", "gcext", "tests", "tools"):
        assert any(name.startswith(f"{folder}/") for name in files), folder
    built = {name for name in files if name.endswith((".so", ".pyc", "_build.json"))}
    assert not built


def test_the_sdist_holds_what_git_tracks(tree: Path) -> None:
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("no git, or no checkout")
    done = subprocess.run(["git", "ls-files"], capture_output=True, text=True, cwd=ROOT)
    tracked = {name for name in done.stdout.splitlines() if (ROOT / name).exists()}
    assert tracked - files_of(tree) == set()


@pytest.fixture(scope="module")
def installed(tree: Path, no_git: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment with the wheel of the sdist, which finds torch where this Python does."""
    folder = tmp_path_factory.mktemp("wheel")
    options = ("--wheel", "--no-isolation", "--outdir", folder)
    settings = {"PATH": no_git, "GCEXT_CUDA": "OFF", "CXX": compiler(), "SOURCE_DATE_EPOCH": EPOCH}
    done = python("-m", "build", *options, tree, **settings)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = folder.glob("*.whl")
    assert "gcext/_bench/__main__.py" in zipfile.ZipFile(wheel).namelist()
    venv.create(folder / "venv", with_pip=True)
    program = folder / "venv" / "bin" / "python"
    where = python("-c", "import sysconfig; print(sysconfig.get_path('purelib'))", PROGRAM=program)
    others = [sysconfig.get_path("purelib"), str(Path(torch.__file__).parents[1])]
    (Path(where.stdout.strip()) / "others.pth").write_text("\n".join(dict.fromkeys(others)))
    pip = ("-m", "pip", "install", "--quiet", "--no-deps", "--no-index")
    done = python(*pip, wheel, PROGRAM=program)
    assert done.returncode == 0, done.stderr
    return program


def compiler() -> str:
    """Return what CXX may be: a launcher with a compiler, where there is one."""
    return "ccache c++" if shutil.which("ccache") else "c++ -pipe"


def test_the_wheel_of_the_sdist_runs_outside_of_the_sources(
    installed: Path, tmp_path: Path
) -> None:
    done = python("-W", "error", "-c", ONE_LINE, PROGRAM=installed, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).is_relative_to(installed.parents[1])


def test_the_wheel_holds_no_folder_and_no_time_of_its_build(installed: Path, tree: Path) -> None:
    """What two builds would differ in; that they are the same bytes takes two: `make wheels`."""
    (wheel,) = installed.parents[2].glob("*.whl")
    with zipfile.ZipFile(wheel) as opened:
        assert {entry.date_time[:3] for entry in opened.infolist()} == {(1980, 1, 1)}
        names = [name for name in opened.namelist() if name.endswith((".so", "_build.json"))]
        assert len(names) == 3
        for name in names:
            assert str(tree).encode() not in opened.read(name), name


def test_the_console_command_runs_anywhere(installed: Path, tmp_path: Path) -> None:
    """Also in the sources, where the package of the current folder has no native code."""
    command = installed.parent / "gcext"
    version = f"gcext {gcext.__version__}\n"
    assert python("--version", PROGRAM=command, cwd=tmp_path).stdout == version
    rows = tmp_path / "rows.json"
    arguments = ("bench", "server", "--n", "1K", "--m", "3", "--p", "0.1", "--rounds", "1")
    done = python(*arguments, "--json", rows, PROGRAM=command, cwd=tmp_path)
    assert done.returncode == 0 and rows.exists(), done.stderr
    done = python("bench", "stc", "--n", "x", PROGRAM=command, cwd=tmp_path)
    assert done.returncode == 2 and "n must be a whole number" in done.stderr


def test_sources_that_hide_the_installed_package_are_named(installed: Path, tree: Path) -> None:
    done = python("-c", ONE_LINE, PROGRAM=installed, cwd=tree)
    assert done.returncode == 1
    message = done.stderr.splitlines()[-1]
    assert f"{tree / 'gcext'} holds sources without native code and hides" in message
    assert str(installed.parents[1]) in message and "pip install -e ." in message
    command = installed.parent / "gcext"
    assert python("--version", PROGRAM=command, cwd=tree).returncode == 0


def test_sources_without_native_code_say_how_to_build(tree: Path) -> None:
    installed = "os.path.exists(os.path.join(entry, 'gcext', '_build.json'))"
    others = f"import os, sys; sys.path[1:] = [entry for entry in sys.path if not {installed}]; "
    done = python("-c", others + ONE_LINE, cwd=tree)
    assert "native code must be built, got no" in done.stderr
    assert f"`pip install -e .` in {tree}" in done.stderr


def test_without_torch_the_cpu_build_is_named(tmp_path: Path) -> None:
    """On import; and where pip asks for metadata, before it downloads what gcext depends on."""
    done = python("-I", "-S", "-c", f"import sys; sys.path[:0] = [{str(ROOT)!r}]; import gcext")
    assert done.returncode == 1 and CPU_BUILD in done.stderr
    hidden = (
        "import importlib.util, sys, sysconfig\n"
        "importlib.util.find_spec = lambda *_: None\n"
        f"sysconfig.get_path = lambda *_, **__: {str(tmp_path)!r}\n"
        "from setuptools import build_meta\n"
        f"build_meta.prepare_metadata_for_build_wheel({str(tmp_path)!r})\n"
    )
    done = python("-c", hidden)
    assert done.returncode == 1 and CPU_BUILD in done.stderr, done.stderr
    assert not list(tmp_path.iterdir())


def test_a_compiler_that_is_missing_is_named(tmp_path: Path) -> None:
    arguments = ("setup.py", "build_ext", "--build-lib", tmp_path)
    done = python(*arguments, CXX="no-such-compiler -O1")
    assert done.returncode == 1
    assert "needs a C++17 compiler, found none of no-such-compiler." in done.stderr


def test_the_command_line_without_typer(tmp_path: Path) -> None:
    hide = "import sys; sys.modules['typer'] = None; sys.argv[1:] = [{}]; import gcext.__main__"
    done = python("-c", hide.format("'--version'"))
    assert (done.returncode, done.stdout) == (0, f"gcext {gcext.__version__}\n")
    done = python("-c", hide.format("'inspect', 'x'"))
    assert done.returncode == 1 and "pip install 'gcext[fl]'" in done.stderr
