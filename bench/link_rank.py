"""One rank of ``bench link``: trains by DistributedDataParallel, and writes what it measured.

``python -m bench.link_rank JOB RANK`` waits for a line on its input: its network is then there.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.distributed.algorithms.ddp_comm_hooks import powerSGD_hook as power
from torch.nn.parallel import DistributedDataParallel

import gcext

from .link_net import address
from .link_tasks import TASKS, Task

__all__ = ["Job"]

ONE_BUCKET = 1024  # MB
WARM = 5  # steps before the clock counts: DDP rebuilds its buckets after the first


@dataclass(frozen=True)
class Job:
    """What all ranks do.

    Attributes:
        method: none, fp16, powersgd:R (torch's hooks), or a recipe of gcext; ``gcext:`` in front of
            it where torch has one of that name, and ``@exact_below=N`` behind it for that option.
        steps: at most.
        target: held-out loss to stop at; None: the task's; 0: all steps.
        every: steps between two looks at the held-out loss.
        compute: train without any exchange, to know what the rest of a step takes.
    """

    task: str
    method: str
    ranks: int
    lr: float
    steps: int
    seed: int = 0
    target: float | None = None
    every: int = 10
    compute: bool = False
    data_dir: str | None = None
    port: int = 29500


def hook(model: DistributedDataParallel, method: str, seed: int) -> Any:
    """Register a method's hook; return its state, None for torch's."""
    if method == "fp16":
        model.register_comm_hook(None, default_hooks.fp16_compress_hook)
    elif method.startswith("powersgd:"):
        rank = int(method.partition(":")[2])
        # The least that torch takes: buckets are rebuilt after the first iteration.
        torchs = power.PowerSGDState(None, matrix_approximation_rank=rank, start_powerSGD_iter=2)
        model.register_comm_hook(torchs, power.powerSGD_hook)
    elif method != "none":
        spec, _, below = method.removeprefix("gcext:").partition("@exact_below=")
        options: dict[str, Any] = {"exact_below": int(below)} if below else {}
        options["nonfinite"] = "propagate"  # a loss of NaN: that learning rate did not reach it
        state = gcext.ddp.State(spec, module=model, seed=seed, **options)
        model.register_comm_hook(state, gcext.ddp.hook)
        return state
    return None


def train(job: Job, rank: int, task: Task, report: Callable[..., None]) -> dict[str, Any]:
    """Train; return steps and seconds until the target, and what a step takes and sends."""
    # Compressed gradients are short, so there is nothing to hide behind the backward pass, and a
    # bucket has a fixed cost. (With two, torch's PowerSGD dies over gloo: the second collective of
    # a bucket begins when its first has ended, not in one order on all ranks.)
    bucket = None if job.method in ("none", "fp16") else ONE_BUCKET
    model = DistributedDataParallel(task.model, bucket_cap_mb=bucket)
    state = hook(model, job.method, job.seed)
    optimizer = task.optimizer(model.parameters(), job.lr)
    generator = torch.Generator().manual_seed(1000 * job.seed + rank)
    target = task.target if job.target is None else job.target
    losses, times, sent, messages = [], [], 0, 0
    for step in range(1, job.steps + 1):
        inputs, labels = task.batch(generator)
        if step == WARM + 1:
            dist.barrier()
            sent, messages = _transmitted(), 0 if state is None else state.received_bytes
        begun = time.perf_counter()
        with model.no_sync() if job.compute and step > WARM else nullcontext():
            optimizer.zero_grad()
            torch.autograd.backward(task.loss(model(inputs), labels))
            optimizer.step()
        times.append(time.perf_counter() - begun)
        if target and step % job.every == 0:
            with torch.inference_mode():
                held, truth = task.held_out
                losses.append(task.loss(task.model(held), truth).item())
            report(step=step, seconds=sum(times), loss=losses[-1], bytes=_transmitted())
            if not losses[-1] > target:  # NaN ends it as well
                break
    counted = times[WARM:]
    reached = bool(losses) and losses[-1] <= target
    return {
        "steps": len(times),
        "reached": reached,
        "losses": losses,
        "step_ms": 1e3 * sum(counted) / max(len(counted), 1),
        "seconds": sum(times),
        "bytes_a_step": (_transmitted() - sent) / max(len(counted), 1),
        # What a rank gets it must send as well, in a ring; torch's own are not counted.
        "message_bytes": None
        if state is None
        else (state.received_bytes - messages) / max(len(counted), 1),
        "numel": sum(p.numel() for p in model.parameters()),
    }


def _transmitted() -> int:
    """Return how many bytes this rank has sent, headers of TCP, IP and Ethernet included."""
    lines = Path("/proc/self/net/dev").read_text().splitlines()
    (link,) = (line for line in lines if line.strip().startswith("eth0:"))
    return int(link.partition(":")[2].split()[8])


def main() -> None:
    """Run the job in a file."""
    file, rank = Path(sys.argv[1]), int(sys.argv[2])
    job = Job(**json.loads(file.read_text()))
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    task = TASKS[job.task](job.seed, job.data_dir)
    sys.stdin.readline()
    os.environ["GLOO_SOCKET_IFNAME"] = "eth0"
    dist.init_process_group(
        "gloo", init_method=f"tcp://{address(0)}:{job.port}", rank=rank, world_size=job.ranks
    )
    with file.with_suffix(".progress").open("a", buffering=1) as lines:

        def report(**found: float) -> None:
            if rank == 0:
                lines.write(json.dumps(found) + "\n")

        found = train(job, rank, task, report)
    checksum = float(nn.utils.parameters_to_vector(task.model.parameters()).double().sum())
    everyone: list[Any] = [None] * job.ranks
    dist.all_gather_object(everyone, checksum)
    found |= {"equal": len(set(everyone)) == 1, "job": asdict(job)}
    if rank == 0:
        file.with_suffix(".out").write_text(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
