"""Links: one direction between two ends. A sender, and a receiver that combines."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gcext._codecs.base import Codec
from gcext._codecs.registry import codec as make_codec
from gcext._codecs.seeds import as_seed, derive
from gcext._native.library import current_stream, memory_error, tensor_error
from gcext._packet.packet import Packet
from gcext._spec import plain
from gcext.aggregate import Aggregator, Mean

__all__ = ["Diagnostics", "ErrorFeedback", "Link", "Sender"]


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


class Sender:
    """The sending end of a link: named tensors to packets.

    A packet counts once it is committed. Across a network, ``compress(..., commit=False)`` holds
    the next state back until the other end acknowledged (``commit``) or did not (``rollback``).

    A stochastic codec needs ``seed``, any integer that no other sender has: every packet's own is
    derived from it, the name and how many of that name were committed, which state_dict keeps.
    """

    def __init__(self, codec: Codec | str, seed: int | None = None) -> None:
        self.codec = codec if isinstance(codec, Codec) else make_codec(codec)
        self._seeds = _Seeds(type(self).__name__, self.codec, seed)
        self._pending: dict[str, Tensor | None] = {}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.codec.spec!r}, {len(self._pending)} pending)"

    @property
    def pending(self) -> tuple[str, ...]:
        """Names compressed with ``commit=False`` and neither committed nor rolled back yet."""
        return tuple(self._pending)

    def compress(self, tensor: Tensor, name: str, commit: bool = True) -> Packet:
        """Return the packet of ``tensor``, with feedback plus the stored residual of ``name``.

        Raises:
            ValueError: NaN or Inf in the tensor or in the sum (names the first index), or a shape
                or device other than the residual's. The residual stays as it was. On CUDA what is
                not finite is raised when the packet is first looked at; the residual is as it was,
                and the next call goes on from there.
            MemoryError: likewise.
            RuntimeError: ``name`` is pending.
        """
        if name in self._pending:
            raise RuntimeError(
                f"{type(self).__name__}: one packet of a name at a time, {name!r} is pending. "
                "Call commit or rollback first."
            )
        packet, self._pending[name] = self._encode(tensor, name, self._seeds.next(name))
        if commit:
            self.commit(name)
        return packet

    def _encode(self, tensor: Tensor, name: str, seed: int | None) -> tuple[Packet, Tensor | None]:
        """Return the packet, and the residual that counts once it is committed."""
        return self.codec.encode(tensor, seed=seed), None

    def commit(self, name: str) -> None:
        """Let the last packet of ``name`` count: it arrived. KeyError where none is pending."""
        del self._pending[name]
        self._seeds.used(name)

    def rollback(self, name: str) -> None:
        """Forget the last packet of ``name``: it was lost. KeyError where none is pending."""
        del self._pending[name]

    def state_dict(self) -> dict[str, Any]:
        """Return the counts of packets and what is pending; nothing where no numbers are drawn."""
        seeds = self._seeds.state_dict()
        return {"seeds": seeds, "pending": sorted(self._pending)} if seeds else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state; ValueError, and nothing changed, for one that does not fit."""
        _check_keys(type(self).__name__, state, self.state_dict())
        self._seeds.counts = self._seeds.checked(state.get("seeds", {}))
        self._pending = dict.fromkeys(state.get("pending", ()))


