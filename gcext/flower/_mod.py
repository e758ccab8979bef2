"""The client's end: a mod that sends what local training changed as a packet."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message, MessageType, RecordDict
from torch import Tensor

from gcext._codecs.seeds import derive
from gcext._links.sender import Sender
from gcext._links.stages import Trajectory
from gcext._packet.state import loading
from gcext._recipes import Recipe
from gcext.fl._client import follow
from gcext.fl._layout import Held, compress
from gcext.fl._server import Download, order_of
from gcext.flower._records import (
    EXACT,
    KEY,
    NO_MODEL,
    ContextStore,
    FileStore,
    Form,
    check_recipe,
    digest,
    packets_in,
    packets_of,
)

__all__ = ["CompressMod"]

PRECONDITION = 6  # Flower's code of a mod that could not do its work
TOKEN = 8  # bytes

App = Callable[[Message, Context], Message]


@dataclass
class _Node:
    """What a node keeps from message to message."""

    form: Form
    version: int
    held: Held
    seed: int
    round: int = 0
    token: bytes = b""
    sender: dict[str, Any] | None = None

    @classmethod
    def load(cls, state: dict[str, Any]) -> _Node:
        with loading("CompressMod", state):
            held = Held(state["held"][0], tuple(state["held"][1:]))
            return cls(**state | {"form": Form.from_json(state["form"]), "held": held})

    def state_dict(self) -> dict[str, Any]:
        kept = {"form": self.form.to_json(), "held": [self.held.weights, *self.held.trail]}
        return vars(self) | kept


class _NoModelError(Exception):
    """The node lacks what a message builds on."""


class CompressMod:
    """A client mod that sends the update as a packet, and keeps this node's residual.

    List it first: it must be the outermost, since other mods read arrays. It turns what
    CompressedFedAvg sends into the model's arrays, calls the app, and replaces the arrays of the
    reply by one packet of ``sent - trained``. A message of another strategy passes as it is.

    The residual, like all other state, is pending until the strategy's next message shows that the
    packet was aggregated; else it is as before that packet. Nothing changes where the app fails.
    State is kept in ``context.state``, which a SuperNode keeps in memory only, or in files.

    Args:
        recipe: a recipe or its spec; the strategy's. The seed of a stochastic codec is derived
            from ``seed``, the run and the node.
        seed: any integer.
        initial: makes the arrays that training starts from, where every node can (from a seed); the
            strategy's ``known_start`` then saves the first download.
        folder: where this node's state is kept, a file a run and node, so that it outlives the
            SuperNode. The node is known by its node_config's "gcext-name" or "partition-id", else
            by its id, which is a new one after a restart.
        exact: patterns of the names of float arrays that travel exactly; the strategy's.

    Raises ValueError for a recipe that clients could not follow.

    >>> import gcext.flower
    >>> gcext.flower.CompressMod("pstc:p=0.1")
    CompressMod(Recipe up 'stc:p=0.1', down 'stc:p=0.1')
    """

    def __init__(
        self,
        recipe: Recipe | str,
        seed: int = 0,
        *,
        initial: Callable[[Context], ArrayRecord] | None = None,
        folder: str | Path | None = None,
        exact: tuple[str, ...] = EXACT,
    ) -> None:
        self.recipe = check_recipe("CompressMod", recipe)
        self.recipe.up.sender(seed)  # refuses now what it would refuse then
        self.seed = seed
        self.initial = initial
        self.folder = None if folder is None else Path(folder)
        self.exact = exact
        self._order = order_of(self.recipe.down)

    def __repr__(self) -> str:
        up, down = self.recipe.up.codec.spec, self.recipe.down.codec.spec
        return f"CompressMod(Recipe up {up!r}, down {down!r})"

    def identity(self, context: Context) -> tuple[str, int]:
        """Return what the node is known by, and the base seed of its sender."""
        config = context.node_config
        name = str(config.get("gcext-name", config.get("partition-id", context.node_id)))
        return name, derive(self.seed, context.run_id, name)

    def __call__(self, msg: Message, context: Context, call_next: App) -> Message:
        """Do the work of the mod; raises what the app or the codec raises."""
        if KEY not in msg.content.config_records:
            return call_next(msg, context)
        note: Mapping[str, Any] = cast("Any", msg.content.config_records[KEY])
        name, seed = self.identity(context)
        store = FileStore(self.folder, context.run_id, name) if self.folder else None
        kept = store or ContextStore(context)
        state = kept.load()
        ((key, arrays),) = msg.content.array_records.items()
        try:
            node = self._start(context, note, seed) if state is None else _Node.load(state)
            sender = self._settled(node, name, note)
            held = self._follow(node, note, arrays)
        except _NoModelError as error:
            return Message(Error(PRECONDITION, f"{NO_MODEL}, {error}"), reply_to=msg)
        given = node.form.join(held.weights, node.form.unpack(arrays))
        rest = {k: record for k, record in msg.content.items() if k not in (KEY, key)}
        msg.content = RecordDict({key: given, **rest})
        reply = call_next(msg, context)
        if reply.has_error():
            return reply
        node.version, node.held, node.round = note["version"], held, note["round"]
        answer = ConfigRecord({"version": node.version})
        if msg.metadata.message_type.startswith(MessageType.TRAIN):
            message, key, exact = self._compress(node, sender, name, reply)
            reply.content[key] = ArrayRecord(packets_of([message]) | node.form.pack(exact))
            node.token = answer["token"] = secrets.token_bytes(TOKEN)
        node.sender = sender.state_dict()
        kept.save(node.state_dict())
        reply.content[KEY] = answer
        return reply

    def _start(self, context: Context, note: Mapping[str, Any], seed: int) -> _Node:
        """Return a node's first state: of the initial arrays, or of a dense download."""
        if "form" in note:
            form = Form.from_json(note["form"])
            numel = form.layout(False).numel
            return _Node(form, 0, Held(Tensor(numel).zero_()), seed)
        if self.initial is None:
            raise _NoModelError("holds none")
        arrays = self.initial(context)
        form = Form.of(arrays, self.exact)
        return _Node(form, 0, Held(form.split(arrays)[0]), seed)

    def _settled(self, node: _Node, name: str, note: Mapping[str, Any]) -> Sender:
        """Return the sender, its last packet committed where the server has it."""
        link, schedule = self.recipe.up, self.recipe.schedule
        sender = link.sender(node.seed)
        predicts = any(isinstance(stage, Trajectory) for stage in sender.stages)
        if node.sender is not None and not (predicts and note["fresh"]):
            sender.codec = schedule.codec(link.codec, node.round)
            sender.load_state_dict(node.sender)
            tokens = note["tokens"]
            if node.token in {tokens[i : i + TOKEN] for i in range(0, len(tokens), TOKEN)}:
                sender.commit()
            else:
                sender.rollback()
        sender.codec = schedule.codec(link.codec, note["round"])
        return sender

    def _follow(self, node: _Node, note: Mapping[str, Any], arrays: ArrayRecord) -> Held:
        """Return what the node holds after the download, which must be the server's model."""
        base, version = note["base"], note["version"]
        download = Download(note["kind"], packets_in(arrays))
        skip = node.version - base
        if download.kind != "dense" and not base <= node.version <= version:
            raise _NoModelError(f"holds version {node.version}, got packets from {base} on")
        layout = node.form.layout(self.recipe.by_tensor)
        held = follow(node.held, download, layout, self._order, skip)
        if digest(held.weights) != note["digest"]:
            raise _NoModelError(f"holds another one than the strategy's after version {version}")
        return held

    def _compress(
        self, node: _Node, sender: Sender, name: str, reply: Message
    ) -> tuple[bytes, str, Any]:
        """Return the message of the update, the reply's key of arrays, and the exact arrays."""
        found = list(reply.content.array_records.items())
        if len(found) != 1:
            raise ValueError(
                f"CompressMod: a reply must have one ArrayRecord, got {len(found)}. Return the "
                "trained model's alone."
            )
        ((key, arrays),) = found
        trained, exact = node.form.split(arrays)
        sender.observe(node.held.weights)
        update = node.form.layout(self.recipe.by_tensor).cut(node.held.weights - trained)
        return compress(sender, name, update), key, exact
