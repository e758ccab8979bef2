"""A server and two workers over gloo: python examples/parameter_server.py.

Compressed at both ends, with a residual at both ends (DoubleSqueeze).
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

import gcext.parameter_server

RANKS, STEPS, LR = 3, 40, 0.2  # rank 0 is the server
RECIPE = "doublesqueeze:codec=stc:p=0.05"


def batch(rank: int, step: int) -> tuple[Tensor, Tensor]:
    """Return a rank's inputs and labels of a step."""
    x = torch.randn(64, 20, generator=torch.Generator().manual_seed(1000 * step + rank))
    return x, (x @ torch.randn(20, 3, generator=torch.Generator().manual_seed(1))).argmax(1)


def work(rank: int) -> None:
    """Train on one worker."""
    torch.manual_seed(0)  # the same weights on all workers; afterwards every update is the same
    model = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 3))
    with gcext.parameter_server.Worker(model.named_parameters(), RECIPE) as worker:
        for step in range(STEPS):
            x, label = batch(rank, step)
            model.zero_grad()
            loss = nn.functional.cross_entropy(model(x), label)
            loss.backward()
            worker.push(model.named_parameters())
            with torch.no_grad():
                for name, update in worker.pull().items():
                    model.get_parameter(name).sub_(update, alpha=LR)
            if rank == 1 and step % 20 == 0:
                print(f"step {step:3}  loss {loss.item():.3f}")
    if rank == 1:
        dense = 4 * STEPS * sum(parameter.numel() for parameter in model.parameters())
        print(f"loss {loss.item():.3f}; {worker.sent_bytes} bytes up, {dense} dense")


def run(rank: int, store: str) -> None:
    """Be the server or a worker."""
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=RANKS)
    if rank == 0:
        gcext.parameter_server.Server(RECIPE).serve()
    else:
        work(rank)
    dist.destroy_process_group()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(run, args=(str(Path(folder) / "store"),), nprocs=RANKS)
