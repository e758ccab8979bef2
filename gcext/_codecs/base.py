"""What every codec shares: the interface, and the validation of a tensor and its residual."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, Literal, TypeAlias, TypeVar, overload

import torch
from torch import Tensor

from gcext._codecs.input import CodecInput, Residual, Slots
from gcext._codecs.many import listed, refuse_shared, write_back
from gcext._codecs.seeds import as_seed
from gcext._native import lists, ops
from gcext._native.library import (
    DTYPE_NAMES,
    DTYPES,
    memory_error,
    require_device,
    tensor_error,
    touched,
)
from gcext._packet.packet import Packet
from gcext._spec import build, validate, write

__all__ = ["CODECS", "Codec", "Scope", "check_apart", "flatten", "register_codec"]
__all__ += ["require_contraction"]

_Kind = TypeVar("_Kind", bound="Codec")
Scope: TypeAlias = Literal["tensor", "model"]


class Codec(ABC):
    """What becomes of a tensor on its way into a packet. Holds options, never state.

    A new one is a frozen dataclass whose fields are its options (``gcext.option``), with a ``name``
    and ``encode_input``; see "Adding a method" in the documentation.

    >>> import gcext
    >>> gcext.codec("qsgd:bits=2")
    QSGD(bits=2, bucket=512)
    """

    name: ClassVar[str]
    """The name in specs."""

    scopes: ClassVar[tuple[Scope, ...]] = ("tensor",)
    """What ``encode`` of a list may select from: each tensor, or all together."""

    contracts: ClassVar[bool] = True
    """Whether a residual needs ``contraction``. False for a published method that keeps one without
    (Strom 2015, AdaComp); its docstring says when the residual stays bounded."""

    reads_half: ClassVar[bool] = False
    """Whether ``encode_input`` takes an ``acc.tensor`` of float16 or bfloat16 on the CPU. It gets
    one unless ``acc.out`` is the memory, too; other codecs get float32."""

    @property
    def defers_residual(self) -> bool:
        """Whether ``encode_input`` takes ``acc.sent`` and ``acc.next``: see Residual.

        :meta private:
        """
        return False

    def __post_init__(self) -> None:
        validate(self)

    @classmethod
    def from_options(cls, options: Mapping[str, str]) -> Codec:
        """Return the codec of a spec's options, as text; ValueError for what it does not have."""
        return build(cls.name, cls, options)

    @property
    def spec(self) -> str:
        """The text that makes this codec again, so that ``gcext.codec(c.spec) == c``."""
        return write(self.name, self.options())

    def options(self) -> dict[str, Any]:
        """Return the options that the spec names: the fields, but for defaults to be omitted."""
        fields = dataclasses.fields(self)  # type: ignore[arg-type]
        named = {field.name: getattr(self, field.name) for field in fields}
        for field in fields:
            if field.metadata.get("omit") and named[field.name] == field.default:
                del named[field.name]
        return named

    @property
    def stochastic(self) -> bool:
        """Whether ``encode`` draws random numbers, and so requires a seed."""
        return False

    @property
    def unbiased(self) -> bool:
        """Whether, without a residual, the mean over seeds of what is decoded is the tensor."""
        return False

    def contraction(self, n: int) -> float:
        """Return the constant of the codec's contraction under a residual, for n elements.

        That is a delta in (0, 1] such that what the packet C(x) lacks of any sum x of n elements
        is, in the mean over seeds, bounded by::

            |x - C(x)|^2 <= (1 - delta) |x|^2

        Then error feedback converges (Karimireddy et al. 2019), and the norm of the residual (of a
        stochastic codec, its root mean square) is at most ``2*sqrt(1 - delta)/delta`` times the
        largest norm of a tensor. The smaller delta, the longer elements wait in the residual. A
        codec with another scale under a residual, as ``qsgd``, gives the constant of that. Without
        this method a codec takes no residual.

        Args:
            n: number of elements, at least 0.

        Raises:
            ValueError: no constant is known, or it is too small to be of use.

        >>> import gcext
        >>> gcext.codec("topk:p=0.25").contraction(1000)
        0.25
        """
        raise ValueError(
            f"{self.name}: error feedback needs a codec that declares its contraction, got none. "
            "Override Codec.contraction, or keep no residual."
        )

    @abstractmethod
    def encode_input(self, acc: CodecInput, seed: int) -> Packet:
        """Return the packet of a sum; ``acc.out``, if any, becomes the residual.

        Where the sum is not finite this raises, or the packet does when it is first read.
        """

    def encode_inputs(
        self, accs: Sequence[CodecInput], seeds: Sequence[int], scope: Scope = "tensor"
    ) -> list[Packet]:
        """Return the packet of each sum, as ``encode_input`` would; a codec may do it faster.

        Where one of the tensors is not finite no residual is changed, on the CPU.

        scope: "model" selects from all sums together; ValueError of a codec that does not select.
        """
        if scope != "tensor":
            raise self.scope_error(scope)
        for acc in accs:
            if acc.out is not None and self.contracts:
                self.contraction(acc.tensor.numel())
            if not acc.tensor.is_cuda:  # a deferred packet has its own errors
                acc._replace(memory=None, out=None, sent=None, next=None).add()
        return [self.encode_input(acc, seed) for acc, seed in zip(accs, seeds, strict=True)]

    def _encode_plain(
        self,
        tensors: Sequence[Tensor],
        slots: Slots,
        decay: float,
        scope: Scope,
        name: Callable[[int], str],
    ) -> list[Packet] | None:
        """Return the packets of ``encode_inputs`` of what operators take as it is, in less time.

        None: nothing was done, call that. name: of a tensor, for errors.
        """
        return None

    def _encode_scoped(
        self, accs: Sequence[CodecInput], seeds: Sequence[int], scope: Scope
    ) -> list[Packet]:
        """Call ``encode_inputs``; an override of it may leave ``scope`` out."""
        if scope == "tensor":
            return self.encode_inputs(accs, seeds)
        return self.encode_inputs(accs, seeds, scope)

    def scope_error(self, scope: object) -> ValueError:
        """Return the error of a scope that this codec does not have.

        :meta private:
        """
        if scope != "model":
            return ValueError(f"{self.name}: scope must be 'tensor' or 'model', got {scope!r}.")
        return ValueError(
            f"{self.name}: scope must be 'tensor' for a codec that does not select the largest "
            "elements, got 'model'. Use stc or topk, or leave scope out."
        )

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
        scope: Scope = "tensor",
    ) -> list[Packet]: ...
    def encode(
        self,
        tensor: Tensor | Sequence[Tensor],
        residual: Tensor | Sequence[Tensor] | None = None,
        seed: int | Sequence[int] | None = None,
        scope: Scope = "tensor",
    ) -> Packet | list[Packet]:
        """Return the packet of ``tensor + residual``, and leave in residual what it lacks.

        A list of tensors gives the list of packets that single calls would give, on CUDA in a
        handful of launches; residual and seed are lists then, too.

        Args:
            tensor: any shape, strides and float dtype; converted to float32 first.
            residual: float32, the tensor's shape and device; updated in place.
            seed: any integer, of a stochastic codec, which requires one; the others ignore it. A
                new one every time, or the errors of several packets add up.
            scope: of a list, where the share p is taken: "tensor", of each; or "model", of all
                together by one threshold, of codecs that select the largest elements (stc, topk).
                Equal magnitudes: the earlier tensor first, then the lower index. Each tensor that
                sends anything keeps its own scale. On the CPU alone.

        Raises:
            ValueError: the tensor is not finite (names the first index; the residual is left as
                it was), the residual does not fit it, or a seed is lacking. A residual that is
                itself not finite, or overflows, may be found after the fact: use ErrorFeedback
                where that must not happen. Likewise a scope that the codec does not have, and, with
                a residual, a codec that is no contraction.
            MemoryError: no memory for the work. The residual is as it was, or, where the lack
                showed in the middle of the pass, holds the whole sum: nothing is lost. Of a list
                the residuals of some tensors may have moved on: use ErrorFeedback.

        On CUDA nothing synchronizes, so what is not finite is raised when the packet is first
        read. Of a list, on the CPU no residual is changed where one of the tensors is not
        finite; on CUDA each packet reports its own tensor alone.
        """
        if residual is not None:
            require_contraction(self)
        try:
            if isinstance(tensor, list | tuple):
                return self._encode_list(tensor, residual, seed, scope)
            if scope != "tensor":
                raise ValueError(
                    f"{self.name}: scope is of a list of tensors, got {scope!r} for one tensor."
                )
            return self._encode_one(tensor, residual, seed)
        except RuntimeError as error:
            if lack := memory_error(self.name, error):
                raise lack from error
            raise

    def _encode_one(self, tensor: Any, residual: Any, seed: Any) -> Packet:
        """Do as ``encode`` of one tensor."""
        drawn = self._seed(seed) if self.stochastic else 0
        flat = flatten(tensor, self.name, self.reads_half and residual is None)
        if residual is None:
            return self.encode_input(CodecInput(self.name, tensor, flat), drawn)
        slot = _slot(tensor, flat, residual, self.name)
        acc = CodecInput(self.name, tensor, flat, None, slot)
        try:
            return self.encode_input(acc, drawn)
        finally:
            if slot is residual and not residual.is_inference():
                torch.autograd.graph.increment_version(residual)
            else:
                write_back([acc], [residual])

    def _encode_list(self, tensors: Any, residual: Any, seed: Any, scope: Scope) -> list[Packet]:
        """Do as ``encode`` of a list."""
        seeds = listed("seed", seed, tensors, self.name)
        drawn = [self._seed(each) for each in seeds] if self.stochastic else [0] * len(tensors)
        residuals = listed("residual", residual, tensors, self.name)
        slots = () if residual is None else residuals
        if lists.are_plain([*tensors, *slots]) and (
            residual is None or [x.shape for x in slots] == [x.shape for x in tensors]
        ):
            name = partial("{}[{}]".format, self.name)
            try:
                with torch.no_grad():
                    made = self._encode_plain(tensors, Slots(out=slots), 1.0, scope, name)
            finally:
                touched(slots)
            if made is not None:
                return made
        accs: list[CodecInput] = []
        for i, (each, kept) in enumerate(zip(tensors, residuals, strict=True)):
            op = f"{self.name}[{i}]"
            flat = flatten(each, op, self.reads_half and kept is None)
            slot = None if kept is None else _slot(each, flat, kept, op)
            accs.append(CodecInput(op, each, flat, None, slot))
        refuse_shared(accs)
        try:
            return self._encode_scoped(accs, drawn, scope)
        finally:
            write_back(accs, residuals)

    def advance(
        self,
        tensor: Tensor,
        memory: Tensor | Residual,
        out: Tensor | Residual,
        decay: float = 1.0,
        seed: int | None = None,
    ) -> Packet:
        """Encode ``tensor + decay*memory`` and write what the packet lacks to ``out``.

        ``memory`` is only read, so that whoever holds both can go back. Shapes, dtypes, seed and
        errors as for encode; memory and out are float32 and contiguous. Whatever is raised, memory
        is as it was, and out is anything; where it is raised later, on CUDA, out is a copy of
        memory.
        """
        require_contraction(self)
        drawn = self._seed(seed)
        try:
            flat = flatten(tensor, self.name, self.reads_half)
            return self.encode_input(
                CodecInput.of(self.name, tensor, flat, memory, out, decay), drawn
            )
        except RuntimeError as error:
            if lack := memory_error(self.name, error):
                raise lack from error
            raise

    def advance_many(
        self,
        tensors: Sequence[Tensor],
        memories: Sequence[Tensor | Residual] | None = None,
        outs: Sequence[Tensor | Residual] | None = None,
        decay: float = 1.0,
        seeds: Sequence[int | None] | None = None,
        names: Sequence[str] | None = None,
        scope: Scope = "tensor",
    ) -> list[Packet]:
        """Return the packet of each tensor as ``advance`` would; a codec may do it faster.

        Without memories and outs what a packet lacks is lost. Where a call raises no memory is
        changed. names: for the errors; scope: see encode.
        """
        if outs is not None:
            require_contraction(self)
        none: Sequence[None] = [None] * len(tensors)
        drawn = [self._seed(each) for each in seeds or none] if self.stochastic else [0] * len(none)
        accs = []
        try:
            if lists.are_plain(tensors):
                with torch.no_grad():
                    slots = Slots.of_residuals(memories or (), outs or ())
                    made = self._encode_plain(
                        tensors, slots, decay, scope, lambda i: self._named((names or none)[i])
                    )
                if made is not None:
                    return made
            for tensor, name, memory, out in zip(
                tensors, names or none, memories or none, outs or none, strict=True
            ):
                op = self._named(name)
                flat = flatten(tensor, op, self.reads_half)
                accs.append(CodecInput.of(op, tensor, flat, memory, out, decay))
            return self._encode_scoped(accs, drawn, scope)
        except RuntimeError as error:
            if lack := memory_error(self.name, error):
                raise lack from error
            raise

    def _named(self, name: str | None) -> str:
        """Return how errors call a tensor."""
        return self.name if name is None else f"{self.name} {name!r}"

    def _seed(self, seed: int | None) -> int:
        if seed is None and self.stochastic:
            raise ValueError(
                f"{self.name}: a stochastic codec needs a seed, got none. "
                "Pass seed=, another one every time."
            )
        cuda = torch.cuda
        if self.stochastic and cuda.is_initialized() and cuda.is_current_stream_capturing():  # type: ignore[no-untyped-call]
            raise RuntimeError(
                f"{self.name}: a stochastic codec must not be captured in a CUDA graph, got a seed "
                "that every replay would repeat. Encode outside of it."
            )
        if self.stochastic and type(seed) is not int:
            return as_seed(self.name, seed)
        return seed or 0


