"""The clients' side: local SGD, and each client's own last model and residual."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from gcext._links.link import Link
from gcext._packet.packet import Packet
from gcext.fl._models import FlatModel
from gcext.fl._server import Download

__all__ = ["Clients", "local_sgd"]


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
) -> tuple[Tensor, float]:
    """Return the update ``start - trained`` (float32, flat) and the mean loss over minibatches.

    ``model`` is overwritten, ``start`` is not.  ``inputs`` (n, ...) are the model's, ``labels``
    int64 (n,); ``rng`` orders the samples.
    """
    model.weights.copy_(start)
    losses = []
    # In memory order: what is indexed stays channels-last.
    images = inputs.dim() == 4 and inputs.is_contiguous(memory_format=torch.channels_last)
    stored = inputs.permute(0, 2, 3, 1) if images else inputs
    for _ in range(epochs):
        for index in torch.split(torch.from_numpy(rng.permutation(len(labels))), batch):
            model.grad.zero_()
            given = stored[index].permute(0, 3, 1, 2) if images else stored[index]
            loss = cross_entropy(model(given), labels[index])
            loss.backward()  # type: ignore[no-untyped-call]
            model.weights.add_(model.grad, alpha=-lr)
            losses.append(loss.item())
    return start - model.weights, math.fsum(losses) / len(losses)


class Clients:
    """The state that K clients keep between the rounds they are drawn in.

    A client's own last model is the server's of that round, bit for bit, so clients of one version
    share a tensor; ``models`` maps a version (broadcasts applied, 0 is the initial model) to its
    flat weights.  The residuals live in ``sender``, one a client, and so do the counters that
    derive a stochastic codec's seeds from ``seed`` and the client.
    """

    def __init__(self, count: int, initial: Tensor, up: Link, seed: int = 0) -> None:
        self.shape = tuple(initial.shape)
        self.version = [0] * count
        self.models = {0: initial}
        self.sender = up.sender(seed)

    def catch_up(self, client: int, download: Download) -> Tensor:
        """Return the client's model with all it missed applied; its very tensor if that is none."""
        weights = self.models[self.version[client]]
        if download.kind == "none":
            return weights
        packets = [Packet.from_bytes(m, expect=self.shape) for m in download.messages]
        if download.kind == "dense":
            newest = packets[0].to_dense()
            assert isinstance(newest, Tensor)
            return newest
        # A merged packet is applied part by part: float addition is not associative, and the model
        # must come out as the server's did.
        parts = packets[0].parts() if download.kind == "merged" else packets
        weights = weights.clone()
        for packet in parts:
            packet.add_to_(weights, alpha=-1.0)
        return weights

    def compress(self, client: int, update: Tensor) -> bytes:
        """Return the client's message; its residual is pending until ``commit`` or ``rollback``."""
        return self.sender.compress(update, str(client), commit=False).to_bytes()

    def commit(self, drawn: list[int], version: int, weights: Tensor) -> None:
        """Make the residuals count: the server acknowledged, and ``drawn`` hold ``version``."""
        for client in drawn:
            self.sender.commit(str(client))
            self.version[client] = version
        held = set(self.version)
        self.models = {v: m for v, m in (self.models | {version: weights}).items() if v in held}

    def rollback(self) -> None:
        """Forget what was compressed since the last commit."""
        self.sender.rollback()

    def state_dict(self) -> dict[str, Any]:
        return {
            "version": list(self.version),
            "models": dict(self.models),
            "sender": self.sender.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.version = list(state["version"])
        self.models = dict(state["models"])
        self.sender.load_state_dict(state["sender"])
