"""The server's side: the global model, what it broadcast, and the cheapest download of it."""

from __future__ import annotations

import operator
from typing import Any, Literal, NamedTuple

from torch import Tensor

from gcext._codecs.registry import codec
from gcext._links.link import Link
from gcext._packet.packet import Packet
from gcext._packet.state import loading
from gcext._recipes import Recipe
from gcext.aggregate import Mean, Predicted
from gcext.fl._copies import Copies
from gcext.fl._layout import Held, Layout, compress, held_of, received

__all__ = ["Broadcast", "Download", "Server", "order_of"]

MARGIN = 64  # bytes; more than a dense packet's header and checksum
MOST_MERGED = 4096  # packets; docs/wire-format.md
_KEYS = ("version", "held", "history", "receiver", "sender", "averaged", "copies")  # of a state

Kind = Literal["none", "single", "merged", "dense", "catch_up"]


class Download(NamedTuple):
    """The messages that a drawn client fetches to hold the newest model."""

    kind: Kind
    messages: tuple[bytes, ...] = ()

    @property
    def nbytes(self) -> int:
        return sum(map(len, self.messages))


class Broadcast(NamedTuple):
    """A broadcast as bytes and as every receiver decodes it."""

    message: bytes
    packet: Packet

    @property
    def at_least(self) -> float:
        """A lower bound of its part of any download: merging saves all but the signs."""
        return self.packet.k / 8 if self.packet.method == "ternary" else len(self.message)


