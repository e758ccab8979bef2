"""What every codec shares: the interface, and the checks of a tensor and its residual."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, overload

import torch
from torch import Tensor

from gcext._codecs.input import Sum
from gcext._native import library as _lib
from gcext._native import ops
from gcext._native.library import DTYPES
from gcext._packet import deferred as _late
from gcext._packet.packet import Packet

__all__ = ["Codec"]


class Codec(ABC):
    """What becomes of a tensor on its way into a packet. Holds options, never state.

    A new one says its ``spec`` and implements ``encode_sum``; docs/adding-a-method.md.
    """

    @property
    @abstractmethod
    def spec(self) -> str:
        """The name that makes this codec again: ``gcext.codec(c.spec) == c``."""

    @property
    def name(self) -> str:
        """The spec without its options, for errors."""
        return self.spec.partition(":")[0]

    @property
    def stochastic(self) -> bool:
        """Whether ``encode`` draws random numbers, and so demands a seed."""
        return False

    @abstractmethod
    def encode_sum(self, acc: Sum, seed: int) -> Packet:
        """Return the packet of a sum; ``acc.out``, if any, becomes what it lacks of the sum.

        Where the sum is not finite this raises, or later the packet does; through ``refuse``.
        """

    def encode_sums(self, sums: Sequence[Sum], seeds: Sequence[int]) -> list[Packet]:
        """Return the packet of each sum, as ``encode_sum`` would; a codec may do it faster.

        Where one of the tensors is not finite no sum is touched.
        """
        for each in sums:
            if not _late.comes_late(each.tensor):  # late errors are one packet's each
                Sum(each.source, each.tensor, which=each.which).add(self.name)
        return [self.encode_sum(each, seed) for each, seed in zip(sums, seeds, strict=True)]

    @overload
    def encode(
        self, tensor: Tensor, residual: Tensor | None = None, seed: int | None = None
    ) -> Packet: ...
    @overload
    def encode(
        self,
        tensor: Sequence[Tensor],
        residual: Sequence[Tensor] | None = None,
        seed: Sequence[int] | None = None,
    ) -> list[Packet]: ...
    def encode(self, tensor: Any, residual: Any = None, seed: Any = None) -> Packet | list[Packet]:
        """Return the packet of ``tensor + residual``, and leave in residual what it lacks.

        A list of tensors gives the list of packets that single calls would give, on CUDA in a
        handful of launches; residual and seed are lists then, too.

        Args:
            tensor: any shape, strides and float dtype; converted to float32 first.
            residual: float32, the tensor's shape and device; updated in place.
            seed: any integer, of a stochastic codec, which demands one; the others ignore it. A
                new one every time, or the errors of several packets add up.

        Raises:
            ValueError: the tensor is not finite (names the first index; the residual is left as
                it was), the residual does not fit it, or a seed is lacking. A residual that is
                itself not finite, or overflows, may be found after the fact: use ErrorFeedback
                where that must not happen.
            MemoryError: no memory for the work. The residual is as it was, or, where the lack
                showed in the middle of the pass, holds the whole sum: nothing is lost.

        On CUDA nothing waits for the device, so what is not finite is raised when the packet is
        first looked at; docs/cuda.md. Of a list, on the CPU no residual is changed where one of
        the tensors is not finite; on CUDA each packet tells of its own tensor alone.
        """
        if isinstance(tensor, list | tuple):
            return self._encode_list(tensor, residual, seed)
        seed = self._seed(seed)
        with _lib.memory_errors(self.name):
            flat = _flat(tensor, self.name)
            if residual is None:
                return self.encode_sum(Sum(tensor, flat), seed)
            slot = _residual_slot(tensor, flat, residual, self.name)
            try:
                return self.encode_sum(Sum(tensor, flat, out=slot), seed)
            finally:
                _give_back(slot, residual)

    def _encode_list(
        self,
        tensors: Sequence[Tensor],
        residuals: Sequence[Tensor] | None,
        seeds: Sequence[int] | None,
    ) -> list[Packet]:
        for what, given in (("residual", residuals), ("seed", seeds)):
            if given is not None and len(given) != len(tensors):
                raise ValueError(
                    f"{self.name}: {what} must be a list as long as the tensors', "
                    f"got {len(given)} for {len(tensors)}. Pass one each."
                )
        drawn = [self._seed(seeds[i] if seeds is not None else None) for i in range(len(tensors))]
        which = [f"[{i}]" for i in range(len(tensors))]
        names = [self.name + each for each in which]
        with _lib.memory_errors(self.name):
            flats = list(map(_flat, tensors, names))
            rows = zip(tensors, flats, which, strict=True)
            sums = [Sum(tensor, flat, which=i) for tensor, flat, i in rows]
            if residuals is None:
                return self.encode_sums(sums, drawn)
            slots = list(map(_residual_slot, tensors, flats, residuals, names))
            sums = [each._replace(out=slot) for each, slot in zip(sums, slots, strict=True)]
            try:
                return self.encode_sums(sums, drawn)
            finally:
                for slot, residual in zip(slots, residuals, strict=True):
                    _give_back(slot, residual)

    def advance(
        self,
        tensor: Tensor,
        memory: Tensor,
        out: Tensor,
        decay: float = 1.0,
        seed: int | None = None,
    ) -> Packet:
        """Encode ``tensor + decay*memory`` and write what the packet lacks to ``out``.

        ``memory`` is only read, so that whoever holds both can go back. Shapes, dtypes, seed and
        errors as for encode; memory and out are float32 and contiguous. Whatever is raised, memory
        is as it was, and out is anything; where it is raised later, on CUDA, out is a copy of
        memory.
        """
        seed = self._seed(seed)
        with _lib.memory_errors(self.name):
            flat = _flat(tensor, self.name)
            return self.encode_sum(Sum(tensor, flat, memory, out, decay), seed)

    def _seed(self, seed: int | None) -> int:
        if seed is None and self.stochastic:
            raise ValueError(
                f"{self.name}: a stochastic codec needs a seed, got none. "
                "Pass seed=, another one every time."
            )
        if self.stochastic and _late.capturing():
            raise RuntimeError(
                f"{self.name}: a stochastic codec must not be captured in a CUDA graph, got a seed "
                "that every replay would repeat. Encode outside of it."
            )
        return seed or 0


def _flat(tensor: Tensor, op: str) -> Tensor:
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
    flat = tensor.detach().contiguous().view(-1)
    if flat.dtype == torch.float64 and flat.device.type == "cpu":
        flat = ops.narrow_float64(flat)
    return flat if flat.dtype == torch.float32 else flat.to(torch.float32)


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
