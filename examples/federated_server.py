"""A federated server and its clients, with real messages: python examples/federated_server.py.

Two of ten clients send nonsense; a trimmed mean limits what they can do.
"""

from __future__ import annotations

import torch
from torch import Tensor

import gcext

CLIENTS, ROUNDS, SIZE, HOSTILE = 10, 40, 50, {3, 8}


class Client:
    """Fits y = x·w to data of its own, and sends what its model changed by."""

    def __init__(self, number: int, truth: Tensor) -> None:
        generator = torch.Generator().manual_seed(number)
        self.number = number
        self.x = torch.randn(200, SIZE, generator=generator)
        self.y = self.x @ truth
        self.sender = gcext.ErrorFeedback("topk:p=0.5")

    def train(self, model: Tensor) -> tuple[bytes, float]:
        """Return the message of this round and the training loss."""
        w = model.clone()
        for _ in range(5):
            error = self.x @ w - self.y
            w -= 0.1 * (self.x.T @ error) / len(error)
        update = model - w
        if self.number in HOSTILE:
            update = torch.full_like(update, 1e3)
        packet = self.sender.compress(update, "model", commit=False)
        return packet.to_bytes(), float(error.square().mean())

    def acknowledged(self) -> None:
        """Count the last message as delivered."""
        self.sender.commit("model")


def main() -> None:
    """Run the rounds, and print the distance to the solution."""
    truth = torch.randn(SIZE, generator=torch.Generator().manual_seed(99))
    clients = [Client(i, truth) for i in range(CLIENTS)]
    model = torch.zeros(SIZE)
    aggregator = gcext.aggregate.MaxK(SIZE, gcext.aggregate.TrimmedMean(beta=0.2))
    traffic = 0
    for number in range(1, ROUNDS + 1):
        round = gcext.aggregate.Round(aggregator, expect=(SIZE,), number=number)
        for client in clients:
            message, loss = client.train(model)
            try:
                round.add(client.number, message, loss=loss)
            except gcext.DecodeError as error:
                print(f"client {client.number} refused: {error}")
                continue
            traffic += len(message)
            client.acknowledged()
        model -= round.finish()
        if number % 10 == 0:
            distance = float((model - truth).norm())
            print(f"round {number}: distance {distance:.4f}, {traffic} bytes up")


if __name__ == "__main__":
    main()
