"""Models, data and references for tests of gcext.ddp, and processes that run a rank each."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

import gcext

ROOT = Path(__file__).parents[1]
SEED = 5
LR = 0.1


def make_model() -> nn.Sequential:
    """The same weights in every process: matrices above exact_below, vectors below."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(24, 64), nn.ReLU(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 5)
    )


def batch(rank: int, step: int) -> tuple[Tensor, Tensor]:
    x = torch.randn(16, 24, generator=torch.Generator().manual_seed(1000 * step + rank))
    return x, (x @ torch.randn(24, 5, generator=torch.Generator().manual_seed(1))).argmax(1)


def backward(model: nn.Module, rank: int, step: int, factor: float = 1.0) -> Tensor:
    x, label = batch(rank, step)
    loss = cross_entropy(model(x), label) * factor
    loss.backward()
    return loss.detach()


def wrapped(state: Any = None, model: nn.Module | None = None, **options: Any) -> Any:
    """A model in DDP, with the hook where there is a state, in several buckets."""
    options = {"bucket_cap_mb": 0.008, **options}
    dist._DEFAULT_FIRST_BUCKET_BYTES = 1  # type: ignore[attr-defined]  # otherwise 1 MiB
    ddp = DistributedDataParallel(make_model() if model is None else model, **options)
    if state is not None:
        ddp.register_comm_hook(state, gcext.ddp.hook)
    return ddp


def step(model: nn.Module) -> None:
    """A step of SGD; new gradients."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.sub_(parameter.grad, alpha=LR)
    model.zero_grad()


def new_state(spec: str, model: nn.Module, **options: Any) -> gcext.ddp.State:
    return gcext.ddp.State(spec, module=model, seed=SEED, **options)


def train(ddp: Any, rank: int, steps: int, first: int = 0) -> None:
    for number in range(first, first + steps):
        backward(ddp, rank, number)
        step(ddp)


class Reference:
    """What a hook must do, in one process: a sender for each rank, and a receiver a tensor."""

    def __init__(self, spec: str, world: int, model: nn.Module | None = None) -> None:
        self.recipe = gcext.recipe(spec)
        self.model = make_model() if model is None else model
        self.world = world
        self.senders = []
        for rank in range(world):
            sender = self.recipe.up.sender(gcext.derive(SEED, rank))
            if "vote" not in spec:
                sender.exact_below, sender.exact_vectors_below = 1024, 65536
            self.senders.append(sender)
        names = [name for name, _ in self.model.named_parameters()]
        self.receivers = {name: self.recipe.up.receiver() for name in names}
        self.steps = 0

    def gradients(self, number: int, factors: list[float] | None = None) -> list[dict[str, Tensor]]:
        """Each rank's own gradients."""
        found = []
        for rank in range(self.world):
            self.model.zero_grad()
            backward(self.model, rank, number, 1.0 if factors is None else factors[rank])
            found.append(
                {n: p.grad for n, p in self.model.named_parameters() if p.grad is not None}
            )
        self.model.zero_grad()
        return found

    def average(self, gradients: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """What all ranks make of them."""
        self.steps += 1
        packets = []
        for sender, its in zip(self.senders, gradients, strict=True):
            sender.codec = self.recipe.schedule.codec(self.recipe.up.codec, self.steps)
            message = sender.compress(its).to_bytes()
            packets.append(gcext.Packet.from_bytes(message))
        update: dict[str, Tensor] = {}
        for i, name in enumerate(gradients[0]):
            of_ranks = {rank: packet.members[i] for rank, packet in enumerate(packets)}
            update[name] = self.receivers[name].aggregate(of_ranks)  # type: ignore[assignment]
        return update

    def step(self, number: int, factors: list[float] | None = None) -> None:
        update = self.average(self.gradients(number, factors))
        for name, parameter in self.model.named_parameters():
            parameter.grad = update[name].to(parameter.dtype)
        step(self.model)


def flat(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().float().flatten() for p in model.parameters()])


def same_bits(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.view(torch.int32), b.view(torch.int32))


def same_on_all(model: nn.Module) -> bool:
    """Whether all ranks have the same bits."""
    mine = flat(model)
    everyone = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(everyone, mine)
    return all(same_bits(mine, each) for each in everyone)


def residuals(state: Any) -> Mapping[str, Any]:
    """What a state holds, to be compared: the bytes of its own rank."""
    return {key: value for key, value in state.state_dict().items() if key != "world_size"}


def init(rank: int, world: int, store: str, seconds: float = 60) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{store}",
        rank=rank,
        world_size=world,
        timeout=timedelta(seconds=seconds),
    )


def leave() -> None:
    """End the process group. No model in DDP may outlive it.

    The last reference to gloo's group would go with DDP's reducer, which holds the GIL while gloo's
    threads, which need it to drop a collective's tensors, are joined: now and then a deadlock. And
    threads that outlive the group may abort the process at its end.
    """
    gc.collect()
    dist.destroy_process_group()
    assert "pt_gloo_runloop" not in threads()


def threads() -> list[str]:
    """Return the names of this process's threads, those of libraries too."""
    names = []
    for path in Path("/proc/self/task").glob("*/comm"):
        with suppress(OSError):  # it may end meanwhile
            names.append(path.read_text().strip())
    return names


def start(script: str, world: int, *arguments: object) -> list[subprocess.Popen[str]]:
    """Start ``script world rank arguments...`` once for each rank."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    env = {**os.environ, "PYTHONPATH": path, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    return [
        subprocess.Popen(
            [sys.executable, script, str(world), str(rank), *map(str, arguments)],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]


def end(ranks: list[subprocess.Popen[str]], seconds: float = 240) -> list[tuple[str, str]]:
    """Wait for all; whatever happens, none stays."""
    try:
        return [rank.communicate(timeout=seconds) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()


def run(script: str, world: int, *arguments: object) -> list[str]:
    """Start, wait, and return what each rank printed."""
    ranks = start(script, world, *arguments)
    ended = end(ranks)
    for rank, (_, error) in zip(ranks, ended, strict=True):
        assert rank.returncode == 0, error
    return [out for out, _ in ended]
