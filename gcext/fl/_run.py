"""The federated loop; a round counts whole or not at all."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gcext._native.library import build_info
from gcext._packet.packet import Packet
from gcext._packet.state import loading
from gcext._recipes import Recipe, recipe
from gcext.aggregate._history_check import HistoryError
from gcext.checkpoint import CheckpointError
from gcext.checkpoint import load as load_checkpoint
from gcext.checkpoint import save as save_checkpoint
from gcext.fl._client import Clients, local_sgd
from gcext.fl._data import Data
from gcext.fl._layout import Layout
from gcext.fl._models import FlatModel, shapes
from gcext.fl._server import Download, Server
from gcext.fl._settings import Settings, Stream, generator, torch_seed
from gcext.fl._split import split
from gcext.fl._trained import Trained
from gcext.fl._workers import Workers, uninterrupted

__all__ = ["Diverged", "Federation", "Interrupted", "Record", "local_work", "run"]
__all__ += ["train_client"]

Record = dict[str, Any]


class Interrupted(Exception):  # noqa: N818 - a request, not an error
    """Ctrl-C ended a run, or came at its end; ``result`` and the checkpoint ``saved``, if any."""

    def __init__(self, result: dict[str, Any], saved: Path | None) -> None:
        super().__init__(f"interrupted after round {len(result['rounds'])}")
        self.result = result
        self.saved = saved


class Diverged(ValueError):  # noqa: N818 - what happened, not whose fault
    """A client's loss was not finite; ``result``, once the run ended, is of the rounds before."""

    result: dict[str, Any] | None = None


