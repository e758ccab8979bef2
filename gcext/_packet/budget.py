"""What one message may cost whoever decodes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor
from xxhash import xxh3_64_intdigest

import gcext._wire as _wire
from gcext._packet.wire import as_message, as_shapes

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from gcext._packet.packet import Packet

__all__ = ["Budget", "as_pair"]


@dataclass(frozen=True)
class Budget:
    """The most that one message may cost, from its bytes to dense tensors.

    A few bytes can stand for any number of elements, and for a polar code that has to be designed
    first. ``Packet.from_bytes`` counts what a message would cost before it allocates anything for
    it, and raises a DecodeError of code "budget" where that is more. The count follows from the
    message alone, so it is the same on every machine.

    Attributes:
        work: units of about a nanosecond of one core with AVX-512: each element by a weight of what
            is done with it. None: no limit.
        memory: bytes that are held at once, counted from above. None: no limit.

    Raises ValueError where a number is not whole or below 0.

    >>> import gcext, torch
    >>> message = gcext.codec("sign").encode(torch.randn(1000)).to_bytes()
    >>> gcext.Packet.from_bytes(message, budget=gcext.Budget(memory=1000))
    Traceback (most recent call last):
    gcext._packet.errors.DecodeError: from_bytes: method at byte 5: memory must be at most 1000, ...
    """

    work: int | None = None
    memory: int | None = None

    def __post_init__(self) -> None:
        for name, number in (("work", self.work), ("memory", self.memory)):
            whole = isinstance(number, int) and not isinstance(number, bool)
            if number is not None and not (whole and number >= 0):
                raise ValueError(
                    f"Budget: {name} must be a whole number from 0 up, or None for no limit, got "
                    f"{number!r:.100}."
                )

    @classmethod
    def default(
        cls, expect: Sequence[Any] | Tensor | Mapping[str, Tensor] | Packet, nbytes: int
    ) -> Budget:
        """Return the budget of a message of ``nbytes`` where a shape is expected and none given.

        It admits whatever codecs make of tensors of that shape, and grows by 8 units of work and 12
        bytes with each element. A message of at most 1 KB stays below 5 ms + 10 ns, and below 4 MB
        + 12 bytes, for each element.

        Args:
            expect: the shape, as of ``Packet.from_bytes``.
            nbytes: length of the message; a longer one may cost more.

        >>> import gcext
        >>> gcext.Budget.default((1000,), nbytes=100)
        Budget(work=2358000, memory=3208928)
        """
        shapes = as_shapes("Budget.default", getattr(expect, "shape", expect))
        return cls(*_wire.default_budget(shapes, nbytes))

    @classmethod
    def needed(cls, message: Buffer | Tensor | Packet) -> Budget:
        """Return the least budget that admits a message, or a packet's.

        Only the frame and the structure are read: no more memory is used than for a refusal.

        Raises DecodeError for what is no message.

        >>> import gcext, torch
        >>> gcext.Budget.needed(gcext.stc(torch.ones(1000), p=0.5).to_bytes()).memory
        10048
        """
        buf = message.to_bytes() if hasattr(message, "to_bytes") else as_message(message)
        return cls(*_wire.cost(buf, xxh3_64_intdigest))

    def admits(self, other: Budget) -> bool:
        """Return whether a message that needs the other one may be decoded.

        >>> import gcext
        >>> gcext.Budget(work=10**6).admits(gcext.Budget(work=10**5, memory=10**9))
        True
        """
        most, least = as_pair(self), as_pair(other)
        return all(few <= many for few, many in zip(least, most, strict=True))


def as_pair(budget: Budget) -> tuple[int, int]:
    """Return work and memory as the decoder takes them; TypeError for what is no budget."""
    if not isinstance(budget, Budget):
        raise TypeError(f"budget must be a gcext.Budget or None, got {budget!r:.100}.")
    most = _wire.UNLIMITED
    return tuple(most if x is None else min(x, most) for x in (budget.work, budget.memory))  # type: ignore[return-value]