def require_contraction(codec: Codec) -> None:
    """Raise ValueError for a codec without a ``contraction`` that needs one for a residual."""
    if codec.contracts and type(codec).contraction is Codec.contraction:
        codec.contraction(0)  # raises


CODECS: dict[str, type[Codec]] = {}


def register_codec(kind: type[_Kind]) -> type[_Kind]:
    """Make a codec known by its name, to specs and recipes; a class decorator.

    kind: a frozen dataclass; its fields, of type float, int, bool or str, are the spec's options.
    Raises ValueError for a name that is taken or that no spec could hold.
    """
    name = getattr(kind, "name", "")
    if name in CODECS or not name.isidentifier():
        raise ValueError(f"register_codec: name must be a new identifier, got {name!r}.")
    CODECS[kind.name] = kind
    return kind


def flatten(tensor: Tensor, op: str, half: bool = False) -> Tensor:
    """Return the tensor flat, contiguous, float32 and free of autograd.

    half: leave one of 16 bits on the CPU as it is; see Codec.reads_half.
    """
    if not isinstance(tensor, Tensor):
        raise tensor_error(op, tensor)
    if tensor.dtype not in DTYPES:
        raise ValueError(
            f"{op}: dtype must be one of {DTYPE_NAMES}, got {tensor.dtype}. Convert it."
        )
    if tensor.layout is not torch.strided:
        raise ValueError(f"{op}: tensor must be strided, got {tensor.layout}. Call .to_dense().")
    if not tensor.is_cpu:
        require_device(tensor, op)
    if tensor.dtype is torch.float32 and not tensor.requires_grad and tensor.is_contiguous():
        return tensor if tensor.dim() == 1 else tensor.view(-1)
    flat = tensor.detach().contiguous().view(-1)
    if flat.dtype is torch.float32 or (half and flat.is_cpu and flat.itemsize == 2):
        return flat
    return ops.to_float32(flat) if flat.is_cpu else flat.to(torch.float32)


def _slot(tensor: Tensor, flat: Tensor, residual: Tensor, op: str) -> Tensor:
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
    slot = (residual.detach() if residual.requires_grad else residual).contiguous()
    check_apart(flat, slot, op)
    return slot


def check_apart(flat: Tensor, slot: Tensor, op: str) -> None:
    """Raise ValueError where a contiguous residual shares the tensor's memory."""
    if abs(slot.data_ptr() - flat.data_ptr()) < 4 * flat.numel():
        raise ValueError(f"{op}: residual must not share the tensor's memory. Pass a copy.")