class Federation:
    """Server and clients of one run; ``step`` is a round of projected STC (Tian 2022, Algorithm 4).

    FedAvg and STC are the same round with other links.
    """

    def __init__(self, settings: Settings, data: Data, workers: Workers) -> None:
        self.settings = settings
        self.data = data
        self.workers = workers
        self.records: list[Record] = []
        self.seconds = {"encode": 0.0, "decode": 0.0}  # of this process, both ways
        method = recipe(settings.recipe)
        self.epochs, self.steps = local_work(settings, method)
        self.trained = Trained(data, settings.seed, method.schedule.trained)
        start = self.trained.start
        labels = data.train.labels, data.test.labels
        self.split = split(settings.split, *labels, settings.clients, settings.seed)
        up, down = (torch_seed(settings.seed, way) for way in (Stream.UP, Stream.DOWN))
        layout = Layout(start.numel(), shapes(data) if method.by_tensor else None)
        self.server = Server(start, method, down, layout)
        self.clients = Clients(settings.clients, start, method, layout, up)

    @property
    def numel(self) -> int:
        return self.server.weights.numel()

    def step(self) -> Record:
        """Run a round; what it raises, Ctrl-C included, leaves the last whole round's state."""
        done = False
        try:
            drawn = self.drawn(self.server.version + 1)
            self.clients.begin(self.server.version + 1)
            downloads, starts = self._downloads(drawn)
            packets, losses, up_bytes = self._train(drawn, starts)
            samples = {c: float(len(self.split.train[c])) for c in drawn}
            with self._timed("decode"):
                broadcast, held = self.server.combine(packets, losses, samples)
            record: Record = {
                "round": self.server.version + 1,
                **self._test(averaged := self.server.tested(held)),
                "loss": math.fsum(losses.values()) / len(drawn),
                "clients": len(drawn),
                "up_bytes": up_bytes,
                **_down(downloads),
            }
            with uninterrupted():
                self.clients.commit(drawn, self.server.version, self.server.held)
                self.clients.sender.observe(held.weights)
                self.server.commit(broadcast, held, averaged)
                self.server.forget(min(self.clients.version))
                self.records.append(record)
                done = True
        except BaseException:
            if not done:
                with uninterrupted():
                    self.clients.rollback()
                    self.server.rollback()
                    self.clients.begin(max(self.server.version, 1))
            raise
        return record

    def drawn(self, number: int) -> list[int]:
        """Return the clients of a round, in order; rounds count from 1."""
        rng = generator(self.settings.seed, Stream.DRAW, number)
        drawn = rng.choice(self.settings.clients, self.settings.drawn, replace=False)
        return sorted(int(c) for c in drawn)

    def _downloads(self, drawn: list[int]) -> tuple[dict[int, Download], dict[int, Tensor]]:
        """Return what each drawn client fetches, and the model that it then trains from."""
        if self.server.copies is not None:
            with self._timed("encode"):
                sent = {client: self.server.catch_up(client) for client in drawn}
            downloads = {client: download for client, (download, _) in sent.items()}
            return downloads, {client: copy for client, (_, copy) in sent.items()}
        downloads = {c: self.server.download(self.clients.version[c]) for c in drawn}
        return downloads, dict.fromkeys(drawn, self._catch_up(downloads))

    def _catch_up(self, downloads: dict[int, Download]) -> Tensor:
        """Return the drawn clients' model after their downloads: the server's, bit for bit."""
        # Clients of one version share their model and messages.
        one_of_each = {self.clients.version[client]: client for client in reversed(downloads)}
        for version, client in sorted(one_of_each.items()):
            download = downloads[client]
            weights = self.clients.catch_up(client, download).weights
            if not torch.equal(weights.view(torch.int32), self.server.weights.view(torch.int32)):
                raise RuntimeError(
                    f"fl: client {client} must hold the server's model after {download.kind} "
                    f"packets {version + 1} to {self.server.version}, got another. Report this."
                )
        return self.server.weights

    def _train(
        self, drawn: list[int], starts: dict[int, Tensor]
    ) -> tuple[dict[int, Packet], dict[int, float], int]:
        """Return what the server received: the decoded packets, the losses, the packets' bytes."""
        now = self.server.version + 1

        def task(model: FlatModel, client: int) -> tuple[Tensor, float]:
            samples, schedule = self.split.train[client], (self.epochs, self.steps)
            start = self.trained.whole(starts[client])
            update, loss = train_client(
                model, start, self.data, samples, self.settings, schedule, now, client,
                mask=self.trained.mask,
            )  # fmt: skip
            return self.trained.part(update), loss

        packets: dict[int, Packet] = {}
        losses: dict[int, float] = {}
        up_bytes = 0
        for client, (update, loss) in zip(drawn, self.workers.map(task, drawn), strict=True):
            if not math.isfinite(loss):
                raise Diverged(
                    f"fl: client {client}'s loss must be finite, got {loss} in round {now}. "
                    "Lower --lr."
                )
            with self._timed("encode"):
                message = self.clients.compress(client, update)
            with self._timed("decode"):
                packets[client] = Packet.from_bytes(message, expect=self.clients.layout.expect)
            losses[client] = loss
            up_bytes += len(message)
        return packets, losses, up_bytes

    @contextmanager
    def _timed(self, what: str) -> Iterator[None]:
        """Add the time of the block; ``decode`` holds the server's answer too, encoded."""
        begun = time.perf_counter()
        yield
        self.seconds[what] += time.perf_counter() - begun

    def _test(self, weights: Tensor) -> Record:
        right, loss = self.workers.test(self.trained.whole(weights))
        parts = [right[torch.from_numpy(index)] for index in self.split.test if len(index)]
        per_client = [part.double().mean().item() for part in parts]
        return {
            "accuracy": right.double().mean().item(),
            "accuracy_std": float(np.std(per_client)),
            "test_loss": loss,
        }

    def state_dict(self) -> dict[str, Any]:
        return {
            "trajectory": self._trajectory(),
            "records": self.records,
            "clients": self.clients.state_dict(),
            "server": self.server.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where ``state`` ended; CheckpointError names every setting that differs.

        ValueError for a state that is damaged, or of a history that is. Nothing has changed then.
        """
        with loading("fl.Federation", state, ("trajectory", "records", "clients", "server")):
            self._check_settings(state["trajectory"])
            records = list(state["records"])
            before, codec = self.clients.state_dict(), self.clients.sender.codec
            try:
                self.clients.begin(max(len(records), 1))
                self.clients.load_state_dict(state["clients"])
                self.server.load_state_dict(state["server"])
            except BaseException:
                self.clients.sender.codec = codec
                self.clients.load_state_dict(before)
                raise
            self.records = records

    def _check_settings(self, old: dict[str, Any]) -> None:
        new = self._trajectory()
        differing = [
            f"{k} {old.get(k)} there, {new.get(k)} here"
            for k in sorted(old.keys() | new.keys())
            if old.get(k) != new.get(k)
        ]
        if differing:
            raise CheckpointError(
                "checkpoint: a run must be resumed with its own settings, "
                f"got {'; '.join(differing)}. Give the same, or another --checkpoint."
            )

    def _trajectory(self) -> dict[str, object]:
        decided = {
            "epochs": self.epochs,
            "steps": self.steps,
            "digest of the data": self.data.digest(),
            "parameters": self.numel,
        }
        return self.settings.trajectory() | decided


def run(
    settings: Settings,
    data: Data,
    *,
    threads: int | None = None,
    path: Path | None = None,
    resume: bool = False,
    every: int = 20,
    progress: Callable[[Record], None] | None = None,
    make: Callable[[Settings, Data, Workers], Federation] = Federation,
) -> dict[str, Any]:
    """Run the rounds of ``settings`` and return the record that ``--json`` writes.

    With ``path`` a checkpoint is written at the start, every ``every`` rounds, at the end, and on
    Ctrl-C; with ``resume`` the run goes on from it.  ``make`` makes another engine's federation.

    Raises Interrupted on Ctrl-C, Diverged where a loss is not finite (both have the ``result`` so
    far), CheckpointError where a checkpoint does not fit, and what the links raise.
    """
    begun = time.monotonic()
    result: dict[str, Any] | None = None
    interrupted = False
    try:
        with Workers(data, threads) as workers:
            federation = make(settings, data, workers)
            if path is not None and resume:
                _resume(federation, path)
            saved = len(federation.records) if resume else -1

            def save() -> None:
                nonlocal saved
                if path is not None and saved != len(federation.records):
                    save_checkpoint(path, federation.state_dict())
                    saved = len(federation.records)

            try:
                save()  # before the first round: a history in a file goes back to this
                while not _finished(settings, federation.records):
                    record = federation.step()
                    if progress is not None:
                        progress(record)
                    if len(federation.records) % every == 0:
                        save()
            except KeyboardInterrupt:
                interrupted = True
            except Diverged as stop:
                stop.result = _result(federation, time.monotonic() - begun) | {"diverged": True}
                raise
            with uninterrupted():
                save()
                result = _result(federation, time.monotonic() - begun)
                result["interrupted"] = interrupted
    except KeyboardInterrupt:  # a second one while the run ended, or one before it began
        if result is None:
            raise
        interrupted = True
    if interrupted:
        raise Interrupted(result, path)
    return result


def _resume(federation: Federation, path: Path) -> None:
    """Load a checkpoint; CheckpointError, or a history's own error, where it is no use."""
    state = load_checkpoint(path)
    try:
        federation.load_state_dict(state)
    except (CheckpointError, HistoryError):
        raise
    except (TypeError, ValueError) as error:
        raise CheckpointError(
            f"checkpoint: {path} must hold a run's state, got another one: {error!s:.300} "
            "Remove it to start anew."
        ) from error


def train_client(
    model: FlatModel,
    start: Tensor,
    data: Data,
    samples: np.ndarray[Any, Any],
    settings: Settings,
    schedule: tuple[int, int],
    round: int,
    client: int,
    mask: Tensor | None = None,
) -> tuple[Tensor, float]:
    """Return what ``local_sgd`` makes of a client's samples in a round of a run.

    schedule: epochs and steps, and mask, as of ``local_sgd``.
    """
    index = torch.from_numpy(samples)
    epochs, steps = schedule
    return local_sgd(
        model,
        start,
        data.inputs(data.train, index),
        data.train.labels[index],
        lr=settings.lr,
        batch=settings.batch,
        epochs=epochs,
        steps=steps,
        rng=generator(settings.seed, Stream.BATCH, round, client),
        mask=mask,
    )


def local_work(settings: Settings, method: Recipe) -> tuple[int, int]:
    """Return the local epochs, and the local steps where these count instead."""
    schedule = method.schedule
    epochs = settings.epochs or schedule.local_epochs
    return epochs, 0 if settings.epochs else schedule.local_steps


def _finished(settings: Settings, records: list[Record]) -> bool:
    reached = settings.stop_at_target and _rounds_to(settings.target, records) is not None
    return reached or len(records) >= settings.rounds


def _rounds_to(target: float, records: list[Record]) -> int | None:
    return next((r["round"] for r in records if r["accuracy"] >= target), None)


def _down(downloads: dict[int, Download]) -> Record:
    """Return the bytes fetched, and clients and bytes by kind of download."""
    kinds: dict[str, dict[str, int]] = {}
    for download in downloads.values():
        kind = kinds.setdefault(download.kind, {"clients": 0, "bytes": 0})
        kind["clients"] += 1
        kind["bytes"] += download.nbytes
    return {"down_bytes": sum(k["bytes"] for k in kinds.values()), "down": kinds}


def _result(federation: Federation, seconds: float) -> dict[str, Any]:
    settings, records = federation.settings, federation.records
    return {
        "method": settings.method,
        "seed": settings.seed,
        "numel": federation.numel,
        "settings": dataclasses.asdict(settings)
        | {"epochs": federation.epochs, "local_steps": federation.steps},
        "versions": {
            "gcext": build_info()["gcext"],
            "torch": torch.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
            "machine": platform.machine(),
        },
        "threads": federation.workers.threads,
        "seconds": round(seconds, 3),
        "encode_seconds": round(federation.seconds["encode"], 6),
        "decode_seconds": round(federation.seconds["decode"], 6),
        "interrupted": False,
        "diverged": False,
        "rounds": records,
        "rounds_to_target": _rounds_to(settings.target, records),
        "model_digest": hashlib.blake2b(
            federation.server.weights.numpy().tobytes(), digest_size=16
        ).hexdigest(),
    }
