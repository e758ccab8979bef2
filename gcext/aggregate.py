"""What the receiver makes of m packets: their mean, or the projection against conflicts.

Nothing is decompressed: packets are combined, and multiplied with each other, as they are. An
aggregator is what stands at the receiving end of a link; `Mean` and `Projection` share one
interface, and a new one needs its three methods and no more.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gcext import _server_ops
from gcext._project import project
from gcext.packet import Packet

__all__ = ["Aggregator", "Mean", "Projection", "combine", "gram", "mean"]


def combine(packets: Sequence[Packet], weights: Sequence[float]) -> Tensor | Any:
    """Return the weighted sum of packets of one shape, whatever their methods.

    Each element is summed in float64 in the packets' order and rounded once, so the result does
    not depend on threads or instruction set.

    Args:
        packets: at least one.
        weights: one finite number a packet.

    Returns:
        float32 of the packets' shape; a list of them, one a member, where the packets are groups.

    Raises ValueError where shapes differ, or weights do not fit or are not finite.

    >>> import gcext, torch
    >>> a, b = (gcext.stc(torch.tensor(t), p=0.5) for t in ([3.0, 0.0], [0.0, -1.0]))
    >>> gcext.combine([a, b], [1.0, 0.5])
    tensor([ 3.0000, -0.5000])
    """
    _check_packets("combine", packets)
    if len(weights) != len(packets):
        raise ValueError(
            f"combine: needs a weight for every packet, got {len(weights)} for {len(packets)}."
        )
    numbers = [float(weight) for weight in weights]
    for i, number in enumerate(numbers):
        if not math.isfinite(number):
            raise ValueError(f"combine: weights must be finite, got {number} for packet {i}.")
    return _combine(packets, numbers)


def gram(packets: Sequence[Packet]) -> Tensor:
    """Return all pairwise dot products of packets of one shape, whatever their methods.

    Between ternary packets the product is integer work: the scales' product times (agreements -
    disagreements) of the signs, so its sign is exact. Other pairs are summed in float64 in a fixed
    order. The dot product of two groups is the sum over their members.

    Returns:
        float64 of shape (m, m), symmetric bit for bit.

    Raises ValueError where shapes differ or there is no packet.

    >>> import gcext, torch
    >>> a, b = (gcext.stc(torch.tensor(t), p=1) for t in ([3.0, 3.0], [-1.0, -1.0]))
    >>> gcext.gram([a, b])
    tensor([[18., -6.],
            [-6.,  2.]], dtype=torch.float64)
    """
    _check_packets("gram", packets)
    if packets[0].method == "group":
        total = torch.zeros(len(packets), len(packets), dtype=torch.float64)
        for members in _columns(packets):
            total += gram(members).to(total.device)
        return total
    scale = [packet.scale if packet.method == "ternary" else 0.0 for packet in packets]
    return _server_ops.gram(*_pairs(packets), scale, packets[0].numel)


def mean(packets: Sequence[Packet], weights: Sequence[float] | None = None) -> Tensor | Any:
    """Return the mean of packets of one shape, weighted where weights are given.

    Args:
        packets: at least one.
        weights: one positive, finite number a packet, such as its client's samples; they are
            divided by their sum.

    Returns:
        float32 of the packets' shape; a list of them, one a member, where the packets are groups.

    Raises ValueError where shapes differ, or weights do not fit or are not positive and finite.

    >>> import gcext, torch
    >>> packets = [gcext.codec("dense").encode(torch.tensor([x])) for x in (1.0, 5.0)]
    >>> gcext.aggregate.mean(packets), gcext.aggregate.mean(packets, [3, 1])
    (tensor([3.]), tensor([2.]))
    """
    _check_packets("mean", packets)
    if weights is None:
        return _combine(packets, [1.0 / len(packets)] * len(packets))
    if len(weights) != len(packets):
        raise ValueError(
            f"mean: needs a weight for every packet, got {len(weights)} for {len(packets)}."
        )
    numbers = [float(weight) for weight in weights]
    for i, number in enumerate(numbers):
        if not (math.isfinite(number) and number > 0):
            raise ValueError(
                f"mean: weights must be positive and finite, got {number} for packet {i}."
            )
    total = math.fsum(numbers)
    return _combine(packets, [number / total for number in numbers])


class Aggregator(ABC):
    """The receiving end of a link: the packets of a round in, one dense update out."""

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

    def snapshot(self) -> Any:
        """Return what ``restore`` goes back to within this process, cheaper where it can be."""
        return self.state_dict()

    def restore(self, snapshot: Any) -> None:
        """Be as when ``snapshot`` was called."""
        self.load_state_dict(snapshot)


class Mean(Aggregator):
    """The mean of the updates, weighted where weights are given; it remembers nothing.

    Federated averaging (McMahan et al. 2017) and the server of STC (Sattler et al. 2019).

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
        _check_clients("Mean", packets_by_client)
        clients = sorted(packets_by_client)
        packets = [packets_by_client[client] for client in clients]
        if weights is None:
            return mean(packets)
        for client in clients:
            _check_number("Mean", "weight", client, weights)
            if not weights[client] > 0:
                raise ValueError(
                    f"Mean: weights must be positive, got {weights[client]} for client {client}."
                )
        return mean(packets, [weights[client] for client in clients])

    def state_dict(self) -> dict[str, Any]:
        """Return an empty dict."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raise ValueError where ``state`` is another aggregator's."""
        if state:
            raise ValueError(f"Mean: its state is empty, got {sorted(state)}.")


