"""Steps of the codecs that choose by a threshold, none of which synchronizes on CUDA.

A float32's *key* is its bits without the sign. Keys rise with the magnitudes, and what compares
them does not depend on whether denormals are being flushed.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gcext._codecs.input import CodecInput
from gcext._native import ops
from gcext._native.status import is_ok

__all__ = ["exact_mean", "keys", "subtract"]

_KEY = 2**31 - 1


def keys(values: Tensor) -> Tensor:
    """Return the keys of float32 values, int32."""
    return values.view(torch.int32) & _KEY


def subtract(acc: CodecInput, index: Tensor, value: Tensor, count: Tensor, info: Tensor) -> None:
    """Subtract the first ``count`` values from the sum in ``acc.out``, unless info has an error.

    index: rising as far as they go; what follows may be anything. value: as many, or one for all.
    """
    if acc.out is None:
        return
    value = value.expand(index.shape)
    if not info.is_cuda:
        size = int(count)
        acc.take(index[:size].contiguous(), value[:size].contiguous(), info)
        return
    n = acc.out.numel()
    there = (torch.arange(index.numel(), device=index.device) < count) & is_ok(info)
    sent = value.new_zeros(n + 1)  # the last one takes what is not there
    sent.scatter_(0, torch.where(there, index, n).long(), torch.where(there, value, 0.0))
    acc.take(None, sent[:n], info)


def exact_mean(values: Tensor) -> Tensor:
    """Return the bits of the mean magnitude of those that are not zero, 0 of none: int64, 0-d.

    The sum is exact and rounded once, as of select.
    """
    return ops.select(values, None, None, values.numel(), 1.0, 1.0, True)[2][3]
