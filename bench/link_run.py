"""The processes of one training over limited links: started, watched, and their result."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

from . import link_net as net
from .link_rank import Job

__all__ = ["Run", "train"]

MOST = 3600.0  # seconds a run may take


class Run:
    """All ranks of a job, each in a namespace of its own, over links of ``rate`` bit/s.

    A context manager: what still runs at its end is killed, and the namespaces go with it.

    Args:
        name: of the switch; another one for each run at the same time.
    """

    def __init__(self, job: Job, rate: int, name: str = "s") -> None:
        self.job = job
        self._folder = tempfile.TemporaryDirectory()
        self._file = Path(self._folder.name) / "job.json"
        self._file.write_text(json.dumps(asdict(job)))
        self._ranks: list[subprocess.Popen[bytes]] = []
        try:
            for rank in range(job.ranks):
                module = f"{__package__}.link_rank"
                command = [sys.executable, "-m", module, str(self._file), str(rank)]
                with self._log(rank).open("w") as log:
                    process = subprocess.Popen(
                        net.isolated(command), stdin=subprocess.PIPE, stdout=log, stderr=log
                    )
                self._ranks.append(process)
            for rank, process in enumerate(self._ranks):
                net.attach(rank, process.pid, rate, name)
            for process in self._ranks:  # they wait until the links are there
                assert process.stdin is not None
                process.stdin.write(b"go\n")
                process.stdin.close()
        except BaseException:
            self.__exit__(None, None, None)
            raise

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for process in self._ranks:
            process.kill()
            process.wait()
        self._folder.cleanup()

    def progress(self) -> list[dict[str, Any]]:
        """Return what rank 0 has reported so far: step, seconds, held-out loss and bytes sent."""
        path = self._file.with_suffix(".progress")
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def running(self) -> bool:
        """Return whether any rank still runs; ValueError with its text where one failed."""
        codes = [process.poll() for process in self._ranks]
        for rank, code in enumerate(codes):
            if code:
                text = self._log(rank).read_text().strip()[-2000:]
                raise ValueError(f"bench: link: rank {rank} of {self.job.method} failed: {text}")
        return None in codes

    def result(self) -> dict[str, Any]:
        """Wait for the end, and return what rank 0 measured."""
        for process in self._ranks:
            try:
                process.wait(timeout=MOST)
            except subprocess.TimeoutExpired:
                raise ValueError(
                    f"bench: link: {self.job.method} must end within {MOST:g} s. Lower --steps."
                ) from None
            self.running()
        found: dict[str, Any] = json.loads(self._file.with_suffix(".out").read_text())
        if not (found["equal"] or self.job.compute):
            raise ValueError(f"bench: link: {self.job.method}: ranks must end equal, and do not.")
        return found

    def _log(self, rank: int) -> Path:
        return Path(self._folder.name) / f"{rank}.log"


def train(job: Job, rate: int) -> dict[str, Any]:
    """Return what rank 0 of a job measured."""
    with Run(job, rate) as run:
        return run.result()
