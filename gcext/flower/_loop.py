"""The federated loop on Flower's simulation: every client a node, on Ray's processes."""

from __future__ import annotations

import functools
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Context,
    Message,
    MessageType,
    MetricRecord,
    RecordDict,
)
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from torch import Tensor

from gcext._packet.packet import Packet
from gcext._recipes import recipe
from gcext.fl._data import DATASETS, Data, load
from gcext.fl._models import FlatModel, build, initial, shapes
from gcext.fl._run import Federation, Record, local_work, run, train_client
from gcext.fl._server import Download
from gcext.fl._settings import Settings, Stream, torch_seed
from gcext.fl._split import split
from gcext.fl._workers import Workers, cores
from gcext.flower._mod import CompressMod
from gcext.flower._strategy import CompressedFedAvg

__all__ = ["simulate"]

PATIENCE = 3600.0  # seconds for a round


def simulate(
    settings: Settings,
    data: Data,
    *,
    data_dir: Path | None = None,
    threads: int | None = None,
    progress: Callable[[Record], None] | None = None,
) -> dict[str, Any]:
    """Do as ``run``, with the clients as nodes of Flower's simulation; the same figures.

    Node and server exchange Flower's messages through gcext.flower; the initial model comes from
    the seed at every node. The nodes' processes read the data set again from ``data_dir``; data of
    one's own travels to them, with its model, each time.

    Raises ImportError without flwr[simulation], ValueError for a recipe that gcext.flower refuses,
    and RuntimeError where a client failed; there is no checkpoint to go on from. FileNotFoundError
    where there is no bash, for which Ray would wait for ever.
    """
    if shutil.which("bash") is None:
        raise FileNotFoundError(
            "fl: engine flower needs bash in a folder of PATH, by which Ray starts its processes, "
            f"got none in {os.environ.get('PATH', '')}. Install it, or leave --engine out."
        )
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    from flwr.simulation import run_simulation

    result: dict[str, Any] = {}
    server = ServerApp()

    @server.main()  # type: ignore[untyped-decorator,unused-ignore]
    def main(grid: Grid, context: Context) -> None:
        make = functools.partial(_FlowerFederation, grid=grid)
        result.update(run(settings, data, threads=threads, progress=progress, make=make))

    count = threads or cores()
    backend: Any = {
        "init_args": {"num_cpus": count, "include_dashboard": False, "log_to_driver": False},
        "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
    }
    with _quiet():
        run_simulation(
            server_app=server,
            client_app=_client_app(settings, data if data.name not in DATASETS else data_dir),
            num_supernodes=settings.clients,
            backend_config=backend,
        )
    return result


class _FlowerFederation(Federation):
    """A federation whose clients train and keep their state elsewhere."""

    def __init__(self, settings: Settings, data: Data, workers: Workers, grid: Grid) -> None:
        super().__init__(settings, data, workers)
        self.grid = grid

        class Strategy(CompressedFedAvg):
            """One that sums the updates in the order of the clients, as the built-in loop."""

            def client(self, node: int) -> int:
                return clients[node]

        seed = torch_seed(settings.seed, Stream.DOWN)
        self.strategy = Strategy(settings.recipe, seed, known_start=True)
        self.strategy.begin(_arrays(initial(data, settings.seed), _shapes(settings, data)))
        self.server = self.strategy.server
        self.nodes = self._ask()  # by client
        clients = {node: client for client, node in self.nodes.items()}

    def step(self) -> Record:
        """See Federation. The nodes' residuals count from their next message on."""
        self._arrived: Mapping[int, Any] = {}
        record = super().step()
        self.strategy.acknowledge(self._arrived)
        return record

    def _ask(self) -> dict[int, int]:
        """Return the node of each client, by asking all of them."""
        nodes = list(self.grid.get_node_ids())
        asked = [Message(RecordDict(), node, MessageType.QUERY) for node in nodes]
        replies = list(self.grid.send_and_receive(asked, timeout=PATIENCE))
        contents: list[tuple[Any, int]] = [
            (reply.content.metric_records["client"], reply.metadata.src_node_id)
            for reply in replies
            if reply.has_content()
        ]
        found = {int(client["partition-id"]): node for client, node in contents}
        if len(found) != self.settings.clients:
            raise _failure("the first message", replies)
        return found

    def _downloads(self, drawn: list[int]) -> tuple[dict[int, Download], dict[int, Tensor]]:
        version = self.strategy.versions
        return {c: self.server.download(version.get(self.nodes[c], 0)) for c in drawn}, {}

    def _train(
        self, drawn: list[int], starts: dict[int, Tensor]
    ) -> tuple[dict[int, Packet], dict[int, float], int]:
        now = self.server.version + 1
        config = ConfigRecord({"server-round": now})
        with self._timed("encode"):
            messages = [
                self.strategy.address(
                    Message(RecordDict({"config": config}), self.nodes[c], MessageType.TRAIN), now
                )
                for c in drawn
            ]
        replies = list(self.grid.send_and_receive(messages, timeout=PATIENCE))
        with self._timed("decode"):
            self._arrived = self.strategy.receive(replies)
        arrived = {self.strategy.client(node): each for node, each in self._arrived.items()}
        if sorted(arrived) != drawn:
            raise _failure(f"round {now}", replies)
        return (
            {c: arrived[c].packet for c in drawn},
            {c: cast("float", arrived[c].loss) for c in drawn},
            sum(each.nbytes for each in arrived.values()),
        )


