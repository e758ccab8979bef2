"""What ``bench link`` trains: the MNIST CNN, and a small transformer on Python's own help texts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from gcext import fl

__all__ = ["TASKS", "Task"]

HELD_OUT = 512  # samples of the loss that is trained to


class Task(NamedTuple):
    """A model, its data and how it is trained.

    Attributes:
        model: the same one in every process.
        batch: of a generator, inputs and labels of one rank's step.
        held_out: inputs and labels that no step uses.
        loss: of outputs and labels.
        optimizer: of parameters and a learning rate.
        lr: learning rates that each method is tried at.
        target: of the held-out loss.
    """

    model: nn.Module
    batch: Callable[[torch.Generator], tuple[Tensor, Tensor]]
    held_out: tuple[Tensor, Tensor]
    loss: Callable[[Tensor, Tensor], Tensor]
    optimizer: Callable[..., torch.optim.Optimizer]
    lr: tuple[float, ...]
    target: float


def mnist(seed: int, data_dir: str | None) -> Task:
    """Return the CNN of the federated loop, 338,006 parameters; batches of 64, SGD."""
    return _images("mnist", seed, data_dir, target=0.15)


def digits(seed: int, data_dir: str | None) -> Task:
    """Return the small CNN on scikit-learn's digits: for tests."""
    return _images("digits", seed, data_dir, target=0.8)


def _images(name: str, seed: int, data_dir: str | None, target: float) -> Task:
    data = fl.load(name, data_dir)
    torch.manual_seed(seed)

    def batch(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        index = torch.randint(len(data.train), (64,), generator=generator)
        return data.inputs(data.train, index), data.train.labels[index]

    held = torch.arange(min(HELD_OUT, len(data.test)))
    return Task(
        model=fl.build(name).net,
        batch=batch,
        held_out=(data.inputs(data.test, held), data.test.labels[held]),
        loss=functional.cross_entropy,
        optimizer=lambda parameters, lr: torch.optim.SGD(parameters, lr, momentum=0.9),
        lr=(0.01, 0.03, 0.1),
        target=target,
    )


CONTEXT, WIDTH, LAYERS, HEADS = 64, 128, 4, 4


class Transformer(nn.Module):
    """A causal transformer over bytes: 4 layers of width 128, 833,000 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(256, WIDTH)
        self.position = nn.Parameter(0.02 * torch.randn(CONTEXT, WIDTH))
        layer = nn.TransformerEncoderLayer(
            WIDTH, HEADS, 4 * WIDTH, dropout=0.0, batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(WIDTH)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(CONTEXT))

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits (batch, context, 256) of bytes (batch, context)."""
        x = self.layers(self.embed(tokens) + self.position, mask=self.mask, is_causal=True)
        logits: Tensor = self.norm(x) @ self.embed.weight.T
        return logits


def transformer(seed: int, data_dir: str | None) -> Task:
    """Return the transformer on the texts of Python's ``help``; batches of 16 x 64, AdamW."""
    import pydoc_data.topics

    source = Path(pydoc_data.topics.__file__).read_bytes()
    text = torch.frombuffer(bytearray(source), dtype=torch.uint8)
    train, test = text[:-40_000], text[-40_000:]
    torch.manual_seed(seed)
    model = Transformer()
    nn.init.normal_(model.embed.weight, std=0.02)

    def windows(part: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
        each = part[start[:, None] + torch.arange(CONTEXT + 1)].long()
        return each[:, :-1], each[:, 1:]

    def batch(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return windows(train, torch.randint(len(train) - CONTEXT, (16,), generator=generator))

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        return functional.cross_entropy(logits.flatten(0, 1), labels.flatten())

    return Task(
        model=model,
        batch=batch,
        held_out=windows(test, torch.arange(64) * (len(test) // 65)),
        loss=loss,
        optimizer=lambda parameters, lr: torch.optim.AdamW(parameters, lr),
        lr=(0.001, 0.003),
        target=2.3,
    )


TASKS: dict[str, Callable[[int, str | None], Task]] = {
    "mnist": mnist,
    "transformer": transformer,
    "digits": digits,
}
