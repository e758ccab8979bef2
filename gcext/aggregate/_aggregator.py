"""The receiving end of a link: the packets of a round in, one dense update out."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from gcext._packet.packet import Packet
from gcext.aggregate._history import History
from gcext.aggregate._sums import alike, mean

__all__ = ["Aggregator", "Mean"]


class Aggregator(ABC):
    """What stands at the receiving end of a link. A new one needs the three abstract methods."""

    @abstractmethod
    def aggregate(
        self,
        packets_by_client: Mapping[int, Packet],
        losses: Mapping[int, float] | None = None,
        round: int | None = None,
        weights: Mapping[int, float] | None = None,
    ) -> Tensor | Any:
        """Return the update that a round's packets amount to.

        Args:
            packets_by_client: this round's packets, of one shape; the order of the mapping does
                not matter.
            losses: each client's mean training loss, where the aggregator looks at it.
            round: this round's number; rounds rise. None: the last one plus one, from 1.
            weights: each client's weight, where the aggregator looks at it.

        Returns:
            float32 of the packets' shape (groups: a list, one a member).

        Raises ValueError for what the aggregator cannot use; its state is then as before.
        """

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Return all that later rounds depend on: numbers, bytes, lists and dicts of them."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from where ``state_dict`` was called."""

    def check(
        self, client: int, packet: Packet, loss: float | None = None, weight: float | None = None
    ) -> None:
        """Raise ValueError for what one client sent that could not be used; None is not given."""
        return

    def snapshot(self) -> Any:
        """Return what ``restore`` goes back to within this process, cheaper where it can be."""
        return self.state_dict()

    def restore(self, snapshot: Any) -> None:
        """Be as when ``snapshot`` was called."""
        self.load_state_dict(snapshot)

    def _checked(
        self,
        packets: Mapping[int, Packet],
        losses: Mapping[int, float] | None,
        weights: Mapping[int, float] | None,
    ) -> list[int]:
        """The clients in order of their numbers, once the packets of all passed."""
        op = type(self).__name__
        clients = sorted(packets)
        if not clients:
            raise ValueError(f"{op}: needs at least one client's packet, got none.")
        for client in clients:
            check_same_shape(op, clients[0], packets[clients[0]], client, packets[client])
            loss = None if losses is None else losses.get(client)
            weight = None if weights is None else weights.get(client)
            self.check(client, packets[client], loss, weight)
        return clients


class Stateless(Aggregator):
    """An aggregator that remembers nothing from one round to the next."""

    def state_dict(self) -> dict[str, Any]:
        """Return an empty dict."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raise ValueError where ``state`` is another aggregator's."""
        if state:
            raise ValueError(f"{type(self).__name__}: its state is empty, got {sorted(state)}.")


class Keeping(Aggregator):
    """An aggregator whose state is its keeper's: its history's, or the inner aggregator's."""

    @property
    @abstractmethod
    def _keeper(self) -> Aggregator | History: ...

    def state_dict(self) -> dict[str, Any]:
        """Return the keeper's state."""
        return self._keeper.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load the keeper's state."""
        self._keeper.load_state_dict(state)

    def snapshot(self) -> Any:
        """Return the keeper's snapshot."""
        return self._keeper.snapshot()

    def restore(self, snapshot: Any) -> None:
        """Restore the keeper."""
        self._keeper.restore(snapshot)


class Mean(Stateless):
    """The mean of the updates, weighted where weights are given.

    Federated averaging (McMahan et al. 2017) and the server of STC (Sattler et al. 2019). One
    client can move it anywhere: see docs/server.md for what bounds that.

    >>> import gcext, torch
    >>> packets = {7: gcext.stc(torch.ones(2), p=1), 3: gcext.stc(-torch.ones(2), p=1)}
    >>> gcext.aggregate.Mean().aggregate(packets, weights={3: 1, 7: 3})
    tensor([0.5000, 0.5000])
    """

    def aggregate(
        self,
        packets_by_client: Mapping[int, Packet],
        losses: Mapping[int, float] | None = None,
        round: int | None = None,
        weights: Mapping[int, float] | None = None,
    ) -> Tensor | Any:
        """Return the mean, summed in the order of the clients' numbers.

        Raises ValueError where shapes differ, or a weight is missing or not positive and finite.
        """
        clients = self._checked(packets_by_client, losses, weights)
        packets = [packets_by_client[client] for client in clients]
        if weights is None:
            return mean(packets)
        for client in clients:
            if client not in weights:
                raise ValueError(
                    f"Mean: needs a weight for every client, got none for client {client}."
                )
        return mean(packets, [weights[client] for client in clients])

    def check(
        self, client: int, packet: Packet, loss: float | None = None, weight: float | None = None
    ) -> None:
        """Raise ValueError where the weight is not positive and finite."""
        if weight is not None and not (math.isfinite(weight) and weight > 0):
            raise ValueError(
                f"Mean: weights must be positive and finite, got {weight} for client {client}."
            )


def check_same_shape(op: str, one: int, packet: Packet, other: int, theirs: Packet) -> None:
    """Raise ValueError where the packets of two clients do not fit together."""
    if not alike(packet, theirs):
        raise ValueError(
            f"{op}: packets must have one shape, got {packet.shape} from client {one} and "
            f"{theirs.shape} from client {other}."
        )