def _failure(what: str, replies: list[Message]) -> RuntimeError:
    """Return the error of a round without every client's packet."""
    reasons = [r.error.reason or "" for r in replies if r.has_error()]
    last = reasons[0].strip().rpartition("\n")[2] if reasons else "see the log"
    return RuntimeError(f"fl: every client must answer, {what} lacks some: {last}")


def _shapes(settings: Settings, data: Data) -> tuple[tuple[int, ...], ...] | None:
    return shapes(data) if recipe(settings.recipe).by_tensor else None


def _arrays(flat: Tensor, parts: tuple[tuple[int, ...], ...] | None) -> ArrayRecord:
    """Return the flat model as Flower's arrays: one, or the model's tensors."""
    shaped = ((flat.numel(),),) if parts is None else parts
    pieces = flat.split([torch.Size(shape).numel() for shape in shaped])  # type: ignore[no-untyped-call]
    return ArrayRecord(
        {
            f"{i:03}": Array(piece.view(shape).numpy().copy())
            for i, (piece, shape) in enumerate(zip(pieces, shaped, strict=True))
        }
    )


@functools.lru_cache(maxsize=1)
def _world(settings: Settings, data_dir: Path | None) -> tuple[Data, list[Any], FlatModel]:
    """Return the data, its split and a model, once a process."""
    torch.set_num_threads(1)
    return _made(settings, load(settings.data, data_dir))


def _made(settings: Settings, data: Data) -> tuple[Data, list[Any], FlatModel]:
    labels = data.train.labels, data.test.labels
    parts = split(settings.split, *labels, settings.clients, settings.seed)
    return data, parts.train, build(data)


def _client_app(settings: Settings, source: Path | Data | None) -> ClientApp:
    """Return the app of every node; source: the folder of the data, or the data."""

    def world() -> tuple[Data, list[Any], FlatModel]:
        if isinstance(source, Data):
            torch.set_num_threads(1)
            return _made(settings, source)
        return _world(settings, source)

    class Mod(CompressMod):
        """As the built-in loop: all clients share a seed, and each has a name of its own."""

        def identity(self, context: Context) -> tuple[str, int]:
            return str(context.node_config["partition-id"]), self.seed

    def start(context: Context) -> ArrayRecord:
        data = world()[0]
        return _arrays(initial(data, settings.seed), _shapes(settings, data))

    mod = Mod(settings.recipe, torch_seed(settings.seed, Stream.UP), initial=start)
    app = ClientApp(mods=[mod])

    @app.query()  # type: ignore[untyped-decorator,unused-ignore]
    def query(msg: Message, context: Context) -> Message:
        client = MetricRecord({"partition-id": int(context.node_config["partition-id"])})
        return Message(RecordDict({"client": client}), reply_to=msg)

    @app.train()  # type: ignore[untyped-decorator,unused-ignore]
    def train(msg: Message, context: Context) -> Message:
        data, parts, model = world()
        client = int(context.node_config["partition-id"])
        arrays = msg.content.array_records["arrays"]
        given = torch.cat([torch.from_numpy(a.numpy()).reshape(-1) for a in arrays.values()])
        config: Any = msg.content.config_records["config"]
        now = int(config["server-round"])
        schedule = local_work(settings, recipe(settings.recipe))
        _, loss = train_client(model, given, data, parts[client], settings, schedule, now, client)
        numbers = MetricRecord({"train_loss": loss, "num-examples": len(parts[client])})
        trained = _arrays(model.weights, _shapes(settings, data))
        return Message(RecordDict({"arrays": trained, "metrics": numbers}), reply_to=msg)

    return app


@contextmanager
def _quiet() -> Iterator[None]:
    """Show only Flower's warnings."""
    logger = logging.getLogger("flwr")
    before = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(before)
