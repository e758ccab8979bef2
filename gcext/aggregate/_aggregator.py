"""The receiving end of a link: the packets of a round in, one dense update out."""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from gcext._packet.packet import Packet
from gcext._packet.state import check_state
from gcext.aggregate._clients import in_order
from gcext.aggregate._finite import LARGEST, check_finite, normalised
from gcext.aggregate._history import History
from gcext.aggregate._sums import as_number, check_alike, is_weight, weighted_sum

__all__ = ["Aggregator", "Delegating", "Mean", "RoundInput", "Wrapper"]


@dataclass(frozen=True)
class RoundInput:
    """A round's validated input, in the order of the clients' ids; one entry for each client.

    Attributes:
        clients: their ids, all numbers or all strings, rising.
        packets: of one shape, at least one.
        losses: finite; None unless the aggregator uses losses.
        weights: positive and finite; None where none were given.
        number: the round's; None where the caller does not count.
        most: the largest magnitude that the update may have.
    """

    clients: list[Any]
    packets: list[Packet]
    losses: list[float] | None
    weights: list[float] | None
    number: int | None
    most: float = LARGEST


class Aggregator(ABC):
    """The receiving end of a link.

    A subclass implements ``_aggregate``, sets ``uses_losses`` or ``uses_weights`` where it needs
    them, and overrides ``_check`` where some packets are of no use to it. One with a state of its
    own also overrides ``state_dict`` and ``load_state_dict``.

    >>> import gcext, torch
    >>> class Sum(gcext.aggregate.Aggregator):
    ...     def _aggregate(self, given):
    ...         return gcext.combine(given.packets, [1.0] * len(given.packets))
    >>> Sum().aggregate({client: gcext.stc(torch.ones(2), p=1) for client in range(3)})
    tensor([3., 3.])
    """

    uses_losses = False
    """Whether every client must report a loss."""
    uses_weights = False
    """Whether weights may be given; they are refused otherwise."""
    checks_finite = False
    """Whether ``_aggregate`` itself raises ValueError where an element of the update would be above
    ``given.most`` in magnitude, or no number, before its state changes. All of gcext's do; of
    others the update is checked when they return it."""

    @abstractmethod
    def _aggregate(self, given: RoundInput) -> Tensor | list[Tensor]:
        """Return the update of a round as new tensors, and make it part of the state.

        What is raised must leave the state as it was.
        """

    def aggregate(
        self,
        packets_by_client: Mapping[Any, Packet],
        losses: Mapping[Any, float] | None = None,
        round: int | None = None,
        weights: Mapping[Any, float] | None = None,
    ) -> Tensor | list[Tensor]:
        """Return the update that a round's packets amount to.

        Args:
            packets_by_client: this round's packets, of one shape, by the clients' ids, which are
                all numbers or all strings; the order of the mapping does not matter.
            losses: each client's mean training loss, finite; needed where ``uses_losses``, and
                ignored otherwise.
            round: this round's number; rounds rise. None: the last one plus one, from 1.
            weights: each client's weight, positive and finite; only where ``uses_weights``.

        Returns:
            float32 of the packets' shape; of groups a list, one for each member.

        Every element of it is finite.

        Raises ValueError where there is no packet, shapes differ, a loss or weight is missing, not
        in its range or not used, ``check`` refuses a packet, or the update would not be finite in
        float32 (the client that adds the most to it is named); TypeError for what is no mapping,
        packet or number, and for ids of mixed types. The state is then as before.
        """
        op = type(self).__name__
        if not isinstance(packets_by_client, Mapping):
            raise TypeError(
                f"{op}: needs a mapping of clients to packets, got "
                f"{type(packets_by_client).__name__}. Use dict(enumerate(packets))."
            )
        for what, numbers in (("losses", losses), ("weights", weights)):
            if numbers is not None and not isinstance(numbers, Mapping):
                raise TypeError(
                    f"{op}: {what} must be a mapping of clients to numbers, got "
                    f"{type(numbers).__name__}. Use dict(zip(clients, {what}))."
                )
        clients = in_order(op, packets_by_client)
        if not clients:
            raise ValueError(f"{op}: needs at least one client's packet, got none.")
        if weights is not None and not self.uses_weights:
            raise ValueError(
                f"{op}: takes no weights, got {len(weights)}. Leave them out, or use Mean."
            )
        packets = [packets_by_client[client] for client in clients]
        check_alike(op, packets, clients)
        for client, packet in zip(clients, packets, strict=True):
            weight = None if weights is None else weights.get(client)
            if weights is not None and weight is None:
                raise ValueError(
                    f"{op}: needs a weight for every client, got none for client {client}."
                )
            self.check(client, packet, None if losses is None else losses.get(client), weight)
        used = losses if self.uses_losses else None
        given = RoundInput(
            clients,
            packets,
            None if used is None else [float(used[client]) for client in clients],
            None if weights is None else [float(weights[client]) for client in clients],
            round,
        )
        update = self._aggregate(given)
        if not self.checks_finite:
            check_finite(op, update, packets, None, clients)
        return update

    def check(
        self, client: Any, packet: Packet, loss: float | None = None, weight: float | None = None
    ) -> None:
        """Raise ValueError for what one client sent that could not be used; None is not given.

        A loss or weight that is no number is a TypeError.
        """
        problem = remedy = ""
        used = (("losses", loss if self.uses_losses else None), ("weights", weight))
        for what, number in used:
            if number is not None:
                as_number(type(self).__name__, what, number, f"client {client}")
        if self.uses_losses and loss is None:
            problem = "needs a loss for every client, got none"
        elif self.uses_losses and loss is not None and not math.isfinite(loss):
            problem = f"a loss must be finite, got {loss}"
        elif weight is not None and not self.uses_weights:
            problem, remedy = f"takes no weights, got {weight}", " Leave it out, or use Mean."
        elif weight is not None and not is_weight(weight):
            problem = f"weights must be positive and finite, got {weight}"
        if problem:
            raise ValueError(f"{type(self).__name__}: {problem} for client {client}.{remedy}")
        self._check(client, packet)

    def _check(self, client: Any, packet: Packet) -> None:
        """Raise ValueError for a packet that is of no use; by default each has one."""
        return

    def state_dict(self) -> dict[str, Any]:
        """Return all that later rounds depend on: numbers, bytes, tensors, lists and dicts."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from where ``state_dict`` was called; ValueError, and nothing changed, for
        another aggregator's state; TypeError for what is no dict.
        """
        check_state(type(self).__name__, state)
        if state:
            got = sorted(map(str, state))
            raise ValueError(f"{type(self).__name__}: its state is empty, got {got}.")

    def snapshot(self) -> Any:
        """Return what ``restore`` goes back to within this process, cheaper where it can be."""
        return self.state_dict()

    def restore(self, snapshot: Any) -> None:
        """Be as when ``snapshot`` was called."""
        self.load_state_dict(snapshot)

    def __repr__(self) -> str:
        """Return the constructor's call: numbers, other aggregators, and what is no default."""
        shown: list[str] = []
        named = False  # what follows an argument by name is one, too
        for name, parameter in inspect.signature(type(self)).parameters.items():
            value = getattr(self, name, parameter.default)
            if parameter.default is parameter.empty or isinstance(value, Aggregator):
                shown.append(f"{name}={value!r}" if named else repr(value))
            elif isinstance(value, int | float) or (
                isinstance(value, str) and value != parameter.default
            ):
                shown.append(f"{name}={value!r}")
                named = True
        return f"{type(self).__name__}({', '.join(shown)})"


