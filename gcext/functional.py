"""Selection as a function from tensors to tensors, for ``torch.compile(fullgraph=True)``.

A packet needs the host: how many elements were found, and whether something is not finite. These
functions leave both on the device, as tensors of a size known beforehand.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gcext._codecs.base import check_apart, flatten
from gcext._codecs.topk import count_of
from gcext._native import ops
from gcext._native.library import touched
from gcext._native.status import is_ok

__all__ = ["stc", "topk"]


def topk(
    tensor: Tensor, p: float = 0.01, residual: Tensor | None = None, ternary: bool = False
) -> tuple[Tensor, Tensor]:
    """Return the elements of largest magnitude, as ``gcext.codec("topk")`` selects them.

    Args:
        tensor: any shape, strides and float dtype.
        p: share of elements to select, in (0, 1].
        residual: float32 and contiguous, the tensor's shape; added to the tensor, and updated in
            place to what is not selected (error feedback).
        ternary: values are plus or minus their mean magnitude, as of STC.

    Returns the indices in the flat tensor (int32, from 2^31 elements on int64) and the float32
    values, both of ``k = max(floor(p*n), 1)`` entries, by rising index. A tensor with fewer
    non-zeros than that ends in pairs (0, 0.0): adding them changes nothing.

    Raises TypeError or ValueError where p, a dtype or the residual is wrong; that the residual does
    not share the tensor's memory is checked outside of a graph only. Nothing is raised for values:
    where the tensor or the sum is not finite all values are NaN. Where the tensor itself is not
    finite, the residual is as it was.

    >>> import gcext, torch
    >>> gcext.functional.topk(torch.tensor([0.0, -3.0, 1.0, 2.0]), p=0.5)
    (tensor([1, 3], dtype=torch.int32), tensor([-3.,  2.]))
    """
    return _select("functional.topk", tensor, p, residual, ternary)


def _select(
    op: str, tensor: Tensor, p: float, residual: Tensor | None, ternary: bool
) -> tuple[Tensor, Tensor]:
    if not isinstance(p, float | int) or not 0 < p <= 1:  # not by TopK(p): it cannot be traced
        raise ValueError(f"{op}: p must be in (0, 1], got {p!r}.")
    flat = flatten(tensor, op)
    out = None
    if residual is not None:
        if not isinstance(residual, Tensor) or not (
            residual.shape == tensor.shape
            and residual.device == tensor.device
            and residual.dtype == torch.float32
            and residual.is_contiguous()
        ):
            is_tensor = isinstance(residual, Tensor)
            got = f"{residual.dtype} {tuple(residual.shape)}" if is_tensor else type(residual)
            raise ValueError(
                f"{op}: residual must be float32, contiguous and of shape {tuple(tensor.shape)} on "
                f"{tensor.device}, got {got}."
            )
        if not torch.compiler.is_compiling():
            check_apart(flat, residual, op)
            touched([residual])
        out = residual.detach().view(-1)
    k = count_of(p, flat.numel())
    index, value, info = ops.select(flat, None, out, k, 1.0, 1.0, ternary)
    found = torch.arange(k, device=flat.device) < info[0]
    value = torch.where(found, value, 0.0)
    return torch.where(found, index, 0), torch.where(is_ok(info), value, float("nan"))


def stc(tensor: Tensor, p: float = 0.01, residual: Tensor | None = None) -> Tensor:
    """Return what the receiver of ``gcext.stc(tensor, p, residual)`` decodes, bit for bit.

    Arguments and errors are those of ``topk``; the result is float32, of the tensor's shape.

    >>> import gcext, torch
    >>> compiled = torch.compile(gcext.functional.stc, fullgraph=True, backend="eager")
    >>> compiled(torch.tensor([3.0, -1.0, 1.0, -1.0]), p=0.5)
    tensor([ 2., -2.,  0.,  0.])
    """
    index, value = _select("functional.stc", tensor, p, residual, True)
    dense = torch.zeros(tensor.numel(), dtype=torch.float32, device=tensor.device)
    return dense.index_add(0, index, value).view(tensor.shape)
