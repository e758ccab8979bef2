"""A tenth of the clients send what no honest one does, on handwritten digits.

What can be refused is: the model is, bit for bit, that of a run which never drew those clients.
Finite poison of the right form cannot be recognized; a bound on norms keeps its influence small.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from xxhash import xxh3_64_intdigest

import gcext
from gcext.aggregate import MaxK, Message, NormBound, Rounds
from gcext.fl import Data, build, initial, load, local_sgd, split

__all__ = ["FINITE", "POISONS", "REFUSABLE", "Result", "train"]

RUN, CLIENTS, DRAWN = 3, 20, 10
POISONED = (4, 13)
SHARE = 0.1  # of the elements that travel


def _patched(bits: bytes) -> Callable[[Tensor], bytes]:
    """Return a poison: a packet whose first value's bits are these, with a right checksum."""

    def poison(update: Tensor) -> bytes:
        message = bytearray(gcext.codec("dense").encode(update).to_bytes())
        at = bytes(message).index(struct.pack("<f", float(update[0])))
        message[at : at + 4] = bits
        message[-8:] = xxh3_64_intdigest(bytes(message[:-8])).to_bytes(8, "little")
        return bytes(message)

    return poison


def _encoded(spec: str, of: Callable[[Tensor], Tensor]) -> Callable[[Tensor], bytes]:
    return lambda update: gcext.codec(spec).encode(of(update)).to_bytes()


REFUSABLE: dict[str, Callable[[Tensor], bytes]] = {
    "NaN": _patched(struct.pack("<f", float("nan"))),
    "Inf": _patched(struct.pack("<f", float("inf"))),
    "wrong shape": _encoded(f"stc:p={SHARE}", lambda update: update[:-1]),
    "k too large": _encoded("stc:p=1", lambda update: update),
    "no packet": lambda update: update.numpy().tobytes(),
}
FINITE: dict[str, Callable[[Tensor], bytes]] = {
    "huge": _encoded(f"topk:p={SHARE}", lambda update: torch.full_like(update, 3e38)),
    "flipped signs, 100 times": _encoded(f"stc:p={SHARE}", lambda update: -100 * update),
}
POISONS = REFUSABLE | FINITE


class Result(NamedTuple):
    """What a run came to, and the most that poisoned clients moved one round's update by."""

    accuracy: float
    model: Tensor
    refused: int
    moved: float


@cache
def _data() -> Data:
    return load("digits")


def train(poison: str | None = None, rounds: int = 40, seed: int = 0) -> Result:
    """Train with a poison in place of two clients' packets; None: never draw these clients."""
    torch.set_num_threads(1)
    data = _data()
    parts = split("iid", data.train.labels, data.test.labels, CLIENTS, seed).train
    flat, model = build(data), initial(data, seed)
    k = round(SHARE * model.numel())
    server = Rounds(MaxK(k, NormBound()), RUN, expect=tuple(model.shape))
    senders = [gcext.ErrorFeedback(f"stc:p={SHARE}") for _ in range(CLIENTS)]
    refused, moved = 0, 0.0
    for number in range(1, rounds + 1):
        rng = np.random.default_rng([seed, number])
        drawn = sorted(rng.choice(CLIENTS, DRAWN, replace=False).tolist())
        drawn = [c for c in drawn if poison is not None or c not in POISONED]
        server.begin(drawn)
        good: dict[int, gcext.Packet] = {}
        for client in drawn:
            index = torch.from_numpy(parts[client])
            inputs, labels = data.inputs(data.train, index), data.train.labels[index]
            rng = np.random.default_rng([seed, number, client])
            update, _ = local_sgd(flat, model, inputs, labels, lr=0.1, batch=16, epochs=1, rng=rng)
            if client in POISONED and poison is not None:
                try:
                    packet = gcext.Packet.from_bytes(POISONS[poison](update))
                    server.add(client, Message(RUN, client, number, packet))
                except ValueError:  # DecodeError is one
                    refused += 1
                continue
            good[client] = senders[client].compress(update, "w")
            server.add(client, Message(RUN, client, number, good[client]))
        step = server.finish()
        assert isinstance(step, Tensor)
        clean = gcext.aggregate.mean(list(good.values()))
        assert isinstance(clean, Tensor)
        # p of m packets move the mean of the others by at most 2 p/m of the bound, and that is at
        # most three times the longest honest update.
        poisoned = sum(server.last_of(client) == number for client in POISONED)
        bound = 3 * math.sqrt(max(float(gcext.gram([packet])) for packet in good.values()))
        distance = float((step.double() - clean.double()).norm())
        assert distance <= 2 * poisoned / len(drawn) * bound * (1 + 1e-6), (number, distance)
        moved = max(moved, distance)
        model = model - step
        assert bool(model.isfinite().all()), f"round {number}: not finite"
    flat.weights.copy_(model)
    with torch.inference_mode():
        images = data.inputs(data.test, slice(None))
        accuracy = (flat(images).argmax(1) == data.test.labels).double().mean().item()
    return Result(accuracy, model, refused, moved)
