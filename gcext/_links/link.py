"""A link: how a tensor is sent, and what the receiving end makes of m packets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from gcext._codecs.base import Codec
from gcext._codecs.topk import Dense
from gcext._links.feedback import ErrorFeedback
from gcext._links.lowrank import PowerSGD
from gcext._links.sender import Sender
from gcext._links.stages import Stage
from gcext.aggregate import Aggregator, Mean

__all__ = ["Link", "LowRankLink"]

_REDUCED = {"dense": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Link:
    """One direction: how a tensor is sent, and what the receiving end makes of m packets.

    Sender: stages (momentum, clipping, predictors) -> residual -> codec. Receiver: decode ->
    predictor -> combine -> what follows it (projection, momentum, an outer step). A link is a
    value; the ends that it makes hold the state.

    Attributes:
        codec: how a tensor becomes a packet.
        feedback: whether the sending end keeps a residual.
        combine: makes a new aggregator, the receiver's predictor and what follows it included.
        decay: what the residual is multiplied with, in [0, 1].
        stages: each makes a new stage of the sending end.
        catch_up: of a way down: instead of broadcasts a client gets, when it is drawn, one packet
            of the difference between the copy that it holds and the model. What that leaves out
            stays in the difference. The server keeps what each client was sent.

    >>> import gcext
    >>> gcext.Link(gcext.codec("sign"), feedback=True).sender()
    ErrorFeedback('sign', 0 residuals, 0 pending)
    """

    codec: Codec
    feedback: bool = False
    combine: Callable[[], Aggregator] = Mean
    decay: float = 1.0
    stages: tuple[Callable[[], Stage], ...] = ()
    catch_up: bool = False

    def __post_init__(self) -> None:
        if self.catch_up and (self.feedback or self.stages):
            raise ValueError(
                "Link: catch_up must come without feedback and stages, got both. "
                "What a packet leaves out is in the next difference."
            )

    def __repr__(self) -> str:
        feedback = ", feedback=True" if self.feedback else ""
        decay = f", decay={self.decay:g}" if self.decay != 1 else ""
        names = ", ".join(repr(make()) for make in self.stages)
        stages = f", stages=[{names}]" if names else ""
        stages += ", catch_up=True" if self.catch_up else ""
        return f"Link({self.codec!r}{feedback}{decay}{stages}, combine={self.combine()!r})"

    def reduced(self, ranks: int) -> torch.dtype | None:
        """Return the dtype in which an all-reduce between ranks takes the place of packets.

        None: packets. Of two ranks a gather of 16-bit packets takes as many bytes, and is summed
        in float64.
        """
        if self.feedback or self.stages or type(self.combine()) is not Mean:
            return None
        dtype = _REDUCED.get(self.codec.name)
        return None if dtype != torch.float32 and ranks <= 2 else dtype

    def sender(self, seed: int | None = None, exact_below: int = 0) -> Sender:
        """Return a new sending end, with an empty memory; seed and exact_below as of Sender.

        Raises ValueError for an exact_below above 0 where the receiver takes no dense packets.
        """
        if exact_below and (error := self._refuses_dense()):
            raise ValueError(f"Link: exact_below must be 0, got {exact_below}: {error}")
        stages = [make() for make in self.stages]
        if self.feedback:
            return ErrorFeedback(
                self.codec, self.decay, seed=seed, exact_below=exact_below, stages=stages
            )
        return Sender(self.codec, seed=seed, exact_below=exact_below, stages=stages)

    @property
    def takes_dense(self) -> bool:
        """Whether tensors may be sent exactly. A vote takes signs only."""
        return self._refuses_dense() is None

    def _refuses_dense(self) -> ValueError | None:
        try:
            self.combine().check(0, Dense().encode(torch.zeros(1)), loss=0.0)
        except ValueError as error:
            return error
        return None

    def receiver(self) -> Aggregator:
        """Return a new receiving end, with an empty history."""
        return self.combine()


@dataclass(frozen=True, repr=False)
class LowRankLink(Link):
    """A link whose sending end is PowerSGD: low-rank factors, with a warm start."""

    def sender(self, seed: int | None = None, exact_below: int = 0) -> Sender:
        """See Link. The codec is ``lowrank``."""
        rank, seed = self.codec.options()["rank"], 0 if seed is None else seed
        return PowerSGD(rank, seed, feedback=self.feedback, exact_below=exact_below)
