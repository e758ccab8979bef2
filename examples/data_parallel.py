"""Data-parallel SGD by any method: python examples/data_parallel.py --method efsign.

Two workers, each with a half of the data and a batch of 64, send their gradients through packets;
what the server makes of them goes back as a packet too, and every worker takes the same step of
SGD with momentum. On MNIST: --data mnist --data-dir DIR --epochs 20.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn

import gcext
from gcext import fl

parser = argparse.ArgumentParser()
parser.add_argument("--method", default="onebit", help="a recipe, such as none, efsign, onebit")
parser.add_argument("--data", default="digits")
parser.add_argument("--data-dir", default=None)
parser.add_argument("--workers", type=int, default=2)
parser.add_argument("--batch", type=int, default=64)
parser.add_argument("--lr", type=float, default=0.01)
parser.add_argument("--momentum", type=float, default=0.5)
parser.add_argument("--epochs", type=int, default=3)
parser.add_argument("--seed", type=int, default=0)
options = parser.parse_args()

data = fl.load(options.data, options.data_dir)
torch.manual_seed(options.seed)
model = fl.build(options.data).net
optimizer = torch.optim.SGD(model.parameters(), options.lr, options.momentum)
recipe = gcext.recipe(options.method)
senders = [recipe.up.sender(seed=worker) for worker in range(options.workers)]
receiver, server = recipe.up.receiver(), recipe.down.sender(seed=options.workers)
shapes = [tuple(p.shape) for p in model.parameters()]
generator = torch.Generator().manual_seed(options.seed)


def accuracy() -> float:
    """Return the share of test images that the model classifies right."""
    parts = torch.arange(len(data.test)).split(500)
    with torch.inference_mode():
        right = [model(data.inputs(data.test, i)).argmax(1) == data.test.labels[i] for i in parts]
    return torch.cat(right).double().mean().item()


def gradient_packet(worker: int, index: Tensor) -> gcext.Packet:
    """Return what one worker sends, as it arrives."""
    optimizer.zero_grad()
    logits = model(data.inputs(data.train, index))
    nn.functional.cross_entropy(logits, data.train.labels[index]).backward()
    message = senders[worker].compress(model.named_parameters()).to_bytes()
    sent[0] += len(message)
    return gcext.Packet.from_bytes(message, expect=shapes)


for epoch in range(1, options.epochs + 1):
    sent = [0, 0]  # bytes up and down
    halves = torch.randperm(len(data.train), generator=generator).chunk(options.workers)
    for indices in zip(*(half.split(options.batch) for half in halves), strict=False):
        packets = {w: gradient_packet(w, index) for w, index in enumerate(indices)}
        update = receiver.aggregate(packets, losses=dict.fromkeys(packets, 1.0))
        named = {str(i): tensor for i, tensor in enumerate(update)}
        message = server.compress(named).to_bytes()
        sent[1] += len(message) * options.workers
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        gcext.Packet.from_bytes(message, expect=shapes).to_dense(out=gradients)
        optimizer.step()
    megabytes = " ".join(
        f"{way} {count / 1e6:.2f} MB" for way, count in zip(("up", "down"), sent, strict=True)
    )
    print(f"{options.method} epoch {epoch}: accuracy {100 * accuracy():.2f} %, {megabytes}")
