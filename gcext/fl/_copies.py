"""Lossy catch-up: the server knows what each client holds, and sends the largest differences."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from gcext._codecs.base import Codec
from gcext._codecs.registry import codec as make_codec
from gcext._codecs.seeds import derive
from gcext._packet.packet import Packet

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

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.messages = {client: list(kept) for client, kept in state["messages"].items()}
        self.counts = dict(state["counts"])
