"""A run's state in one file: written whole or not at all, and refused where a bit is wrong."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
from pathlib import Path
from typing import Any

import torch

__all__ = ["CheckpointError", "load", "save"]

# magic (8) | blake2b of the payload (32) | payload: torch.save of tensors, bytes and plain values
MAGIC = b"gcextfl\x01"
DIGEST = 32


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged, or of another run."""


def save(path: Path, state: dict[str, Any]) -> None:
    """Write ``state`` atomically: the file at ``path`` is the old one until the new one is on disk.

    Raises OSError where the disk refuses; ``path`` is then what it was.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    payload = buffer.getbuffer()
    temporary = path.with_name(path.name + ".new")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with temporary.open("wb") as file:
            file.write(MAGIC + hashlib.blake2b(payload, digest_size=DIGEST).digest())
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    if os.name == "posix":  # the rename is part of the directory
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def load(path: Path) -> dict[str, Any]:
    """Read what ``save`` wrote; no code in the file is ever run.

    Raises CheckpointError when the file is missing, cut short, or changed.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise CheckpointError(
            f"checkpoint: {path} must be readable, got {error.strerror}."
        ) from error
    head, payload = raw[: len(MAGIC) + DIGEST], memoryview(raw)[len(MAGIC) + DIGEST :]
    if head[: len(MAGIC)] != MAGIC:
        raise CheckpointError(
            f"checkpoint: {path} must be a gcext fl checkpoint of version {MAGIC[-1]}, "
            f"got {len(raw)} bytes that start '{raw[:8].hex()}'. Remove it to start anew."
        )
    if hashlib.blake2b(payload, digest_size=DIGEST).digest() != head[len(MAGIC) :]:
        raise CheckpointError(
            f"checkpoint: {path} must match its checksum, got a damaged file of {len(raw)} bytes. "
            "Remove it to start anew, or restore a copy."
        )
    state: dict[str, Any] = torch.load(io.BytesIO(payload), weights_only=True)
    return state
