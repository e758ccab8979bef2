"""Lossy catch-up: the server knows what each client holds, and sends the largest differences."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from gcext._codecs.base import Codec
from gcext._codecs.registry import codec as make_codec
from gcext._codecs.seeds import derive
from gcext._packet.packet import Packet
from gcext._packet.state import loading

__all__ = ["Copies"]


class Copies:
    """Every client's copy of the model, as the messages that made it from the initial one.

    A drawn client gets one packet, ``C(copy - model)``, and its copy moves by what that decodes to.
    What the packet leaves out stays in the difference, so a copy is its own error feedback: there
    is no broadcast and no residual. A client's messages are kept, not its dense copy; where they
    are longer than that, it takes their place.
    """

    def __init__(self, initial: Tensor, codec: Codec, seed: int = 0) -> None:
        self.initial = initial
        self.codec = codec
        self.seed = seed
        self.messages: dict[int, list[bytes]] = {}
        self.counts: dict[int, int] = {}
        self._pending: dict[int, bytes] = {}

    def copy(self, client: int) -> Tensor:
        """Return what a client holds, as a new tensor."""
        weights = self.initial.clone()
        for message in self.messages.get(client, []):
            packet = Packet.from_bytes(message, expect=tuple(weights.shape))
            if packet.method == "dense":
                packet.to_dense(out=weights)
            else:
                packet.add_to_(weights, alpha=-1.0)
        return weights

    def send(self, client: int, model: Tensor) -> tuple[bytes, Tensor]:
        """Return the message that takes a client towards the model, and its copy after it.

        Pending until ``commit`` or ``rollback``.
        """
        copy = self.copy(client)
        seed = derive(self.seed, str(client), self.counts.get(client, 0))
        message = self.codec.encode(copy - model, seed=seed).to_bytes()
        Packet.from_bytes(message, expect=tuple(model.shape)).add_to_(copy, alpha=-1.0)
        self._pending[client] = message
        return message, copy

    def commit(self) -> None:
        """Let all pending messages count."""
        whole = 4 * self.initial.numel()
        for client, message in self._pending.items():
            self.counts[client] = self.counts.get(client, 0) + 1
            kept = [*self.messages.get(client, []), message]
            self.messages[client] = kept
            if sum(map(len, kept)) > whole:
                self.messages[client] = [make_codec("dense").encode(self.copy(client)).to_bytes()]
        self._pending.clear()

    def rollback(self) -> None:
        """Forget all pending messages."""
        self._pending.clear()

    def state_dict(self) -> dict[str, Any]:
        messages = {client: list(kept) for client, kept in self.messages.items()}
        return {"messages": messages, "counts": dict(self.counts)}

    def checked(self, state: Any) -> tuple[dict[int, list[bytes]], dict[int, int]]:
        """Return a state's messages and counts; ValueError where it does not fit."""
        with loading("fl.Copies", state, ("messages", "counts")):
            messages = {client: list(kept) for client, kept in state["messages"].items()}
            for kept in messages.values():
                for message in kept:
                    Packet.from_bytes(message, expect=tuple(self.initial.shape))
            return messages, {client: int(count) for client, count in state["counts"].items()}

    def load_state_dict(self, state: Any) -> None:
        """Go on from a state; ValueError, and nothing changed, for one that does not fit."""
        self.messages, self.counts = self.checked(state)
