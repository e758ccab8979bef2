"""Four workers train one model on their own data: python examples/training_loop.py.

Each worker's gradient is one flat buffer, so that a step is one packet of the whole model.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import gcext

WORKERS, STEPS, LR = 4, 60, 0.5


def flat_model() -> tuple[nn.Module, Tensor, Tensor]:
    """Return a model, and its parameters and gradients as one flat tensor each."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 3))
    weights = torch.cat([p.detach().flatten() for p in model.parameters()])
    gradients = torch.zeros_like(weights)
    at = 0
    for p in model.parameters():
        p.data = weights[at : at + p.numel()].view_as(p)
        p.grad = gradients[at : at + p.numel()].view_as(p)
        at += p.numel()
    return model, weights, gradients


def batch(worker: int, step: int, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Return a worker's inputs and labels of a step."""
    generator = torch.Generator().manual_seed(1000 * step + worker)
    x = torch.randn(64, 20, generator=generator)
    return x, (x @ truth).argmax(1)


def main() -> None:
    """Train, and print loss and bytes."""
    truth = torch.randn(20, 3, generator=torch.Generator().manual_seed(1))
    # Every worker holds the same model; one copy serves all of them here.
    model, weights, gradients = flat_model()
    senders = [gcext.ErrorFeedback("stc:p=0.05") for _ in range(WORKERS)]
    sent = 0
    for step in range(STEPS):
        messages, loss = [], 0.0
        for worker, sender in enumerate(senders):
            x, label = batch(worker, step, truth)
            gradients.zero_()
            error = nn.functional.cross_entropy(model(x), label)
            error.backward()
            loss += error.item() / WORKERS
            messages.append(sender.compress(gradients, "model").to_bytes())
        sent += sum(map(len, messages))

        # What every worker does with the messages of all: the same bits everywhere.
        packets = [gcext.Packet.from_bytes(m, expect=weights.shape) for m in messages]
        weights.sub_(gcext.aggregate.mean(packets), alpha=LR)
        if step % 10 == 0 or step == STEPS - 1:
            kb, dense = sent / 1e3, 4 * weights.numel() * WORKERS * (step + 1) / 1e3
            print(f"step {step:3}  loss {loss:.3f}  {kb:7.1f} kB sent, {dense:.0f} dense")


if __name__ == "__main__":
    main()
