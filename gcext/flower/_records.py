"""What both ends put into Flower's records: a model's form, packets, and a node's state."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import numpy as np
import numpy.typing as npt
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context
from torch import Tensor

from gcext._recipes import Recipe, fit
from gcext._recipes import recipe as make_recipe
from gcext.checkpoint import load, save
from gcext.fl._layout import Layout
from gcext.fl._server import order_of

__all__ = ["EXACT", "Exact", "KEY", "NO_MODEL", "PACKET", "ContextStore", "FileStore", "Form"]
__all__ += ["check_recipe", "digest", "packets_in", "packets_of"]

KEY = "gcext"  # of the ConfigRecord beside the arrays
PACKET = "gcext.v1"  # the stype of an Array that holds a packet
RAW = "gcext.exact.v1"  # of one that holds an array's bytes, little-endian, in C order
EXACT = ("*running_mean", "*running_var")  # what a lossy update could make negative
NO_MODEL = "gcext: needs the dense model"  # how an error reply for want of one begins

Exact = dict[str, npt.NDArray[Any]]


def check_recipe(owner: str, recipe: Recipe | str) -> Recipe:
    """Return the recipe; ValueError for one that Flower's rounds cannot follow."""
    made = make_recipe(recipe)
    why = "they could not follow a lost reply. Use down=stc, or the built-in loop"
    fit.refuse(owner, made, recipe, {"packets of its own for each client": why})
    order_of(made.down)
    return made


class Form(NamedTuple):
    """The arrays of a model, in order: what is compressed, and what travels exactly.

    Attributes:
        names: of all arrays.
        shapes: of each.
        dtypes: NumPy's names.
        exact: whether each travels as it is: integers, bools, and floats of a name given.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[str, ...]
    exact: tuple[bool, ...]

    @classmethod
    def of(cls, arrays: ArrayRecord, exact: Sequence[str]) -> Form:
        """Return the form of arrays; ``exact`` holds patterns of names, as of fnmatch."""
        found = {name: array.numpy() for name, array in arrays.items()}
        kept = tuple(
            not np.issubdtype(x.dtype, np.floating) or any(fnmatchcase(name, e) for e in exact)
            for name, x in found.items()
        )
        if all(kept):
            raise ValueError(
                f"gcext.flower: a model must have float arrays to compress, got {len(kept)} "
                "arrays that travel exactly."
            )
        shapes = tuple(x.shape for x in found.values())
        return cls(tuple(found), shapes, tuple(x.dtype.name for x in found.values()), kept)

    @classmethod
    def from_json(cls, text: str) -> Form:
        names, shapes, dtypes, exact = json.loads(text)
        return cls(tuple(names), tuple(map(tuple, shapes)), tuple(dtypes), tuple(exact))

    def to_json(self) -> str:
        return json.dumps(self, separators=(",", ":"))

    def _rows(self, exact: bool) -> list[tuple[str, tuple[int, ...], str]]:
        rows = zip(self.names, self.shapes, self.dtypes, self.exact, strict=True)
        return [row[:3] for row in rows if row[3] == exact]

    def layout(self, by_tensor: bool) -> Layout:
        """Return how what is compressed is cut for a link."""
        shapes = tuple(shape for _, shape, _ in self._rows(False))
        numel = sum(torch.Size(shape).numel() for shape in shapes)
        return Layout(numel, shapes if by_tensor else None)

    def split(self, arrays: ArrayRecord) -> tuple[Tensor, Exact]:
        """Return what is compressed, float32 and flat, and the rest; ValueError for others."""
        found = {name: array.numpy() for name, array in arrays.items()}
        mine = dict(zip(self.names, self.shapes, strict=True))
        got = {name: x.shape for name, x in found.items()}
        if mine != got:
            differing = sorted(n for n in mine.keys() | got.keys() if mine.get(n) != got.get(n))
            raise ValueError(
                f"gcext.flower: a reply's arrays must be the model's, got others for "
                f"{', '.join(differing[:5])}. Return what was sent, trained."
            )
        parts = [found[name].astype(np.float32).ravel() for name, _, _ in self._rows(False)]
        exact = {name: found[name].astype(dtype) for name, _, dtype in self._rows(True)}
        return torch.from_numpy(np.concatenate(parts)), exact

    def join(self, flat: Tensor, exact: Exact) -> ArrayRecord:
        """Return the arrays that ``split`` was given."""
        sizes = [torch.Size(shape).numel() for _, shape, _ in self._rows(False)]
        parts = iter(flat.split(sizes))  # type: ignore[no-untyped-call]
        arrays = {}
        for name, shape, dtype, kept in zip(*self, strict=True):
            found = exact[name] if kept else next(parts).numpy().reshape(shape)
            arrays[name] = Array(np.ascontiguousarray(found).astype(dtype).reshape(shape))
        return ArrayRecord(arrays)

    def pack(self, exact: Exact) -> dict[str, Array]:
        """Return what travels exactly as arrays of raw bytes."""
        little = {n: np.asarray(exact[n]).astype(np.dtype(d).newbyteorder("<"))
                  for n, _, d in self._rows(True)}  # fmt: skip
        return {n: Array(x.dtype.name, (x.nbytes,), RAW, x.tobytes()) for n, x in little.items()}

    def unpack(self, arrays: ArrayRecord) -> Exact:
        """Return what ``pack`` was given; ValueError for anything else."""
        exact: Exact = {}
        for name, shape, dtype in self._rows(True):
            kind, array = np.dtype(dtype).newbyteorder("<"), arrays.get(name)
            size = torch.Size(shape).numel() * kind.itemsize
            if array is None or array.stype != RAW or len(array.data) != size:
                raise ValueError(f"gcext.flower: {name} must be {size} bytes that travel exactly.")
            found = np.frombuffer(array.data, kind).reshape(shape).astype(dtype)
            if not np.isfinite(found).all():
                raise ValueError(f"gcext.flower: {name} must be finite.")
            exact[name] = found
        return exact


def packets_of(messages: Iterable[bytes]) -> dict[str, Array]:
    """Return packets as arrays of one dimension, under names of their own."""
    return {f"{KEY}.{i}": Array("uint8", (len(m),), PACKET, m) for i, m in enumerate(messages)}


def packets_in(arrays: ArrayRecord) -> tuple[bytes, ...]:
    """Return the messages that ``packets_of`` was given."""
    packed = sum(array.stype == PACKET for array in arrays.values())
    found = [arrays.get(f"{KEY}.{i}") for i in range(packed)]
    if any(array is None or array.stype != PACKET for array in found):
        raise ValueError(f"gcext.flower: packets must be named {KEY}.0 on, got {list(arrays)[:5]}.")
    return tuple(array.data for array in found if array is not None)


def digest(weights: Tensor) -> bytes:
    """Return 8 bytes that tell one model from another."""
    return hashlib.blake2b(weights.contiguous().numpy().tobytes(), digest_size=8).digest()


class ContextStore:
    """A node's state in ``context.state``: JSON, and the tensors beside it."""

    def __init__(self, context: Context) -> None:
        self.records = context.state

    def load(self) -> dict[str, Any] | None:
        """Return the state of this node in this run; None at first."""
        if f"{KEY}.state" not in self.records:
            return None
        tensors = {
            name: torch.from_numpy(array.numpy().copy())
            for name, array in self.records.array_records[f"{KEY}.tensors"].items()
        }
        text = str(self.records.config_records[f"{KEY}.state"]["json"])
        state: dict[str, Any] = _put(json.loads(text), tensors)
        return state

    def save(self, state: dict[str, Any]) -> None:
        """Replace the state."""
        tensors: dict[str, Tensor] = {}
        text = json.dumps(_take(state, tensors))
        arrays = ArrayRecord({name: Array(x.cpu().numpy()) for name, x in tensors.items()})
        self.records[f"{KEY}.state"] = ConfigRecord({"json": text})
        self.records[f"{KEY}.tensors"] = arrays