class Projection(Aggregator):
    r"""The mean of the updates after conflicts among them were projected away.

    FedFV (Wang et al. 2021, arXiv:2104.14937) on compressed updates, as in projected STC (Tian
    2022). Two updates conflict when their dot product is negative.

    * Internal: except for the ``floor(alpha*m)`` clients of largest loss, each update c meets the
      others in order of loss, smallest first: where c·g_i < 0, c ← c - (c·g_i / ‖g_i‖²) g_i. Then
      g is the mean.
    * External: for each of the last ``tau`` rounds, oldest first, h is the sum of the updates of
      clients last drawn then whose dot product with g is negative; where g·h < 0,
      g ← g - (g·h / ‖h‖²) h.
    * The length of the plain mean is given back: g ← g ‖mean‖ / ‖g‖, and 0 where ‖g‖ = 0. (Printed
      without the norm.)

    All of this stays in the span of the packets, so it is algebra on their Gram matrix and one
    weighted sum; no packet is decompressed. The mean is the plain one, as published: weights are
    accepted, as the interface has them, and not looked at. Equal losses go by the client's number.

    Args:
        alpha: share of clients, those of largest loss, that keep their update; in [0, 1].
        tau: rounds that are remembered, at least 0; memory is the packets of that many rounds.

    >>> import gcext, torch
    >>> packets = {i: gcext.stc(torch.tensor(t), p=1) for i, t in enumerate(([1., 1.], [-2., 2.]))}
    >>> gcext.aggregate.Projection(alpha=0).aggregate(packets, {0: 0.1, 1: 0.2})
    tensor([-0.5000,  1.5000])
    """

    def __init__(self, alpha: float = 0.1, tau: int = 1) -> None:
        if not 0 <= alpha <= 1:
            raise ValueError(f"Projection: alpha must be in [0, 1], got {alpha}.")
        if isinstance(tau, bool) or not isinstance(tau, int) or tau < 0:
            raise ValueError(f"Projection: tau must be a whole number from 0 up, got {tau}.")
        self.alpha = float(alpha)
        self.tau = tau
        self._round: int | None = None
        self._history: dict[int, dict[int, Packet]] = {}  # round -> client -> its last packet

    def aggregate(
        self,
        packets_by_client: Mapping[int, Packet],
        losses: Mapping[int, float] | None = None,
        round: int | None = None,
        weights: Mapping[int, float] | None = None,
    ) -> Tensor | Any:
        """Return the projected mean and remember the packets.

        ``weights`` are not looked at: the projection is unweighted as published.

        Raises ValueError where shapes differ from each other or from the remembered ones, a loss is
        missing or not finite, or the round does not rise. The state is then as before.
        """
        _check_clients("Projection", packets_by_client)
        if losses is None:
            raise ValueError("Projection: needs the clients' losses, got None.")
        for client in packets_by_client:
            _check_number("Projection", "loss", client, losses)
        now = self._next_round(round)
        clients = sorted(packets_by_client, key=lambda client: (float(losses[client]), client))
        packets = [packets_by_client[client] for client in clients]

        # Clients drawn now count as of now, whatever they sent before.
        history: dict[int, dict[int, Packet]] = {}
        for past in range(now - self.tau, now):
            held = self._history.get(past, {})
            history[past] = {c: p for c, p in sorted(held.items()) if c not in packets_by_client}
        m = len(packets)
        spans = []
        for by_client in history.values():
            spans.append(range(len(packets), len(packets) + len(by_client)))
            packets += by_client.values()
        _check_packets("Projection", packets)

        coefficients = project(gram(packets).cpu().numpy(), m, self.alpha, spans)
        used = np.flatnonzero(coefficients).tolist() or [0]
        update = _combine([packets[i] for i in used], [float(coefficients[i]) for i in used])

        if self.tau > 0:  # rounds before the window of the next one can never count again
            kept = {past: held for past, held in history.items() if held and past > now - self.tau}
            self._history = {**kept, now: {int(c): p for c, p in packets_by_client.items()}}
        self._round = now
        return update

    def state_dict(self) -> dict[str, Any]:
        """Return tau, the last round, and the remembered packets as bytes, by round and client."""
        history = {
            past: {client: packet.to_bytes() for client, packet in held.items()}
            for past, held in self._history.items()
        }
        return {"tau": self.tau, "round": self._round, "history": history}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from where ``state_dict`` was called.

        Raises ValueError where tau is another one (other rounds were remembered) or the state is
        no Projection's, gcext.DecodeError where a packet is damaged; the state is then as before.
        """
        if set(state) != {"tau", "round", "history"}:
            raise ValueError(
                f"Projection: a state holds tau, round and history, got {sorted(state)}."
            )
        if state["tau"] != self.tau:
            raise ValueError(
                f"Projection: the state's tau must be {self.tau}, got {state['tau']}. "
                "Make the Projection with the tau of the state."
            )
        history = {
            int(past): {int(client): Packet.from_bytes(m) for client, m in held.items()}
            for past, held in state["history"].items()
        }
        self._round = None if state["round"] is None else int(state["round"])
        self._history = history

    def snapshot(self) -> Any:
        """Return references and no bytes: a round puts a new history in the old one's place."""
        return self._round, self._history

    def restore(self, snapshot: Any) -> None:
        """Be as when ``snapshot`` was called."""
        self._round, self._history = snapshot

    def _next_round(self, round: int | None) -> int:
        if round is None:
            return 1 if self._round is None else self._round + 1
        if self._round is not None and round <= self._round:
            raise ValueError(
                f"Projection: rounds must rise, got {round} after {self._round}. "
                "To repeat a round, load the state from before it."
            )
        return int(round)


