"""What a kernel left on a device, until the host asks for it: the contents of deferred packets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from gcext._native.library import capturing, current_stream
from gcext._native.status import raise_for
from gcext._packet.codes import Contents

__all__ = ["Deferred"]


class Deferred:
    """A kernel's arrays and its info: size and errors of the packet are known to the device alone.

    ``synchronize`` waits for the stream that encodes. The contents are safe on every stream after
    that: the host has waited, and the memory is recorded on the stream that asked.

    While a CUDA graph is captured, the packet shows what the last replay wrote, and synchronizes
    every time; ``to("cpu")`` and ``to_bytes()`` return what stays.

    Args:
        op: names the codec in errors.
        info: csrc/select/select.h.
        arrays: only info knows how much of them was written.
        finish: returns the contents, given info's numbers and the arrays.
    """

    __slots__ = ("arrays", "captured", "finish", "info", "op", "stream")

    def __init__(
        self, op: str, info: Tensor, arrays: tuple[Tensor, ...], finish: Callable[..., Contents]
    ) -> None:
        self.op = op
        self.info = info
        self.arrays = arrays
        self.finish = finish
        self.stream = current_stream(info.device)
        self.captured = self.stream is not None and capturing()

    @classmethod
    def of_many(
        cls, parts: Sequence[Deferred], finish: Callable[[Sequence[Contents]], Contents]
    ) -> Deferred | None:
        """Return what several kernels left as one; None where another stream encodes.

        finish: returns the contents, given those of each part.
        """
        first = parts[0]
        if any(part.stream != current_stream(first.info.device) for part in parts):
            return None

        def finish_all(_: list[int], *arrays: Tensor) -> Contents:
            made, at = [], 0
            for part in parts:
                info, *its = arrays[at : at + 1 + len(part.arrays)]
                made.append(part.finish(part.checked(info.tolist()), *its))
                at += 1 + len(part.arrays)
            return finish(made)

        arrays = [each for part in parts for each in (part.info, *part.arrays)]
        return cls(first.op, first.info, tuple(arrays), finish_all)

    def synchronize(self) -> Contents:
        """Wait for the device and return the contents; raises the error that info reports."""
        with self.encoding():
            numbers = self.checked(self.info.tolist())
            if self.captured:  # the next replay writes into the arrays
                return self.finish(numbers, *(each.clone() for each in self.arrays))
            contents = self.finish(numbers, *self.arrays)
        if self.stream is not None:
            self.stream.synchronize()  # finish may have copied
            here = current_stream(self.info.device)
            assert here is not None
            for tensor in contents.tensors() if here != self.stream else ():
                tensor.record_stream(here)
        return contents

    def encoding(self) -> AbstractContextManager[object]:
        """Be on the stream that encodes; of a graph, that of whoever replays and asks."""
        stream = self.encoder()
        return nullcontext() if stream is None else stream

    def encoder(self) -> torch.Stream | None:
        """Return the stream that encodes; None on the CPU."""
        return current_stream(self.info.device) if self.captured else self.stream

    def checked(self, numbers: list[int]) -> list[int]:
        """Return info's numbers; raises what its status means."""
        raise_for(self.op, numbers[1], numbers[2])
        return numbers