class FileStore:
    """A node's state in a file of its own, written whole or not at all."""

    def __init__(self, folder: Path, run: int, name: str) -> None:
        self.path = folder / f"{run}-{quote(name, safe='')}.state"

    def load(self) -> dict[str, Any] | None:
        """Return the state of this node in this run; None at first."""
        return load(self.path) if self.path.exists() else None

    def save(self, state: dict[str, Any]) -> None:
        """Replace the state."""
        save(self.path, state)


def _take(value: Any, tensors: dict[str, Tensor]) -> Any:
    """Return a value as JSON has it, its tensors and bytes put aside."""
    if isinstance(value, Tensor):
        tensors[f"t{len(tensors)}"] = value
        return {"": f"t{len(tensors) - 1}"}
    if isinstance(value, bytes):
        return {"b": value.hex()}
    if isinstance(value, dict):  # pairs: JSON would make every key a text
        return {"d": [[_take(k, tensors), _take(v, tensors)] for k, v in value.items()]}
    if isinstance(value, list | tuple):
        return [_take(each, tensors) for each in value]
    return value


def _put(value: Any, tensors: dict[str, Tensor]) -> Any:
    """Return what ``_take`` was given, tuples as lists."""
    if isinstance(value, list):
        return [_put(each, tensors) for each in value]
    if isinstance(value, dict):
        kind, held = next(iter(value.items()))
        if kind == "d":
            return {_put(k, tensors): _put(v, tensors) for k, v in held}
        return tensors[held] if kind == "" else bytes.fromhex(held)
    return value
