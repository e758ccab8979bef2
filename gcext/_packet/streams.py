"""When the work of a CUDA stream is done, and where the host reads what it left.

The host waits for the work that made a packet and for no work behind it: an event is recorded when
a packet is encoded, and what is read goes to a stream of the reading thread's own, behind the
events of what it reads. On the stream that encodes it would come after all that was enqueued since,
in a backward pass after all later layers.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from gcext._native.library import capturing, current_stream

__all__ = ["SETTLED", "Ready", "reading", "use_here"]


class Ready(NamedTuple):
    """What has to be done on a device before something may be read.

    Attributes:
        stream: where it was enqueued; None: the host has waited for it, or it is on the CPU.
        event: recorded there behind it; None: see stream.
    """

    stream: torch.Stream | None = None
    event: torch.Event | None = None

    @classmethod
    def here(cls, device: torch.device) -> Ready | None:
        """Return what was enqueued so far on the current stream of a device.

        None where a graph is being captured: each replay does it anew, so that no event tells.
        """
        stream = current_stream(device)
        if stream is None:
            return SETTLED
        return None if capturing() else cls(stream, stream.record_event())


SETTLED = Ready()


@contextmanager
def reading(device: torch.device, after: Iterable[Ready | None]) -> Iterator[None]:
    """Read what ``after`` stands for, on a stream of this thread's behind that alone.

    Where one of them is None, on the current stream: behind all that it has. On leaving, the host
    has waited for whatever was enqueued on the stream of this thread's. Memory that is allocated
    inside is of that stream: see ``use_here``.
    """
    here = current_stream(device)
    if here is None:
        yield
        return
    whole = list(after)
    events = {id(each.event): each.event for each in whole if each is not None}.values()
    stream = here if None in whole else _own_stream(device)
    for event in events:
        if event is not None:
            stream.wait_event(event)
    if stream is here:
        yield
        return
    try:
        with stream:
            yield
    finally:  # where something was raised, too: memory that is being read may be freed next
        stream.synchronize()


def use_here(tensors: Iterable[Tensor]) -> None:
    """Keep the memory of tensors, wherever it was allocated, for the current streams' work."""
    for tensor in tensors:
        stream = current_stream(tensor.device)
        if stream is not None:
            tensor.record_stream(stream)


class _Own(threading.local):
    """The streams of this thread, by device."""

    def __init__(self) -> None:
        self.streams: dict[torch.device, torch.Stream] = {}


_OWN = _Own()


def _own_stream(device: torch.device) -> torch.Stream:
    """Return this thread's stream of a device, of high priority: reads are short.

    A stream that threads share would let one wait for what another reads.
    """
    stream = _OWN.streams.get(device)
    if stream is None:
        stream = _OWN.streams[device] = torch.Stream(device, priority=-1)
    return stream
