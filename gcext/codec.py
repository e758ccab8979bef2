"""Codecs: stateless, ``tensor -> packet -> tensor``; a selection of elements and their values.

``ErrorFeedback`` (gcext.link) puts a memory in front of one; ``recipes`` puts two ends together.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from gcext import _lib
from gcext._spec import Spec, parse
from gcext.packet import DTYPES, Packet

__all__ = ["Codec", "Dense", "TopK", "codec", "codecs", "stc"]


class Codec(ABC):
    """What becomes of a tensor on its way into a packet. Holds options, never state."""

    spec: str
    """The name that makes this codec again: ``gcext.codec(c.spec) == c``."""

    @abstractmethod
    def encode(
        self, tensor: Tensor, residual: Tensor | None = None, seed: int | None = None
    ) -> Packet:
        """Return the packet of ``tensor + residual``, and leave in residual what it lacks.

        Args:
            tensor: any shape, strides and float dtype; converted to float32 first.
            residual: float32, the tensor's shape and device; updated in place.
            seed: of a stochastic codec, which demands one; the others ignore it.

        Raises:
            ValueError: the tensor is not finite (names the first index; the residual is left as
                it was), or the residual does not fit it. A residual that is itself not finite, or
                overflows, is found after the fact: use ErrorFeedback where that must not happen.
            MemoryError: no memory for the work.
        """

    @abstractmethod
    def advance(self, tensor: Tensor, memory: Tensor, out: Tensor, decay: float = 1.0) -> Packet:
        """Encode ``tensor + decay*memory`` and write what the packet lacks to ``out``.

        ``memory`` is only read, so that whoever holds both can go back. Shapes, dtypes and errors
        as for encode; memory and out are float32 and contiguous. Whatever is raised, memory is as
        it was, and out is anything.
        """


@dataclass(frozen=True)
class TopK(Codec):
    """The ``max(floor(p*n), 1)`` elements of largest magnitude; ties to the lower index.

    ternary: each becomes plus or minus their mean magnitude, sparse ternary compression (Sattler
    et al. 2019). Otherwise they keep their float32 value, top-k (Stich et al. 2018). Zeros are
    never sent, so a packet may hold fewer.
    """

    p: float
    ternary: bool

    def __post_init__(self) -> None:
        if not 0 < self.p <= 1:
            raise ValueError(f"{self._name}: p must be in (0, 1], got {self.p:g}. Choose a share.")

    @property
    def _name(self) -> str:
        return "stc" if self.ternary else "topk"

    @property
    def spec(self) -> str:  # type: ignore[override]
        """The name that makes this codec again."""
        return f"{self._name}:p={self.p!r}"

    def encode(
        self, tensor: Tensor, residual: Tensor | None = None, seed: int | None = None
    ) -> Packet:
        """See Codec.encode."""
        flat = _prepare(tensor, self._name)
        if residual is None:
            return self._select(tensor, flat, None, None, 1.0)
        _check_residual(tensor, residual, self._name)
        # A strided residual is updated whole or not at all.
        stored = residual.detach()
        slot = stored.contiguous()
        packet = self._select(tensor, flat, None, slot, 1.0)
        if slot.data_ptr() != stored.data_ptr():
            stored.copy_(slot)
        return packet

    def advance(self, tensor: Tensor, memory: Tensor, out: Tensor, decay: float = 1.0) -> Packet:
        """See Codec.advance."""
        return self._select(tensor, _prepare(tensor, self._name), memory, out, decay)

    def _select(
        self,
        tensor: Tensor,
        flat: Tensor,
        memory: Tensor | None,
        out: Tensor | None,
        decay: float,
    ) -> Packet:
        n = flat.numel()
        k = max(math.floor(self.p * n), 1) if n else 0
        index, value, info = _lib.select(flat, memory, out, k, 1.0, decay, self.ternary)
        count, status, where, mean = info.tolist()
        if status:
            raise _refusal(self._name, status, where, tensor)
        if count < k:
            index, value = index[:count].clone(), value[:count].clone()
        return Packet(
            "ternary" if self.ternary else "sparse",
            tuple(tensor.shape),
            tensor.dtype,
            index,
            value,
            _float_of(mean) if self.ternary else 0.0,
        )


@dataclass(frozen=True)
class Dense(Codec):
    """Every element as float32: no compression, the baseline of every comparison."""

    @property
    def spec(self) -> str:  # type: ignore[override]
        """The name that makes this codec again."""
        return "dense"

    def encode(
        self, tensor: Tensor, residual: Tensor | None = None, seed: int | None = None
    ) -> Packet:
        """See Codec.encode; the residual becomes zero."""
        if residual is None:
            return self._packet(tensor, _prepare(tensor, "dense").clone())
        _check_residual(tensor, residual, "dense")
        out = torch.empty_like(residual, memory_format=torch.contiguous_format)
        packet = self.advance(tensor, residual.detach().contiguous(), out)
        residual.detach().copy_(out)
        return packet

    def advance(self, tensor: Tensor, memory: Tensor, out: Tensor, decay: float = 1.0) -> Packet:
        """See Codec.advance."""
        flat = _prepare(tensor, "dense")
        packet = self._packet(tensor, flat + decay * memory.flatten())
        out.zero_()
        return packet

    def _packet(self, tensor: Tensor, value: Tensor) -> Packet:
        if not bool(torch.isfinite(value).all()):
            where = int(torch.nonzero(~torch.isfinite(value))[0, 0])
            raise _refusal("dense", _status_of(tensor, where), where, tensor)
        return Packet("dense", tuple(tensor.shape), tensor.dtype, None, value)


def _float_of(bits: int) -> float:
    """Return the non-negative float32 of these bits, also where denormals are being flushed."""
    exponent, mantissa = bits >> 23, bits & 0x7FFFFF
    return math.ldexp(mantissa | (0x800000 if exponent else 0), max(exponent, 1) - 150)


_OK, _TENSOR, _MEMORY, _OVERFLOW, _NO_MEMORY = range(5)  # SelectStatus of csrc/select.h


def _status_of(tensor: Tensor, where: int) -> int:
    return _OVERFLOW if math.isfinite(float(tensor.flatten()[where])) else _TENSOR


def _refusal(op: str, status: int, where: int, tensor: Tensor) -> Exception:
    if status == _NO_MEMORY:
        return MemoryError(f"{op}: no memory for {tensor.numel()} elements. Encode in parts.")
    if status == _TENSOR:
        got = float(tensor.detach().flatten()[where])
        return ValueError(
            f"{op}: tensor must be finite in float32, got {got} at index {where}. "
            "Skip the step or clip the gradient."
        )
    if status == _MEMORY:
        return ValueError(
            f"{op}: residual must be finite, got another value at index {where}. Reset it."
        )
    return ValueError(
        f"{op}: tensor plus residual must be finite in float32, "
        f"got an overflow or a bad residual at index {where}. Scale the tensor down."
    )


def _prepare(tensor: Tensor, op: str) -> Tensor:
    """Return the tensor flat, contiguous, float32 and free of autograd."""
    if tensor.dtype not in DTYPES:
        names = ", ".join(str(d).removeprefix("torch.") for d in DTYPES)
        raise ValueError(f"{op}: dtype must be one of {names}, got {tensor.dtype}. Convert it.")
    if tensor.layout is not torch.strided:
        raise ValueError(f"{op}: tensor must be strided, got {tensor.layout}. Call .to_dense().")
    _lib.require_device(tensor, op)
    return tensor.detach().to(torch.float32).contiguous().view(-1)


def _check_residual(tensor: Tensor, residual: Tensor, op: str) -> None:
    if residual.dtype != torch.float32:
        raise ValueError(f"{op}: residual must be float32, got {residual.dtype}. Convert it.")
    if residual.shape != tensor.shape or residual.device != tensor.device:
        raise ValueError(
            f"{op}: residual must have the tensor's shape and device, {tuple(tensor.shape)} on "
            f"{tensor.device}, got {tuple(residual.shape)} on {residual.device}. "
            "Keep one residual per tensor."
        )
    if tensor.numel() and residual.data_ptr() == tensor.data_ptr():
        raise ValueError(f"{op}: residual must not be the tensor itself. Pass a copy.")


def _topk(spec: Spec) -> Codec:
    return TopK(spec.number("p", 0.01), ternary=spec.name == "stc")


def _dense(spec: Spec) -> Codec:
    return Dense()


_CODECS = {"stc": _topk, "topk": _topk, "dense": _dense}


def codecs() -> list[str]:
    """Return the names that ``codec`` knows."""
    return list(_CODECS)


def codec(spec: str) -> Codec:
    """Return the codec of a spec such as ``"stc:p=0.01"``, ``"topk:p=0.01"`` or ``"dense"``.

    Raises ValueError for an unknown name or option, or an option out of range.

    >>> import gcext, torch
    >>> gcext.codec("stc:p=0.5").encode(torch.tensor([3.0, -1.0, 1.0, -1.0])).to_dense()
    tensor([ 2., -2.,  0.,  0.])
    """
    parsed = parse(spec, "codec", codecs())
    made = _CODECS[parsed.name](parsed)
    parsed.finish()
    return made


def stc(tensor: Tensor, p: float = 0.01, residual: Tensor | None = None) -> Packet:
    """Sparse ternary compression: the share p of largest magnitude, sent as plus or minus its mean.

    Exactly ``min(max(floor(p*n), 1), non-zeros)`` elements travel, ties to the lower index, and the
    mean is the exact sum rounded once (Sattler et al. 2019, arXiv:1903.02891).

    Args:
        tensor: any shape, strides and float dtype; converted to float32 first.
        p: share of elements to send, in (0, 1].
        residual: float32, the tensor's shape; added to the tensor, and updated in place to what
            the packet lacks of the sum (error feedback).

    Raises:
        ValueError: p out of range; a NaN or Inf in the tensor (names the first index, and the
            residual is left as it was); a residual of other shape or dtype. A residual that is
            itself not finite, or overflows, is reported after it was updated: ErrorFeedback holds
            two slots and loses nothing then.
        MemoryError: no memory for the work.

    >>> import gcext, torch
    >>> residual = torch.zeros(4)
    >>> gcext.stc(torch.tensor([3.0, -1.0, 1.0, -1.0]), p=0.5, residual=residual).to_dense()
    tensor([ 2., -2.,  0.,  0.])
    >>> residual
    tensor([ 1.,  1.,  1., -1.])
    """
    return TopK(p, ternary=True).encode(tensor, residual)
