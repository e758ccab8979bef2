"""A link: how a tensor is sent, and what the receiving end makes of m packets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from gcext._codecs.base import Codec
from gcext._links.feedback import ErrorFeedback
from gcext._links.sender import Sender
from gcext.aggregate import Aggregator, Mean

__all__ = ["Link"]


@dataclass(frozen=True)
class Link:
    """One direction: how a tensor is sent, and what the receiving end makes of m packets.

    Sender: memory -> codec. Receiver: decode -> combine (and, for a projection, what follows it).

    Attributes:
        codec: how a tensor becomes a packet.
        feedback: whether the sending end keeps a residual.
        combine: makes a new aggregator.

    >>> import gcext
    >>> gcext.Link(gcext.codec("sign"), feedback=True).sender()
    ErrorFeedback('sign', 0 residuals, 0 pending)
    """

    codec: Codec
    feedback: bool = False
    combine: Callable[[], Aggregator] = Mean

    def __repr__(self) -> str:
        feedback = ", feedback=True" if self.feedback else ""
        return f"Link({self.codec!r}{feedback}, combine={self.combine()!r})"

    def sender(self, seed: int | None = None) -> Sender:
        """Return a new sending end, with an empty memory; seed as of Sender."""
        if self.feedback:
            return ErrorFeedback(self.codec, seed=seed)
        return Sender(self.codec, seed=seed)

    def receiver(self) -> Aggregator:
        """Return a new receiving end, with an empty history."""
        return self.combine()
