"""The mean after conflicts among the updates were projected away."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from gcext._spec import plain
from gcext.aggregate._aggregator import Delegating, RoundInput
from gcext.aggregate._history import History
from gcext.aggregate._project import Order, project
from gcext.aggregate._registry import register_aggregator
from gcext.aggregate._sums import check_alike, gram, weighted_sum

__all__ = ["Projection"]


class Projection(Delegating):
    r"""The mean of the updates after conflicts among them were projected away.

    FedFV (Wang et al. 2021, arXiv:2104.14937) on compressed updates, as in projected STC (Tian
    2022). Two updates conflict when their dot product is negative.

    * Internal: except for the ``floor(alpha*m)`` clients of largest loss, each update c is
      compared with the others in order of loss, smallest first: where c·g_i < 0,
      c ← c - (c·g_i / ‖g_i‖²) g_i. Then g is the mean.
    * External: for each of the last ``tau`` rounds, oldest first, h is the sum of the updates of
      clients last drawn then whose dot product with g is negative; where g·h < 0,
      g ← g - (g·h / ‖h‖²) h.
    * The length of the plain mean is given back: g ← g ‖mean‖ / ‖g‖, and 0 where ‖g‖ = 0. (Printed
      without the norm.)

    All of this stays in the span of the packets, so it is algebra on their Gram matrix and one
    weighted sum; no packet is decompressed. The mean is unweighted, as published. Of equal losses
    the lower client id comes first.

    Args:
        alpha: share of clients, those of largest loss, that keep their update; in [0, 1].
        tau: how many earlier rounds count, at least 0.
        history: where every client's last packet is kept; None: in memory. Only the packets of
            the last ``tau`` rounds are ever unpacked. Its state is this aggregator's.
        order: "paper", or "fedfv" for what its authors run: it keeps ``floor(alpha*m + 1 - alpha)``
            updates where alpha > 0, and takes rounds t - tau + 1 to t, this round's own updates
            last, but none before round tau.

    >>> import gcext, torch
    >>> packets = {i: gcext.stc(torch.tensor(t), p=1) for i, t in enumerate(([1., 1.], [-2., 2.]))}
    >>> gcext.aggregate.Projection(alpha=0).aggregate(packets, {0: 0.1, 1: 0.2})
    tensor([-0.5000,  1.5000])
    """

    uses_losses = True
    checks_finite = True

    def __init__(
        self,
        alpha: float = 0.1,
        tau: int = 1,
        history: History | None = None,
        order: Order = "paper",
    ) -> None:
        alpha = plain("Projection", "alpha", float, alpha)
        if not 0 <= alpha <= 1:
            raise ValueError(f"Projection: alpha must be in [0, 1], got {alpha}.")
        if isinstance(tau, bool) or not isinstance(tau, int) or tau < 0:
            raise ValueError(f"Projection: tau must be a whole number from 0 up, got {tau}.")
        if order not in ("paper", "fedfv"):
            raise ValueError(f"Projection: order must be paper or fedfv, got {order!r}.")
        if not (history is None or isinstance(history, History)):
            raise TypeError(f"Projection: history must be a gcext.History, got {history!r:.100}.")
        self.alpha = alpha
        self.order = order
        self.tau = tau
        self.history = History() if history is None else history
        self.history.keep_unpacked(tau)

    @property
    def _state_of(self) -> History:
        return self.history

    def _aggregate(self, given: RoundInput) -> Tensor | list[Tensor]:
        now = self._next_round(given.number)
        assert given.losses is not None
        now_sent = dict(zip(given.clients, given.packets, strict=True))
        by_loss = sorted(zip(given.losses, given.clients, strict=True))
        clients = [client for _, client in by_loss]
        packets = [now_sent[client] for client in clients]

        m, device = len(packets), packets[0].device
        spans = []
        for past in self._past(now):
            # Clients drawn now count as of now, whatever they sent before.
            held = [c for c in self.history.clients_of_round(past) if c not in now_sent]
            spans.append(range(len(packets), len(packets) + len(held)))
            clients += held
            packets += [self.history.packet(client, device) for client in held]
        if self.order == "fedfv" and now >= self.tau > 0:
            spans.append(range(m))
        check_alike("Projection", packets)

        dots = gram(packets).cpu().numpy()
        coefficients = project(dots, m, self.alpha, spans, self.order)
        used = np.flatnonzero(coefficients).tolist() or [0]
        update = weighted_sum(
            "Projection",
            [packets[i] for i in used],
            [float(coefficients[i]) for i in used],
            [clients[i] for i in used],
            given.most,
        )
        self.history.put(now, now_sent)
        return update

    def _past(self, now: int) -> range:
        """Return the earlier rounds that count."""
        if self.order == "paper":
            return range(now - self.tau, now)
        return range(now - self.tau + 1, now) if now >= self.tau else range(0)

    def _next_round(self, round: int | None) -> int:
        last = self.history.last_round
        if round is None:
            return 1 if last is None else last + 1
        if last is not None and round <= last:
            raise ValueError(
                f"Projection: rounds must rise, got {round} after {last}. "
                "To repeat a round, load the state from before it."
            )
        return int(round)


register_aggregator("projection", Projection)
