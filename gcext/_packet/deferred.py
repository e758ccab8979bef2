"""What a kernel left on a device, until the host asks for it: the contents of deferred packets."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from gcext._native.library import current_stream
from gcext._native.status import raise_for
from gcext._packet.codes import Contents
from gcext._packet.streams import Ready, reading

__all__ = ["Deferred"]


class Deferred:
    """A kernel's arrays and its info: size and errors of the packet are known to the device alone.

    ``synchronize`` waits for what was enqueued up to ``ready``, not for what came later. The
    contents are safe on every stream after that: the host has waited, and the packet that keeps
    them records their memory on the stream that asked.

    While a CUDA graph is captured, the packet shows what the last replay wrote, and synchronizes
    every time, with the current stream; ``to("cpu")`` and ``to_bytes()`` return what stays.

    Args:
        op: names the codec in errors.
        info: csrc/select/select.h.
        arrays: only info knows how much of them was written.
        finish: returns the contents, given info's numbers and the arrays.
        ready: of packets that were encoded together; None: all that was enqueued so far.
    """

    __slots__ = ("arrays", "captured", "finish", "info", "op", "ready")

    def __init__(
        self,
        op: str,
        info: Tensor,
        arrays: tuple[Tensor, ...],
        finish: Callable[..., Contents],
        ready: Ready | None = None,
    ) -> None:
        self.op = op
        self.info = info
        self.arrays = arrays
        self.finish = finish
        self.ready = Ready.here(info.device) if ready is None else ready
        self.captured = self.ready is None

    @classmethod
    def of_many(
        cls, parts: Sequence[Deferred], finish: Callable[[Sequence[Contents]], Contents]
    ) -> Deferred | None:
        """Return what several kernels left as one; None where another stream encodes.

        finish: returns the contents, given those of each part.
        """
        first = parts[0]
        here = current_stream(first.info.device)
        if any(part.ready is not None and part.ready.stream != here for part in parts):
            return None

        def finish_all(_: list[int], *arrays: Tensor) -> Contents:
            made, at = [], 0
            for part in parts:
                info, *its = arrays[at : at + 1 + len(part.arrays)]
                made.append(part.finish(part.checked(info.tolist()), *its))
                at += 1 + len(part.arrays)
            return finish(made)

        arrays = [each for part in parts for each in (part.info, *part.arrays)]
        whole = cls(first.op, first.info, tuple(arrays), finish_all)
        if any(part.captured for part in parts):  # also where the graph is complete by now
            whole.ready, whole.captured = None, True
        return whole

    def synchronize(self) -> Contents:
        """Wait for the device and return the contents; raises the error that info reports."""
        with reading(self.info.device, (self.after,)):
            return self.contents(self.info.tolist())

    @property
    def after(self) -> Ready | None:
        """What to wait for; None: all that the current stream of whoever asks has."""
        return None if self.captured else self.ready

    def contents(self, numbers: list[int]) -> Contents:
        """Return the contents, given info's numbers; raises the error that they report."""
        self.checked(numbers)
        if self.captured:  # the next replay writes into the arrays
            return self.finish(numbers, *(each.clone() for each in self.arrays))
        return self.finish(numbers, *self.arrays)

    def checked(self, numbers: list[int]) -> list[int]:
        """Return info's numbers; raises what its status means."""
        raise_for(self.op, numbers[1], numbers[2])
        return numbers