class Delegating(Aggregator):
    """An aggregator whose state is another object's: a history's, or an inner aggregator's."""

    @property
    @abstractmethod
    def _state_of(self) -> Aggregator | History: ...

    def state_dict(self) -> dict[str, Any]:
        return self._state_of.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._state_of.load_state_dict(state)

    def snapshot(self) -> Any:
        return self._state_of.snapshot()

    def restore(self, snapshot: Any) -> None:
        self._state_of.restore(snapshot)


class Mean(Aggregator):
    """The mean of the updates, weighted where weights are given.

    Federated averaging (McMahan et al. 2017) and the server of STC (Sattler et al. 2019). Summed in
    the order of the clients' ids. One client can move it anywhere; docs/federated-server.md
    names what bounds that.

    >>> import gcext, torch
    >>> packets = {7: gcext.stc(torch.ones(2), p=1), 3: gcext.stc(-torch.ones(2), p=1)}
    >>> gcext.aggregate.Mean().aggregate(packets, weights={3: 1, 7: 3})
    tensor([0.5000, 0.5000])
    """

    uses_weights = True
    checks_finite = True

    def _aggregate(self, given: RoundInput) -> Tensor | list[Tensor]:
        m = len(given.packets)
        weights = [1.0 / m] * m if given.weights is None else normalised(given.weights)
        return weighted_sum("Mean", given.packets, weights, given.clients, given.most)


class Wrapper(Delegating):
    """An aggregator in front of another: it needs, refuses and remembers what the inner one does.

    inner: None: ``Mean()``.
    """

    def __init__(self, inner: Aggregator | None) -> None:
        if not (inner is None or isinstance(inner, Aggregator)):
            raise TypeError(
                f"{type(self).__name__}: inner must be an aggregator, got {inner!r:.100}. "
                "Pass one, such as Mean()."
            )
        self.inner = Mean() if inner is None else inner
        self.uses_losses = self.inner.uses_losses
        self.uses_weights = self.inner.uses_weights
        self.checks_finite = self.inner.checks_finite

    @property
    def _state_of(self) -> Aggregator:
        return self.inner

    def _check(self, client: Any, packet: Packet) -> None:
        self.inner._check(client, packet)
