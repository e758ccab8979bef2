"""Seeds made from seeds: one for every use, by name, so that none is used twice by accident."""

from __future__ import annotations

import hashlib
import operator
from typing import Any

__all__ = ["as_seed", "derive"]


def derive(seed: int, *path: str | int) -> int:
    """Return the 64-bit seed of what ``path`` names: a hash, so no two paths are related.

    seed: any integer, taken modulo 2^64.

    >>> derive(1, "fc.weight", 0) == derive(1, "fc.weight", 0) != derive(1, "fc.weight", 1)
    True
    """
    key = (as_seed("derive", seed) % 2**64).to_bytes(8, "little")
    message = repr(path).encode()
    return int.from_bytes(hashlib.blake2b(message, digest_size=8, key=key).digest(), "little")


def as_seed(owner: str, seed: Any) -> int:
    """Return a seed as an integer; TypeError, which names its owner, for what is none."""
    try:
        return operator.index(seed)
    except TypeError:
        raise TypeError(f"{owner}: seed must be a whole number, got {seed!r:.100}.") from None