class ErrorFeedback(Sender):
    """A codec with a residual a tensor: what a packet lacks is added to the next one of that name.

    ``acc = g + decay*e;  packet = codec(acc);  e <- acc - decoded(packet)``  (Seide et al. 2014;
    Stich et al. 2018; Sattler et al. 2019).

    Two slots and a swap: ``compress`` reads the residual and writes the next one beside it, so
    NaN, Inf, an overflow or no memory leave the residual as it was, bit for bit. One spare slot a
    shape serves all names, unless several are pending at once.

    Args:
        codec: a codec, or its spec.
        decay: what the residual is multiplied with, in [0, 1].
        diagnose: keep ``diagnostics`` of each name; a pass in float64 a packet.
        seed: see Sender.

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
    ) -> None:
        decay = plain("ErrorFeedback", "decay", float, decay)
        if not 0 <= decay <= 1:
            raise ValueError(f"ErrorFeedback: decay must be in [0, 1], got {decay:g}.")
        super().__init__(codec, seed)
        self.decay = decay
        self.diagnose = diagnose
        self.diagnostics: dict[str, Diagnostics] = {}
        self._residuals: dict[str, Tensor] = {}
        self._spare: dict[tuple[object, ...], Tensor] = {}

    def __repr__(self) -> str:
        held = f"{len(self._residuals)} residuals, {len(self._pending)} pending"
        return f"ErrorFeedback({self.codec.spec!r}, {held})"

    def residual(self, name: str) -> Tensor:
        """Return a copy of a name's residual: float32, its tensor's shape."""
        return self._residuals[name].clone()

    def _encode(self, tensor: Tensor, name: str, seed: int | None) -> tuple[Packet, Tensor | None]:
        if not isinstance(tensor, Tensor):
            raise tensor_error("ErrorFeedback", tensor)
        memory = self._residuals.get(name)
        if memory is not None and (memory.shape, memory.device) != (tensor.shape, tensor.device):
            raise ValueError(
                f"ErrorFeedback: {name!r} must stay {tuple(memory.shape)} on {memory.device}, "
                f"got {tuple(tensor.shape)} on {tensor.device}. Use another name."
            )
        try:
            if memory is None:
                memory = torch.zeros(tensor.shape, dtype=torch.float32, device=tensor.device)
            key = _slot_key(memory)
            out = self._spare.pop(key, None)
            out = torch.empty_like(memory) if out is None else out
        except RuntimeError as error:
            if lack := memory_error("ErrorFeedback", error):
                raise lack from error
            raise
        try:
            packet = self.codec.advance(tensor, memory, out, self.decay, seed)
        except BaseException:
            self._spare[key] = out
            raise
        if self.diagnose:
            self.diagnostics[name] = _diagnose(tensor, packet, out)
        return packet, out

    def commit(self, name: str) -> None:
        """Let the last packet of ``name`` count: swap the slots. KeyError where none is pending."""
        new, old = self._pending[name], self._residuals.get(name)
        assert new is not None
        super().commit(name)
        self._residuals[name] = new
        if old is not None:
            self._spare[_slot_key(old)] = old

    def rollback(self, name: str) -> None:
        """Forget the last packet of ``name``. KeyError where none is pending."""
        out = self._pending[name]
        assert out is not None
        super().rollback(name)
        self._spare[_slot_key(out)] = out

    def state_dict(self) -> dict[str, Any]:
        """Return copies of all residuals, pending ones included. Round-trips bit for bit."""
        return {
            "version": 2,
            "decay": self.decay,
            "seeds": self._seeds.state_dict(),
            "residuals": {name: slot.clone() for name, slot in self._residuals.items()},
            "pending": {
                name: slot.clone() for name, slot in self._pending.items() if slot is not None
            },
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Replace all residuals; ValueError, and nothing changed, for a state that does not fit."""
        keys = {"version", "decay", "seeds", "residuals", "pending"}
        if state.get("version") != 2 or set(state) != keys:
            raise ValueError(
                f"ErrorFeedback: state must be of version 2, got keys {sorted(state)} and version "
                f"{state.get('version')}. Load what state_dict returned."
            )
        if state["decay"] != self.decay:
            raise ValueError(
                f"ErrorFeedback: decay must be the state's {state['decay']:g}, got {self.decay:g}. "
                "Construct with the same decay."
            )
        for name, slot in [*state["residuals"].items(), *state["pending"].items()]:
            if not isinstance(slot, Tensor) or slot.dtype != torch.float32:
                raise ValueError(f"ErrorFeedback: {name!r} must be a float32 tensor.")
        for name, slot in state["pending"].items():
            held = state["residuals"].get(name, slot)
            if held.shape != slot.shape:
                raise ValueError(
                    f"ErrorFeedback: pending {name!r} must have its residual's shape "
                    f"{tuple(held.shape)}, got {tuple(slot.shape)}."
                )

        def copies(slots: dict[str, Tensor]) -> dict[str, Tensor]:
            form = torch.contiguous_format
            return {name: slot.detach().clone(memory_format=form) for name, slot in slots.items()}

        seeds = self._seeds.checked(state["seeds"])
        residuals, pending = copies(state["residuals"]), copies(state["pending"])
        self._residuals, self._pending = residuals, dict(pending)
        self._seeds.counts = seeds
        self._spare.clear()
        self.diagnostics.clear()


