"""The end of a parameter server that has gradients."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import Parameter

from gcext._packet.packet import Packet
from gcext._packet.state import loading
from gcext._recipes import Recipe
from gcext._spec import plain
from gcext.parameter_server._ends import CLOSE, END, START, End, Piece, plan_round

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["Worker"]


class Worker(End):
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
        sent_bytes: of all messages so far, 40 bytes of header each included.
        received_bytes: likewise.

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
        plan = plan_round(self.shapes, servers, split, merge)
        super().__init__(recipe, servers, group, seed, exact_below, plan)
        self._sender = self.recipe.up.sender(self._seed, exact_below)
        self._receivers = [self.recipe.down.receiver() for _ in self.messages]
        self._pushed = self._closed = False

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
        if self._closed:
            raise RuntimeError("Worker.push: the connection is closed. Construct all ends anew.")
        self.round += 1
        self._sender.codec = self.recipe.schedule.codec(self.recipe.up.codec, self.round)
        self._tell(START)
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
        the text of the end that raised; residuals are then as they were before push. What this
        worker cannot decode, for example for want of memory, closes it: the others have the update.
        """
        if not self._pushed:
            raise RuntimeError("Worker.pull: nothing was pushed. Call push first.")
        self._pushed = False
        updates = {name: torch.empty(math.prod(shape)) for name, shape in self.shapes.items()}
        before = [each.snapshot() for each in self._receivers]
        failure, error = "", None
        try:
            for index, message in enumerate(self.messages):  # all, or a server waits for ever
                _, status, payload, _ = self._receive(message.server, index)
                if status:
                    failure = failure or payload.decode()
                if failure or error:
                    continue
                try:
                    self._take(index, payload, updates)
                except Exception as raised:
                    error = raised
            self._tell(END, int(bool(failure or error)))
            self._flush()
            if failure:
                raise RuntimeError(f"Worker: round {self.round} failed: {failure}")
            if error:  # the round counts for the other workers: this one cannot go on
                self.close(error)
                raise error
        except BaseException:
            self._sender.rollback()
            for each, snapshot in zip(self._receivers, before, strict=True):
                each.restore(snapshot)
            raise
        self._sender.commit()
        return {name: updates[name].view(shape) for name, shape in self.shapes.items()}

    def _take(self, index: int, payload: bytes, updates: dict[str, Tensor]) -> None:
        """Decode a server's message into the updates of its tensors."""
        message = self.messages[index]
        packet = Packet.from_bytes(payload, expect=message.shapes)
        parts = self._receivers[index].aggregate({0: packet})
        for piece, part in zip(message.pieces, parts, strict=True):
            updates[piece.name][piece.start : piece.stop] = part.view(-1)

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
        """Close the connection; with an error the other workers' next round fails with it."""
        if self._closed:
            return
        self._closed = True
        with suppress(RuntimeError):
            if self._pushed:
                self.pull()
            text = f"worker {self.rank} raised {type(error).__name__}: {error}" if error else ""
            self._tell(CLOSE, payload=text.encode())
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
        return {
            **self._place,
            "round": self.round,
            "up": self._sender.state_dict(),
            "down": down,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state of this rank; ValueError for one that does not fit."""
        with loading("Worker", state, (*self._place, "round", "up", "down")):
            self._check_place(state)
            receivers = [self.recipe.down.receiver() for _ in self._receivers]
            if len(state["down"]) != len(receivers):
                raise ValueError(
                    "Worker: state must be of the same messages. Keep split and merge."
                )
            for each, its in zip(receivers, state["down"], strict=True):
                each.load_state_dict(its)
            number = operator.index(state["round"])
            codec = self.recipe.schedule.codec(self.recipe.up.codec, number)
            self._load_sender(state["up"], codec)
            self._receivers, self.round = receivers, number


def _piece(tensor: Tensor, piece: Piece) -> Tensor:
    if tuple(tensor.shape) == piece.shape:
        return tensor
    return tensor.detach().reshape(-1)[piece.start : piece.stop]
