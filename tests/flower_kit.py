"""Flower without processes: nodes as contexts, and messages carried by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Context,
    Error,
    Message,
    MetricRecord,
    RecordDict,
)

from gcext.flower import CompressedFedAvg, CompressMod

RUN = 7


def identify(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let messages be made in this process, as in a ServerApp's."""
    from flwr.supercore.task_identity import TaskIdentity

    for name, value in (("_run_id", RUN), ("_node_id", 0), ("_task_id", 1)):
        monkeypatch.setattr(TaskIdentity, name, value, raising=False)


Train = Callable[[dict[str, Any], int, int], dict[str, Any]]


def model(seed: int = 0) -> dict[str, Any]:
    """Return a model with a float matrix, a bias, a float buffer, and an integer counter."""
    rng = np.random.default_rng(seed)
    return {
        "weight": rng.standard_normal((20, 30), np.float32),
        "bias": rng.standard_normal(30, np.float32),
        "norm.running_var": rng.random(5, np.float32) + 1,
        "norm.num_batches_tracked": np.asarray(0, np.int64),
    }


def record(arrays: dict[str, Any]) -> ArrayRecord:
    return ArrayRecord({name: Array(np.asarray(x)) for name, x in arrays.items()})


def arrays_of(given: ArrayRecord) -> dict[str, Any]:
    return {name: array.numpy() for name, array in given.items()}


def drift(arrays: dict[str, Any], node: int, number: int) -> dict[str, Any]:
    """Return what local training makes of the arrays: the same of the same node and round."""
    rng = np.random.default_rng((node, number))
    trained = {
        name: x + rng.standard_normal(x.shape).astype(x.dtype) / 10
        for name, x in arrays.items()
        if np.issubdtype(x.dtype, np.floating)
    }
    trained["norm.running_var"] = np.abs(trained["norm.running_var"])
    counted = "norm.num_batches_tracked"
    return arrays | trained | {counted: arrays[counted] + node}


class Grid:
    """What a strategy asks of Flower's Grid: the nodes that are there."""

    def __init__(self, nodes: Iterable[int]) -> None:
        self.nodes = list(nodes)

    def get_node_ids(self) -> list[int]:
        return self.nodes


class Node:
    """A node with a mod and a context; ``reply`` does what its ClientApp would."""

    def __init__(
        self, number: int, mod: CompressMod, train: Train = drift, context: Context | None = None
    ) -> None:
        self.number = number
        self.mod = mod
        self.train = train
        self.context = context or Context(
            RUN, number, {"partition-id": number}, RecordDict(), run_config={}
        )
        self.seen: list[dict[str, Any]] = []

    def app(self, message: Message, context: Context) -> Message:
        given = arrays_of(message.content["arrays"])
        self.seen.append(given)
        number = int(message.content["config"]["server-round"])
        trained = self.train(given, self.number, number)
        metrics = MetricRecord({"train_loss": 1.0 / self.number, "num-examples": 10 * self.number})
        content = RecordDict({"arrays": record(trained), "metrics": metrics})
        return Message(content, reply_to=message)

    def reply(self, message: Message) -> Message:
        """Return the reply, or that of Flower where something was raised."""
        # A copy, as the network makes one.
        content = RecordDict(dict(message.content.items()))
        given = Message(content, message.metadata.dst_node_id, message.metadata.message_type)
        given.metadata.__dict__["_message_id"] = "1"
        try:
            answer = self.mod(given, self.context, self.app)
        except Exception as error:
            answer = Message(Error(2, repr(error)), reply_to=given)
        answer.metadata.__dict__["_src_node_id"] = message.metadata.dst_node_id
        return answer


def play(
    strategy: CompressedFedAvg,
    nodes: dict[int, Node],
    number: int,
    change: Callable[[int, Message], Message | None] = lambda node, reply: reply,
    start: dict[str, Any] | None = None,
) -> dict[str, Any] | None:
    """Play a round and return the arrays; ``change`` alters a reply on its way, None loses it."""
    given = record(start if start is not None else model())
    sent = strategy.configure_train(number, given, ConfigRecord(), Grid(nodes))  # type: ignore[arg-type,unused-ignore]
    replies = []
    for message in sorted(sent, key=lambda m: m.metadata.dst_node_id):
        node = message.metadata.dst_node_id
        if (arrived := change(node, nodes[node].reply(message))) is not None:
            replies.append(arrived)
    arrays, _ = strategy.aggregate_train(number, replies)
    return None if arrays is None else arrays_of(arrays)
