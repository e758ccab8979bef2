"""Receiving ends of predictors: what senders subtracted before they encoded is added again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from gcext._native import ops
from gcext._packet.codes import Contents
from gcext._packet.packet import Packet
from gcext._packet.prediction import recover
from gcext._packet.state import loading
from gcext._spec import plain
from gcext.aggregate._aggregator import Aggregator, RoundInput, Wrapper
from gcext.aggregate._clients import as_client, by_kind
from gcext.aggregate._finite import LARGEST, check_finite, largest
from gcext.aggregate._registry import register_aggregator
from gcext.aggregate._sums import weighted_sum
from gcext.aggregate._wrappers import shapes

__all__ = ["LastValues", "Predicted"]


class LastValues(Aggregator):
    """The mean of every client's last value, where packets say how the values changed.

    The receiving end of gcext.LastValue and gcext.Lazy: ``v_i <- v_i + packet_i``, and the result
    is the mean of v_i over all clients that ever sent, also those that are silent now: EF21 with
    partial participation (Fatkhullin et al. 2021, arXiv:2110.03294), LAQ (Sun et al. 2019,
    arXiv:1909.07588). What is kept is the sum of all v_i, in float64, and which clients sent: not
    a tensor a client.

    >>> import gcext, torch
    >>> server = gcext.aggregate.LastValues()
    >>> server.aggregate({7: gcext.stc(torch.full((2,), 4.0), p=1)})
    tensor([4., 4.])
    >>> server.aggregate({3: gcext.stc(torch.full((2,), 2.0), p=1)})
    tensor([3., 3.])
    """

    checks_finite = True

    def __init__(self) -> None:
        # Replaced every round and never written to, so that snapshots share them.
        self._sum: list[Tensor] = []  # float64, one a tensor of the update
        self._clients: frozenset[Any] = frozenset()

    def _check(self, client: Any, packet: Packet) -> None:
        held = tuple(tuple(each.shape) for each in self._sum)
        if held and held != shapes(packet):
            raise ValueError(
                f"LastValues: packets must have the shape {held} of the last values, got "
                f"{packet.shape} from client {client}."
            )

    def _aggregate(self, given: RoundInput) -> Tensor | list[Tensor]:
        ones = [1.0] * len(given.packets)
        change = weighted_sum("LastValues", given.packets, ones, given.clients, LARGEST)
        parts = change if isinstance(change, list) else [change]
        clients = self._clients | frozenset(given.clients)
        total = [ops.new_like(part, torch.float64).copy_(part) for part in parts]
        if self._sum:
            for mine, each in zip(self._sum, total, strict=True):
                each.add_(mine.to(each.device))
        update = [_divided(each, len(clients)) for each in total]
        check_finite("LastValues", update, given.packets, None, given.clients, given.most)
        self._sum, self._clients = total, clients
        return update if isinstance(change, list) else update[0]

    def state_dict(self) -> dict[str, Any]:
        """See Aggregator."""
        return {
            "sum": [x.clone() for x in self._sum],
            "clients": sorted(self._clients, key=by_kind),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See Aggregator."""
        with loading("LastValues", state):
            if set(state) != {"sum", "clients"} or not all(
                isinstance(x, Tensor) and x.dtype == torch.float64 for x in state["sum"]
            ):
                raise ValueError(
                    "LastValues: its state holds clients and sum, a list of float64 tensors, got "
                    f"{sorted(map(str, state))}."
                )
            total = [x.clone() for x in state["sum"]]
            clients = frozenset(as_client("LastValues", client) for client in state["clients"])
            self._sum, self._clients = total, clients

    def snapshot(self) -> Any:
        """See Aggregator."""
        return self._sum, self._clients

    def restore(self, snapshot: Any) -> None:
        """See Aggregator."""
        self._sum, self._clients = snapshot