def _slot_key(slot: Tensor) -> tuple[object, ...]:
    """Return what a spare slot may serve: a shape, and on CUDA the stream that last used it."""
    return slot.shape, slot.device, current_stream(slot.device)


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


class _Seeds:
    """The seeds of a sender's packets: derived from its own, a name, and a count of that name."""

    def __init__(self, owner: str, codec: Codec, seed: int | None) -> None:
        if codec.stochastic and seed is None:
            raise ValueError(
                f"{owner}: the stochastic codec {codec.spec} needs a base seed, got none. "
                "Pass seed=, another one for every sender."
            )
        self.owner = owner
        self.seed = None if seed is None or not codec.stochastic else as_seed(owner, seed) % 2**64
        self.counts: dict[str, int] = {}

    def next(self, name: str) -> int | None:
        """Return the seed of the next packet; the same one until ``used``."""
        return None if self.seed is None else derive(self.seed, name, self.counts.get(name, 0))

    def used(self, name: str) -> None:
        """Never return this seed again."""
        if self.seed is not None:
            self.counts[name] = self.counts.get(name, 0) + 1

    def state_dict(self) -> dict[str, Any]:
        """Return what ``checked`` takes; empty where no seeds are drawn."""
        return {} if self.seed is None else {"seed": self.seed, "counts": dict(self.counts)}

    def checked(self, state: dict[str, Any]) -> dict[str, int]:
        """Return the counts of a state; ValueError for one that does not fit."""
        _check_keys(self.owner, state, self.state_dict())
        if state.get("seed") != self.seed:
            raise ValueError(
                f"{self.owner}: seed must be the state's {state['seed']}, got {self.seed}. "
                "Construct with the same seed."
            )
        counts = state.get("counts", {})
        for name, count in counts.items():
            if not isinstance(name, str) or type(count) is not int or count < 0:
                raise ValueError(
                    f"{self.owner}: counts must be names and whole numbers, got {name!r}: "
                    f"{count!r}. Check the file."
                )
        return dict(counts)


def _check_keys(owner: str, state: dict[str, Any], mine: dict[str, Any]) -> None:
    if set(state) != set(mine):
        must = f"of keys {', '.join(sorted(mine))}" if mine else "empty"
        raise ValueError(
            f"{owner}: state must be {must}, got {sorted(state)}. Check the recipe's codec."
        )


@dataclass(frozen=True)
class Link:
    """One direction: how a tensor is sent, and what the receiving end makes of m packets.

    Sender: memory -> codec. Receiver: decode -> combine (and, for a projection, what follows it).

    Attributes:
        codec: how a tensor becomes a packet.
        feedback: whether the sending end keeps a residual.
        combine: makes a new aggregator.

    >>> import gcext
    >>> gcext.Link(gcext.codec("sign"), feedback=True).sender()
    ErrorFeedback('sign', 0 residuals, 0 pending)
    """

    codec: Codec
    feedback: bool = False
    combine: Callable[[], Aggregator] = Mean

    def __repr__(self) -> str:
        feedback = ", feedback=True" if self.feedback else ""
        return f"Link({self.codec!r}{feedback}, combine={self.combine()!r})"

    def sender(self, seed: int | None = None) -> Sender:
        """Return a new sending end, with an empty memory; seed as of Sender."""
        if self.feedback:
            return ErrorFeedback(self.codec, seed=seed)
        return Sender(self.codec, seed=seed)

    def receiver(self) -> Aggregator:
        """Return a new receiving end, with an empty history."""
        return self.combine()
