"""The clients' side: local SGD, and each client's own last model and residual."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from gcext._packet.packet import Packet
from gcext._packet.state import loading
from gcext._recipes import Recipe
from gcext.fl._layout import Held, Layout, compress, held_of, received
from gcext.fl._models import FlatModel
from gcext.fl._server import Download, order_of

__all__ = ["Clients", "follow", "local_sgd"]


def local_sgd(
    model: FlatModel,
    start: Tensor,
    inputs: Tensor,
    labels: Tensor,
    *,
    lr: float,
    batch: int,
    epochs: int,
    rng: np.random.Generator,
    steps: int = 0,
    mask: Tensor | None = None,
) -> tuple[Tensor, float]:
    """Return the update ``start - trained`` (float32, flat) and the mean loss over minibatches.

    ``model`` is overwritten, ``start`` is not.  ``inputs`` (n, ...) are the model's, ``labels``
    int64 (n,); ``rng`` orders the samples.  ``steps``: so many minibatches, whatever ``epochs`` is.
    ``mask``: float32, 1 for what is trained and 0 for what is kept; None: all is trained.
    """
    model.weights.copy_(start)
    losses = []
    # In memory order: what is indexed stays channels-last.
    images = inputs.dim() == 4 and inputs.is_contiguous(memory_format=torch.channels_last)
    stored = inputs.permute(0, 2, 3, 1) if images else inputs
    for index in _minibatches(len(labels), batch, epochs, steps, rng):
        model.grad.zero_()
        given = stored[index].permute(0, 3, 1, 2) if images else stored[index]
        loss = cross_entropy(model(given), labels[index])
        loss.backward()  # type: ignore[no-untyped-call]
        if mask is not None:
            model.grad.mul_(mask)
        model.weights.add_(model.grad, alpha=-lr)
        losses.append(loss.item())
    return start - model.weights, math.fsum(losses) / len(losses)


def _minibatches(
    count: int, batch: int, epochs: int, steps: int, rng: np.random.Generator
) -> Iterator[Tensor]:
    """Yield the samples of each minibatch, epoch after epoch."""
    of_an_epoch = -(-count // batch)
    for epoch in range(-(-steps // of_an_epoch) if steps else epochs):
        order = torch.from_numpy(rng.permutation(count))
        left = steps - epoch * of_an_epoch if steps else of_an_epoch
        yield from torch.split(order, batch)[:left]


def follow(held: Held, download: Download, layout: Layout, order: int, skip: int = 0) -> Held:
    """Return what a client holds after a download; the same object where that holds nothing new.

    skip: how many of the broadcasts, the first ones, the client has applied before.
    """
    if download.kind == "none":
        return held
    if download.kind == "dense":
        shape = (layout.numel,)
        newest = [Packet.from_bytes(m, expect=shape).values() for m in download.messages]
        return Held(newest[0], tuple(newest[1:]))
    packets = tuple(Packet.from_bytes(m, expect=layout.expect) for m in download.messages)
    # A merged packet is applied part by part: float addition is not associative, and the model
    # must come out as the server's did.
    if download.kind == "merged":
        packets = packets[0].parts()
    for packet in packets[skip:]:
        held = received(held, packet, layout, order)
    return held


class Clients:
    """The state that K clients keep between the rounds they are drawn in.

    A client's own last model is the server's of that round, bit for bit, so clients of one version
    share it; ``held`` maps a version (broadcasts applied, 0 is the initial model) to what they
    hold then.  The residuals live in ``sender``, one a client, and so do the counters that
    derive a stochastic codec's seeds from ``seed`` and the client.
    """

    def __init__(
        self, count: int, initial: Tensor, recipe: Recipe, layout: Layout, seed: int = 0
    ) -> None:
        self.layout = layout
        self.order = order_of(recipe.down)
        self.catches_up = recipe.down.catch_up
        self.version = [0] * count
        self.held = {0: Held(initial)}
        self.sender = recipe.up.sender(seed)
        self.sender.observe(initial)
        self._codec, self._schedule = recipe.up.codec, recipe.schedule

    def begin(self, round: int) -> None:
        """Set the codec of a round, counted from 1."""
        self.sender.codec = self._schedule.codec(self._codec, round)

    def catch_up(self, client: int, download: Download) -> Held:
        """Return what the client holds with all it missed applied; the same object if nothing."""
        return follow(self.held[self.version[client]], download, self.layout, self.order)

    def compress(self, client: int, update: Tensor) -> bytes:
        """Return the client's message; its residual is pending until ``commit`` or ``rollback``."""
        return compress(self.sender, str(client), self.layout.cut(update))

    def commit(self, drawn: list[int], version: int, held: Held) -> None:
        """Make the residuals count: the server acknowledged, and ``drawn`` hold ``version``."""
        self.sender.commit()
        if self.catches_up:  # the server knows what they hold
            return
        for client in drawn:
            self.version[client] = version
        there = set(self.version)
        self.held = {v: h for v, h in (self.held | {version: held}).items() if v in there}

    def rollback(self) -> None:
        """Forget what was compressed since the last commit."""
        self.sender.rollback()

    def state_dict(self) -> dict[str, Any]:
        return {
            "version": list(self.version),
            "held": {version: tuple(held) for version, held in self.held.items()},
            "sender": self.sender.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state; ValueError, and nothing changed, for one that does not fit."""
        with loading("fl.Clients", state, ("version", "held", "sender")):
            version = [operator.index(each) for each in state["version"]]
            held = {
                operator.index(v): held_of("fl.Clients", each, self.layout)
                for v, each in state["held"].items()
            }
            if len(version) != len(self.version) or not set(version) <= set(held):
                raise ValueError(
                    f"fl.Clients: state must hold the models of {len(self.version)} clients, got "
                    f"{len(version)} clients and models of versions {sorted(held)}."
                )
            self.sender.load_state_dict(state["sender"])
            self.version, self.held = version, held
