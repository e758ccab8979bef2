"""The state of a rank as bytes, and its way through torch.distributed.checkpoint."""

from __future__ import annotations

import io
from collections.abc import Mapping
from os import PathLike
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["pack", "read", "unpack"]

_VERSION = 1


def pack(held: Mapping[str, Any], world: int, rank: int) -> dict[str, Any]:
    """Return what a rank holds under a key of its own, as bytes.

    torch.distributed.checkpoint keeps one of equal keys, and loads a tensor into one that is there
    already; a new State has none, but bytes need none.
    """
    buffer = io.BytesIO()
    torch.save({"version": _VERSION, **held}, buffer)
    return {"world_size": world, f"rank{rank}": buffer.getvalue()}


def unpack(
    state: Mapping[str, Any], world: int, rank: int, redistribute: bool, options: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Return what this rank held; for another world size what each rank held.

    Raises ValueError for what does not fit; options: what must be as here.
    """
    if not isinstance(state, Mapping) or "world_size" not in state:
        raise ValueError("ddp.State: state must have world_size. Load what state_dict returned.")
    saved = state["world_size"]
    if saved != world and not redistribute:
        raise ValueError(
            f"ddp.State: world_size must be the state's {saved}, got {world}. Run with {saved} "
            "ranks, or load with redistribute=True: every rank gets the mean of the residuals."
        )
    ranks = [rank] if saved == world else list(range(saved))
    missing = [each for each in ranks if not isinstance(state.get(f"rank{each}"), bytes)]
    if missing:
        raise ValueError(
            f"ddp.State: needs the states of ranks {ranks} of {saved}, got none of {missing}."
        )
    found = [_loaded(state[f"rank{each}"]) for each in ranks]
    alike = {key: found[0][key] for key in ("steps", "names")}
    for held in found:
        for key, mine in {"version": _VERSION, **options, **alike}.items():
            if held[key] != mine:
                raise ValueError(
                    f"ddp.State: {key} must be the state's {held[key]}, got {mine}. Construct "
                    "with the same."
                )
    return found


def _loaded(data: bytes) -> dict[str, Any]:
    try:
        held = torch.load(io.BytesIO(data), weights_only=True)
    except Exception as error:
        raise ValueError(
            f"ddp.State: a rank's state must be what state_dict wrote, got {error!r:.200}."
        ) from error
    keys = {"version", "recipe", "exact_below", "steps", "names", "method"}
    if not isinstance(held, dict) or set(held) != keys:
        raise ValueError("ddp.State: a rank's state must be what state_dict wrote, got other keys.")
    return held


def read(
    checkpoint_id: str | PathLike[str],
    key: str,
    world: int,
    rank: int,
    group: ProcessGroup | None,
) -> dict[str, Any]:
    """Return this rank's state in a checkpoint; of another world size that of all its ranks."""
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.state_dict_loader import load

    reader = FileSystemReader(checkpoint_id)
    begin = f"{key}.rank"
    names = reader.read_metadata().state_dict_metadata
    ranks = [int(name.removeprefix(begin)) for name in names if name.startswith(begin)]
    if not ranks:
        raise ValueError(f"ddp.State: {checkpoint_id} must hold {begin}0, got no such key.")
    if len(ranks) == world:
        ranks = [rank]
    state: dict[str, Any] = {"world_size": 0, **{f"rank{each}": b"" for each in ranks}}
    whole = {key: state}
    load(whole, storage_reader=reader, process_group=group)
    return whole[key]
