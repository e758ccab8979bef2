"""Error feedback: a sender that keeps what a packet lacks, and adds it to the next one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gcext._codecs.base import Codec, Scope, require_contraction
from gcext._codecs.input import Residual
from gcext._links.sender import Sender
from gcext._links.slots import Slot, all_or_nothing, assign, copy_of, empty_like, parts
from gcext._links.stages import Stage
from gcext._native.library import capturing, current_stream, memory_error
from gcext._packet.packet import Packet
from gcext._spec import plain

__all__ = ["Diagnostics", "ErrorFeedback"]


@dataclass(frozen=True)
class Diagnostics:
    """What error feedback does to one tensor; computed only when asked for, in float64.

    Attributes:
        residual_ratio: norm of the residual over norm of the gradient.
        cosine: between the gradient and what was decoded.
        age: rounds that a unit of magnitude waits in the residual before it travels, on average,
            by Little's law: what is held over what leaves in a round, both as 1-norms. Infinite
            where nothing leaves.
    """

    residual_ratio: float
    cosine: float
    age: float


class ErrorFeedback(Sender):
    """A codec with a residual a tensor: what a packet lacks is added to the next one of that name.

    ``acc = g + decay*e;  packet = codec(acc);  e <- acc - decoded(packet)``  (Seide et al. 2014;
    Stich et al. 2018; Sattler et al. 2019).

    Two slots and a swap: ``compress`` reads the residual and writes the next one beside it, so
    NaN, Inf, an overflow or no memory leave the residual as it was, bit for bit. One spare slot a
    shape serves all names, unless several are pending at once. A slot of ``stc``, ``topk``
    and ``sign`` holds the sum and what was sent of it, from which the residual is computed where it
    is read: it is never written.

    In a CUDA graph ``compress`` of a name that has a residual already may be captured: each replay
    encodes, and counts at once. There the next residual is copied back to where it was read, and
    from then on always, as the graph knows that memory; the graph lives no longer than this object.

    Residuals are kept by name. Use the parameters' own: DDP's buckets change after the first step.

    Args:
        codec: a codec, or its spec.
        decay: what the residual is multiplied with, in [0, 1].
        diagnose: keep ``diagnostics`` of each name; a pass in float64 a packet.
        seed: see Sender.
        exact_below: see Sender. What is sent exactly leaves no residual.
        scope: see Sender.
        stages: see Sender; they come before the residual.

    >>> import gcext, torch
    >>> comp = gcext.ErrorFeedback("stc:p=0.25")
    >>> comp.compress(torch.tensor([1.0, 3.0, 0.0, -2.0]), "weight").to_dense()
    tensor([0., 3., 0., 0.])
    >>> comp.compress(torch.zeros(4), "weight").to_dense()  # what was left behind comes next
    tensor([ 0.,  0.,  0., -2.])
    """

    def __init__(
        self,
        codec: Codec | str,
        decay: float = 1.0,
        diagnose: bool = False,
        seed: int | None = None,
        *,
        exact_below: int = 0,
        scope: Scope = "tensor",
        stages: Sequence[Stage] = (),
    ) -> None:
        decay = plain("ErrorFeedback", "decay", float, decay)
        if not 0 <= decay <= 1:
            raise ValueError(f"ErrorFeedback: decay must be in [0, 1], got {decay:g}.")
        super().__init__(codec, seed, exact_below=exact_below, scope=scope, stages=stages)
        for stage in self.stages:
            if stage.lazy:
                raise ValueError(
                    f"ErrorFeedback: {type(stage).__name__} must be used without a residual, which "
                    "would lose what is left out. Use Sender."
                )
        require_contraction(self.codec)
        self.decay = decay
        self.diagnose = diagnose
        self.diagnostics: dict[str, Diagnostics] = {}
        self._residuals: dict[str, Slot] = {}
        self._spare: dict[object, list[Slot]] = {}
        self._fixed: set[str] = set()  # names whose slot a graph reads and writes

    def __repr__(self) -> str:
        held = f"{len(self._residuals)} residuals, {len(self._pending)} pending"
        return f"ErrorFeedback({self.codec.spec!r}, {held})"

    def residual(self, name: str) -> Tensor:
        """Return a copy of a name's residual: float32, its tensor's shape."""
        with self._lock:
            return self._residuals[name].copy()

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy has: all but the spare slots, which are kept by stream."""
        return {**self.__dict__, "_spare": {}}

    def _not_captured(self, commit: bool) -> str | None:
        """See Sender."""
        if not commit:
            return "each replay counts at once, got commit=False. Leave that out"
        if self.diagnose:
            return "diagnostics synchronize, got diagnose=True. Leave that out"
        return super()._not_captured(commit)

    def _encode(self, tensor: Tensor, name: str, seed: int | None) -> tuple[Packet, Slot]:
        memory, out = self._slots(tensor, name)
        try:
            slots = memory.residual, out.residual
            packet = self.codec.advance(tensor, *slots, self.decay, seed)
        except BaseException:
            self._release(out)
            raise
        if self.diagnose:
            self.diagnostics[name] = _diagnose(tensor, packet, out.tensor())
        return packet, out

    def _encode_all(
        self, tensors: Mapping[str, Tensor], exact: Sequence[Packet]
    ) -> tuple[list[Packet], Mapping[str, Slot]]:
        """See Sender."""
        slots: dict[str, tuple[Slot, Slot]] = {}
        try:
            for name, tensor in tensors.items():
                slots[name] = self._slots(tensor, name)
            memories = [memory.residual for memory, _ in slots.values()]
            outs = [out.residual for _, out in slots.values()]
            seeds, names = self._seeds.next_of(tensors), list(tensors)
            given = list(tensors.values())
            packets = self.codec.advance_many(
                given, memories, outs, self.decay, seeds, names, self.scope
            )
            all_or_nothing([*exact, *packets], parts(memories), parts(outs))
        except BaseException:
            for _, slot in slots.values():
                self._release(slot)
            raise
        if self.diagnose:
            for name, packet, out in zip(tensors, packets, outs, strict=True):
                self.diagnostics[name] = _diagnose(tensors[name], packet, out.tensor())
        return packets, {name: slot for name, (_, slot) in slots.items()}

    def _check_shape(self, tensor: Tensor, name: str) -> None:
        """See Sender."""
        slot = self._residuals.get(name)
        if slot is None:
            return
        held = slot.residual.total
        here = (slot.on_cpu and tensor.is_cpu) or held.device == tensor.device
        if not here or slot.shape != tensor.shape:
            raise ValueError(
                f"ErrorFeedback: {name!r} must stay {tuple(held.shape)} on {held.device}, "
                f"got {tuple(tensor.shape)} on {tensor.device}. Use another name."
            )

    def _slots(self, tensor: Tensor, name: str) -> tuple[Slot, Slot]:
        """Return the residual of a name, zeros at first, and the slot of its next one."""
        self._check_shape(tensor, name)
        memory = self._residuals.get(name)
        stream = None if tensor.is_cpu else current_stream(tensor.device)
        try:
            if stream is not None and capturing():
                return self._captured_slots(memory, name, stream)
            if memory is None:
                with torch.inference_mode(False):  # later calls may be outside of it
                    zeros = torch.zeros(tensor.shape, dtype=torch.float32, device=tensor.device)
                    memory = self._slot_of(zeros)
            memory.use(stream)
            memory.stream = stream
            try:
                return memory, self._spare[memory.key()].pop()
            except (KeyError, IndexError):  # none is spare, or other threads took them
                pass
            with torch.inference_mode(False):
                return memory, Slot(empty_like(memory.residual), stream)
        except RuntimeError as error:
            if lack := memory_error("ErrorFeedback", error):
                raise lack from error
            raise

    def _captured_slots(
        self, memory: Slot | None, name: str, stream: torch.Stream
    ) -> tuple[Slot, Slot]:
        """Do as ``_slots`` while a graph is captured, whose replays go on with the same memory.

        Zeros would be made, and a spare slot written to, by every replay.
        """
        if memory is None:
            raise RuntimeError(
                f"ErrorFeedback.compress: must not be captured in a CUDA graph: {name!r} has no "
                "residual yet, which each replay would make anew. Compress it once outside of it."
            )
        self._fixed.add(name)
        with torch.inference_mode(False):
            return memory, Slot(empty_like(memory.residual), stream, captured=True)

    def _slot_of(self, total: Tensor) -> Slot:
        """Return a slot that holds a residual."""
        residual = Residual.whole(total) if self.codec.defers_residual else Residual(total)
        return Slot(residual, None if total.is_cpu else current_stream(total.device))

    def _loaded(self, held: Tensor) -> Slot:
        """Return a slot that holds a copy of a state's residual."""
        return self._slot_of(copy_of(Residual(held)))

    def _commit(self, slots: Mapping[str, Slot]) -> None:
        """Swap the slots of names; copy where a graph knows the memory."""
        fixed = [name for name in slots if name in self._fixed]
        if fixed and not all(slots[name].captured for name in fixed) and self._is_captured(fixed):
            raise RuntimeError(
                "ErrorFeedback.commit: must not be captured in a CUDA graph, where each replay "
                f"would commit {fixed[0]!r} again. Call it outside of it."
            )
        assign([self._residuals[name] for name in fixed], [slots[name] for name in fixed])
        for name, slot in slots.items():
            old: Slot | None = slot
            if name not in self._fixed:
                old, self._residuals[name] = self._residuals.get(name), slot
            if old is not None:
                self._release(old)

    def _is_captured(self, names: Sequence[str]) -> bool:
        """Return whether work on these residuals is being captured now."""
        return capturing() and any(self._residuals[name].residual.total.is_cuda for name in names)

    def _release(self, slot: Slot) -> None:
        """See Sender. As many spare slots of a shape are kept as were pending at once."""
        if not slot.captured:
            self._spare.setdefault(slot.key(), []).append(slot)

    def state_dict(self) -> dict[str, Any]:
        """Return copies of all residuals, pending ones included. Round-trips bit for bit."""
        with self._lock:  # else another thread may encode into a slot that is being copied
            return {
                "version": 3,
                "codec": self.codec.spec,
                "decay": self.decay,
                "exact_below": self.exact_below,
                "scope": self.scope,
                "seeds": self._seeds.state_dict(),
                "residuals": {name: slot.copy() for name, slot in self._residuals.items()},
                "pending": {
                    name: None if slot is None else slot.copy()
                    for name, slot in self._pending.items()
                },
                **self.stages.state_dict(),
            }

    def load_state_dict(self, state: dict[str, Any], strict: bool = True) -> None:
        """Replace all residuals; ValueError, and nothing changed, for a state that does not fit.

        Args:
            state: what ``state_dict`` returned; decay, exact_below and seed must be those of it.
            strict: codec, its options and scope must be those of the state. False lets others go
                on from these residuals, for example where p changes.
        """
        with self._loading(state):
            self._load(state, strict)

    def _load(self, state: dict[str, Any], strict: bool) -> None:
        owner = "ErrorFeedback"
        mine = {
            "codec": self.codec.spec,
            "decay": self.decay,
            "exact_below": self.exact_below,
            "scope": self.scope,
        }
        keys = {"version", *mine, "seeds", "residuals", "pending"}
        keys |= set(self.stages.state_dict())
        if state.get("version") != 3 or set(state) != keys:
            raise ValueError(
                f"{owner}: state must be of version 3, got keys {sorted(map(str, state))} and "
                f"version {state.get('version')}. Load what state_dict returned."
            )
        for key, got in mine.items():
            free = key in ("codec", "scope")  # what is held back suits any
            if state[key] != got and (strict or not free):
                remedy = ", or load with strict=False" if free else ""
                raise ValueError(
                    f"{owner}: {key} must be the state's {state[key]!r}, got {got!r}. "
                    f"Construct with the same{remedy}."
                )
        for key in ("residuals", "pending"):
            if not isinstance(state[key], Mapping):
                raise ValueError(
                    f"{owner}: {key} must be {{name: tensor}}, got {type(state[key]).__name__}. "
                    "Check the file."
                )
            for name, slot in state[key].items():
                exact = slot is None and key == "pending"
                if not isinstance(name, str) or not (exact or _is_residual(slot)):
                    raise ValueError(f"{owner}: {name!r} must be a name and a float32 tensor.")
        for name, slot in state["pending"].items():
            held = state["residuals"].get(name, slot)
            if slot is not None and held.shape != slot.shape:
                raise ValueError(
                    f"{owner}: pending {name!r} must have its residual's shape "
                    f"{tuple(held.shape)}, got {tuple(slot.shape)}."
                )
        other = not strict and (not state["seeds"] or self._seeds.seed is None)
        seeds = {} if other else self._seeds.checked(state["seeds"])
        residuals = {name: self._loaded(held) for name, held in state["residuals"].items()}
        pending = {
            name: None if held is None else self._loaded(held)
            for name, held in state["pending"].items()
        }
        fixed = {name: self._residuals[name] for name in self._fixed}
        for name, slot in fixed.items():
            shape = slot.residual.total.shape
            if name in residuals and residuals[name].residual.total.shape != shape:
                raise ValueError(
                    f"{owner}: {name!r}, which a CUDA graph compresses, must stay {tuple(shape)}, "
                    f"got {tuple(residuals[name].residual.total.shape)}."
                )
        self.stages.load(type(self).__name__, state.get("stages", []))
        for name, slot in fixed.items():  # in place, for the graph; zeros where the state has none
            if name not in residuals:
                with torch.inference_mode(False):
                    residuals[name] = self._slot_of(torch.zeros_like(slot.residual.total))
        assign(list(fixed.values()), [residuals[name] for name in fixed])
        residuals.update(fixed)
        self._residuals, self._pending = residuals, pending
        self._seeds.counts = seeds
        self._spare.clear()
        self.diagnostics.clear()


def _is_residual(slot: Any) -> bool:
    """Return whether what a state holds may be a name's residual."""
    dense = isinstance(slot, Tensor) and slot.layout is torch.strided
    return dense and slot.dtype == torch.float32


def _diagnose(tensor: Tensor, packet: Packet, residual: Tensor) -> Diagnostics:
    gradient = tensor.detach().double().flatten()
    index, value = packet.entries()
    sent = value.double()
    met = gradient if index is None else gradient[index.long()]
    norm, sent_norm = float(gradient.norm()), float(sent.norm())
    left = residual.double()
    flow, held = float(sent.abs().sum()), float(left.abs().sum())
    return Diagnostics(
        residual_ratio=float(left.norm()) / norm if norm else 0.0,
        cosine=float(met @ sent) / (norm * sent_norm) if norm and sent_norm else 0.0,
        age=held / flow if flow else (float("inf") if held else 0.0),
    )
