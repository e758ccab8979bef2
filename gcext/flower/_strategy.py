"""The server's end: strategies that broadcast packets, and aggregate those of the clients."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Iterable, Mapping
from logging import WARNING, getLogger
from typing import Any, NamedTuple

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg

from gcext._packet.packet import Packet
from gcext._packet.state import loading
from gcext._recipes import Recipe
from gcext.fl._layout import Held
from gcext.fl._server import Broadcast, Server
from gcext.flower._records import (
    EXACT,
    KEY,
    NO_MODEL,
    Exact,
    Form,
    check_recipe,
    digest,
    packets_in,
    packets_of,
)

__all__ = ["Arrived", "CompressedFedAvg", "ProjectedFedAvg"]

_LOG = getLogger("flwr")


class Arrived(NamedTuple):
    """What a node's reply to a training message holds, validated."""

    packet: Packet
    loss: float | None
    samples: float
    exact: Exact
    token: bytes
    message: Message
    nbytes: int


class CompressedFedAvg(FedAvg):  # type: ignore[misc,unused-ignore]
    """FedAvg whose models and updates travel as packets; the nodes run CompressMod.

    The recipe's receiver combines the updates, and its way down decides what is broadcast. A node
    is sent the packets that it missed, or the dense model where that is shorter, or where it has
    none. A reply with an error is skipped. One with a packet that is damaged, of another shape, or
    of no use to the receiver is left out and logged with the node's id; the round goes on. Where
    no reply is left the model stays.

    The model is this object's: after the first round the arrays given to ``configure_train`` are
    not read.

    Args:
        recipe: a recipe or its spec, such as "pstc:p=0.1"; CompressMod's.
        seed: of a stochastic codec of the way down.
        known_start: nodes make the initial arrays themselves (CompressMod's ``initial``), so that
            these do not travel.
        exact: patterns of the names of float arrays that travel exactly, as integers do; the mean
            of those is weighted by samples.
        loss_key: a node's mean training loss in its MetricRecord, for a recipe that needs it.
        options: of FedAvg. ``weighted_by_key`` names the number of samples.

    Raises ValueError for a recipe that clients could not follow.

    >>> import gcext.flower
    >>> strategy = gcext.flower.CompressedFedAvg("stc:p=0.1", fraction_evaluate=0.5)
    >>> strategy.recipe.up.codec.spec
    'stc:p=0.1'
    """

    def __init__(
        self,
        recipe: Recipe | str,
        seed: int = 0,
        *,
        known_start: bool = False,
        exact: tuple[str, ...] = EXACT,
        loss_key: str = "train_loss",
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.recipe = check_recipe(type(self).__name__, recipe)
        self.seed = seed
        self.known_start = known_start
        self.exact_names = exact
        self.loss_key = loss_key
        self.form: Form | None = None
        self.server: Server
        self.exact: Exact = {}
        self.versions: dict[int, int | None] = {}  # of the model that each node holds
        self.tokens: dict[int, bytes] = {}  # of each node's last packet that was aggregated
        self.sent_bytes = 0
        """Bytes of packets and exact arrays that were sent to nodes."""
        self.received_bytes = 0
        """Bytes of packets and exact arrays that were aggregated."""

    def begin(self, arrays: ArrayRecord) -> None:
        """Start from these arrays, as the first ``configure_train`` does."""
        self.form = Form.of(arrays, self.exact_names)
        weights, self.exact = self.form.split(arrays)
        layout = self.form.layout(self.recipe.by_tensor)
        self.server = Server(weights, self.recipe, self.seed, layout)

    def client(self, node: int) -> int:
        """Return the id by which the receiver knows a node; updates are summed in its order."""
        return node

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """See FedAvg."""
        if self.form is None:
            self.begin(arrays)
        made = super().configure_train(server_round, ArrayRecord(), config, grid)
        return [self.address(message, server_round) for message in made]

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """See FedAvg."""
        if self.form is None:
            self.begin(arrays)
        made = super().configure_evaluate(server_round, ArrayRecord(), config, grid)
        return [self.address(message, server_round) for message in made]

    def address(self, message: Message, server_round: int) -> Message:
        """Return the message with what its node needs to hold the model, in place of arrays."""
        assert self.form is not None
        node = message.metadata.dst_node_id
        known = self.versions.get(node, 0 if self.known_start else None)
        download = self.server.download(known)
        token = self.tokens.get(node)
        note = ConfigRecord(
            {
                "round": server_round,
                "version": self.server.version,
                "base": -1 if known is None else known,
                "kind": download.kind,
                "digest": digest(self.server.weights),
                # An unknown node may be one that came back under another id.
                "tokens": b"".join(self.tokens.values()) if token is None else token,
                "fresh": token is None,
            }
        )
        if known is None:
            note["form"] = self.form.to_json()
        packed = packets_of(download.messages) | self.form.pack(self.exact)
        self.sent_bytes += sum(len(array.data) for array in packed.values())
        rest = {k: v for k, v in message.content.items() if k != self.arrayrecord_key}
        content = RecordDict({self.arrayrecord_key: ArrayRecord(packed), **rest, KEY: note})
        return Message(content, node, message.metadata.message_type)

    def receive(self, replies: Iterable[Message]) -> dict[int, Arrived]:
        """Return what arrived by node, without errors and without what could not be used."""
        given = list(replies)
        self._refused(given)
        arrived: dict[int, Arrived] = {}
        for message in given:
            node = message.metadata.src_node_id
            if message.has_error():
                reason = (message.error.reason or "").strip().rpartition("\n")[2]
                _LOG.log(WARNING, "aggregate_train: skipped node %d: %s", node, reason)
                continue
            try:
                if node in arrived:
                    raise ValueError("gcext.flower: a node replies once a round, got two replies.")
                arrived[node] = self._read(node, message)
            except (ValueError, TypeError, KeyError) as error:  # DecodeError is a ValueError
                _LOG.log(WARNING, "aggregate_train: left out node %d: %s", node, error)
        return arrived

    def acknowledge(self, arrived: Mapping[int, Arrived]) -> None:
        """Tell these nodes, with the next message, that their packets were aggregated."""
        for node, each in arrived.items():
            self.tokens[node] = each.token
            self.received_bytes += each.nbytes

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """See FedAvg. Raises what the receiver raises, the state being as before the round."""
        arrived = self.receive(replies)
        if not arrived:
            return None, None
        assert self.form is not None
        of = {self.client(node): each for node, each in arrived.items()}
        try:
            broadcast, held = self.server.combine(
                {client: each.packet for client, each in of.items()},
                {client: each.loss for client, each in of.items() if each.loss is not None},
                {client: each.samples for client, each in of.items()},
            )
            averaged = self.server.tested(held)
            exact = _mean(arrived, self.exact)
        except BaseException:
            self.server.rollback()
            raise
        self._commit(arrived, broadcast, held, averaged, exact)
        contents = [
            RecordDict({k: v for k, v in each.message.content.items() if k != KEY})
            for each in arrived.values()
        ]
        metrics = None
        try:
            metrics = self.train_metrics_aggr_fn(contents, self.weighted_by_key)
        except Exception as error:  # metrics of other keys or types do not undo a round
            _LOG.log(WARNING, "aggregate_train: metrics were not aggregated: %s", error)
        return self.form.join(averaged, self.exact), metrics

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """See FedAvg."""
        given = list(replies)
        self._refused(given)
        for message in given:
            if message.has_content():
                with contextlib.suppress(ValueError, KeyError):
                    self._holds(message)
                message.content.pop(KEY, None)
        metrics: MetricRecord | None = super().aggregate_evaluate(server_round, given)
        return metrics

    def _commit(
        self,
        arrived: Mapping[int, Arrived],
        broadcast: Broadcast | None,
        held: Held,
        averaged: Any,
        exact: Exact,
    ) -> None:
        self.server.commit(broadcast, held, averaged)
        self.exact = exact
        self.acknowledge(arrived)
        self.server.forget(min((v for v in self.versions.values() if v is not None), default=0))

    def _refused(self, replies: Iterable[Message]) -> None:
        """Send the dense model next time to nodes that reply that they need it."""
        for message in replies:
            if message.has_error() and (message.error.reason or "").startswith(NO_MODEL):
                self.versions[message.metadata.src_node_id] = None

    def _holds(self, message: Message) -> ConfigRecord:
        """Note the version that a node holds, and return what it says beside its arrays."""
        note = message.content.config_records[KEY]
        version = note["version"]
        if type(version) is not int or not 0 <= version <= self.server.version:
            raise ValueError(f"gcext.flower: a version must be one sent, got {version!r:.50}.")
        self.versions[message.metadata.src_node_id] = version
        return note

    def _read(self, node: int, message: Message) -> Arrived:
        """Return a reply, validated; raises for one that is of no use."""
        assert self.form is not None
        arrays, metrics = message.content.array_records, message.content.metric_records
        if len(arrays) != 1 or len(metrics) != 1 or KEY not in message.content.config_records:
            raise ValueError(
                "gcext.flower: a reply must have one ArrayRecord, one MetricRecord and the mod's "
                f"record, got {list(message.content)[:5]}. List CompressMod first of the mods."
            )
        (record,), (numbers,) = arrays.values(), metrics.values()
        (packed,) = packets_in(record)
        packet = Packet.from_bytes(packed, expect=self.server.layout.expect)
        receiver = self.server.receiver
        samples: Any = numbers.get(self.weighted_by_key)
        loss: Any = numbers.get(self.loss_key)
        weight = samples if receiver.uses_weights else None
        receiver.check(self.client(node), packet, loss if receiver.uses_losses else None, weight)
        exact = self.form.unpack(record)
        token = self._holds(message)["token"]
        if not isinstance(token, bytes) or len(token) != 8:
            raise ValueError("gcext.flower: a token must be 8 bytes.")
        nbytes = len(packed) + sum(x.nbytes for x in exact.values())
        if not isinstance(samples, int | float) or not 0 < samples < math.inf:
            raise ValueError(
                f"gcext.flower: {self.weighted_by_key} must be a positive number, got "
                f"{samples!r:.50}."
            )
        # A loss that the receiver does not use may be anything.
        number = float(loss) if isinstance(loss, int | float) else None
        return Arrived(packet, number, float(samples), exact, token, message, nbytes)

    def state_dict(self) -> dict[str, Any]:
        """Return all that later rounds depend on, once ``begin`` was called."""
        names = ("versions", "tokens", "exact", "sent_bytes", "received_bytes")
        own = {name: copy.copy(getattr(self, name)) for name in names}
        return own | {"server": self.server.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state, once ``begin`` was called with arrays of the same form."""
        names = ("versions", "tokens", "exact", "sent_bytes", "received_bytes")
        with loading("CompressedFedAvg", state, (*names, "server")):
            own = {name: copy.copy(state[name]) for name in names}
            self.server.load_state_dict(state["server"])
            for name, value in own.items():
                setattr(self, name, value)


class ProjectedFedAvg(CompressedFedAvg):
    """Projected STC (Tian 2022): conflicts among the clients' updates are projected away.

    The nodes run ``CompressMod("pstc:p=...")``, and report their mean training loss.

    Args:
        p: share of the elements that travel, in (0, 1].
        alpha: share of clients, those of largest loss, that keep their update, in [0, 1].
        tau: how many earlier rounds count, at least 0.
        options: of CompressedFedAvg.

    >>> import gcext.flower
    >>> gcext.flower.ProjectedFedAvg(p=0.01).recipe.up.receiver()
    Projection(alpha=0.1, tau=1)
    """

    def __init__(
        self, p: float = 0.1, alpha: float = 0.1, tau: int = 1, seed: int = 0, **options: Any
    ) -> None:
        super().__init__(f"pstc:p={p!r},alpha={alpha!r},tau={tau!r}", seed, **options)


def _mean(arrived: Mapping[int, Arrived], now: Exact) -> Exact:
    """Return the mean of what travels exactly, weighted by samples; integers are rounded."""
    total = sum(each.samples for each in arrived.values())
    means: Exact = {}
    for name, held in now.items():
        mean = sum(
            arrived[node].exact[name].astype(np.float64) * (arrived[node].samples / total)
            for node in sorted(arrived)
        )
        whole = not np.issubdtype(held.dtype, np.floating)
        means[name] = np.asarray(np.rint(mean) if whole else mean).astype(held.dtype)
    return means
