"""Everything that decides a run's figures."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

__all__ = ["DEFAULTS", "Settings", "complete"]

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
        """What a resumed run must share: all but how long it goes on and what it is called."""
        free = {"method", "rounds", "target", "stop_at_target"}
        return {k: v for k, v in dataclasses.asdict(self).items() if k not in free}


def complete(method: str, p: float, alpha: float, tau: int) -> str:
    """A bare method name completed to a recipe; a whole recipe is taken as it is.

    >>> complete("pstc", p=0.1, alpha=0.1, tau=1)
    'pstc:p=0.1,alpha=0.1,tau=1'
    >>> complete("stc:p=0.5", p=0.1, alpha=0.1, tau=1)
    'stc:p=0.5'
    """
    given = {"p": p, "alpha": alpha, "tau": tau}
    names = () if ":" in method else _PARAMETERS.get(method, ())
    return ":".join([method, *filter(None, [",".join(f"{n}={given[n]}" for n in names)])])
