"""A state in one file: written whole or not at all, the one before kept, never a pickle.

``save`` writes a new file, syncs it, keeps the file that was there as the previous generation, and
renames the new one into its place. ``load`` returns the newest generation that is whole. Put all
that a run depends on into one state (model, residuals, round, aggregator, Rounds), so that no two
parts of it are of different rounds.

Tensors are stored as safetensors, the rest as JSON: nothing in a file is ever run. Needs the
package ``safetensors`` (``pip install 'gcext[checkpoint]'``).

>>> import tempfile, pathlib, torch, gcext.checkpoint
>>> path = pathlib.Path(tempfile.mkdtemp()) / "run.checkpoint"
>>> gcext.checkpoint.save(path, {"round": 3, "model": torch.ones(2)})
>>> gcext.checkpoint.load(path)
{'round': 3, 'model': tensor([1., 1.])}
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["CheckpointError", "load", "previous", "save"]

# magic (8, the last byte the version) | blake2b of the payload (32) | payload: safetensors
MAGIC = b"gcextfl\x02"
DIGEST = 32
_FRESH = "Remove it to start anew, or restore a copy."


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged, or of another run."""


def previous(path: str | Path) -> Path:
    """Return where the generation before the newest one of ``path`` is."""
    path = Path(path)
    return path.with_name(path.name + ".previous")


def save(path: str | Path, state: Any) -> None:
    """Write ``state`` atomically: ``path`` holds the old one until the new one is on the disk.

    Args:
        path: the newest generation; the one before becomes ``path.previous``, unless it is damaged.
            Folders are made.
        state: tensors, NumPy arrays, bytes, numbers, strings, None, and lists, tuples and dicts of
            these. A tensor that occurs several times is written once.

    Raises OSError, which names the path, where the disk refuses: both generations are then what
    they were. TypeError for what cannot be written.
    """
    path = Path(path)
    payload = _pack(state)
    fresh, old = path.with_name(path.name + ".new"), path.with_name(path.name + ".old")
    try:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with fresh.open("wb") as file:
                file.write(MAGIC + hashlib.blake2b(payload, digest_size=DIGEST).digest())
                file.write(payload)
                file.flush()
                os.fsync(file.fileno())
            if kept := _is_whole(path):  # a damaged one takes no good one's place
                _link(path, old)
            fresh.replace(path)
            if kept:
                old.replace(previous(path))
        except BaseException:
            for each in (fresh, old):
                with contextlib.suppress(OSError):
                    each.unlink(missing_ok=True)
            raise
        if os.name == "posix":  # the renames are part of the directory
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        _known[path.absolute()] = _identity(path)
    except OSError as error:
        raise OSError(
            error.errno,
            f"checkpoint: {path} must be written, got {error.strerror or error}. Free space there "
            "or give another path; the generations before are as they were",
        ) from error


def _link(path: Path, old: Path) -> None:
    """Give a file another name; a copy where the file system has no links."""
    old.unlink(missing_ok=True)
    try:
        os.link(path, old)
    except OSError:
        shutil.copyfile(path, old)


def load(path: str | Path) -> Any:
    """Return the newest state that ``save`` wrote to ``path`` and that is whole.

    Where the newest generation is missing or damaged, the previous one is returned and a
    RuntimeWarning tells why. Tensors are on the CPU.

    Raises CheckpointError where no generation is whole: missing, cut short, changed, of another
    version.
    """
    path = Path(path)
    try:
        return _read(path)
    except CheckpointError as error:
        older = previous(path)
        if not older.exists():
            raise
        try:
            state = _read(older)
        except CheckpointError as both:
            raise CheckpointError(f"{error} The previous one is no help: {both}") from error
        warnings.warn(f"{error} Going on from {older}.", RuntimeWarning, stacklevel=2)
        return state


def _read(path: Path) -> Any:
    payload = _payload(path)
    try:
        state = _unpack(payload)
    except ImportError:
        raise
    except Exception as error:
        raise CheckpointError(
            f"checkpoint: {path} must hold what save wrote, got {error!r:.200}. {_FRESH}"
        ) from error
    return state


