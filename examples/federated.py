"""Your own model and data among named clients that lose messages: python examples/federated.py.

Four hospitals see different patients. The server projects conflicting updates (FedFV), and takes
each client's packet by its name, in whatever order they arrive.
"""

from __future__ import annotations

import random

import numpy as np
import torch
from torch import Tensor, nn

import gcext
from gcext.fl import FlatModel, local_sgd

ROUNDS, FEATURES, CLASSES = 40, 20, 3
NAMES = ("north", "east", "south", "west")


def patients(name: str, count: int = 300) -> tuple[Tensor, Tensor]:
    """Return inputs and labels of one hospital, where one class is rare."""
    centres = 0.7 * torch.randn(CLASSES, FEATURES, generator=torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(gcext.derive(0, name) % 2**63)
    odds = torch.ones(CLASSES)
    odds[sum(map(ord, name)) % CLASSES] = 0.02
    labels = torch.multinomial(odds, count, replacement=True, generator=generator)
    return centres[labels] + torch.randn(count, FEATURES, generator=generator), labels


class Hospital:
    """A client: its data, a model to train, and what its messages have not sent yet."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.inputs, self.labels = patients(name)
        self.model = FlatModel(network())
        self.sender = gcext.ErrorFeedback("stc:p=0.1")
        self.rng = np.random.default_rng(len(name))

    def train(self, weights: Tensor) -> tuple[bytes, float]:
        """Return the message of this round, pending, and the training loss."""
        update, loss = local_sgd(
            self.model, weights, self.inputs, self.labels, lr=0.1, batch=64, epochs=1, rng=self.rng
        )
        return self.sender.compress(update, "model", commit=False).to_bytes(), loss


def network() -> nn.Module:
    """Return the model that everyone trains."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(FEATURES, 32), nn.ReLU(), nn.Linear(32, CLASSES))


def main() -> None:
    """Run the rounds; one message in five is lost on its way."""
    hospitals = [Hospital(name) for name in NAMES]
    server, luck, traffic = FlatModel(network()), random.Random(0), 0
    projection = gcext.aggregate.Projection(alpha=0.1, tau=1)
    tests = [patients(name + " test") for name in NAMES]
    for number in range(1, ROUNDS + 1):
        round = gcext.aggregate.Round(projection, expect=server.weights.shape, number=number)
        for hospital in luck.sample(hospitals, len(hospitals)):
            message, loss = hospital.train(server.weights.clone())
            if luck.random() < 0.2:
                hospital.sender.rollback()  # no answer came: as if nothing had been sent
                continue
            round.add(hospital.name, message, loss=loss)
            hospital.sender.commit()
            traffic += len(message)
        if len(round):
            server.weights.sub_(round.finish())
        if number % 10 == 0:
            right = [(server(x).argmax(1) == y).double().mean().item() for x, y in tests]
            print(f"round {number}: accuracy {min(right):.3f} to {max(right):.3f}, {traffic} bytes")


if __name__ == "__main__":
    main()
