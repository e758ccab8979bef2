"""``kill -9`` at random points of federated runs, and disks that fill up.

A child process runs the built-in loop on a toy data set, with a checkpoint a round and a history in
a file, and dies at a random time; the next one resumes. The model at the end must be that of a run
that nothing stopped, bit for bit. Children are forked, so this is for a process without threads.
"""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

import gcext
from gcext._links.link import Link
from gcext.aggregate import Projection
from gcext.fl import Data, Part, Settings, run
from gcext.fl import _run as run_module

__all__ = ["fill", "kills", "mounted"]

PLAN = Settings(
    "toy", "any", "pstc:p=0.2,alpha=0.1,tau=2", clients=10, participation=0.4, rounds=12, batch=16
)


def toy() -> Data:
    """Return a data set of two classes that a linear model learns."""
    rng = torch.Generator().manual_seed(0)
    x, y = torch.randn(200, 8, generator=rng), torch.arange(200) % 2
    x[torch.arange(200), y] += 2
    parts = Part(x[:150], y[:150]), Part(x[150:], y[150:])
    return Data("toy", *parts, model=lambda: torch.nn.Linear(8, 2))


def train(folder: Path, data: Data, memory: bool = False) -> str:
    """Run to the end, from the checkpoint in a folder where there is one; return the digest.

    memory: keep the history in memory, so that checkpoints hold it.
    """

    def with_file(spec: str | gcext.Recipe) -> gcext.Recipe:
        made = gcext.recipe(spec)

        def combine() -> Projection:
            path = None if memory else folder / "history.sqlite"
            return Projection(0.1, 2, gcext.History(path))

        up = Link(made.up.codec, made.up.feedback, combine)
        return gcext.Recipe(up, made.down, made.schedule)

    run_module.recipe = with_file  # type: ignore[attr-defined]
    path = folder / "checkpoint"
    result = run(PLAN, data, threads=1, path=path, resume=path.exists(), every=1)
    return str(result["model_digest"])


class Child(NamedTuple):
    """A process that trains, and the pipe on which it says the digest, or what it raised."""

    number: int
    reply: int

    def end(self) -> tuple[int, str]:
        """Return its exit status (negative: the signal that ended it) and what it said."""
        with os.fdopen(self.reply) as file:
            said = file.read()
        _, status = os.waitpid(self.number, 0)
        return os.waitstatus_to_exitcode(status), said


def child(folder: Path, data: Data, limit: int = 0, memory: bool = False) -> Child:
    """Start a child that trains; limit: of the size of a file, in bytes; 0: none."""
    reply, say = os.pipe()
    if number := os.fork():
        os.close(say)
        return Child(number, reply)
    code, said = 3, ""
    try:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        if limit:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        warnings.simplefilter("error")  # as of a generation that is damaged
        said, code = train(folder, data, memory), 0
    except BaseException as error:
        said = f"{type(error).__name__}: {error}"
    finally:
        os.write(say, said.encode())
        os._exit(code)


def fresh(folder: Path) -> Path:
    """Return the folder, emptied."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def kills(folder: Path, count: int, seed: int = 0) -> Counter[str]:
    """Kill runs at ``count`` random times, resuming each to its end.

    A time is within one and a half of a whole run's, so a run ends after a few. AssertionError
    where a model is not that of a run that was not stopped.
    """
    torch.set_num_threads(1)
    data, rng, done = toy(), np.random.default_rng(seed), Counter[str]()
    begin = time.monotonic()
    status, digest = child(fresh(folder / "run"), data).end()
    assert status == 0, digest
    seconds = time.monotonic() - begin
    while done["kills"] < count:
        at, status = fresh(folder / "run"), -signal.SIGKILL
        memory = done["runs"] % 4 == 3
        while status == -signal.SIGKILL:
            one = child(at, data, memory=memory)
            time.sleep(float(rng.uniform(0, 1.5 * seconds)))
            os.kill(one.number, signal.SIGKILL)  # one that has ended waits for its end
            status, said = one.end()
            done["kills"] += status == -signal.SIGKILL
        assert (status, said) == (0, digest), (status, said, digest)
        done["runs"] += 1
    return done


def mounted(folder: Path, size: int) -> bool:
    """Mount a disk of so many bytes; False where that is not allowed."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    return subprocess.run(command, capture_output=True).returncode == 0


def fill(folder: Path, count: int, seed: int = 0, disk: bool = False) -> Counter[str]:
    """Let runs meet a full disk ``count`` times, at random places, and resume them with space.

    disk: ``folder`` is a small disk, filled by a file; else files are limited in size.
    AssertionError where the model is another one, or an error names no path and no remedy.
    """
    torch.set_num_threads(1)
    data, rng, done = toy(), np.random.default_rng(seed), Counter[str]()
    status, digest = child(fresh(folder / "run"), data).end()
    assert status == 0, digest
    sizes = [each.stat().st_size for each in (folder / "run").iterdir()]
    while done["full"] < count:
        at, memory = fresh(folder / "run"), done["runs"] % 2 == 1
        for _ in range(int(rng.integers(1, 4))):
            limit = 0
            if disk:
                _ballast(folder / "ballast", int(rng.integers(0, 3 * sum(sizes))))
            else:
                limit = int(rng.integers(1, int(1.2 * max(sizes))))
            status, said = child(at, data, limit, memory).end()
            (folder / "ballast").unlink(missing_ok=True)
            if status == 0:
                break
            kind = said.partition(": ")[0]
            known = kind in ("OSError", "HistoryError")
            assert known and str(at) in said and "Free space there" in said, said
            done["full"] += 1
            done[kind] += 1
        assert child(at, data, memory=memory).end() == (0, digest)
        done["runs"] += 1
    return done


def _ballast(path: Path, free: int) -> None:
    """Fill a disk but for so many bytes."""
    space = os.statvfs(path.parent)
    with path.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(space.f_bavail * space.f_frsize - free, 1))
