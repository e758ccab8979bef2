"""Stages: what a sender does to a tensor before the codec, each with a state by name.

A sender with stages compresses in two passes over them::

    for each stage in order:        tensor = stage.before(name, tensor)
    packet = codec(tensor), with the residual of ErrorFeedback or without
    for each stage in reverse:      packet = stage.after(name, packet)

``Clip`` and ``MomentumCorrection`` come before the residual. ``LastValue``, ``Lazy`` and
``Trajectory`` are predictors: they subtract what the receiving end knows already, and an aggregator
there adds it (gcext.aggregate.LastValues, gcext.aggregate.Predicted).
"""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from gcext._codecs.base import flatten
from gcext._native import ops
from gcext._packet.codes import Contents
from gcext._packet.packet import Packet
from gcext._packet.prediction import predict, recover, subtract
from gcext._packet.state import loading
from gcext._spec import plain, positive

__all__ = ["Clip", "LastValue", "Lazy", "MomentumCorrection", "Stage", "Trajectory"]


class Stage(ABC):
    """One step between a tensor and its codec, and back.

    What ``before`` and ``after`` find out about a name is pending until ``commit`` or ``rollback``:
    they change nothing that a second ``before`` of that name would see.
    """

    lazy = False
    """Whether ``after`` may replace the packet by an empty one; a residual would lose it."""

    @abstractmethod
    def before(self, name: str, tensor: Tensor) -> Tensor:
        """Return what is to be encoded instead of a tensor: float32, its shape."""

    def after(self, name: str, packet: Packet) -> Packet:
        """Return the packet to be sent, having learned what was encoded; by default the same."""
        return packet

    def observe(self, model: Tensor) -> None:
        """Learn the model that the next tensors were computed from; see Sender.observe."""
        return

    def __repr__(self) -> str:
        """Return the constructor's call, which a state must agree with."""
        names = inspect.signature(type(self)).parameters
        options = ", ".join(f"{name}={getattr(self, name)!r}" for name in names)
        return f"{type(self).__name__}({options})"

    def commit(self, name: str) -> None:
        """Let the last packet of a name count."""
        return

    def rollback(self, name: str) -> None:
        """Forget the last packet of a name."""
        return

    def state_dict(self) -> dict[str, Any]:
        """Return all that later packets depend on, copied."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state; ValueError, and nothing changed, for one that does not fit."""
        with loading(type(self).__name__, state, ()):
            return


class Clip(Stage):
    """Scales a tensor down to a Euclidean norm of at most ``bound``.

    Local gradient clipping (Lin et al. 2018, arXiv:1712.01887, section 3.2): of N workers each
    clips at ``N^-1/2`` of the bound that the sum of their gradients would have. The norm is in
    float64, the product rounded once to float32.
    """

    def __init__(self, bound: float) -> None:
        self.bound = positive("Clip", "bound", bound)

    def before(self, name: str, tensor: Tensor) -> Tensor:
        """See Stage. A tensor that is not finite stays so, and the codec refuses it."""
        x = flatten(tensor, f"Clip {name!r}")
        factor = (self.bound / ops.squared_norm(x).sqrt()).clamp(max=1.0)
        clipped: Tensor = (x.double() * factor).float().view(tensor.shape)
        return clipped