class Server:
    """The global model and all that a round of Algorithm 4 changes in it.

    ``version`` counts the broadcasts applied to the model that is ``held``.  ``history`` maps a
    version to the broadcast that led to it, for as long as a download may hold it.
    """

    def __init__(
        self, initial: Tensor, recipe: Recipe, seed: int = 0, layout: Layout | None = None
    ) -> None:
        self.layout = Layout(initial.numel()) if layout is None else layout
        self.order = order_of(recipe.down)
        self.held = Held(initial)
        self.version = 0
        self.history: dict[int, Broadcast] = {}
        self.receiver = recipe.up.receiver()
        self.sender = recipe.down.sender(seed)
        self.average = recipe.schedule.average
        self.averaged = initial
        self.copies = Copies(initial, recipe.down.codec, seed) if recipe.down.catch_up else None
        self._downloads: dict[int, Download] = {}
        self._before: Any = None  # the receiver's snapshot, until the round is settled

    @property
    def weights(self) -> Tensor:
        """The global model, float32 and flat."""
        return self.held.weights

    def catch_up(self, client: int) -> tuple[Download, Tensor]:
        """Return what a drawn client is sent instead of broadcasts, and its model after that."""
        assert self.copies is not None
        message, copy = self.copies.send(client, self.weights)
        return Download("catch_up", (message,)), copy

    def download(self, version: int | None) -> Download:
        """Return what a client at ``version`` fetches, the cheapest in bytes.

        That is the single packets, one merged of them, or the dense model. None: it has no model.
        """
        if version is None:
            return self._dense()
        if version not in self._downloads:
            self._downloads[version] = self._cheapest(version)
        return self._downloads[version]

    def _cheapest(self, version: int) -> Download:
        missed = range(version + 1, self.version + 1)
        if not missed:
            return Download("none")
        ways = [self._dense()]
        if all(v in self.history for v in missed):
            found = [self.history[v] for v in missed]
            ways.append(Download("single", tuple(b.message for b in found)))
            least = sum(b.at_least for b in found)
            if _mergeable(found) and least < min(way.nbytes for way in ways):
                merged = Packet.merge([b.packet for b in found])
                ways.append(Download("merged", (merged.to_bytes(),)))
        order = ("single", "merged", "dense")  # of equal ones, the least work
        return min(ways, key=lambda way: (way.nbytes, order.index(way.kind)))

    def _dense(self) -> Download:
        tensors = (self.held.weights, *self.held.trail)
        return Download("dense", tuple(Packet.pack_all(codec("dense").encode(list(tensors)))))

    def combine(
        self, packets: dict[int, Packet], losses: dict[int, float], samples: dict[int, float]
    ) -> tuple[Broadcast | None, Held]:
        """Return the next broadcast and what is held after it: lines 10 to 15 of Algorithm 4.

        Nothing counts until ``commit``; ``rollback`` takes the packets out of the history again.
        """
        self._before = self.receiver.snapshot()
        weights = samples if self.receiver.uses_weights else None
        update = self.receiver.aggregate(packets, losses, self.version + 1, weights)
        if self.copies is not None:
            return None, Held(self.weights - self.layout.join(update))
        message = compress(self.sender, "model", update)
        packet = Packet.from_bytes(message, expect=self.layout.expect)
        return Broadcast(message, packet), received(self.held, packet, self.layout, self.order)

    def tested(self, held: Held) -> Tensor:
        """Return the weights to be tested after a round: the model's, or their moving average."""
        if not self.average:
            return held.weights
        return self.average * self.averaged + (1 - self.average) * held.weights

    def commit(self, broadcast: Broadcast | None, held: Held, averaged: Tensor) -> None:
        """Make a round count for the model, the history and the residual."""
        self.sender.commit()
        self.version += 1
        self.held, self.averaged = held, averaged
        if broadcast is not None:
            self.history[self.version] = broadcast
        if self.copies is not None:
            self.copies.commit()
        self._downloads.clear()
        self._before = None

    def rollback(self) -> None:
        """Be as after the last commit."""
        self.sender.rollback()
        if self.copies is not None:
            self.copies.rollback()
        if self._before is not None:
            self.receiver.restore(self._before)
            self._before = None

    def forget(self, oldest: int) -> None:
        """Drop broadcasts that no download will hold: all have ``oldest``, or dense is cheaper."""
        spent, dense = 0.0, (1 + self.order) * (4 * self.layout.numel + MARGIN)
        for version in sorted(self.history, reverse=True):
            if version <= oldest or spent >= dense:
                del self.history[version]
            else:
                spent += self.history[version].at_least

    def state_dict(self) -> dict[str, Any]:
        return {
            "version": self.version,
            "held": tuple(self.held),
            "history": {v: b.message for v, b in self.history.items()},
            "receiver": self.receiver.state_dict(),
            "sender": self.sender.state_dict(),
            "averaged": self.averaged if self.average else None,
            "copies": None if self.copies is None else self.copies.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state; ValueError, and nothing changed, for one that does not fit."""
        with loading("fl.Server", state, _KEYS):
            version = operator.index(state["version"])
            held = held_of("fl.Server", state["held"], self.layout)
            history = {
                v: Broadcast(m, Packet.from_bytes(m, expect=self.layout.expect))
                for v, m in state["history"].items()
            }
            averaged = self.averaged
            if self.average:
                averaged = held_of("fl.Server", (state["averaged"], ()), self.layout).weights
            copies = self.copies.checked(state["copies"]) if self.copies is not None else None
            before = self.sender.state_dict()
            self.sender.load_state_dict(state["sender"])
            try:
                self.receiver.load_state_dict(state["receiver"])
            except BaseException:
                self.sender.load_state_dict(before)
                raise
            self.version, self.held, self.history = version, held, history
            self.averaged = averaged
            if self.copies is not None and copies is not None:
                self.copies.messages, self.copies.counts = copies
            self._downloads.clear()


def order_of(down: Link) -> int:
    """Return the order of a down link's prediction, which every end makes for itself.

    Raises ValueError for a way down that clients could not follow.
    """
    end = down.receiver()
    if type(end) is Mean:
        return 0
    if isinstance(end, Predicted) and type(end.inner) is Mean:
        order: int = end.order
        return order
    raise ValueError(
        f"fl: the way down must combine by Mean or Predicted, got {end!r}. One packet comes down."
    )


def _mergeable(broadcasts: list[Broadcast]) -> bool:
    ternary = all(b.packet.method == "ternary" for b in broadcasts)
    return ternary and 2 <= len(broadcasts) <= MOST_MERGED
