"""What a case of ``bench gpu-count`` is given: the emulator, adapters and data, or none of it.

In a dry kit launches run nothing, so the data is one element that pretends to be many.
"""

from __future__ import annotations

import importlib
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent


class Kit:
    """What a case is run with: the adapters, with the product's schedule, and its data."""

    def __init__(self, counted: Any, dry: bool) -> None:
        self.counted = counted
        self.dry = dry
        self.elements = 0  # where a case takes others than it is asked for

    def make(self, name: str, constant: str = "") -> Any:
        """Return the adapter of that base name; constant: of its launch header, the first if ''."""
        adapter = importlib.import_module(f"emu.{name}")
        header = (ROOT / "cuda" / f"{name}_launch.h").read_text()
        found = re.search(
            rf"constexpr int64_t {constant or r'k[A-Za-z0-9]*Blocks'} = (\d+);", header
        )
        if name == "bits":
            return adapter.Emu(int(found[1]) if found else 65536)
        return adapter.make("emu", int(found[1])) if found else adapter.make("emu")

    def start(self) -> None:
        """Count from here on."""
        self.counted.reset()

    def normal(self, n: int) -> Tensor:
        """Return normal values."""
        return torch.empty(1).expand(n) if self.dry else torch.randn(n)

    def zeros(self, n: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return zeros."""
        return torch.zeros(1, dtype=dtype).expand(n) if self.dry else torch.zeros(n, dtype=dtype)

    def support(self, n: int, p: float) -> Tensor:
        """Return floor(p*n) rising indices, int32."""
        k = int(p * n)
        if self.dry:
            return torch.zeros(1, dtype=torch.int32).expand(k)
        return torch.randperm(n)[:k].sort().values.int()

    def packets(self, m: int, n: int, p: float) -> tuple[list[Tensor], list[Tensor]]:
        """Return the indices and values of m ternary packets."""
        index = [self.support(n, p) for _ in range(m)]
        if self.dry:
            return index, [self.normal(each.numel()) for each in index]
        return index, [torch.where(torch.rand(each.numel()) < 0.5, -0.5, 0.5) for each in index]


@dataclass(frozen=True)
class Case:
    """One call, of ``n`` elements where no other number is asked for."""

    kernel: str  # base name in cuda/
    name: str
    n: int
    floor: str  # its formula, in words
    run: Callable[[Kit, int], float]


def emulator() -> Any:
    """Return tests/emu's module ``count``; ValueError where there is none, or no compiler."""
    tests = ROOT / "tests"
    if not (tests / "emu" / "count.py").exists() or not (ROOT / "cuda").exists():
        raise ValueError(
            "bench: counting needs the emulator in tests/emu, which an installed gcext does not "
            "have. Run it in a clone of the repository, with g++."
        )
    if str(tests) not in sys.path:
        sys.path.insert(0, str(tests))
    try:
        count = importlib.import_module("emu.count")
    except ImportError as error:
        raise ValueError(
            f"bench: counting needs what the tests do, got {error}. Run pip install -e '.[test]'."
        ) from None
    if count.gxx() is None or shutil.which("addr2line") is None:
        raise ValueError("bench: counting needs g++ and binutils, got none. Install GCC.")
    return count
