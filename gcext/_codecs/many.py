"""What encoding a list takes beside encoding each of its tensors: validation, and residuals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gcext._codecs.input import CodecInput

__all__ = ["listed", "refuse_shared", "write_back"]


def listed(what: str, given: Any, tensors: Sequence[Any], op: str) -> Sequence[Any]:
    """Return one entry a tensor: what was given, or None each."""
    if given is None:
        return [None] * len(tensors)
    try:
        count = len(given)
    except TypeError:
        raise TypeError(
            f"{op}: {what} must be a list as long as the tensors', got {given!r:.100} for "
            f"{len(tensors)}. Pass one each."
        ) from None
    if count != len(tensors):
        raise ValueError(
            f"{op}: {what} must be a list as long as the tensors', "
            f"got {count} for {len(tensors)}. Pass one each."
        )
    listed: Sequence[Any] = given
    return listed


def refuse_shared(accs: Sequence[CodecInput]) -> None:
    """Raise ValueError where a list's residual shares memory with another residual or tensor.

    The tensors of a list are encoded in any order, several at once.
    """
    spans = []
    for acc in accs:
        for each in (acc.tensor, acc.out):
            if each is not None and each.numel():
                first = each.data_ptr()
                spans.append((first, first + each.nbytes, each is acc.out, acc.op))
    read = written = 0  # where what was passed so far ends
    for first, end, is_written, op in sorted(spans):
        if first < (max(read, written) if is_written else written):
            raise ValueError(
                f"{op}: residuals must not share memory with other tensors of the list. "
                "Keep one residual per tensor."
            )
        read, written = (read, max(written, end)) if is_written else (max(read, end), written)


def write_back(accs: Sequence[CodecInput], residuals: Sequence[Tensor | None]) -> None:
    """Let each residual be what its input's ``out`` became, and tell autograd."""
    written = []
    for acc, kept in zip(accs, residuals, strict=True):
        if kept is None or acc.out is None:
            continue
        if acc.out is kept or acc.out.data_ptr() == kept.data_ptr():
            if not kept.is_inference():
                written.append(kept)
        else:  # a strided residual's copy
            kept.detach().copy_(acc.out)
    if written:  # the stable ABI does not tell autograd
        torch.autograd.graph.increment_version(written)
