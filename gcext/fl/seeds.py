"""Random streams, each a function of (seed, stream, key): a resume has no state to bring back."""

from __future__ import annotations

import enum

import numpy as np

__all__ = ["Stream", "generator", "torch_seed"]


class Stream(enum.IntEnum):
    """What a stream is for; two streams of one run never share numbers."""

    INIT = 0
    SPLIT = 1
    DRAW = 2  # key: round
    BATCH = 3  # key: round, client
    UP = 4  # of the clients' codecs; their links derive from it by client and packet
    DOWN = 5  # of the server's


def generator(seed: int, stream: Stream, *key: int) -> np.random.Generator:
    """The counter-based generator of one stream.

    >>> one, two = (generator(0, Stream.DRAW, 3) for _ in range(2))
    >>> bool(one.integers(100) == two.integers(100))
    True
    """
    return np.random.Generator(np.random.Philox(_sequence(seed, stream, *key)))


def torch_seed(seed: int, stream: Stream, *key: int) -> int:
    """A 63-bit seed for what draws from a generator of its own (torch, stochastic codecs)."""
    return int(_sequence(seed, stream, *key).generate_state(1, np.uint64)[0] >> 1)


def _sequence(seed: int, stream: Stream, *key: int) -> np.random.SeedSequence:
    return np.random.SeedSequence(seed, spawn_key=(int(stream), *key))