def _payload(path: Path) -> bytes:
    """Return what a checkpoint holds; CheckpointError for a file that is missing or damaged."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise CheckpointError(
            f"checkpoint: {path} must be readable, got {error.strerror}. Give another path."
        ) from error
    head, payload = raw[: len(MAGIC) + DIGEST], memoryview(raw)[len(MAGIC) + DIGEST :]
    if head[: len(MAGIC)] != MAGIC:
        begin = raw[: len(MAGIC)]
        got = f"{len(raw)} bytes that start '{begin.hex()}'"
        if begin[:-1] == MAGIC[:-1]:
            got = f"one of version {begin[-1]}, which the gcext that wrote it reads"
        raise CheckpointError(
            f"checkpoint: {path} must be a checkpoint of version {MAGIC[-1]}, got {got}. {_FRESH}"
        )
    if hashlib.blake2b(payload, digest_size=DIGEST).digest() != head[len(MAGIC) :]:
        raise CheckpointError(
            f"checkpoint: {path} must match its checksum, got a damaged file of {len(raw)} bytes. "
            f"{_FRESH}"
        )
    return bytes(payload)


_known: dict[Path, tuple[int, ...]] = {}  # files that this process has written


def _is_whole(path: Path) -> bool:
    """Return whether a file is a checkpoint; it is read unless this process has written it."""
    try:
        if _known.get(path.absolute()) != _identity(path):
            _payload(path)
    except (OSError, CheckpointError):
        return False
    return True


def _identity(path: Path) -> tuple[int, ...]:
    status = path.stat()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


# A state is a tree in JSON. What JSON lacks is an object of one key: {"t": tuple}, {"d": pairs of a
# dict}, {"x": number of a tensor}, {"a": number of an array's}, {"b": [begin, end] in all bytes}.


def _pack(state: Any) -> bytes:
    torch_format = _safetensors()
    packer = _Packer()
    text = json.dumps(packer.take(state), separators=(",", ":")).encode()
    tensors = {
        "state": torch.from_numpy(np.frombuffer(text, np.uint8).copy()),
        "bytes": torch.from_numpy(np.frombuffer(bytes(packer.raw), np.uint8).copy()),
        **{str(i): each for i, each in enumerate(packer.tensors)},
    }
    packed: bytes = torch_format.save(tensors, {"format": "gcext.checkpoint"})
    return packed


def _unpack(payload: bytes) -> Any:
    tensors = _safetensors().load(payload)
    text = tensors["state"].numpy().tobytes()
    raw = tensors["bytes"].numpy().tobytes()
    return _put(json.loads(text), tensors, raw)


class _Packer:
    """Takes a state apart: into a tree for JSON, tensors, and one string of bytes."""

    def __init__(self) -> None:
        self.tensors: list[Tensor] = []
        self.raw = bytearray()
        self._numbers: dict[int, int] = {}  # of a tensor, by its id
        self._alive: list[Any] = []  # or an id could be another tensor's
        self._storages: set[int] = set()

    def take(self, value: Any) -> Any:
        if value is None or isinstance(value, str | bool | int | float):
            return value
        if isinstance(value, Tensor):
            return {"x": self._tensor(value)}
        if isinstance(value, np.generic):
            return value.item()
        if isinstance(value, np.ndarray):
            return {"a": self._tensor(torch.from_numpy(np.array(value)))}
        if isinstance(value, bytes | bytearray | memoryview):
            begin = len(self.raw)
            self.raw += value
            return {"b": [begin, len(self.raw)]}
        if isinstance(value, dict):  # pairs: JSON would make every key a text
            return {"d": [[self.take(k), self.take(v)] for k, v in value.items()]}
        if isinstance(value, tuple):
            return {"t": [self.take(each) for each in value]}
        if isinstance(value, list):
            return [self.take(each) for each in value]
        raise TypeError(
            "checkpoint: a state must be of tensors, arrays, bytes, numbers, strings, None, lists, "
            f"tuples and dicts, got {type(value).__name__}. Convert it."
        )

    def _tensor(self, tensor: Tensor) -> int:
        if id(tensor) not in self._numbers:
            self._numbers[id(tensor)] = len(self.tensors)
            self._alive.append(tensor)
            plain = tensor.detach().cpu().contiguous()
            storage = plain.untyped_storage()
            # safetensors takes tensors that are each all of a storage of their own.
            if storage.data_ptr() in self._storages or storage.nbytes() != plain.nbytes:
                plain = plain.clone()
            self._storages.add(plain.untyped_storage().data_ptr())
            self.tensors.append(plain)
        return self._numbers[id(tensor)]


def _put(value: Any, tensors: dict[str, Tensor], raw: bytes) -> Any:
    """Return what ``take`` was given."""
    if isinstance(value, list):
        return [_put(each, tensors, raw) for each in value]
    if not isinstance(value, dict):
        return value
    ((kind, held),) = value.items()
    if kind == "d":
        return {_put(k, tensors, raw): _put(v, tensors, raw) for k, v in held}
    if kind == "t":
        return tuple(_put(each, tensors, raw) for each in held)
    if kind == "b":
        begin, end = held
        return raw[begin:end]
    if kind in ("x", "a"):
        tensor = tensors[str(held)]
        return tensor if kind == "x" else tensor.numpy()
    raise ValueError(f"unknown kind {kind!r}")


def _safetensors() -> Any:
    try:
        import safetensors.torch
    except ModuleNotFoundError as error:
        raise ImportError(
            "gcext.checkpoint: safetensors must be installed, found none. "
            "`pip install 'gcext[checkpoint]'` installs it."
        ) from error
    return safetensors.torch
