"""The server of FetchSGD: momentum and error feedback within count sketches."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gcext._native import ops
from gcext._native.sketch import sketch, sketch_query
from gcext._native.status import raise_for
from gcext._packet.packet import Packet
from gcext._packet.sketch import Sketch
from gcext._packet.state import loading
from gcext._spec import plain
from gcext.aggregate._aggregator import Aggregator, RoundInput
from gcext.aggregate._finite import LARGEST, check_finite, largest, normalised
from gcext.aggregate._registry import register_aggregator

__all__ = ["FetchSGD"]


class _Slot(NamedTuple):
    """What is kept of one tensor. Never written to, so that snapshots share it."""

    shape: tuple[int, ...]
    kind: tuple[int, int, int]  # rows, cols and seed of its sketches
    momentum: Tensor  # S_u
    error: Tensor  # S_e

    @property
    def is_sound(self) -> bool:
        """Whether a slot that was loaded can be one."""
        tables, size = (self.momentum, self.error), (math.prod(self.kind[:2]),)
        return len(self.kind) == 3 and all(
            isinstance(x, Tensor) and x.dtype == torch.float32 and tuple(x.shape) == size
            for x in tables
        )

    @property
    def expected(self) -> tuple[Any, ...]:
        return self.shape, self.kind


class FetchSGD(Aggregator):
    """The largest elements of what the clients' count sketches add up to (FetchSGD).

    Sketches are linear, so momentum and error feedback work on sums of them, and clients keep
    nothing (Rothchild et al. 2020, arXiv:2007.07682, Algorithm 1)::

        S    = mean of the clients' sketches, weighted where weights are given
        S_u <- rho S_u + S
        S_e <- S_e + eta S_u
        Δ    = the k largest estimates of S_e, others 0; equal ones: the lower index
        S_e <- S_e - sketch(Δ)

    and Δ is the result. Updates are already scaled by the clients' learning rate, so eta is 1. Each
    sum of tables is made in float64 and rounded to float32 once. Packets are those of the codec
    "sketch", all of one hash and size; in groups the k largest are those of all tensors together.

    The errors of the estimates are fed back, too: where k is not far below cols, S_e can grow until
    it diverges. Lower k then, or use ``clear``.

    Args:
        k: elements of Δ; 0: ``max(floor(share*n), 1)`` of n.
        share: see k; in (0, 1].
        rho: share of S_u that stays, in [0, 1).
        eta: factor of S_u, positive.
        mask: set S_u to 0 where the sketch of Δ is not 0, as the authors' code does: momentum
            factor masking (after Lin et al. 2018) by whole cells.
        clear: set S_e to 0 there, too, in place of subtracting the sketch, as the authors' code
            does because their models diverged otherwise. What else was in these cells is lost.

    >>> import gcext, torch
    >>> codec = gcext.codec("sketch:rows=3,cols=50")
    >>> update = torch.tensor([0.0, 4.0, 0.0, 1.0])
    >>> server = gcext.aggregate.FetchSGD(k=1, rho=0.0)
    >>> for number in (1, 2, 3, 4, 5):
    ...     server.aggregate({7: codec.encode(update / number**2)})
    tensor([0., 4., 0., 0.])
    tensor([0.0000, 0.0000, 0.0000, 1.2500])
    tensor([0.0000, 1.4444, 0.0000, 0.0000])
    tensor([0.0000, 0.2500, 0.0000, 0.0000])
    tensor([0.0000, 0.0000, 0.0000, 0.2136])
    """

    uses_weights = True
    checks_finite = True

    def __init__(
        self,
        k: int = 0,
        share: float = 0.01,
        rho: float = 0.9,
        eta: float = 1.0,
        mask: bool = True,
        clear: bool = False,
    ) -> None:
        self.k = plain("FetchSGD", "k", int, k)
        self.share = plain("FetchSGD", "share", float, share)
        self.rho = plain("FetchSGD", "rho", float, rho)
        self.eta = plain("FetchSGD", "eta", float, eta)
        self.mask = plain("FetchSGD", "mask", bool, mask)
        self.clear = plain("FetchSGD", "clear", bool, clear)
        for name, value, holds, rule in (
            ("k", self.k, self.k >= 0, "at least 0"),
            ("share", self.share, 0 < self.share <= 1, "in (0, 1]"),
            ("rho", self.rho, 0 <= self.rho < 1, "in [0, 1)"),
            ("eta", self.eta, 0 < self.eta < math.inf, "positive and finite"),
        ):
            if not holds:
                raise ValueError(f"FetchSGD: {name} must be {rule}, got {value}.")
        self._slots: list[_Slot] = []  # one for each tensor of the update; none before a round

    def _check(self, client: Any, packet: Packet) -> None:
        sketches = _sketches(client, packet)
        if self._slots:
            _check_alike(_described(packet, sketches), [s.expected for s in self._slots], client)

    def _aggregate(self, given: RoundInput) -> Tensor | list[Tensor]:
        rows = [_sketches(*each) for each in zip(given.clients, given.packets, strict=True)]
        first = given.packets[0]
        expected = [s.expected for s in self._slots] or _described(first, rows[0])
        for client, packet, sketches in zip(given.clients, given.packets, rows, strict=True):
            _check_alike(_described(packet, sketches), expected, client)
        weights = given.weights or [1.0] * len(rows)
        weights = normalised(weights)
        moved = []
        for i, (shape, kind) in enumerate(expected):
            tables = [sketches[i].table for sketches in rows]
            if self._slots:
                momentum, error = (x.to(tables[0].device) for x in self._slots[i][2:])
            else:
                momentum, error = tables[0].new_zeros(2, tables[0].numel())
            momentum = _sum([momentum, *tables], [self.rho, *weights])
            moved.append(_Slot(shape, kind, momentum, _sum([error, momentum], [1.0, self.eta])))
        _check_finite(moved, given.clients, rows, weights)
        update, held = self._take(moved)
        _check_finite(held, given.clients, rows, weights)
        check_finite("FetchSGD", update, given.packets, None, given.clients, given.most)
        self._slots = held
        return update if first.members else update[0]

    def _take(self, slots: list[_Slot]) -> tuple[list[Tensor], list[_Slot]]:
        """Return Δ, and the slots without it; overwrites momentum and error of those given."""
        numels = [math.prod(slot.shape) for slot in slots]
        found = [
            sketch_query(slot.error, None, numel, *slot.kind)
            for slot, numel in zip(slots, numels, strict=True)
        ]
        estimates = torch.cat(found, out=ops.new_floats(found[0], sum(numels)))
        n = estimates.numel()
        k = min(self.k or max(math.floor(self.share * n), 1), n)
        index, value, info = ops.select(estimates, None, None, k, 1.0, 1.0, False)
        count = info.tolist()[0]
        index, value = index[:count], value[:count]
        ends = torch.tensor(numels).cumsum(0)
        cuts = [0, *torch.searchsorted(index, ends.to(index.device)).tolist()]
        update, rest = [], []
        for i, (slot, numel) in enumerate(zip(slots, numels, strict=True)):
            its = slice(cuts[i], cuts[i + 1])
            at, what = index[its] - (int(ends[i]) - numel), value[its]
            dense = ops.new_floats(what, numel).zero_()
            update.append(dense.index_copy_(0, at.long(), what).view(slot.shape))
            table, info = sketch(what, at, *slot.kind)
            raise_for("FetchSGD", *info.tolist()[1:3])
            touched = table != 0
            if self.clear:
                error = slot.error.masked_fill_(touched, 0.0)
            else:
                error = _sum([slot.error, table], [1.0, -1.0])
            momentum = slot.momentum.masked_fill_(touched, 0.0) if self.mask else slot.momentum
            rest.append(slot._replace(momentum=momentum, error=error))
        return update, rest

    def state_dict(self) -> dict[str, Any]:
        return {
            "shapes": [list(slot.shape) for slot in self._slots],
            "kinds": [list(slot.kind) for slot in self._slots],
            "momentum": [slot.momentum.clone() for slot in self._slots],
            "error": [slot.error.clone() for slot in self._slots],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        names = "shapes", "kinds", "momentum", "error"
        with loading("FetchSGD", state):
            fits = set(state) == set(names) and len({len(state[name]) for name in names}) == 1
            columns = [state[name] for name in names] if fits else []
            slots = [
                _Slot(tuple(shape), tuple(kind), momentum, error)
                for shape, kind, momentum, error in zip(*columns, strict=True)
            ]
            if not fits or not all(slot.is_sound for slot in slots):
                raise ValueError(
                    "FetchSGD: its state holds shapes, kinds, and as many float32 tables of "
                    f"momentum and error, got {sorted(map(str, state))}."
                )
            self._slots = [
                slot._replace(momentum=slot.momentum.clone(), error=slot.error.clone())
                for slot in slots
            ]

    def snapshot(self) -> Any:
        return self._slots

    def restore(self, snapshot: Any) -> None:
        self._slots = snapshot


def _sketches(client: Any, packet: Packet) -> list[Sketch]:
    """Return the sketches of a packet or a group; ValueError for other packets."""
    found = []
    for single in packet.members or (packet,):
        if single.method != "sketch":
            raise ValueError(
                f"FetchSGD: packets must be sketches, got {single.method} from client {client}. "
                'Encode with the codec "sketch".'
            )
        assert isinstance(single.coded, Sketch)
        found.append(single.coded)
    return found


def _described(packet: Packet, sketches: Sequence[Sketch]) -> list[tuple[Any, ...]]:
    """Return the shape and the sketch's rows, cols and seed of each tensor."""
    singles = packet.members or (packet,)
    return [(s.shape, sketch.kind) for s, sketch in zip(singles, sketches, strict=True)]


