"""How the gradients of a bucket are averaged: packets gathered, or tensors all-reduced."""

from __future__ import annotations

import math
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from gcext._codecs.topk import TopK
from gcext._links.lowrank import PowerSGD
from gcext._links.sender import Sender
from gcext._links.stages import Trajectory
from gcext._packet.packet import Packet
from gcext._packet.state import loading
from gcext._recipes.recipe import Recipe
from gcext.aggregate import Aggregator, Mean, mean
from gcext.distributed import Capacity, Gather

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch.distributed import ProcessGroup

__all__ = ["AllReduce", "Exchange", "LowRank", "Method", "NonFiniteError", "Packets"]


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
        return dict(_mean_of(states))

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


class Packets(Method):
    """All ranks get the packets of all, and add them up in rank order."""

    def __init__(self, group: ProcessGroup | None, recipe: Recipe, sender: Sender) -> None:
        super().__init__(group)
        self.recipe, self.sender = recipe, sender
        predicts = any(isinstance(each, Trajectory) for each in sender.stages)
        self.waits = (recipe.up.feedback or bool(recipe.up.stages)) and not predicts
        self.only_mean = type(recipe.up.receiver()) is Mean
        self.receivers: dict[str, Aggregator] = {}
        self.capacities: dict[tuple[str, ...], Capacity] = {}
        self._before: dict[str, Any] = {}  # of receivers, what to restore

    def begin(self, grads: Mapping[str, Tensor], flat: Tensor) -> Exchange:
        """See Method."""
        return _PacketsExchange(self, grads)

    def begin_step(self, number: int) -> None:
        """See Method."""
        self.sender.codec = self.recipe.schedule.codec(self.recipe.up.codec, number)

    def compress(self, grads: Mapping[str, Tensor]) -> Packet:
        """Return the packet of a bucket, pending.

        A gradient of zeros is DDP's way to hand over an unused parameter. Where no rank uses it,
        DDP drops the mean; so that no residual travels to be dropped, it waits.
        """
        used = {n: each for n, each in grads.items() if not self.waits or _is_used(each)}
        if len(used) == len(grads):
            return self.sender.compress(used, commit=False)
        members = (
            dict(zip(used, self.sender.compress(used, commit=False).members, strict=True))
            if used
            else {}
        )
        return Packet.group(
            members[name] if name in members else _NONZEROS.encode(each)
            for name, each in grads.items()
        )

    def receive(self, packets: list[Packet], outs: Mapping[str, Tensor]) -> None:
        """Overwrite ``outs`` with what the receiving end makes of the ranks' packets."""
        if self.only_mean:
            mean(packets, out=list(outs.values()))
            return
        for i, (name, out) in enumerate(outs.items()):
            if name not in self.receivers:
                self.receivers[name] = self.recipe.up.receiver()
            receiver = self.receivers[name]
            self._before[name] = receiver.snapshot()
            update = receiver.aggregate({r: each.members[i] for r, each in enumerate(packets)})
            assert isinstance(update, Tensor)
            out.copy_(update)

    def commit(self) -> None:
        """See Method."""
        self.sender.commit()
        self._end()

    def rollback(self) -> None:
        """See Method."""
        self.sender.rollback()
        for name, snapshot in self._before.items():
            self.receivers[name].restore(snapshot)
        self._end()

    def _end(self) -> None:
        self._before.clear()
        self.sender.codec = self.recipe.up.codec

    def state_dict(self) -> dict[str, Any]:
        """See Method."""
        receivers = {name: each.state_dict() for name, each in self.receivers.items()}
        return {"sender": self.sender.state_dict(), "receivers": receivers}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See Method."""
        with loading("ddp.State", state, ("sender", "receivers")):
            receivers = {}
            for name, its in state["receivers"].items():
                receivers[name] = self.recipe.up.receiver()
                receivers[name].load_state_dict(its)
            self.sender.load_state_dict(state["sender"])
            self.receivers = receivers

    def merged(self, states: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """See Method. ValueError where the receiving end knows ranks apart."""
        if any(isinstance(each, Trajectory) for each in self.sender.stages):
            raise ValueError(
                f"ddp.State: {self.sender.stages} must keep what each rank sent, which cannot be "
                "redistributed. Keep the world size, or begin with a new State."
            )
        made = dict(_mean_of(states))
        if seeds := made["sender"].get("seeds"):
            seeds["seed"] = self.sender.state_dict()["seeds"]["seed"]
        return made


class _PacketsExchange(Exchange):
    def __init__(self, method: Packets, grads: Mapping[str, Tensor]) -> None:
        self._method, self._outs = method, grads
        self._done = False
        self._late: Exception | None = None
        self._capacity = method.capacities.setdefault(tuple(grads), Capacity())
        packet: Packet | Exception
        with method.clock("encode"):
            try:
                packet = method.compress(grads)
                packet.to_bytes()  # where errors of a device show up
            except Exception as error:
                packet = _cause(grads) or error
        shapes = [tuple(each.shape) for each in grads.values()]
        self._gather = Gather(packet, method.group, shapes, self._capacity.nbytes)
        self.error = self._gather.error
        self._early = self._gather.then(self._decode_early)

    def _decode_early(self) -> None:
        """Decode beside the backward pass, in a thread of the backend.

        An error waits for ``finish``: collectives go on in the order of the other ranks until then.
        """
        try:
            if self._gather.fits and not self._gather.failed:
                self._decode()
        except Exception as error:
            self._late = error

    def _decode(self) -> None:
        with self._method.clock("decode"), torch.no_grad():
            self._method.receive(self._gather.wait(), self._outs)
        self._done = True

    def advance(self) -> bool:
        """See Exchange."""
        self._early()
        self._gather.rest()
        self.sent_bytes = self._gather.sent_bytes
        self.received_bytes = self._gather.received_bytes
        if self._gather.failed:
            return False
        self._capacity.observe(self._gather.lengths)
        return True

    def finish(self) -> None:
        """See Exchange."""
        if self._late is not None:
            raise self._late
        if not self._done:
            self._decode()

    def settle(self) -> None:
        """See Exchange."""
        with suppress(Exception):
            self._early()


class AllReduce(Method):
    """The sum of a whole bucket by one all-reduce, as float32 or a 16-bit type; keeps nothing.

    check: whether a rank or a sum that is not finite is a failure.
    """

    def __init__(self, group: ProcessGroup | None, dtype: torch.dtype, check: bool) -> None:
        super().__init__(group)
        self.dtype, self.check = dtype, check

    def begin(self, grads: Mapping[str, Tensor], flat: Tensor) -> Exchange:
        """See Method."""
        return _SumExchange(self, grads, flat)


class _SumExchange(Exchange):
    def __init__(self, method: AllReduce, grads: Mapping[str, Tensor], flat: Tensor) -> None:
        self._method, self._flat = method, flat
        wide = flat.dtype == torch.float64 and method.dtype == torch.float32
        dtype = flat.dtype if wide else method.dtype
        self._halves = dtype.itemsize == 2  # divided before the sum, which could overflow
        with method.clock("encode"):
            if self._halves or method.check:
                self.error = None if _is_finite(flat) else _cause(grads)
            self._sum = flat.to(dtype) if not self._halves else self._narrow(flat, dtype)
            if self.error:
                self._sum.fill_(math.nan)
        self._work, self.sent_bytes, self.received_bytes = _all_reduce(self._sum, method.group)

    def _narrow(self, flat: Tensor, dtype: torch.dtype) -> Tensor:
        most = torch.finfo(dtype).max
        return (flat.float().clamp(-most, most) / self._method.world).to(dtype)

    def advance(self) -> bool:
        """See Exchange."""
        self._work.wait()
        return not self._method.check or _is_finite(self._sum)

    def finish(self) -> None:
        """See Exchange."""
        with self._method.clock("decode"):
            if not self._halves:
                self._sum.div_(self._method.world)
            if self._sum is not self._flat:
                self._flat.copy_(self._sum)


class LowRank(Method):
    """PowerSGD: the mean of P and then of Q, by one all-reduce each for a bucket."""

    def __init__(self, group: ProcessGroup | None, sender: PowerSGD) -> None:
        super().__init__(group)
        self.sender = sender

    def begin(self, grads: Mapping[str, Tensor], flat: Tensor) -> Exchange:
        """See Method."""
        return _LowRankExchange(self, grads)

    def state_dict(self) -> dict[str, Any]:
        """See Method."""
        return {"sender": self.sender.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See Method."""
        with loading("ddp.State", state, ("sender",)):
            self.sender.load_state_dict(state["sender"])


