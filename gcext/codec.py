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
            MemoryError: no memory for the work. The residual is as it was, or, where the lack
                showed in the middle of the pass, holds the whole sum: nothing is lost.
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
        object.__setattr__(self, "p", float(self.p))
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
        with _lib.memory_errors(self._name):
            flat = _prepare(tensor, self._name)
            if residual is None:
                return self._select(tensor, flat, None, None, 1.0)
            slot = _residual_slot(tensor, flat, residual, self._name)
            try:
                return self._select(tensor, flat, None, slot, 1.0)
            finally:
                _give_back(slot, residual)

    def advance(self, tensor: Tensor, memory: Tensor, out: Tensor, decay: float = 1.0) -> Packet:
        """See Codec.advance."""
        with _lib.memory_errors(self._name):
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
        with _lib.memory_errors("dense"):
            flat = _prepare(tensor, "dense")
            if residual is None:
                return self._packet(tensor, flat, None, 1.0)
            slot = _residual_slot(tensor, flat, residual, "dense")
            packet = self._packet(tensor, flat, slot, 1.0)
            slot.zero_()
            _give_back(slot, residual)
            return packet

    def advance(self, tensor: Tensor, memory: Tensor, out: Tensor, decay: float = 1.0) -> Packet:
        """See Codec.advance."""
        with _lib.memory_errors("dense"):
            packet = self._packet(tensor, _prepare(tensor, "dense"), memory, decay)
            out.zero_()
            return packet

    def _packet(self, tensor: Tensor, flat: Tensor, memory: Tensor | None, decay: float) -> Packet:
        value = torch.empty_like(flat)
        if flat.device.type == "cpu":
            if memory is None:
                memory, decay = flat, 0.0
            info = _lib.select(flat, memory.view(-1), value, 0, 1.0, decay, False)[2]
            _, status, where, _ = info.tolist()
        else:
            torch.add(flat, 0.0 if memory is None else memory.view(-1), alpha=decay, out=value)
            bad = torch.nonzero(~torch.isfinite(value)).flatten()
            status, where = (_OVERFLOW, int(bad[0])) if bad.numel() else (_OK, -1)
        if status:
            raise _refusal("dense", status, where, tensor)
        return Packet("dense", tuple(tensor.shape), tensor.dtype, None, value)


def _float_of(bits: int) -> float:
    """Return the non-negative float32 of these bits, also where denormals are being flushed."""
    exponent, mantissa = bits >> 23, bits & 0x7FFFFF
    return math.ldexp(mantissa | (0x800000 if exponent else 0), max(exponent, 1) - 150)


_OK, _TENSOR, _MEMORY, _OVERFLOW, _NO_MEMORY = range(5)  # SelectStatus of csrc/select.h


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
    if not isinstance(tensor, Tensor):
        raise TypeError(
            f"{op}: tensor must be a torch.Tensor, got {type(tensor).__name__}. "
            "Convert it with torch.as_tensor."
        )
    if tensor.dtype not in DTYPES:
        names = ", ".join(str(d).removeprefix("torch.") for d in DTYPES)
        raise ValueError(f"{op}: dtype must be one of {names}, got {tensor.dtype}. Convert it.")
    if tensor.layout is not torch.strided:
        raise ValueError(f"{op}: tensor must be strided, got {tensor.layout}. Call .to_dense().")
    _lib.require_device(tensor, op)
    tensor = tensor.detach().contiguous()
    if tensor.dtype == torch.float64 and tensor.device.type == "cpu":
        narrow: Tensor = _lib.narrow_float64(tensor)
        return narrow
    return tensor.to(torch.float32).view(-1)


def _residual_slot(tensor: Tensor, flat: Tensor, residual: Tensor, op: str) -> Tensor:
    """Return what the operator may update in the residual's place: itself, or a contiguous copy."""
    if not isinstance(residual, Tensor) or residual.dtype != torch.float32:
        got = residual.dtype if isinstance(residual, Tensor) else type(residual).__name__
        raise ValueError(f"{op}: residual must be a float32 tensor, got {got}. Convert it.")
    if residual.shape != tensor.shape or residual.device != tensor.device:
        raise ValueError(
            f"{op}: residual must have the tensor's shape and device, {tuple(tensor.shape)} on "
            f"{tensor.device}, got {tuple(residual.shape)} on {residual.device}. "
            "Keep one residual per tensor."
        )
    slot = residual.detach().contiguous()
    distance = abs(slot.data_ptr() - flat.data_ptr())
    if flat.numel() and distance < flat.numel() * flat.element_size():
        raise ValueError(f"{op}: residual must not share the tensor's memory. Pass a copy.")
    return slot


def _give_back(slot: Tensor, residual: Tensor) -> None:
    """Finish an update in place: of a strided residual, whole, and seen by autograd."""
    stored = residual.detach()
    if slot.data_ptr() != stored.data_ptr():
        stored.copy_(slot)
    elif stored.numel():
        _lib.touched(residual)


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
        MemoryError: no memory for the work. The residual is as it was, or, where the lack showed
            in the middle of the pass, holds the whole sum: nothing is lost.

    >>> import gcext, torch
    >>> residual = torch.zeros(4)
    >>> gcext.stc(torch.tensor([3.0, -1.0, 1.0, -1.0]), p=0.5, residual=residual).to_dense()
    tensor([ 2., -2.,  0.,  0.])
    >>> residual
    tensor([ 1.,  1.,  1., -1.])
    """
    return TopK(p, ternary=True).encode(tensor, residual)
