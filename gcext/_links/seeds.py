"""The seeds of a sender's packets: derived from its own, a name and a count."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from gcext._codecs.base import Codec
from gcext._codecs.seeds import as_seed, derive
from gcext._packet.state import check_keys

__all__ = ["PacketSeeds"]


class PacketSeeds:
    """The seeds of a sender's packets: derived from its own, a name, and a count of that name."""

    def __init__(self, owner: str, codec: Codec, seed: int | None) -> None:
        if codec.stochastic and seed is None:
            raise ValueError(
                f"{owner}: the stochastic codec {codec.spec} needs a base seed, got none. "
                "Pass seed=, another one for every sender."
            )
        self.owner = owner
        self.seed = None if seed is None or not codec.stochastic else as_seed(owner, seed) % 2**64
        self.counts: dict[str, int] = {}

    def next(self, name: str) -> int | None:
        """Return the seed of the next packet; the same one until ``used``."""
        return None if self.seed is None else derive(self.seed, name, self.counts.get(name, 0))

    def next_of(self, names: Iterable[str]) -> list[int | None] | None:
        """Return the seed of the next packet of each name; None where no seeds are drawn."""
        return None if self.seed is None else [self.next(name) for name in names]

    def used(self, names: Iterable[str]) -> None:
        """Never return these seeds again."""
        if self.seed is None:
            return
        for name in names:
            self.counts[name] = self.counts.get(name, 0) + 1

    def state_dict(self) -> dict[str, Any]:
        """Return what ``checked`` takes; empty where no seeds are drawn."""
        return {} if self.seed is None else {"seed": self.seed, "counts": dict(self.counts)}

    def checked(self, state: dict[str, Any]) -> dict[str, int]:
        """Return the counts of a state; ValueError for one that does not fit."""
        if not isinstance(state, Mapping):
            raise ValueError(
                f"{self.owner}: seeds must be {{seed, counts}}, got {type(state).__name__}. "
                "Check the file."
            )
        check_keys(self.owner, state, self.state_dict())
        if state.get("seed") != self.seed:
            raise ValueError(
                f"{self.owner}: seed must be the state's {state['seed']}, got {self.seed}. "
                "Construct with the same seed."
            )
        counts = state.get("counts", {})
        for name, count in counts.items():
            if not isinstance(name, str) or type(count) is not int or count < 0:
                raise ValueError(
                    f"{self.owner}: counts must be names and whole numbers, got {name!r}: "
                    f"{count!r}. Check the file."
                )
        return dict(counts)