class Predicted(Wrapper):
    """Adds to each packet what its client's earlier packets predicted, for another aggregator.

    The receiving end of gcext.Trajectory, with the same ``order``: ResFed (Song et al. 2022,
    arXiv:2212.05602). It keeps ``order`` float32 tensors a client, bit for bit those of the sender.

    Args:
        order: of the prediction, 0, 1 or 2; see gcext.Trajectory.
        inner: gets what was recovered, as dense packets; None: ``Mean()``.

    >>> import gcext, torch
    >>> server = gcext.aggregate.Predicted(order=1)
    >>> for change in (4.0, -1.0):
    ...     server.aggregate({7: gcext.stc(torch.full((2,), change), p=1)})
    tensor([4., 4.])
    tensor([3., 3.])
    """

    def __init__(self, order: int = 1, inner: Aggregator | None = None) -> None:
        super().__init__(inner)
        self.order = plain("Predicted", "order", int, order)
        if self.order not in (0, 1, 2):
            raise ValueError(f"Predicted: order must be 0, 1 or 2, got {order}.")
        # Of each client, of each tensor of its packets, the last values, the newest first.
        self._held: dict[Any, list[tuple[Tensor, ...]]] = {}

    def _check(self, client: Any, packet: Packet) -> None:
        held = tuple(tuple(values[0].shape) for values in self._held.get(client, []))
        if held and held != shapes(packet):
            raise ValueError(
                f"Predicted: packets must have the shape {held} of the client's last one, got "
                f"{packet.shape} from client {client}."
            )
        super()._check(client, packet)

    def _aggregate(self, given: RoundInput) -> Tensor | list[Tensor]:
        if self.order == 0:
            return self.inner._aggregate(given)
        held, packets = dict(self._held), []
        for client, packet in zip(given.clients, given.packets, strict=True):
            members = packet.members or (packet,)
            before = held.get(client, [()] * len(members))
            newest = [
                _recovered(self.order, client, *each) for each in zip(before, members, strict=True)
            ]
            values = [(mine, *old)[: self.order] for mine, old in zip(newest, before, strict=True)]
            held[client] = values
            dense = [
                Packet("dense", member.shape, member.dtype, Contents(None, mine.view(-1)))
                for member, mine in zip(members, newest, strict=True)
            ]
            packets.append(Packet.group(dense) if packet.members else dense[0])
        update = self.inner._aggregate(replace(given, packets=packets))
        self._held = held
        return update

    def state_dict(self) -> dict[str, Any]:
        """See Aggregator."""
        held = [(client, self._held[client]) for client in sorted(self._held, key=by_kind)]
        return {"inner": self.inner.state_dict(), "order": self.order, "held": _copied(held)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See Aggregator."""
        with loading("Predicted", state):
            if set(state) != {"inner", "order", "held"} or state["order"] != self.order:
                raise ValueError(
                    f"Predicted: its state holds inner, held and order {self.order}, got "
                    f"{sorted(map(str, state))} and order {state.get('order')}."
                )
            held = {as_client("Predicted", client): kept for client, kept in _copied(state["held"])}
            self.inner.load_state_dict(state["inner"])
            self._held = held

    def snapshot(self) -> Any:
        """See Aggregator."""
        return self.inner.snapshot(), self._held

    def restore(self, snapshot: Any) -> None:
        """See Aggregator."""
        inner, self._held = snapshot
        self.inner.restore(inner)


def _divided(total: Tensor, number: int) -> Tensor:
    """Return a float64 sum divided by a number, in float32."""
    mean = torch.div(total, number, out=ops.new_like(total, torch.float64))
    return ops.new_like(total).copy_(mean)


def _recovered(order: int, client: Any, held: tuple[Tensor, ...], packet: Packet) -> Tensor:
    """Return what a client's packet stands for; ValueError where that is not finite."""
    try:
        value = recover(order, held, packet)
    except ValueError:
        value = None
    if value is None or not largest(value) <= LARGEST:
        raise ValueError(
            "Predicted: the prediction plus a packet must be finite in float32, got more from "
            f"client {client}. Leave it out, or bound the updates with NormBound."
        )
    return value


def _copied(held: Any) -> list[Any]:
    return [[client, [[x.clone() for x in old] for old in values]] for client, values in held]


register_aggregator("lastvalues", LastValues)
register_aggregator("predicted", Predicted)
