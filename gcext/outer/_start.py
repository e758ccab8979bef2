"""What an outer optimizer is made of, and what it refuses before the first step."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gcext import distributed
from gcext._links.link import Link
from gcext._links.sender import Sender
from gcext._packet.state import check_state
from gcext.aggregate import Aggregator, HeavyBall, Nesterov, SignStep

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup, Store  # type: ignore[attr-defined]

__all__ = ["check_parameters", "digest", "ends", "pack", "place", "try_out"]
__all__ += ["unpack", "wide"]


def place(
    group: ProcessGroup | None, store: Store | None, rank: int | None, world: int | None
) -> tuple[int, int]:
    """Return this process's rank and the number of ranks: as given with a store, or the group's."""
    if store is not None and rank is not None and world is not None:
        if not 0 <= rank < world:
            raise ValueError(f"OuterOptimizer: rank must be in [0, world), got {rank} of {world}.")
        return rank, world
    if rank is not None or world is not None:
        raise ValueError(
            f"OuterOptimizer: store, rank and world must come together, got rank={rank} and "
            f"world={world}. Without them the process group's are taken."
        )
    return distributed.place("OuterOptimizer: without store, rank and world", group)


def ends(
    up: Link, lr: float | None, momentum: float | None, exact_below: int, seed: int
) -> tuple[Sender, Aggregator]:
    """Return a new sending and a new receiving end; the latter takes the outer step."""
    sender, receiver = up.sender(seed), up.receiver()
    sender.exact_below = exact_below
    if lr is None and momentum is None:
        return sender, receiver
    if isinstance(receiver, SignStep) and momentum is None and lr is not None:
        return sender, SignStep(receiver.inner, lr)
    kind: type[Nesterov] | type[HeavyBall] = Nesterov
    inner, own_momentum, own_lr = receiver, 0.0, 1.0
    if isinstance(receiver, (Nesterov, HeavyBall)):
        kind, inner = type(receiver), receiver.inner
        own_momentum, own_lr = receiver.beta, receiver.lr
    momentum = own_momentum if momentum is None else momentum
    return sender, kind(inner, momentum, own_lr if lr is None else lr)


def check_parameters(named: Mapping[str, Tensor]) -> None:
    """Raise TypeError for what is sharded or no float, ValueError for no parameters."""
    for name, p in named.items():
        if type(p.data) is not Tensor or not p.is_floating_point() or p.is_meta:
            raise TypeError(
                f"OuterOptimizer: parameters must be plain tensors of a float dtype, got "
                f"{type(p.data).__name__} of {p.dtype} on {p.device} for {name!r}. Sharded models "
                "go through gcext.fsdp."
            )
    if len({p.device for p in named.values()}) > 1:
        raise ValueError("OuterOptimizer: parameters must be on one device, got several.")
    if not named:
        raise ValueError("OuterOptimizer: a model must have parameters to train, got none.")


def try_out(named: Mapping[str, Tensor], sender: Sender, receiver: Aggregator) -> None:
    """Raise now what these ends, used up by it, raise for any packet of a model."""
    smallest = min(named.values(), key=Tensor.numel)
    packet = sender.compress({"": torch.zeros(smallest.shape, device=smallest.device)})
    receiver.aggregate({0: packet}, round=1)


def digest(options: str, named: Mapping[str, Tensor]) -> str:
    """Return a hash of options, and of parameters by name, shape, dtype and bits."""
    here = hashlib.sha256(options.encode())
    for name, p in named.items():
        here.update(repr((name, tuple(p.shape), p.dtype)).encode())
        here.update(p.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return here.hexdigest()


def wide(p: Tensor) -> torch.dtype:
    """Return the dtype of a parameter's global values: float32, of float64 that."""
    return torch.promote_types(p.dtype, torch.float32)


def pack(state: Mapping[str, Any]) -> bytes:
    """Return a state as bytes."""
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    return buffer.getvalue()


def unpack(data: bytes, device: str | None = None) -> dict[str, Any]:
    """Return what ``pack`` was given; ValueError for other bytes. device: None: as it was."""
    try:
        state = torch.load(io.BytesIO(data), device, weights_only=True)
    except Exception as error:
        raise ValueError(
            f"OuterOptimizer: memory must be what state_dict wrote, got {error!r:.200}. "
            "Load another checkpoint."
        ) from error
    check_state("OuterOptimizer", state)
    return dict(state)
