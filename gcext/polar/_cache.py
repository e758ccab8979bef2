"""Frozen sets that are not shipped, kept on disk once computed: a set of 2^20 takes seconds.

    $GCEXT_CACHE_DIR, else $XDG_CACHE_HOME/gcext, else ~/.cache/gcext      (GCEXT_CACHE_DIR= : none)
        polar-<version>-<signs|values>-<K>-<N>.set

    offset  bytes
    0       32     SHA-256 of the file's name and of what follows
    32      N/8    free indices, a bit each, lowest first

A file that is not exactly this is computed again and written over: a wrong set would decode to
noise. Bits are bits on every platform. A file appears whole or not at all, and a directory that
cannot be written to is none.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from pathlib import Path

__all__ = ["read", "write"]


def _directory() -> Path | None:
    """Return where the sets are kept; None where caching is off or there is no home."""
    given = os.environ.get("GCEXT_CACHE_DIR")
    if given is not None:
        return Path(given) if given else None
    xdg = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if xdg.is_absolute():  # others are to be ignored, says the XDG specification
        return xdg / "gcext"
    try:
        return Path.home() / ".cache" / "gcext"
    except RuntimeError:
        return None


def _digest(name: str, free: bytes) -> bytes:
    return hashlib.sha256(name.encode() + b"\0" + free).digest()


def read(name: str, block: int, kept: int) -> bytes | None:
    """Return the packed free indices of that name, or None where there is no such good file."""
    directory = _directory()
    if directory is None:
        return None
    try:
        with (directory / name).open("rb") as file:
            stored = file.read(32 + block // 8 + 1)
    except OSError:
        return None
    free = stored[32:]
    if len(free) != block // 8 or stored[:32] != _digest(name, free):
        return None
    return free if int.from_bytes(free, "little").bit_count() == kept else None


def write(name: str, free: bytes) -> None:
    """Keep packed free indices under a name, where there is a place for them."""
    directory = _directory()
    if directory is None:
        return
    with contextlib.suppress(OSError):
        directory.mkdir(parents=True, exist_ok=True)
        handle, part = tempfile.mkstemp(dir=directory)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(_digest(name, free) + free)
            Path(part).replace(directory / name)
        except BaseException:
            Path(part).unlink(missing_ok=True)
            raise
