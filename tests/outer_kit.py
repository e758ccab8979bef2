"""A model, its local steps, and what ranks that all take part must come to, in one process."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

import gcext
from gcext import Packet

EVERY = 3
RECIPES = [
    "localsgd:every=3",
    "diloco:every=3",
    "sparseloco:p=0.1,every=3",
    "localsgd:every=3,codec=qsgd:bits=2,bucket=16",
    "diloco:every=3,codec=stc:p=0.1,feedback=true",
]


class Net(nn.Module):
    """Parameters of all kinds, one of them frozen, and a buffer; all ranks' are the same."""

    count: Tensor

    def __init__(self, dtype: torch.dtype = torch.float32, seed: int = 0) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.randn(40, 5, generator=random).to(dtype))
        self.strided = nn.Parameter(torch.randn(6, 4, generator=random).to(dtype).t())
        self.empty = nn.Parameter(torch.zeros(0, 3, dtype=dtype))
        self.scale = nn.Parameter(torch.randn((), generator=random).to(dtype))
        self.frozen = nn.Parameter(torch.ones(2), requires_grad=False)
        self.register_buffer("count", torch.zeros(1))

    def trained(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.named_parameters() if p.requires_grad}


def local_step(model: Net, rank: int, step: int) -> None:
    """Change a rank's parameters, as a step of its own."""
    random = torch.Generator().manual_seed(1000 * rank + step)
    with torch.no_grad():
        for p in model.trained().values():
            p.add_((0.1 * torch.randn(p.shape, generator=random)).to(p))
        model.count.add_(1 + rank)


def digest(tensors: Iterable[Tensor]) -> str:
    here = hashlib.sha256()
    for each in tensors:
        here.update(each.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return here.hexdigest()


def reference(
    recipe: str,
    world: int,
    steps: int,
    dtype: torch.dtype = torch.float32,
    members: Callable[[int], set[int]] | None = None,
    **options: float,
) -> list[Net]:
    """Return all ranks' models after ``steps``; members: of a round, from 1; None: all of them.

    One that is left out goes on from the new global parameters less what it had changed.
    """
    made = gcext.recipe(recipe)
    receiver = made.up.receiver()
    if options:
        receiver = gcext.aggregate.Nesterov(beta=options["momentum"], lr=options["lr"])
    senders = [made.up.sender(gcext.derive(0, rank)) for rank in range(world)]
    models = [Net(dtype) for _ in range(world)]
    held = {name: p.detach().float().clone() for name, p in models[0].trained().items()}
    for step in range(steps):
        for rank, model in enumerate(models):
            local_step(model, rank, step)
        if (step + 1) % EVERY:
            continue
        here = set(range(world)) if members is None else members((step + 1) // EVERY)
        packets, left = {}, {}
        for rank, model in enumerate(models):
            given = {
                name: held[name].to(dtype).float() - p.detach().float()
                for name, p in model.trained().items()
            }
            packet = senders[rank].compress(given, commit=False)
            if rank in here:
                packets[rank] = Packet.from_bytes(packet.to_bytes())
                senders[rank].commit()
            else:
                left[rank] = given
                senders[rank].rollback()
        update = receiver.aggregate(packets)
        assert isinstance(update, list)
        held = {name: held[name] - u for name, u in zip(held, update, strict=True)}
        for rank, model in enumerate(models):
            for name, p in model.trained().items():
                value = held[name]
                if rank in left:
                    value = value.to(dtype).float() - left[rank][name]
                with torch.no_grad():
                    p.copy_(value)
    return models


def same(a: Net, b: Net) -> bool:
    """Whether two models' trained parameters are the same, bit for bit."""
    return digest(a.trained().values()) == digest(b.trained().values())
