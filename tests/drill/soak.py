"""Many rounds of one process: memory and file handles stay.

Clients with residuals, messages, a projection over a history in a file, and a checkpoint every few
rounds: all that a server and its clients keep.
"""

from __future__ import annotations

import gc
import os
from pathlib import Path
from typing import NamedTuple

import torch

import gcext
from gcext import checkpoint
from gcext.aggregate import Message, Projection, Rounds

__all__ = ["Sample", "soak"]

RUN, CLIENTS, DRAWN, NUMEL = 1, 40, 10, 2000


class Sample(NamedTuple):
    """What a process holds after so many rounds."""

    round: int
    kib: int  # resident
    files: int  # open
    disk: int  # bytes of the history and the checkpoints


def soak(folder: Path, rounds: int, samples: int = 20, every: int = 10) -> list[Sample]:
    """Run so many rounds, with a checkpoint ``every`` few; return samples at equal distances."""
    torch.set_num_threads(1)
    history = gcext.History(folder / "history.sqlite")
    server = Rounds(Projection(0.1, 2, history), RUN, expect=(NUMEL,))
    clients = [gcext.ErrorFeedback("stc:p=0.05") for _ in range(CLIENTS)]
    model, targets = torch.zeros(NUMEL), torch.randn(CLIENTS, NUMEL)
    found = []
    for number in range(1, rounds + 1):
        drawn = [(number + i) % CLIENTS for i in range(DRAWN)]
        server.begin(drawn)
        for client in drawn:
            packet = clients[client].compress(model - targets[client], "w", commit=False)
            sent = Message(RUN, client, number, packet).to_bytes()
            for _ in range(2):
                server.add(client, sent, loss=float(client))
        update = server.finish()
        assert isinstance(update, torch.Tensor)
        model -= 0.1 * update
        for client in drawn:
            clients[client].commit()
        if number % every == 0:
            residuals = [each.state_dict() for each in clients]
            state = {"model": model, "rounds": server.state_dict(), "clients": residuals}
            checkpoint.save(folder / "checkpoint", state)
        if number % max(rounds // samples, 1) == 0:
            found.append(_sample(number, folder))
    history.close()
    return found


def _sample(number: int, folder: Path) -> Sample:
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    files = len(list(Path("/proc/self/fd").iterdir()))
    disk = sum(each.stat().st_size for each in folder.iterdir())
    return Sample(number, pages * os.sysconf("SC_PAGE_SIZE") // 1024, files, disk)
