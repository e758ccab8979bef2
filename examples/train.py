"""One process, a whole model, a checkpoint: python examples/train.py.

The gradients go through a packet before each step, as they would between machines. A second
training stops half-way and a third goes on from its file: the weights are the same bit for bit.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

import gcext

STEPS, STOP = 80, 40


class Training:
    """A model, its optimizer, and the sender with one residual a parameter, kept by name."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        layers = nn.Linear(20, 128), nn.LayerNorm(128), nn.ReLU(), nn.Linear(128, 3)
        self.model = nn.Sequential(*layers)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.05, momentum=0.9)
        # Biases and norms, a percent of the model, travel as float32.
        self.sender = gcext.ErrorFeedback("stc:p=0.05", exact_below=200)
        self.parts = (self.model, self.optimizer, self.sender)
        self.step = 0

    def run(self, until: int) -> int:
        """Train up to a step; return the bytes that would have been sent."""
        sent = 0
        for step in range(self.step, until):
            self.optimizer.zero_grad()
            x, label = batch(step)
            loss = nn.functional.cross_entropy(self.model(x), label)
            loss.backward()
            message = self.sender.compress(self.model.named_parameters()).to_bytes()
            sent += len(message)
            gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
            gcext.Packet.from_bytes(message, expect=gradients).to_dense(out=gradients)
            self.optimizer.step()
            if step % 20 == 0:
                print(f"step {step:3}  loss {loss.item():.3f}  {len(message)} bytes")
        self.step = until
        return sent

    def save(self, path: Path) -> None:
        """Write a checkpoint."""
        torch.save({"step": self.step, "parts": [part.state_dict() for part in self.parts]}, path)

    def load(self, path: Path) -> None:
        """Go on from a checkpoint."""
        state = torch.load(path, weights_only=True)
        for part, held in zip(self.parts, state["parts"], strict=True):
            part.load_state_dict(held)
        self.step = state["step"]


def batch(step: int) -> tuple[Tensor, Tensor]:
    """Return a step's inputs and labels."""
    x = torch.randn(64, 20, generator=torch.Generator().manual_seed(step))
    return x, (x @ torch.randn(20, 3, generator=torch.Generator().manual_seed(1))).argmax(1)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        straight, first, resumed = Training(), Training(), Training()
        sent = straight.run(STEPS)
        first.run(STOP)
        first.save(Path(folder) / "checkpoint.pt")
        resumed.load(Path(folder) / "checkpoint.pt")
        resumed.run(STEPS)
    for name, weight in straight.model.state_dict().items():
        assert torch.equal(weight, resumed.model.state_dict()[name])
    dense = 4 * STEPS * sum(p.numel() for p in straight.model.parameters())
    print(f"resumed bit for bit; {sent / 1e3:.0f} kB sent, {dense / 1e3:.0f} kB dense")
