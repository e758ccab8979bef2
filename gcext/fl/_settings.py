"""Everything that decides a run's figures: its settings and its random streams."""

from __future__ import annotations

import dataclasses
import enum
from dataclasses import dataclass

import numpy as np

__all__ = ["DEFAULTS", "Settings", "Stream", "complete", "generator", "torch_seed"]

# What the papers use for MNIST and CIFAR-10; digits is cut for a demonstration of seconds.
DEFAULTS: dict[str, dict[str, float]] = {
    "digits": {"clients": 10, "participation": 0.5, "rounds": 100, "target": 0.9},
    "mnist": {"clients": 200, "participation": 0.1, "rounds": 150, "target": 0.95},
    "fashion": {"clients": 200, "participation": 0.1, "rounds": 200, "target": 0.75},
    "cifar10": {"clients": 100, "participation": 0.2, "rounds": 500, "target": 0.5},
}

_PARAMETERS = {"pstc": ("p", "alpha", "tau")} | dict.fromkeys(("stc", "topk", "randomk"), ("p",))


@dataclass(frozen=True)
class Settings:
    """One run: data, split, method and schedule.

    ``recipe`` is what ``gcext.recipe`` is given, ``method`` the name shown.  ``epochs`` None leaves
    the local epochs to the recipe's schedule.  Raises ValueError for a value out of its range.
    """

    data: str
    method: str
    recipe: str
    clients: int
    participation: float
    rounds: int
    seed: int = 0
    lr: float = 0.1
    batch: int = 64
    epochs: int | None = None
    split: str = "shards"
    target: float = 0.95
    stop_at_target: bool = False

    def __post_init__(self) -> None:
        rules = (
            ("clients", self.clients >= 1, "at least 1"),
            ("participation", 0 < self.participation <= 1, "in (0, 1]"),
            ("rounds", self.rounds >= 1, "at least 1"),
            ("seed", self.seed >= 0, "at least 0"),
            ("lr", 0 < self.lr < float("inf"), "positive"),
            ("batch", self.batch >= 1, "at least 1"),
            ("epochs", self.epochs is None or self.epochs >= 1, "at least 1"),
            ("target", 0 < self.target <= 1, "in (0, 1]"),
        )
        for name, holds, rule in rules:
            if not holds:
                raise ValueError(
                    f"fl: {name} must be {rule}, got {getattr(self, name)}. Correct --{name}."
                )

    @property
    def drawn(self) -> int:
        """Clients drawn a round."""
        return max(1, round(self.clients * self.participation))

    def trajectory(self) -> dict[str, object]:
        """Return what a resumed run must share: all but its length, target and name."""
        free = {"method", "rounds", "target", "stop_at_target"}
        return {k: v for k, v in dataclasses.asdict(self).items() if k not in free}


def complete(method: str, p: float, alpha: float, tau: int) -> str:
    """Return a bare method name completed to a recipe, and a whole recipe as it is.

    >>> complete("pstc", p=0.1, alpha=0.1, tau=1)
    'pstc:p=0.1,alpha=0.1,tau=1'
    >>> complete("stc:p=0.5", p=0.1, alpha=0.1, tau=1)
    'stc:p=0.5'
    """
    given = {"p": p, "alpha": alpha, "tau": tau}
    names = () if ":" in method else _PARAMETERS.get(method, ())
    return ":".join([method, *filter(None, [",".join(f"{n}={given[n]}" for n in names)])])


# A stream is a function of (seed, stream, key), so a resumed run has no generator to restore.


class Stream(enum.IntEnum):
    """The use of a stream; two streams of one run never share numbers."""

    INIT = 0
    SPLIT = 1
    DRAW = 2  # key: round
    BATCH = 3  # key: round, client
    UP = 4  # of the clients' codecs; their links derive from it by client and packet
    DOWN = 5  # of the server's
    PART = 6  # of the elements that are trained


def generator(seed: int, stream: Stream, *key: int) -> np.random.Generator:
    """Return the counter-based generator of one stream.

    >>> one, two = (generator(0, Stream.DRAW, 3) for _ in range(2))
    >>> bool(one.integers(100) == two.integers(100))
    True
    """
    return np.random.Generator(np.random.Philox(_sequence(seed, stream, *key)))


def torch_seed(seed: int, stream: Stream, *key: int) -> int:
    """Return a 63-bit seed for what has a generator of its own (torch, stochastic codecs)."""
    return int(_sequence(seed, stream, *key).generate_state(1, np.uint64)[0] >> 1)


def _sequence(seed: int, stream: Stream, *key: int) -> np.random.SeedSequence:
    return np.random.SeedSequence(seed, spawn_key=(int(stream), *key))
