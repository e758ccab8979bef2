"""What both ends of a parameter server share: the plan of a round, and its transport."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from gcext._codecs.base import Codec
from gcext._codecs.seeds import derive
from gcext._links.sender import Sender
from gcext._recipes import Recipe, fit
from gcext._recipes import recipe as make_recipe
from gcext.distributed import check_alike, gather_objects, place

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["CLOSE", "END", "START", "End", "Parcel", "Piece", "plan_round"]

START, END, CLOSE = -1, -2, -3  # in place of a message's index
HEAD = 5  # round, index, status, length, loss: float64


_UNMET = {
    "packets of its own for each client": "one broadcast answers all workers. Use down=stc",
    "a server's average of models": "the server has updates only. Use a recipe without it",
    "the steps of the model": "workers push gradients only. Use qsgd, or gcext.fl for laq",
}


class Piece(NamedTuple):
    """Part of a tensor: its elements from start to stop, sent in that shape under its own key."""

    key: str
    name: str
    start: int
    stop: int
    shape: tuple[int, ...]


class Parcel(NamedTuple):
    """What travels at once, to and from one server, by its rank."""

    server: int
    pieces: tuple[Piece, ...]

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """The shapes of the group packet."""
        return tuple(piece.shape for piece in self.pieces)


class End:
    """What both ends share: the plan of messages, and headers before bytes."""

    is_server = False
    _sender: Sender

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
        self.recipe = make_recipe(recipe)
        fit.refuse(owner, self.recipe, recipe, _UNMET)
        place(owner, group)
        if dist.get_backend(group) == "nccl":
            raise ValueError(
                f"{owner}: the group must send from one rank to another on the host, got nccl. "
                'Pass group=torch.distributed.new_group(backend="gloo").'
            )
        ranks = dist.get_process_group_ranks(group or dist.group.WORLD)
        self.rank, self.servers = dist.get_rank(), tuple(servers)
        self.workers = tuple(rank for rank in ranks if rank not in self.servers)
        if not set(self.servers) < set(ranks) or (self.rank in self.servers) != self.is_server:
            raise ValueError(
                f"{owner}: servers must be some of the ranks {ranks}, and rank {self.rank} one of "
                f"them for a Server alone, got {self.servers}."
            )
        self.sent_bytes = self.received_bytes = self.round = 0
        self._group, self._exact_below = group, exact_below
        self._seed = derive(seed, self.rank)
        self._works: list[tuple[Any, Tensor]] = []
        known = next(each for each in gather_objects(plan, group) if each is not None)
        mine: tuple[Parcel, ...] = known if plan is None else plan
        options: dict[str, Any] = {
            "recipe": repr(self.recipe),
            "servers": self.servers,
            "seed": seed,
            "exact_below": exact_below,
        }
        options |= {f"shape of {p.key!r}": p.shape for each in mine for p in each.pieces}
        options["messages, by split and merge,"] = [len(each.pieces) for each in mine]
        check_alike(owner, options, group)
        self.messages = mine

    @property
    def _place(self) -> dict[str, Any]:
        """What a state must agree with: whose it is, and beside whom."""
        return {"rank": self.rank, "workers": list(self.workers), "servers": list(self.servers)}

    def _check_place(self, state: Mapping[str, Any]) -> None:
        for key, mine in self._place.items():
            if state[key] != mine:
                raise ValueError(
                    f"{type(self).__name__}: {key} must be the state's {state[key]}, got {mine}. "
                    "Load the state of this rank, with as many ends."
                )

    def _load_sender(self, state: Any, codec: Codec) -> None:
        """Load the sender's state, with the codec of its round; on an error nothing has changed."""
        before, self._sender.codec = self._sender.codec, codec
        try:
            self._sender.load_state_dict(state)
        except BaseException:
            self._sender.codec = before
            raise

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
        """Return index, status, bytes and loss of the next message, ``what`` or a closing one."""
        head = torch.empty(HEAD, dtype=torch.float64)
        dist.recv(head, source, self._group)
        number, index, status, size = (int(each) for each in head[:4].tolist())
        payload = torch.empty(size, dtype=torch.uint8)
        if size:
            dist.recv(payload, source, self._group)
        self.received_bytes += head.nbytes + size
        if index != CLOSE and (index != what or number != self.round):
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


def plan_round(
    shapes: Mapping[str, tuple[int, ...]], servers: Sequence[int], split: int, merge: int
) -> tuple[Parcel, ...]:
    """Return the messages of a round: tensors in their order, split or merged; see Worker.

    >>> import gcext.parameter_server
    >>> shapes = {"a": (2,), "b": (), "c": (5,)}
    >>> for message in gcext.parameter_server.plan_round(shapes, servers=[3, 4], split=4, merge=3):
    ...     print(message.server, [piece.key for piece in message.pieces])
    3 ['a', 'b']
    4 ['c[0:4]']
    3 ['c[4:5]']
    """
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
        messages.append(Parcel(server, tuple(bundle)))
    return tuple(messages)
