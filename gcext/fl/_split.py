"""Which client holds which samples; a client's test samples have the labels it trains on."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from torch import Tensor

from gcext.fl._settings import Stream, generator

__all__ = ["Split", "split"]

SHARDS_PER_CLIENT = 2

Index = npt.NDArray[np.int64]


class Split(NamedTuple):
    """Sorted sample indices of every client, int64; each part is disjoint and complete."""

    train: list[Index]
    test: list[Index]


def split(kind: str, train: Tensor, test: Tensor, clients: int, seed: int) -> Split:
    """Cut the labels of both parts (int64, 1-d) among ``clients``.

    ``shards``: sorted by label, cut into 2 * clients shards, two at random to each client (McMahan
    et al. 2017).  ``iid``: cut at random.  ``dirichlet:BETA``: each label is divided in
    proportions drawn from Dirichlet(BETA) (Li et al. 2022), the same for both parts.

    Raises ValueError for another kind, a beta that is not positive, or more clients than samples.

    >>> import torch
    >>> labels = torch.arange(40) % 10
    >>> [len(index) for index in split("shards", labels, labels, 4, seed=0).train]
    [10, 10, 10, 10]
    """
    labels = train.numpy(), test.numpy()
    rng = generator(seed, Stream.SPLIT)
    name, _, beta = kind.partition(":")
    pieces = clients * SHARDS_PER_CLIENT if name == "shards" else clients
    if not 1 <= pieces <= len(train):
        raise ValueError(
            f"split: {kind} must leave each of {pieces} pieces a training sample, "
            f"got {len(train)} samples. Lower --clients."
        )
    if name == "shards" and not beta:
        owner = rng.permutation(pieces).reshape(clients, SHARDS_PER_CLIENT)
        return Split(*(_shards(part, owner) for part in labels))
    if name == "iid" and not beta:
        return Split(*(_even(rng.permutation(len(part)), clients) for part in labels))
    if name == "dirichlet":
        return _dirichlet(labels, clients, _positive(beta), rng)
    raise ValueError(f"split: the kind must be shards, iid or dirichlet:BETA, got {kind}.")


def _shards(labels: Index, owner: Index) -> list[Index]:
    shards = np.array_split(np.argsort(labels, kind="stable"), owner.size)
    return [np.sort(np.concatenate([shards[s] for s in mine])) for mine in owner]


def _even(order: Index, clients: int) -> list[Index]:
    return [np.sort(piece) for piece in np.array_split(order, clients)]


def _dirichlet(
    labels: tuple[Index, Index], clients: int, beta: float, rng: np.random.Generator
) -> Split:
    classes = int(labels[0].max()) + 1
    share = rng.dirichlet(np.full(clients, beta), size=classes)
    parts = [_divide(part, share, rng) for part in labels]
    _fill_empty(parts[0])
    return Split(*parts)


def _divide(labels: Index, share: npt.NDArray[np.float64], rng: np.random.Generator) -> list[Index]:
    """Cut the shuffled samples of each label at the cumulative shares of the clients."""
    mine: list[list[Index]] = [[] for _ in range(share.shape[1])]
    for label, row in enumerate(share):
        index = rng.permutation(np.flatnonzero(labels == label))
        cuts = np.round(np.cumsum(row)[:-1] * len(index)).astype(np.int64)
        for client, piece in enumerate(np.split(index, cuts)):
            mine[client].append(piece)
    return [np.sort(np.concatenate(pieces)) for pieces in mine]


def _fill_empty(parts: list[Index]) -> None:
    """Give each client without a training sample one of the largest part's."""
    for client, index in enumerate(parts):
        if len(index) == 0:
            largest = max(range(len(parts)), key=lambda c: len(parts[c]))
            parts[client], parts[largest] = parts[largest][:1], parts[largest][1:]


def _positive(text: str) -> float:
    try:
        beta = float(text)
    except ValueError:
        beta = float("nan")
    if not 0 < beta < float("inf"):
        raise ValueError(
            f"split: dirichlet needs a positive beta, got {text!r}. Give dirichlet:0.5."
        )
    return beta
