"""DistributedDataParallel with compressed gradients: torchrun --nproc_per_node 2 train.py.

Digits that scikit-learn ships, a small CNN, any recipe; a checkpoint after each epoch, from which
--resume goes on, residuals included.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import gcext
from gcext import fl

parser = argparse.ArgumentParser()
parser.add_argument("--recipe", default="stc:p=0.01", help="or none, powersgd:rank=2, dgc, ...")
parser.add_argument("--epochs", type=int, default=4)
parser.add_argument("--lr", type=float, default=0.05)
parser.add_argument("--checkpoints", type=Path, help="a folder for one checkpoint an epoch")
parser.add_argument("--resume", action="store_true", help="go on from the last one there")
options = parser.parse_args()

if "RANK" in os.environ:  # set by torchrun
    dist.init_process_group("gloo")
else:
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
rank, world = dist.get_rank(), dist.get_world_size()

data = fl.load("digits")
everything = torch.arange(len(data.train))
train = TensorDataset(data.inputs(data.train, everything), data.train.labels)
sampler = DistributedSampler(train, seed=0)
loader = DataLoader(train, batch_size=32, sampler=sampler, drop_last=True)

torch.manual_seed(0)
net = nn.Sequential(
    *(nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 64, 3, padding=1), nn.ReLU()),
    *(nn.MaxPool2d(2), nn.Flatten()),
    *(nn.Linear(1024, 128), nn.ReLU(), nn.Linear(128, 10)),
)
model = DistributedDataParallel(net)
state = gcext.ddp.State(options.recipe, module=net)  # the two lines
model.register_comm_hook(state, gcext.ddp.hook)
optimizer = torch.optim.SGD(model.parameters(), lr=options.lr)

first = 0
if options.resume:
    # .metadata is written last: without it the save was cut short.
    whole = [path.parent for path in options.checkpoints.glob("*/.metadata")]
    first = 1 + max(int(path.name) for path in whole)
    weights = net.state_dict()
    dcp.load({"model": weights, "ddp": state}, checkpoint_id=options.checkpoints / str(first - 1))
    net.load_state_dict(weights)


def accuracy() -> float:
    """Return the share of test images that the model classifies right."""
    with torch.inference_mode():
        inputs = data.inputs(data.test, torch.arange(len(data.test)))
        return float((net(inputs).argmax(1) == data.test.labels).double().mean())


dense = 4 * sum(p.numel() for p in net.parameters())
for epoch in range(first, options.epochs):
    sampler.set_epoch(epoch)
    for inputs, labels in loader:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
    if options.checkpoints:
        saved = {"model": net.state_dict(), "ddp": state}
        dcp.save(saved, checkpoint_id=options.checkpoints / str(epoch))
    if rank == 0:
        print(
            f"epoch {epoch}: accuracy {100 * accuracy():.1f} %, "
            f"{state.step_sent_bytes} bytes a rank and step, {dense} dense"
        )
del model  # before its process group: the other way round gloo may wait for ever
dist.destroy_process_group()
