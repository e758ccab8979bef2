"""Selection as a function from tensors to tensors, for ``torch.compile(fullgraph=True)``.

A packet needs the host: how many elements were found, and whether something is not finite. These
functions leave both on the device, as tensors of a size known beforehand.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gcext._codecs.topk import count_of
from gcext._native import ops
from gcext._native.library import DTYPES, tensor_error, touched
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

    Raises ValueError where p, a dtype or the residual's shape is wrong. Nothing is raised for
    values: where the tensor or the sum is not finite all values are NaN; the residual is as it was
    where the tensor is to blame.

    >>> import gcext, torch
    >>> gcext.functional.topk(torch.tensor([0.0, -3.0, 1.0, 2.0]), p=0.5)
    (tensor([1, 3], dtype=torch.int32), tensor([-3.,  2.]))
    """
    if not 0 < p <= 1:  # not by TopK(p), which cannot be traced
        raise ValueError(f"topk: p must be in (0, 1], got {p:g}.")
    if not isinstance(tensor, Tensor):
        raise tensor_error("topk", tensor)
    if tensor.dtype not in DTYPES:
        raise ValueError(
            f"topk: dtype must be one of {', '.join(DTYPES.values())}, got {tensor.dtype}."
        )
    if residual is not None and not (
        residual.shape == tensor.shape
        and residual.dtype == torch.float32
        and residual.is_contiguous()
    ):
        raise ValueError(
            f"topk: residual must be float32, contiguous and of shape {tuple(tensor.shape)}, "
            f"got {residual.dtype} {tuple(residual.shape)}."
        )
    flat = tensor.detach().contiguous().view(-1)
    if flat.dtype == torch.float64 and flat.device.type == "cpu":
        flat = ops.narrow_float64(flat)
    out = None if residual is None else residual.detach().view(-1)
    k = count_of(p, flat.numel())
    if out is not None and not torch.compiler.is_compiling():
        _validate_memory(flat, out)
        touched([out])
    index, value, info = ops.select(flat.to(torch.float32), None, out, k, 1.0, 1.0, ternary)
    found = torch.arange(k, device=flat.device) < info[0]
    value = torch.where(found, value, 0.0)
    return torch.where(found, index, 0), torch.where(is_ok(info), value, float("nan"))


def _validate_memory(flat: Tensor, out: Tensor) -> None:
    """Raise ValueError where the residual is in the tensor's memory."""
    if abs(out.data_ptr() - flat.data_ptr()) < 4 * flat.numel():
        raise ValueError("topk: residual must not share the tensor's memory. Pass a copy.")


def stc(tensor: Tensor, p: float = 0.01, residual: Tensor | None = None) -> Tensor:
    """Return what the receiver of ``gcext.stc(tensor, p, residual)`` decodes, bit for bit.

    Arguments and errors are those of ``topk``; the result is float32, of the tensor's shape.

    >>> import gcext, torch
    >>> compiled = torch.compile(gcext.functional.stc, fullgraph=True, backend="eager")
    >>> compiled(torch.tensor([3.0, -1.0, 1.0, -1.0]), p=0.5)
    tensor([ 2., -2.,  0.,  0.])
    """
    index, value = topk(tensor, p, residual, ternary=True)
    dense = torch.zeros(tensor.numel(), dtype=torch.float32, device=tensor.device)
    return dense.index_add(0, index, value).view(tensor.shape)
