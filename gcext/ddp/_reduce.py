"""All-reduces: of whole buckets in 32 or 16 bits, and of PowerSGD's factors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from gcext._links.lowrank import PowerSGD
from gcext._packet.state import loading
from gcext.ddp._exchange import Exchange, Method, cause

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["AllReduce", "LowRank"]


class AllReduce(Method):
    """The sum of a whole bucket by one all-reduce, as float32 or a 16-bit type; keeps nothing.

    check: whether a rank or a sum that is not finite is a failure.
    """

    def __init__(self, group: ProcessGroup | None, dtype: torch.dtype, check: bool) -> None:
        super().__init__(group)
        self.dtype, self.check = dtype, check

    def begin(self, grads: Mapping[str, Tensor], flat: Tensor) -> Exchange:
        """See Method."""
        return _SumExchange(self, grads, flat)


class _SumExchange(Exchange):
    def __init__(self, method: AllReduce, grads: Mapping[str, Tensor], flat: Tensor) -> None:
        self._method, self._flat = method, flat
        wide = flat.dtype == torch.float64 and method.dtype == torch.float32
        dtype = flat.dtype if wide else method.dtype
        self._halves = dtype.itemsize == 2  # divided before the sum, which could overflow
        with method.clock("encode"):
            if self._halves or method.check:
                self.error = None if _is_finite(flat) else cause(grads)
            self._sum = flat.to(dtype) if not self._halves else self._narrow(flat, dtype)
            if self.error:
                self._sum.fill_(math.nan)
        self._work, self.sent_bytes, self.received_bytes = _all_reduce(self._sum, method.group)

    def _narrow(self, flat: Tensor, dtype: torch.dtype) -> Tensor:
        most = torch.finfo(dtype).max
        return (flat.float().clamp(-most, most) / self._method.world).to(dtype)

    def advance(self) -> bool:
        """See Exchange."""
        self._work.wait()
        return not self._method.check or _is_finite(self._sum)

    def finish(self) -> None:
        """See Exchange."""
        with self._method.clock("decode"):
            if not self._halves:
                self._sum.div_(self._method.world)
            if self._sum is not self._flat:
                self._flat.copy_(self._sum)


class LowRank(Method):
    """PowerSGD: the mean of P and then of Q, by one all-reduce each for a bucket."""

    def __init__(self, group: ProcessGroup | None, sender: PowerSGD) -> None:
        super().__init__(group)
        self.sender = sender

    def begin(self, grads: Mapping[str, Tensor], flat: Tensor) -> Exchange:
        """See Method."""
        return _LowRankExchange(self, grads)

    def state_dict(self) -> dict[str, Any]:
        """See Method."""
        return {"sender": self.sender.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See Method."""
        with loading("ddp.State", state, ("sender",)):
            self.sender.load_state_dict(state["sender"])


class _LowRankExchange(Exchange):
    def __init__(self, method: LowRank, grads: Mapping[str, Tensor]) -> None:
        self._method, self._outs = method, grads
        self._sender = method.sender.beside()
        with method.clock("encode"):
            try:
                self._flat = self._sender.project(grads)
            except Exception as error:
                self.error = cause(grads) or error
                zeros = {name: torch.zeros_like(each) for name, each in grads.items()}
                self._flat = self._sender.project(zeros).fill_(math.nan)
        self._reduce()

    def _reduce(self) -> None:
        self._work, sent, received = _all_reduce(self._flat, self._method.group)
        self.sent_bytes += sent
        self.received_bytes += received

    def advance(self) -> bool:
        """See Exchange."""
        self._work.wait()
        if not _is_finite(self._flat):
            return False
        with self._method.clock("encode"):
            self._flat = self._sender.factor(self._flat.div_(self._method.world))
        self._reduce()
        return True

    def confirm(self) -> bool:
        """See Exchange. The sum of Q may overflow where that of P did not."""
        self._work.wait()
        return _is_finite(self._flat)

    def finish(self) -> None:
        """See Exchange. Residuals move on."""
        with self._method.clock("decode"):
            means = self._sender.finish(self._flat.div_(self._method.world))
            for name, out in self._outs.items():
                out.copy_(means[name])


def _all_reduce(tensor: Tensor, group: ProcessGroup | None) -> tuple[Any, int, int]:
    """Begin to sum a tensor over the ranks; return the work, and bytes as a ring moves them."""
    world = dist.get_world_size(group)
    work = dist.all_reduce(tensor, group=group, async_op=True)
    return work, tensor.nbytes, 2 * (world - 1) * tensor.nbytes // world


def _is_finite(tensor: Tensor) -> bool:
    """Return whether all elements are finite; synchronizes on CUDA."""
    return math.isfinite(float(tensor.sum())) or bool(torch.isfinite(tensor).all())