def _check_alike(got: list[tuple[Any, ...]], expected: list[tuple[Any, ...]], client: Any) -> None:
    if len(got) != len(expected):
        raise ValueError(
            f"FetchSGD: packets must be sketches of {len(expected)} tensors, got {len(got)} from "
            f"client {client}."
        )
    for (shape, kind), (its_shape, its_kind) in zip(got, expected, strict=True):
        if shape != its_shape:
            raise ValueError(
                f"FetchSGD: packets must have the shape {its_shape}, got {shape} from client "
                f"{client}."
            )
        if kind != its_kind:
            raise ValueError(
                "FetchSGD: sketches must be of one size and hash to be added, {} rows, {} cols, "
                "hash {}, got {} rows, {} cols, hash {} from client {}.".format(
                    *its_kind, *kind, client
                )
            )


def _check_finite(
    slots: Sequence[_Slot],
    clients: Sequence[Any],
    rows: Sequence[Sequence[Sketch]],
    weights: Sequence[float],
) -> None:
    for i, slot in enumerate(slots):
        if not max(largest(slot.momentum), largest(slot.error)) <= LARGEST:
            sizes = [
                weight * largest(mine[i].table) for weight, mine in zip(weights, rows, strict=True)
            ]
            raise ValueError(
                "FetchSGD: sums of sketches must be finite in float32, got an overflow; client "
                f"{clients[sizes.index(max(sizes))]} adds the most. Leave it out, lower the "
                "clients' learning rate, or set clear=True."
            )


def _sum(tables: list[Tensor], weights: list[float]) -> Tensor:
    """Return the weighted sum, in float64 in this order and rounded once."""
    everywhere = tables[0].new_empty(0, dtype=torch.int32)
    return ops.combine([everywhere] * len(tables), tables, weights, tables[0].numel())


register_aggregator("fetchsgd", FetchSGD)
