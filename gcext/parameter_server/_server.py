"""The end of a parameter server that combines."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from gcext._packet.packet import Packet
from gcext._packet.state import loading
from gcext._recipes import Recipe
from gcext.parameter_server._ends import END, START, End

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["Server"]


class Server(End):
    """The end that combines; ``serve`` runs until all workers have closed.

    Args and attributes: as of Worker; it learns names and shapes from the workers.
    """

    is_server = True

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
        ends = [self._from(worker, END)[0] for worker in self._living]
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
            self._from(worker, START)
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
        return {
            **self._place,
            "round": self.round - 1,
            "up": up,
            "down": self._sender.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state of this rank; ValueError for one that does not fit."""
        with loading("Server", state, (*self._place, "round", "up", "down")):
            self._check_place(state)
            if set(state["up"]) != set(self._receivers):
                raise ValueError(
                    "Server: state must be of the same messages. Keep split and merge."
                )
            receivers = {index: self.recipe.up.receiver() for index in self._receivers}
            for index, each in receivers.items():
                each.load_state_dict(state["up"][index])
            number = operator.index(state["round"])
            codec = self.recipe.schedule.codec(self.recipe.down.codec, number)
            self._load_sender(state["down"], codec)
            self._receivers, self.round = receivers, number
