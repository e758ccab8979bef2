"""What the tests of the server share: rounds of packets, drawn from a few pulls."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from packet_kit import dense

import gcext

Encode = Callable[[torch.Tensor], gcext.Packet]


def drawn(
    rng: np.random.Generator, clients: int, m: int, numel: int, encode: Encode
) -> tuple[dict[int, gcext.Packet], dict[int, float]]:
    """A round's packets by client and their losses; the clients pull in a few common directions."""
    pulls = np.random.default_rng(7).standard_normal((3, numel)) * 1.5
    packets, losses = {}, {}
    for client in rng.choice(clients, m, replace=False).tolist():
        update = rng.standard_normal(numel) + pulls[client % 3] * (-1) ** client
        packets[client] = encode(torch.from_numpy(update).float())
        losses[client] = float(rng.integers(0, 4))  # with ties
    return packets, losses


def arrays(packets: dict[int, gcext.Packet]) -> dict[int, np.ndarray]:
    return {client: dense(packet).double().numpy() for client, packet in packets.items()}


def mixed(tensor: torch.Tensor) -> gcext.Packet:
    """A method by the first element's size, all of one shape."""
    names = ["stc:p=0.2", "topk:p=0.3", "dense"]
    return gcext.codec(names[int(abs(tensor.flatten()[0]) * 10) % 3]).encode(tensor)
