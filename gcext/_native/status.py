"""What a kernel's ``info`` reports, and the error that each status stands for."""

from __future__ import annotations

from torch import Tensor

__all__ = ["COMPANION", "ROTATED", "SCALED", "TRANSFORMED", "is_ok", "mark", "raise_for"]
__all__ += ["require_memory"]

_OK, _TENSOR, _RESIDUAL, _OVERFLOW, _NO_MEMORY = range(5)  # SelectStatus of csrc/select/select.h
SCALED, ROTATED, COMPANION = 5, 6, 7  # by codecs and senders, with ``mark``; 5, 6 by kernels, too
_SKETCHED = 8  # kSketchOverflow
TRANSFORMED = 16  # kSelectTransform; set by codecs, too


def is_ok(info: Tensor) -> Tensor:
    """Return whether info has no error: a bool on its device."""
    return info[1] == _OK


def mark(info: Tensor, bad: Tensor, status: int) -> None:
    """Give info a status where ``bad`` (a bool on its device) and it has none yet."""
    info[1].masked_fill_(bad & is_ok(info), status)


def require_memory(op: str, info: Tensor) -> None:
    """Raise where a kernel of the CPU had no memory; its arrays are not those that were asked for.

    For codecs of several kernels. On CUDA a kernel allocates before it is launched.
    """
    if not info.is_cuda and int(info[1]) == _NO_MEMORY:
        raise_for(op, _NO_MEMORY, -1)


def raise_for(op: str, status: int, where: int, tensor: Tensor | None = None) -> None:
    """Raise the error of a status; nothing where it is 0. tensor: as given, if it is at hand."""
    if status == _OK:
        return
    if status == _NO_MEMORY:
        n = "" if tensor is None else f" for {tensor.numel()} elements"
        raise MemoryError(f"{op}: no memory{n}. Encode in parts.")
    got = "NaN or Inf" if tensor is None else ""
    if status == _TENSOR and tensor is not None:
        got = str(float(tensor.detach().flatten()[where]))
    raise ValueError(
        {
            _TENSOR: f"{op}: tensor must be finite in float32, got {got} at index {where}. "
            "Skip the step or clip the gradient.",
            _RESIDUAL: f"{op}: residual must be finite, got another value at index {where}. "
            "Reset it.",
            _OVERFLOW: f"{op}: tensor plus residual must be finite in float32, "
            f"got an overflow or a bad residual at index {where}. A residual grows where the codec "
            "sends too little of it: reset it, and choose one of larger Codec.contraction.",
            SCALED: f"{op}: tensor times n/k must be finite in float32, got an overflow. "
            "Scale the tensor down, or keep a residual.",
            ROTATED: f"{op}: tensor (plus residual) must be finite in float32 when rotated, got an "
            "overflow. Scale the tensor down, or reset the residual.",
            _SKETCHED: f"{op}: sums of the sketch must be finite in float32, got an overflow. "
            "Scale the tensor down.",
            TRANSFORMED: f"{op}: tensor (plus residual) must be small enough to be transformed in "
            "float32, got an overflow. Scale the tensor down, or reset the residual.",
            COMPANION: f"{op}: all tensors of one call must be finite in float32, "
            f"got another one that is not, number {where} from 0. Look at that one.",
        }[status]
    )
