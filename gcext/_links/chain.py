"""The stages of a sender, as one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from gcext._links.stages import Stage
from gcext._packet.packet import Packet

__all__ = ["Stages"]


class Stages(tuple[Stage, ...]):
    """Stages in order: what each does is done by all of them."""

    def before(self, name: str, tensor: Tensor) -> Tensor:
        """Return what the codec gets."""
        for stage in self:
            tensor = stage.before(name, tensor)
        return tensor

    def after(self, name: str, packet: Packet, source: Tensor) -> Packet:
        """Return what is made of a packet; its dtype is the source's, which stages lose."""
        if self and packet.dtype != source.dtype:
            packet = packet.of_dtype(source.dtype)
        for stage in reversed(self):
            packet = stage.after(name, packet)
        return packet

    def observe(self, model: Tensor) -> None:
        """See ``Stage.observe``."""
        for stage in self:
            stage.observe(model)

    def commit(self, names: Iterable[str]) -> None:
        """Let what is pending of names count."""
        for name in names if self else ():
            for stage in self:
                stage.commit(name)

    def rollback(self, names: Iterable[str]) -> None:
        """Forget what is pending of names."""
        for name in names if self else ():
            for stage in self:
                stage.rollback(name)

    def state_dict(self) -> dict[str, Any]:
        """Return the stages' states, under one key; nothing where there are none."""
        return {"stages": [(repr(each), each.state_dict()) for each in self]} if self else {}

    def load(self, owner: str, states: Any) -> None:
        """Load the stages' states: all, or where one does not fit none."""
        mine = [repr(each) for each in self]
        if not isinstance(states, list | tuple) or any(len(each) != 2 for each in states):
            raise TypeError("stages must be a list of names and states")
        given = [name for name, _ in states]
        if mine != given:
            raise ValueError(
                f"{owner}: stages must be the state's {given}, got {mine}. Construct with the same."
            )
        before = [each.state_dict() for each in self]
        try:
            for stage, (_, state) in zip(self, states, strict=True):
                stage.load_state_dict(state)
        except BaseException:
            for stage, state in zip(self, before, strict=True):
                stage.load_state_dict(state)
            raise
