"""How the gradients of a bucket are averaged: what packets and all-reduces have in common."""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from gcext._packet.state import loading

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["Exchange", "Method", "NonFiniteError", "cause", "mean_of"]


class NonFiniteError(ValueError):
    """A gradient of this rank is not finite."""


class Method(ABC):
    """How gradients are averaged, and what this rank keeps for it from step to step."""

    def __init__(self, group: ProcessGroup | None) -> None:
        self.group = group
        self.world = dist.get_world_size(group)
        self.seconds = {"encode": 0.0, "decode": 0.0}
        self._lock = threading.Lock()

    @abstractmethod
    def begin(self, grads: Mapping[str, Tensor], flat: Tensor) -> Exchange:
        """Begin to average the gradients of a bucket; flat: its buffer.

        What is wrong on this rank alone must not raise: the others learn it through the exchange.
        """

    def begin_step(self, number: int) -> None:
        """Prepare for a step, counted from 1."""
        return

    def commit(self) -> None:
        """Let the step count: every rank has everything."""
        return

    def rollback(self) -> None:
        """Be as before the step."""
        return

    def state_dict(self) -> dict[str, Any]:
        """Return all that later steps depend on."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state; ValueError, and nothing changed, for one that does not fit."""
        with loading("ddp.State", state, ()):
            return

    def merged(self, states: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Return the state of any rank of another world size: the mean of what ranks held."""
        return dict(mean_of(states))

    @contextmanager
    def clock(self, what: str) -> Iterator[None]:
        """Add the time that something takes to ``seconds``."""
        start = time.perf_counter()
        try:
            yield
        finally:
            with self._lock:  # packets are decoded in other threads
                self.seconds[what] += time.perf_counter() - start


class Exchange(ABC):
    """The gradients of one bucket under way: one collective, or two.

    Collectives begin in the constructor and in ``advance`` only, which all ranks call in one order.

    Attributes:
        error: of this rank, which the others know nothing of but that there is one.
        sent_bytes, received_bytes: of this rank.
    """

    error: Exception | None = None
    sent_bytes = 0
    received_bytes = 0

    @abstractmethod
    def advance(self) -> bool:
        """Wait for the first collective and begin the second; False where a rank has failed.

        What is returned is the same on all ranks.
        """

    def confirm(self) -> bool:
        """Wait for the second collective; False where its result cannot be used, on all ranks."""
        return True

    def settle(self) -> None:
        """Wait until nothing of this exchange runs beside; raises nothing."""
        return

    @abstractmethod
    def finish(self) -> None:
        """Wait, and overwrite the gradients with their mean, if that is not done already."""


def mean_of(values: Sequence[Any], count: int = 0) -> Any:
    """Return the mean of what ranks held, within dicts and lists too; a tensor not held is 0.

    Of whole numbers, such as counts of seeds, the largest; of all else the first.
    """
    first, count = values[0], count or len(values)
    if isinstance(first, Tensor):
        total = torch.zeros_like(first, dtype=torch.float64)
        for each in values:
            total += each
        return (total / count).to(first.dtype)
    if isinstance(first, dict):
        keys = dict.fromkeys(key for each in values for key in each)
        return {key: mean_of([each[key] for each in values if key in each], count) for key in keys}
    if isinstance(first, list | tuple):
        return type(first)(mean_of(each, count) for each in zip(*values, strict=True))
    return max(values) if type(first) is int else first


def cause(grads: Mapping[str, Tensor]) -> NonFiniteError | None:
    """Return the error of the first gradient that is not finite, if there is one."""
    for name, each in grads.items():
        bad = ~torch.isfinite(each).flatten()
        if bad.any():
            index = int(bad.int().argmax())
            value = float(each.flatten()[index])
            return NonFiniteError(
                f"the gradient of {name!r} must be finite, got {value} at index {index}."
            )
    return None