class _LowRankExchange(Exchange):
    def __init__(self, method: LowRank, grads: Mapping[str, Tensor]) -> None:
        self._method, self._outs = method, grads
        self._sender = method.sender.beside()
        with method.clock("encode"):
            try:
                self._flat = self._sender.project(grads)
            except Exception as error:
                self.error = _cause(grads) or error
                zeros = {name: torch.zeros_like(each) for name, each in grads.items()}
                self._flat = self._sender.project(zeros).fill_(math.nan)
        self._reduce()

    def _reduce(self) -> None:
        self._work, sent, received = _all_reduce(self._flat, self._method.group)
        self.sent_bytes += sent
        self.received_bytes += received

    def advance(self) -> bool:
        """See Exchange."""
        self._work.wait()
        if not _is_finite(self._flat):
            return False
        with self._method.clock("encode"):
            self._flat = self._sender.factor(self._flat.div_(self._method.world))
        self._reduce()
        return True

    def confirm(self) -> bool:
        """See Exchange. The sum of Q may overflow where that of P did not."""
        self._work.wait()
        return _is_finite(self._flat)

    def finish(self) -> None:
        """See Exchange. Residuals move on."""
        with self._method.clock("decode"):
            means = self._sender.finish(self._flat.div_(self._method.world))
            for name, out in self._outs.items():
                out.copy_(means[name])


def _all_reduce(tensor: Tensor, group: ProcessGroup | None) -> tuple[Any, int, int]:
    """Begin to sum a tensor over the ranks; return the work, and bytes as a ring moves them."""
    world = dist.get_world_size(group)
    work = dist.all_reduce(tensor, group=group, async_op=True)
    return work, tensor.nbytes, 2 * (world - 1) * tensor.nbytes // world


_NONZEROS = TopK(1.0)


def _is_used(grad: Tensor) -> bool:
    """Return whether a gradient has an element that is not 0; a few are looked at first."""
    flat = grad.flatten()
    return bool(flat[:: flat.numel() // 16 + 1].any()) or bool(flat.any())


def _mean_of(values: Sequence[Any], count: int = 0) -> Any:
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
        return {key: _mean_of([each[key] for each in values if key in each], count) for key in keys}
    if isinstance(first, list | tuple):
        return type(first)(_mean_of(each, count) for each in zip(*values, strict=True))
    return max(values) if type(first) is int else first


def _cause(grads: Mapping[str, Tensor]) -> NonFiniteError | None:
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


def _is_finite(tensor: Tensor) -> bool:
    """Return whether all elements are finite; synchronizes on CUDA."""
    return math.isfinite(float(tensor.sum())) or bool(torch.isfinite(tensor).all())