def _combine(packets: Sequence[Packet], weights: Sequence[float]) -> Tensor | Any:
    if packets[0].method == "group":
        return [_combine(members, weights) for members in _columns(packets)]
    out = _server_ops.combine(*_pairs(packets), weights, packets[0].numel)
    return out.view(packets[0].shape)


def _pairs(packets: Sequence[Packet]) -> tuple[list[Tensor], list[Tensor]]:
    none = torch.empty(0, dtype=torch.int32, device=packets[0].device)
    return [none if p.index is None else p.index for p in packets], [p.value for p in packets]


def _columns(groups: Sequence[Packet]) -> list[tuple[Packet, ...]]:
    """The packets of each tensor, of groups of one shape."""
    return list(zip(*(group.members for group in groups), strict=True))


def _check_packets(op: str, packets: Sequence[Packet]) -> None:
    if not packets:
        raise ValueError(f"{op}: needs at least one packet, got none.")
    first = packets[0]
    for packet in packets[1:]:
        if packet.shape != first.shape or (packet.method == "group") != (first.method == "group"):
            raise ValueError(
                f"{op}: packets must have one shape, got {first.shape} and {packet.shape}."
            )


def _check_clients(op: str, packets: Mapping[int, Packet]) -> None:
    clients = sorted(packets)
    if not clients:
        raise ValueError(f"{op}: needs at least one client's packet, got none.")
    first = clients[0]
    for client in clients[1:]:
        if packets[client].shape != packets[first].shape:
            raise ValueError(
                f"{op}: packets must have one shape, got {packets[first].shape} from client "
                f"{first} and {packets[client].shape} from client {client}."
            )


def _check_number(op: str, what: str, client: int, numbers: Mapping[int, float]) -> None:
    if client not in numbers:
        raise ValueError(f"{op}: needs a {what} for every client, got none for client {client}.")
    if not math.isfinite(numbers[client]):
        raise ValueError(
            f"{op}: a {what} must be finite, got {numbers[client]} for client {client}."
        )
