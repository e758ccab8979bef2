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


def test_every_kernel_is_registered() -> None:
    driver = (build.HERE / "kernels.cpp").read_text()
    included = set(re.findall(r'^#include "../../cuda/(\w+\.cu)"', driver, re.MULTILINE))
    assert included == {path.name for path in CUDA.glob("*.cu")}
    library = build.library("kernels")
    library.emu_kernel.restype = ctypes.c_char_p
    listed = [library.emu_kernel(i).decode() for i in range(library.emu_kernels())]
    names = {re.findall(r"(\w+)(?:<[^<>]*>)?\]$", text)[0] for text in listed}
    assert names == kernels()
    assert len(set(listed)) == len(listed)
    assert {text for text in listed if "level_values_kernel<" in text} == {
        text for text in listed if "level_values_kernel" in text
    }


def test_nothing_is_launched_but_by_the_macro() -> None:
    launches = [path.name for path in FILES for _ in re.findall("<<<", path.read_text())]
    assert launches == ["common.cuh"]


@pytest.mark.cuda
def test_the_first_operator_loads_all() -> None:
    assert torch.ops.gcext.load_kernels(0) >= len(kernels())
