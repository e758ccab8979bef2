"""What objects with a state share: the check of a state that is loaded, and a lock."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

__all__ = ["Lock", "check_keys", "check_state", "loading"]

# What taking apart a state of another form raises.
_MISFIT = (AttributeError, IndexError, KeyError, OverflowError, RuntimeError, TypeError)


# How an error of gcext begins, unlike those of int(), of an unpacking, or of torch.
_OURS = re.compile(r"[\w.]+: ")


class Lock:
    """A reentrant lock; a copy or pickle of it is a new one, so that its owner can be copied."""

    def __init__(self) -> None:
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *error: object) -> None:
        self._lock.release()

    def __reduce__(self) -> tuple[type[Lock], tuple[()]]:
        return Lock, ()


@contextmanager
def loading(owner: str, state: Any, keys: Iterable[str] | None = None) -> Iterator[None]:
    """Check a state, and raise ValueError where the block finds that it is another's, or damaged.

    The block is to assign nothing before it has read all of the state.

    Args:
        owner: who loads, for errors.
        state: TypeError where it is no dict.
        keys: those that it must have, no others; None: any.
    """
    check_state(owner, state)
    if keys is not None:
        check_keys(owner, state, keys)
    try:
        yield
    except (ValueError, *_MISFIT) as error:
        if isinstance(error, ValueError) and (
            type(error) is not ValueError or _OURS.match(str(error))
        ):
            raise
        raise ValueError(
            f"{owner}: state must be what state_dict returned, got one that raises "
            f"{type(error).__name__}: {error!s:.200}. Load another one."
        ) from error


def check_state(owner: str, state: Any) -> None:
    """Raise TypeError for what is no state."""
    if not isinstance(state, Mapping):
        raise TypeError(
            f"{owner}: state must be a dict, got {type(state).__name__}. "
            "Load what state_dict returned."
        )


def check_keys(owner: str, state: Mapping[str, Any], mine: Iterable[str]) -> None:
    """Raise ValueError where a state has other keys than one of this owner."""
    must = set(mine)
    if set(state) != must:
        rule = f"of keys {', '.join(sorted(must))}" if must else "empty"
        got = sorted(map(str, state))
        raise ValueError(
            f"{owner}: state must be {rule}, got {got}. Load what state_dict returned."
        )
