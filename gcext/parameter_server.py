"""A parameter server on ``torch.distributed``: push and pull, compressed at both ends.

Workers push gradients and pull what the servers make of them, round by round. Each server keeps the
receiver and the down link of a recipe, each worker its up link. As in BytePS (Jiang et al. 2020,
OSDI) the first layers go first, large tensors are split, small ones share a message.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import Parameter

from gcext._codecs.seeds import derive
from gcext._packet.packet import Packet
from gcext._recipes import Recipe
from gcext._recipes import recipe as make_recipe
from gcext._spec import plain

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["Message", "Piece", "Server", "Worker"]

_START, _END, _CLOSE = -1, -2, -3  # in place of a message's index
_HEAD = 5  # round, index, status, length, loss: float64


class Piece(NamedTuple):
    """Part of a tensor: its elements from start to stop, sent in that shape under its own key."""

    key: str
    name: str
    start: int
    stop: int
    shape: tuple[int, ...]


class Message(NamedTuple):
    """What travels at once, to and from one server, by its rank."""

    server: int
    pieces: tuple[Piece, ...]

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """The shapes of the group packet."""
        return tuple(piece.shape for piece in self.pieces)


class _End:
    """What both ends share: the plan of messages, and headers before bytes."""

    def __init__(
        self,
        recipe: Recipe | str,
        servers: Sequence[int],
        group: ProcessGroup | None,
        seed: int,
        exact_below: int,
        plan: Any,
    ) -> None:
        owner = type(self).__name__
        self.recipe = make_recipe(recipe) if isinstance(recipe, str) else recipe
        if self.recipe.down.catch_up:
            raise ValueError(f"{owner}: the down link must be a broadcast, got {self.recipe.down}.")
        if dist.get_backend(group) == "nccl":
            raise ValueError(
                f"{owner}: the group must send from one rank to another on the host, got nccl. "
                'Pass group=torch.distributed.new_group(backend="gloo").'
            )
        ranks = dist.get_process_group_ranks(group or dist.group.WORLD)
        self.rank, self.servers = dist.get_rank(), tuple(servers)
        self.workers = tuple(rank for rank in ranks if rank not in self.servers)
        is_server = isinstance(self, Server)
        if not set(self.servers) < set(ranks) or (self.rank in self.servers) != is_server:
            raise ValueError(
                f"{owner}: servers must be some of the ranks {ranks}, and rank {self.rank} one of "
                f"them for a Server alone, got {self.servers}."
            )
        self.sent_bytes = self.received_bytes = self.round = 0
        self._group, self._exact_below = group, exact_below
        self._seed = derive(seed, self.rank)
        self._works: list[tuple[Any, Tensor]] = []
        everyone: list[Any] = [None] * len(ranks)
        options = repr(self.recipe), self.servers, exact_below, seed
        dist.all_gather_object(everyone, (options, plan), group=group)
        plans = [
            its for (_, its), rank in zip(everyone, ranks, strict=True) if rank in self.workers
        ]
        for rank, (its, _) in zip(ranks, everyone, strict=True):
            worker = self.workers.index(rank) if rank in self.workers else 0
            if its != everyone[0][0] or plans[worker] != plans[0]:
                raise ValueError(
                    f"{owner}: recipe, servers, seed, exact_below and the tensors' names and sizes "
                    f"must be the same on all ranks, got others on rank {rank} than on the first."
                )
        self.messages: tuple[Message, ...] = plans[0]

    def _send(
        self, to: int, what: int, status: int = 0, payload: bytes = b"", loss: float = 0.0
    ) -> None:
        head = [self.round, what, status, len(payload), loss]
        tensors = [torch.tensor(head, dtype=torch.float64)]
        if payload:
            tensors.append(torch.frombuffer(bytearray(payload), dtype=torch.uint8))
        for tensor in tensors:
            self.sent_bytes += tensor.nbytes
            work = dist.isend(tensor, to, self._group)
            self._works.append((work, tensor))  # which must live as long

    def _receive(self, source: int, what: int) -> tuple[int, int, bytes, float]:
        """Return index, status, bytes and loss of the next message: ``what``, or a farewell."""
        head = torch.empty(_HEAD, dtype=torch.float64)
        dist.recv(head, source, self._group)
        number, index, status, size = (int(each) for each in head[:4].tolist())
        payload = torch.empty(size, dtype=torch.uint8)
        if size:
            dist.recv(payload, source, self._group)
        self.received_bytes += head.nbytes + size
        if index != _CLOSE and (index != what or number != self.round):
            raise ValueError(
                f"{type(self).__name__}: rank {source} must send message {what} of round "
                f"{self.round}, got {index} of round {number}. Load states of one round."
            )
        return index, status, payload.numpy().tobytes(), float(head[4])

    def _flush(self) -> None:
        """Wait until all was sent."""
        works, self._works = self._works, []
        for work, _ in works:
            work.wait()


class Worker(_End):
    """The end that has gradients.

    All ranks of the group construct a Worker or a Server at the same time, with the same options.

    Args:
        tensors: ``{name: tensor}`` or pairs, such as ``model.named_parameters()``, for names and
            shapes. Their order is their priority: the first are sent, and answered, first.
        recipe: its up link here, its receiver and its down link at the servers.
        servers: their global ranks; the other ranks of the group are workers. Messages are given
            to the server that has the fewest elements so far.
        group: of processes, of gloo; None: all of them.
        seed: the same on all ranks, which derive their own.
        exact_below: pieces of fewer elements travel as float32.
        split: tensors of more elements are sent in parts of so many, as flat tensors.
        merge: tensors are put into one message, in their order, until it has so many elements.

    Attributes:
        messages: what travels in a round, in order.
        round: number of the last round, from 1; rounds that failed count.
        sent_bytes, received_bytes: of all messages so far, 40 bytes of header each included.

    Raises ValueError where the ranks' options or tensors differ, or the recipe does not fit.
    """

    def __init__(
        self,
        tensors: Mapping[str, Tensor] | Iterable[tuple[str, Tensor]],
        recipe: Recipe | str,
        *,
        servers: Sequence[int] = (0,),
        group: ProcessGroup | None = None,
        seed: int = 0,
        exact_below: int = 1024,
        split: int = 2**20,
        merge: int = 2**16,
    ) -> None:
        for name, value in (("split", split), ("merge", merge)):
            if plain("Worker", name, int, value) < 1:
                raise ValueError(f"Worker: {name} must be at least 1, got {value}.")
        self.shapes = {name: tuple(each.shape) for name, each in dict(tensors).items()}
        plan = _plan(self.shapes, servers, split, merge)
        super().__init__(recipe, servers, group, seed, exact_below, plan)
        self._sender = self.recipe.up.sender(self._seed, exact_below)
        self._receivers = [self.recipe.down.receiver() for _ in self.messages]
        self._pushed = False

    def push(
        self,
        gradients: Mapping[str, Tensor | None] | Iterable[tuple[str, Tensor | None]],
        loss: float = math.nan,
    ) -> None:
        """Send gradients of all names, the first ones first, and return without waiting.

        Args:
            gradients: of the names and shapes that the worker was made with; a parameter stands for
                its gradient. None: zeros.
            loss: this worker's, for recipes such as pstc that need it.

        Raises what the codec raises, such as ValueError for what is not finite; the round is then
        over: all workers raise, and all residuals are as they were. RuntimeError where the last
        round was not pulled.
        """
        if self._pushed:
            raise RuntimeError("Worker.push: one round at a time. Call pull first.")
        self.round += 1
        self._sender.codec = self.recipe.schedule.codec(self.recipe.up.codec, self.round)
        self._tell(_START)
        error: Exception | None = None
        tensors: dict[str, Tensor] = {}
        try:
            tensors = self._checked(gradients)
        except Exception as raised:
            error = raised
        for index, message in enumerate(self.messages):
            payload = b""
            try:
                if error is None:
                    given = {each.key: _piece(tensors[each.name], each) for each in message.pieces}
                    payload = self._sender.compress(given, commit=False).to_bytes()
            except Exception as raised:
                error = raised
            if error is not None:
                payload = str(error).encode()
            self._send(message.server, index, int(error is not None), payload, loss)
        self._pushed = True
        if error is not None:
            with suppress(RuntimeError):
                self.pull()
            raise error

    def pull(self) -> dict[str, Tensor]:
        """Return the round's update, by name: float32, of the tensors' shapes.

        It is the same on all workers, bit for bit. With it the residuals of this round count.

        Raises RuntimeError where nothing was pushed, a server is gone, or the round failed, with
        the text of the end that raised; residuals are then as they were before push.
        """
        if not self._pushed:
            raise RuntimeError("Worker.pull: nothing was pushed. Call push first.")
        self._pushed = False
        updates = {name: torch.empty(math.prod(shape)) for name, shape in self.shapes.items()}
        before = [each.snapshot() for each in self._receivers]
        failure = ""
        try:
            for index, message in enumerate(self.messages):
                _, status, payload, _ = self._receive(message.server, index)
                if status:
                    failure = failure or payload.decode()
                if failure:
                    continue
                packet = Packet.from_bytes(payload, expect=message.shapes)
                parts = self._receivers[index].aggregate({0: packet})
                for piece, part in zip(message.pieces, parts, strict=True):
                    updates[piece.name][piece.start : piece.stop] = part.view(-1)
            self._tell(_END, int(bool(failure)))
            self._flush()
            if failure:
                raise RuntimeError(f"Worker: round {self.round} failed: {failure}")
        except BaseException:
            self._sender.rollback()
            for each, snapshot in zip(self._receivers, before, strict=True):
                each.restore(snapshot)
            raise
        self._sender.commit()
        return {name: updates[name].view(shape) for name, shape in self.shapes.items()}

    def _checked(self, gradients: Any) -> dict[str, Tensor]:
        given = dict(gradients)
        tensors = {}
        for name, shape in self.shapes.items():
            each = given.get(name)
            each = each.grad if isinstance(each, Parameter) else each
            tensors[name] = torch.zeros(shape) if each is None else each
        wrong = [n for n, shape in self.shapes.items() if tuple(tensors[n].shape) != shape]
        if wrong or set(given) != set(self.shapes):
            odd = wrong or sorted(set(given) ^ set(self.shapes))
            raise ValueError(f"Worker.push: names and shapes must stay, got another {odd[0]!r}.")
        return tensors

    def _tell(self, what: int, status: int = 0, payload: bytes = b"") -> None:
        for server in self.servers:
            self._send(server, what, status, payload)

    def close(self, error: BaseException | None = None) -> None:
        """Take leave of the servers; with an error the other workers' next round fails with it."""
        with suppress(RuntimeError):
            if self._pushed:
                self.pull()
            text = f"worker {self.rank} raised {type(error).__name__}: {error}" if error else ""
            self._tell(_CLOSE, payload=text.encode())
            self._flush()

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self.close(error)

    def state_dict(self) -> dict[str, Any]:
        """Return this worker's residuals, predictors and count of rounds, between rounds."""
        down = [each.state_dict() for each in self._receivers]
        return {"round": self.round, "up": self._sender.state_dict(), "down": down}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state of this rank; ValueError for one that does not fit."""
        self._sender.codec = self.recipe.schedule.codec(self.recipe.up.codec, state["round"])
        self._sender.load_state_dict(state["up"])
        for each, its in zip(self._receivers, state["down"], strict=True):
            each.load_state_dict(its)
        self.round = state["round"]


class Server(_End):
    """The end that combines; ``serve`` runs until all workers have closed.

    Args and attributes: as of Worker; it learns names and shapes from the workers.
    """

    def __init__(
        self,
        recipe: Recipe | str,
        *,
        servers: Sequence[int] = (0,),
        group: ProcessGroup | None = None,
        seed: int = 0,
        exact_below: int = 1024,
    ) -> None:
        super().__init__(recipe, servers, group, seed, exact_below, None)
        mine = [i for i, each in enumerate(self.messages) if each.server == self.rank]
        self._receivers = {index: self.recipe.up.receiver() for index in mine}
        self._sender = self.recipe.down.sender(self._seed, exact_below)
        self._gone: dict[int, str] = {}  # workers that closed or died: with which error

    def serve(self) -> None:
        """Answer round after round until all workers have closed.

        Raises RuntimeError then, where a worker closed with an error or died. The other workers'
        rounds failed with that text.
        """
        try:
            while self._begin():
                self._round()
        except BaseException as error:
            with suppress(RuntimeError):
                for worker in self._living:
                    for index in self._receivers:
                        self._send(worker, index, 1, f"at server {self.rank}: {error}".encode())
                self._flush()
            raise
        if errors := [text for text in self._gone.values() if text]:
            raise RuntimeError(f"Server: {errors[0]}")

    def _round(self) -> None:
        before = {index: each.snapshot() for index, each in self._receivers.items()}
        failure = next(iter(self._gone.values()), "")
        for index in self._receivers:
            failure = self._answer(index, failure)
        ends = [self._from(worker, _END)[0] for worker in self._living]
        if failure or any(ends):
            self._sender.rollback()
            for index, each in self._receivers.items():
                each.restore(before[index])
        self._sender.commit()
        with suppress(RuntimeError):  # of one that died; the next receive reports it
            self._flush()

    @property
    def _living(self) -> list[int]:
        return [worker for worker in self.workers if worker not in self._gone]

    def _begin(self) -> bool:
        """Wait for the next round; False where all workers have closed."""
        self.round += 1
        for worker in self._living:
            self._from(worker, _START)
        if self._living:
            for worker, text in self._gone.items():
                self._gone[worker] = text or f"worker {worker} closed while others pushed"
        return bool(self._living)

    def _from(self, worker: int, what: int) -> tuple[int, bytes, float]:
        """Return status, bytes and loss of a message; of a worker that is gone its error."""
        if worker not in self._gone:
            try:
                index, status, payload, loss = self._receive(worker, what)
                if index == what:
                    return status, payload, loss
                self._gone[worker] = payload.decode()
            except RuntimeError as error:
                self._gone[worker] = f"worker {worker} is gone: {error}"
        return 1, self._gone[worker].encode(), 0.0

    def _answer(self, index: int, failure: str) -> str:
        """Take a message of all workers and send back the update, or why there is none."""
        message = self.messages[index]
        packets: dict[int, Packet] = {}
        losses: dict[int, float] = {}
        for worker in self.workers:  # all, whatever fails: the next messages are behind these
            status, payload, loss = self._from(worker, index)
            losses |= {} if math.isnan(loss) else {worker: loss}
            try:
                if status:
                    raise RuntimeError(payload.decode())
                packets[worker] = Packet.from_bytes(payload, expect=message.shapes)
            except (RuntimeError, ValueError) as error:
                failure = failure or f"from worker {worker}: {error}"
        payload = failure.encode()
        if not failure:
            try:
                update = self._receivers[index].aggregate(packets, losses, self.round)
                keys = [piece.key for piece in message.pieces]
                given = dict(zip(keys, update, strict=True))
                self._sender.codec = self.recipe.schedule.codec(self.recipe.down.codec, self.round)
                payload = self._sender.compress(given, commit=False).to_bytes()
            except Exception as error:
                failure = f"at server {self.rank}: {error}"
                payload = failure.encode()
        for worker in self._living:
            with suppress(RuntimeError):  # of one that died; the next receive reports it
                self._send(worker, index, int(bool(failure)), payload)
        return failure

    def state_dict(self) -> dict[str, Any]:
        """Return this server's receivers, residuals and count of rounds, after ``serve``."""
        up = {index: each.state_dict() for index, each in self._receivers.items()}
        return {"round": self.round - 1, "up": up, "down": self._sender.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state of this rank; ValueError for one that does not fit."""
        if set(state["up"]) != set(self._receivers):
            raise ValueError("Server: state must be of the same messages. Keep split and merge.")
        self._sender.codec = self.recipe.schedule.codec(self.recipe.down.codec, state["round"])
        self._sender.load_state_dict(state["down"])
        for index, each in self._receivers.items():
            each.load_state_dict(state["up"][index])
        self.round = state["round"]


def _piece(tensor: Tensor, piece: Piece) -> Tensor:
    if tuple(tensor.shape) == piece.shape:
        return tensor
    return tensor.detach().reshape(-1)[piece.start : piece.stop]


def _plan(
    shapes: Mapping[str, tuple[int, ...]], servers: Sequence[int], split: int, merge: int
) -> tuple[Message, ...]:
    """Return the messages of a round: tensors in their order, split or merged."""
    bundles: list[list[Piece]] = []
    open_size = merge  # of the last bundle; from merge on it is full
    for name, shape in shapes.items():
        n = math.prod(shape)
        if n > split:
            starts = range(0, n, split)
            pieces = [(at, min(at + split, n)) for at in starts]
            bundles += [[Piece(f"{name}[{a}:{b}]", name, a, b, (b - a,))] for a, b in pieces]
            open_size = merge
            continue
        if open_size >= merge:
            bundles.append([])
            open_size = 0
        bundles[-1].append(Piece(name, name, 0, n, shape))
        open_size += n
    load = dict.fromkeys(servers, 0)
    messages = []
    for bundle in bundles:
        server = min(load, key=lambda rank: load[rank])
        load[server] += sum(piece.stop - piece.start for piece in bundle)
        messages.append(Message(server, tuple(bundle)))
    return tuple(messages)
