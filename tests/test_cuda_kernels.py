"""Every kernel of cuda/ is loaded before the first launch: none is left out of the list."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path

import pytest
import torch
from emu import build

CUDA = Path(__file__).resolve().parent.parent / "cuda"
FILES = sorted([*CUDA.glob("*.cu"), *CUDA.glob("*.cuh")])


def kernels() -> set[str]:
    """The names of all kernels in the sources."""
    declared = re.compile(r"__global__\s+void\s+(?:__launch_bounds__\([^)]*\)\s*)?(\w+)\(")
    texts = [path.read_text() for path in FILES]
    found = [name for text in texts for name in declared.findall(text)]
    assert len(found) == sum(text.count("__global__") for text in texts)
    return set(found)


def registered(stem: str) -> list[str]:
    """The compiler's texts for the kernels in a library."""
    library = build.library(stem)
    library.emu_kernel.restype = ctypes.c_char_p
    return [library.emu_kernel(i).decode() for i in range(library.emu_kernels())]


def test_every_kernel_is_registered() -> None:
    """In whichever file it is launched."""
    names = set()
    for path in CUDA.glob("*.cu"):
        listed = registered(path.stem)
        assert len(set(listed)) == len(listed) > 0
        names |= {re.findall(r"(\w+)(?:<[^<>]*>)?\]$", text)[0] for text in listed}
    assert names == kernels()


def test_nothing_is_launched_but_by_the_macro() -> None:
    launches = [path.name for path in FILES for _ in re.findall("<<<", path.read_text())]
    assert launches == ["common.cuh"]


@pytest.mark.cuda
def test_the_first_operator_loads_all() -> None:
    assert torch.ops.gcext.load_kernels(0) >= len(kernels())
