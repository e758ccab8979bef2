"""Real processes over gloo: a test file runs itself once for each rank."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist

ROOT = Path(__file__).parents[1]


def run_ranks(
    file: str, world: int, store: Path, *arguments: str, timeout: float = 120
) -> list[tuple[int, str, str]]:
    """Run a file as ``file RANK WORLD STORE ARGUMENTS..``; return exit status, output, errors."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    env = {**os.environ, "PYTHONPATH": path, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, file, str(rank), str(world), str(store), *arguments],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]
    try:
        ended = [rank.communicate(timeout=timeout) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    return [(rank.returncode, *texts) for rank, texts in zip(ranks, ended, strict=True)]


def outputs(ended: Sequence[tuple[int, str, str]], status: int = 0) -> list[str]:
    """Return what the ranks printed; all must have ended with that status."""
    for code, _, error in ended:
        assert code == status, error
    return [out for _, out, _ in ended]


def main(check: Callable[..., None], timeout: float = 60) -> None:
    """Be a rank: join the others and call ``check(rank, world, *arguments)``."""
    rank, world, store = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    dist.init_process_group(
        "gloo",
        init_method=f"file://{store}",
        rank=rank,
        world_size=world,
        timeout=timedelta(seconds=timeout),
    )
    check(rank, world, *sys.argv[4:])
    dist.destroy_process_group()
