"""The package's shape: how modules import one another, and how many files a call passes through."""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

import gcext

PACKAGE = Path(gcext.__file__).parent
BUILT = {"_build.json", "__pycache__"}


def entry_of(module: str) -> str:
    """The entry of gcext/ that a module belongs to."""
    return [*module.split("."), "__init__"][1]


def imports(file: Path) -> set[str]:
    """The modules of gcext that a file imports when it runs, in functions too."""
    found: set[str] = set()
    tree = ast.parse(file.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= names if node.module == "gcext" else {node.module}
    return {name for name in found if name.split(".")[0] == "gcext"}


def arrows() -> set[tuple[str, str]]:
    """Which entry of gcext/ imports which other one."""
    pairs = set()
    for file in PACKAGE.rglob("*.py"):
        entry = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
        pairs |= {(entry, entry_of(name)) for name in imports(file)}
    known = {path.name.removesuffix(".py") for path in PACKAGE.iterdir()}
    return {(a, b if b in known else "__init__") for a, b in pairs if a != b and b != "_wire"}


def test_entries_arrows_and_levels() -> None:
    entries = {
        path.name for path in PACKAGE.iterdir() if path.suffix != ".so" and path.name not in BUILT
    }
    assert len(entries) <= 24, sorted(entries)  # seven of them adapters of engines
    edges = arrows()
    assert 20 < len(edges) <= 90

    @cache
    def level(entry: str) -> int:  # a circle would be a RecursionError
        return 1 + max((level(b) for a, b in edges if a == entry), default=0)

    assert max(level(entry) for pair in edges for entry in pair) <= 7


def files_of(call: Callable[[], Any]) -> tuple[Any, list[str]]:
    """What a call returns, and the files of gcext that it enters, in order."""
    files: list[str] = []

    def profile(frame: Any, event: str, _: Any) -> None:
        path = Path(frame.f_code.co_filename)
        if event == "call" and path.is_relative_to(PACKAGE):
            name = str(path.relative_to(PACKAGE))
            if files[-1:] != [name]:
                files.append(name)

    sys.setprofile(profile)
    try:
        result = call()
    finally:
        sys.setprofile(None)
    return result, files


@pytest.mark.parametrize("spec", ["stc:p=0.1", "topk:p=0.1", "dense", "sign", "qsgd", "terngrad"])
def test_an_encode_enters_five_files_each_once(spec: str) -> None:
    codec, tensor, residual = gcext.codec(spec), torch.randn(1000), torch.zeros(1000)
    _, files = files_of(lambda: codec.encode(tensor, residual, seed=1))
    assert 3 < len(files) <= 5 and len(set(files)) == len(files), files


def test_a_round_trip_enters_eight_files() -> None:
    tensor = torch.randn(1000)
    gcext.stc(tensor)  # makes the codec
    packet, first = files_of(lambda: gcext.stc(tensor))
    message, second = files_of(packet.to_bytes)
    received, third = files_of(lambda: gcext.Packet.from_bytes(message, expect=(1000,)))
    _, fourth = files_of(lambda: received.add_to_(torch.zeros(1000)))
    calls = [first, second, third, fourth]
    assert all(len(set(files)) == len(files) for files in calls), calls
    assert len(first) <= 5 and len(set().union(*calls)) <= 8
