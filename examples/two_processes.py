"""Two processes train one model over gloo: python examples/two_processes.py.

Each compresses the gradients of its own data; all packets go to both, and both add the same bits.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

import gcext

RANKS, STEPS, LR = 2, 60, 0.2


def batch(rank: int, step: int) -> tuple[Tensor, Tensor]:
    """Return a rank's inputs and labels of a step."""
    x = torch.randn(64, 20, generator=torch.Generator().manual_seed(1000 * step + rank))
    return x, (x @ torch.randn(20, 3, generator=torch.Generator().manual_seed(1))).argmax(1)


def train(rank: int, store: str) -> None:
    """Train on one rank."""
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=RANKS)
    torch.manual_seed(0)  # the same weights on all ranks; afterwards every update is the same
    model = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 3))
    sender = gcext.ErrorFeedback("stc:p=0.05", exact_below=200)
    sent = 0
    for step in range(STEPS):
        x, label = batch(rank, step)
        model.zero_grad()
        loss = nn.functional.cross_entropy(model(x), label)
        loss.backward()
        packet = sender.compress(model.named_parameters(), commit=False)
        packets = gcext.distributed.all_gather(packet)  # of all ranks, in their order
        sender.commit()  # they have it
        sent += packet.nbytes
        updates = gcext.aggregate.mean(packets)
        with torch.no_grad():
            for parameter, update in zip(model.parameters(), updates, strict=True):
                parameter.sub_(update, alpha=LR)
        if rank == 0 and step % 20 == 0:
            print(f"step {step:3}  loss {loss.item():.3f}  {packet.nbytes} bytes a rank")

    weights = torch.cat([p.detach().flatten() for p in model.parameters()])
    everyone = [torch.empty_like(weights) for _ in range(RANKS)]
    dist.all_gather(everyone, weights)
    assert all(torch.equal(weights.view(torch.int32), w.view(torch.int32)) for w in everyone)
    if rank == 0:
        dense = 4 * STEPS * weights.numel()
        print(f"the same bits on all; {sent / 1e3:.0f} kB a rank, {dense / 1e3:.0f} kB dense")
    dist.destroy_process_group()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(train, args=(str(Path(folder) / "store"),), nprocs=RANKS)
