"""Operators that take a tensor, a memory and out: what tests of their CUDA kernels share."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from emu.backends import same_bits
from torch import Tensor

from gcext._native import library as _lib  # noqa: F401  (_lib loads the CPU operators)

FORMS = ["plain", "memory", "in place"]
SIZES = [1, 7, 31, 32, 33, 255, 257, 1023, 4095, 4096, 4097, 9001]


def scales(n: int) -> Tensor:
    return torch.randn(n) * 10.0 ** torch.randint(-44, 18, (n,)).float()


def mostly_zero(n: int) -> Tensor:
    return torch.randn(n) * (torch.rand(n) < 0.05) * -1.0  # zeros of both signs


def denormals(n: int) -> Tensor:
    return torch.randint(-3, 4, (n,)).float() * 2.0**-149


# Whose outputs have as many elements as info counts.
_PAIRS = ("adacomp", "select_chunks", "threshold")
_INFOS = {"wangni": 2}  # how many come last, all of one status

KINDS = [torch.randn, scales, mostly_zero, denormals, torch.zeros]


def compare(
    run: object, op: str, form: str, tensor: Tensor, memory: Tensor, *options: object, **wide: bool
) -> int:
    """Require the same outputs and memory of the CPU and CUDA kernels; returns the status.

    What it returns may be longer: memory for as much as there can be.
    """
    outs: list[Tensor | None] = [None, None]
    if form == "memory":
        outs = [torch.full_like(memory, 5.0), torch.full_like(memory, 6.0)]
    elif form == "in place":
        outs = [memory.clone(), memory.clone()]
    given = memory if form == "memory" else None
    want = getattr(torch.ops.gcext, op)(tensor, given, outs[0], *options)
    got = getattr(run, op)(tensor, given, outs[1], *options, **wide)
    infos = _INFOS.get(op, 1)
    assert [x.tolist() for x in got[-infos:]] == [x.tolist() for x in want[-infos:]]
    status = int(want[-1][1])
    if outs[0] is not None and outs[1] is not None:  # refused: whoever swaps the two lost nothing
        assert same_bits(outs[1], memory if status and form == "memory" else outs[0])
    if status == 0:
        count = int(want[-1][0]) if op in _PAIRS else None
        for x, y in zip(got[:-infos], want[:-infos], strict=True):
            assert same_bits(x[: len(y)][:count].to(y.dtype), y[:count])
    return status


def spoiled() -> Iterator[tuple[Tensor, Tensor]]:
    """Yield tensors and memories: either, both or their sum are not finite; and one pair is."""
    for who in ("tensor", "memory", "both", "sum", "none"):
        for bad in (float("nan"), -float("inf")):
            tensor, memory = torch.randn(5000), torch.randn(5000)
            if who in ("tensor", "both"):
                tensor[[700, 4000]] = bad
            if who in ("memory", "both"):
                memory[[600, 4999]] = bad
            if who == "sum":
                tensor[800] = memory[800] = 3e38
            yield tensor, memory
