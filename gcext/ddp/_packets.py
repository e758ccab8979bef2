"""Packets of all ranks, gathered and added up in rank order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gcext._codecs.topk import TopK
from gcext._links.sender import Sender
from gcext._links.stages import Trajectory
from gcext._packet.packet import Packet
from gcext._packet.state import loading
from gcext._recipes.recipe import Recipe
from gcext.aggregate import Aggregator, Mean, mean
from gcext.ddp._exchange import Exchange, Method, cause, mean_of
from gcext.distributed import Capacity, Gather

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["Packets"]


class Packets(Method):
    """All ranks get the packets of all, and add them up in rank order."""

    def __init__(self, group: ProcessGroup | None, recipe: Recipe, sender: Sender) -> None:
        super().__init__(group)
        self.recipe, self.sender = recipe, sender
        self.predicts = any(isinstance(each, Trajectory) for each in sender.stages)
        self.waits = (recipe.up.feedback or bool(recipe.up.stages)) and not self.predicts
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
        if self.predicts:
            raise ValueError(
                f"ddp.State: {self.sender.stages} must keep what each rank sent, which cannot be "
                "redistributed. Keep the world size, or begin with a new State."
            )
        made = dict(mean_of(states))
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
                packet = cause(grads) or error
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


_NONZEROS = TopK(1.0)


def _is_used(grad: Tensor) -> bool:
    """Return whether a gradient has an element that is not 0; a few are looked at first."""
    flat = grad.flatten()
    return bool(flat[:: flat.numel() // 16 + 1].any()) or bool(flat.any())
