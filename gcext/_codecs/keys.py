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

__all__ = ["as_float32", "as_float64", "below", "exact_mean", "find", "keys", "signed_bits"]
__all__ += ["subtract"]

_KEY = 2**31 - 1
_SIGN = -(2**31)  # of an int32


def keys(values: Tensor) -> Tensor:
    """Return the keys of float32 values, int32."""
    return values.view(torch.int32) & _KEY


def signed_bits(values: Tensor, key: Tensor | int) -> Tensor:
    """Return float32 of the given keys with the signs of ``values``."""
    return (values.view(torch.int32) & _SIGN | key).view(torch.float32)


def below(values: Tensor, limit: Tensor) -> tuple[Tensor, Tensor]:
    """Return the values of magnitude below a limit, zeros elsewhere, and how many these are.

    limit: its bits, int32 of shape ().
    """
    kept = keys(values).sub_(limit).bitwise_right_shift_(31)  # all bits or none, as -1 or 0
    count = torch.count_nonzero(kept)
    return kept.bitwise_and_(values.view(torch.int32)).view(torch.float32), count


def find(mask: Tensor, most: int, info: Tensor) -> Tensor:
    """Return where mask is set, and write into info how often.

    Rising: int32, from 2^31 elements on int64. On CUDA there are ``most`` of them, at least as
    many as there are; the rest is 0.
    """
    if info.is_cuda:
        info[0] = torch.count_nonzero(mask)
        index = torch.nonzero_static(mask, size=most, fill_value=0).flatten()
    else:
        index = torch.nonzero(mask).flatten()
        info[0] = index.numel()
    return index if mask.numel() >= 2**31 else index.to(torch.int32)


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


def as_float64(bits: Tensor) -> Tensor:
    """Return the float64 of a float32's bits that is not negative, denormals kept."""
    exponent, mantissa = bits.long() >> 23, bits.long() & 0x7FFFFF
    whole = torch.where(exponent > 0, mantissa + 0x800000, mantissa).double()
    return whole * (exponent.clamp(min=1) + (1023 - 150) << 52).view(torch.float64)


def as_float32(value: Tensor) -> Tensor:
    """Return float64 of shape () rounded to float32, denormals kept; as bits, int32."""
    flat = value.view(1)
    narrow = flat.to(torch.float32) if value.is_cuda else ops.to_float32(flat)
    return narrow.view(torch.int32).view(())