class _Stateful(Stage):
    """A stage that keeps float32 tensors by name, ``count`` of them each."""

    count = 1

    def __init__(self) -> None:
        self._held: dict[str, tuple[Tensor, ...]] = {}
        self._pending: dict[str, tuple[Tensor, ...]] = {}

    def _of(self, name: str, tensor: Tensor) -> tuple[Tensor, ...]:
        """Return what is held of a name, flat; empty at first."""
        held = self._held.get(name, ())
        for each in held:
            if each.shape != tensor.shape or each.device != tensor.device:
                raise ValueError(
                    f"{type(self).__name__}: {name!r} must stay {tuple(each.shape)} on "
                    f"{each.device}, got {tuple(tensor.shape)} on {tensor.device}. "
                    "Use another name."
                )
        return held

    def commit(self, name: str) -> None:
        """See Stage."""
        if name in self._pending:
            self._held[name] = self._pending.pop(name)

    def rollback(self, name: str) -> None:
        """See Stage."""
        self._pending.pop(name, None)

    def state_dict(self) -> dict[str, Any]:
        """See Stage."""
        return {"held": _copies(self._held), "pending": _copies(self._pending)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See Stage."""
        with loading(type(self).__name__, state, ("held", "pending")):
            self._held, self._pending = (
                self._checked(state["held"]),
                self._checked(state["pending"]),
            )

    def _checked(self, slots: Mapping[str, Any]) -> dict[str, tuple[Tensor, ...]]:
        """Return copies of what a state holds by name; ValueError where it does not fit."""
        for name, tensors in slots.items():
            fits = isinstance(name, str) and len(tensors) <= self.count
            if not fits or any(
                not isinstance(x, Tensor) or x.dtype != torch.float32 for x in tensors
            ):
                raise ValueError(
                    f"{type(self).__name__}: {name!r} must be a name and at most "
                    f"{self.count} float32 tensors."
                )
        return _copies(slots)


class MomentumCorrection(_Stateful):
    """``u <- momentum*u + g`` is encoded instead of g; what was sent is cleared from u.

    Deep gradient compression (Lin et al. 2018, arXiv:1712.01887, section 3.1): the residual then
    adds up velocities, and ``masked`` clears the velocity where an element was sent ("momentum
    factor masking"), so that it does not push on with a stale direction. Not masked it is momentum
    at the sender. The product and the sum are rounded once each.

    Args:
        momentum: in [0, 1).
        masked: whether to clear what was sent; on CUDA that synchronizes.
    """

    def __init__(self, momentum: float = 0.9, masked: bool = True) -> None:
        super().__init__()
        self.momentum = plain("MomentumCorrection", "momentum", float, momentum)
        if not 0 <= self.momentum < 1:
            raise ValueError(f"MomentumCorrection: momentum must be in [0, 1), got {momentum:g}.")
        self.masked = plain("MomentumCorrection", "masked", bool, masked)

    def before(self, name: str, tensor: Tensor) -> Tensor:
        """See Stage."""
        held = self._of(name, tensor)
        flat = flatten(tensor, f"MomentumCorrection {name!r}")
        velocity = ops.new_like(flat)
        memory = held[0].view(-1) if held else torch.zeros_like(flat)
        # Where something is not finite the codec, which gets the sum, refuses it.
        ops.select(flat, memory, velocity, 0, 1.0, self.momentum, False)
        velocity = velocity.view(tensor.shape)
        self._pending[name] = (velocity,)
        return velocity

    def after(self, name: str, packet: Packet) -> Packet:
        """See Stage."""
        if self.masked:
            (velocity,) = self._pending[name]
            index, _ = packet.entries()
            if index is None:
                velocity.zero_()
            else:
                velocity.view(-1).index_fill_(0, index.long(), 0.0)
        return packet


class Trajectory(_Stateful):
    """The difference to a prediction is encoded, which both ends make of what was decoded before.

    ResFed (Song et al. 2022, arXiv:2212.05602): with the last values v1 and v2 that the other end
    decoded of that name, the prediction is 0 (order 0), v1 (order 1) or ``2*v1 - v2`` (order 2;
    order 1 until there are two). The receiving end adds it (gcext.aggregate.Predicted).
    """

    count = 2

    def __init__(self, order: int = 1) -> None:
        super().__init__()
        self.order = plain("Trajectory", "order", int, order)
        if self.order not in (0, 1, 2):
            raise ValueError(f"Trajectory: order must be 0, 1 or 2, got {order}.")

    def before(self, name: str, tensor: Tensor) -> Tensor:
        """See Stage."""
        predicted = predict(self.order, self._of(name, tensor))
        flat = flatten(tensor, f"{type(self).__name__} {name!r}")
        return subtract(flat, predicted).view(tensor.shape)

    def after(self, name: str, packet: Packet) -> Packet:
        """See Stage."""
        if self.order:
            held = self._held.get(name, ())
            self._pending[name] = (recover(self.order, held, packet), *held)[: self.order]
        return packet


class LastValue(Trajectory):
    """The difference to what the other end holds travels: ``packet = C(g - v)``, ``v += packet``.

    EF21 (Richtarik et al. 2021, arXiv:2106.05203). The receiving end adds up the same packets
    (gcext.aggregate.LastValues). v is what was decoded, so both ends hold the same bits.
    """

    count = 1

    def __init__(self) -> None:
        super().__init__(order=1)


class Lazy(LastValue):
    """LastValue that sends nothing where the difference is small beside what the model moved.

    Lazily aggregated quantized gradients (Sun et al. 2019, arXiv:1909.07588, criterion 7). With
    x = g - v, the packet Q(x), its error e = x - Q(x), and e' that of the last packet sent, an
    empty packet goes out, and v stays, where::

        |Q(x)|^2 <= (1/M^2) * sum over d = 1..D of xi |w^(k+1-d) - w^(k-d)|^2 + 3 (|e|^2 + |e'|^2)

    and no more than ``patience`` packets of that name were left out in a row. The paper's factor
    1/alpha^2 is in the unit: it sends gradients, a sender here updates, alpha times them. Norms are
    float64. The steps of the model come from Sender.observe; without them their sum is 0.

    Args:
        clients: M, at least 1.
        depth: D, steps of the model that count, at least 1.
        xi: weight of each, at least 0.
        patience: most packets of a name left out in a row, at least 0.
    """

    lazy = True

    def __init__(
        self, clients: int = 10, depth: int = 10, xi: float = 0.08, patience: int = 10
    ) -> None:
        super().__init__()
        rules = (
            ("clients", int, clients, 1),
            ("depth", int, depth, 1),
            ("xi", float, xi, 0),
            ("patience", int, patience, 0),
        )
        for key, kind, value, least in rules:
            number = plain("Lazy", key, kind, value)
            if not least <= number < math.inf:
                raise ValueError(f"Lazy: {key} must be at least {least}, got {value}.")
            setattr(self, key, number)
        self.clients: int
        self.depth: int
        self.xi: float
        self.patience: int
        self._model: Tensor | None = None
        self._steps: list[float] = []  # squared norms, the last one first
        self._given: dict[str, Tensor] = {}  # x of a packet that is pending
        self._notes: dict[str, tuple[float, int]] = {}  # |e'|^2, and packets left out in a row
        self._next: dict[str, tuple[float, int]] = {}

    def observe(self, model: Tensor) -> None:
        """See Stage."""
        now = flatten(model, "Lazy").clone()
        if self._model is not None:
            step = float(ops.squared_norm(now - self._model))
            self._steps = [step, *self._steps][: self.depth]
        self._model = now

    def before(self, name: str, tensor: Tensor) -> Tensor:
        """See Stage."""
        given = super().before(name, tensor)
        self._given[name] = given
        return given

    def after(self, name: str, packet: Packet) -> Packet:
        """See Stage. Synchronizes."""
        given = self._given.pop(name)
        index, value = packet.entries()
        method = "dense" if index is None else "sparse"  # decoded once, used three times
        decoded = Packet(method, packet.shape, packet.dtype, Contents(index, value))
        sent = float(ops.squared_norm(value))
        rest = decoded.add_to_(ops.copy_of(given), -1.0)
        error = float(ops.squared_norm(flatten(rest, f"Lazy {name!r}")))
        before, missed = self._notes.get(name, (0.0, self.patience))
        moved = self.xi * math.fsum(self._steps) / self.clients**2
        if missed < self.patience and sent <= moved + 3 * (error + before):
            self._next[name] = before, missed + 1
            return _nothing(packet)
        self._next[name] = error, 0
        super().after(name, decoded)
        return packet

    def commit(self, name: str) -> None:
        """See Stage."""
        super().commit(name)
        if name in self._next:
            self._notes[name] = self._next.pop(name)

    def rollback(self, name: str) -> None:
        """See Stage."""
        super().rollback(name)
        self._next.pop(name, None)
        self._given.pop(name, None)

    def state_dict(self) -> dict[str, Any]:
        """See Stage."""
        notes = {"notes": dict(self._notes), "next": dict(self._next), "steps": list(self._steps)}
        model = None if self._model is None else self._model.clone()
        return super().state_dict() | notes | {"model": model}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See Stage."""
        keys = ("held", "pending", "notes", "next", "steps", "model")
        with loading("Lazy", state, keys):
            notes, following = _notes(state["notes"]), _notes(state["next"])
            steps = [float(step) for step in state["steps"]]
            model = None if state["model"] is None else state["model"].clone()
            super().load_state_dict({key: state[key] for key in ("held", "pending")})
            self._notes, self._next, self._steps, self._model = notes, following, steps, model


def _notes(state: Mapping[str, Any]) -> dict[str, tuple[float, int]]:
    return {name: (float(each[0]), int(each[1])) for name, each in state.items()}


def _nothing(packet: Packet) -> Packet:
    """Return the packet of zeros in another one's place."""
    device = packet.device
    none = Contents(torch.empty(0, dtype=torch.int32, device=device), torch.empty(0, device=device))
    return Packet("sparse", packet.shape, packet.dtype, none)


def _copies(slots: Mapping[str, Any]) -> dict[str, tuple[Tensor, ...]]:
    with torch.inference_mode(False):  # later calls may be outside of it
        return {name: tuple(x.detach().clone() for x in held) for name, held in dict(slots).items()}
