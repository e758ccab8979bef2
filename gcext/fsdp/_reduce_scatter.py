"""A compressed reduce-scatter inside of a site, by unbiased codecs that keep no state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from gcext._codecs.base import Codec
from gcext._codecs.registry import codec as make_codec
from gcext._codecs.seeds import derive
from gcext._codecs.topk import Dense
from gcext._links.sender import Sender
from gcext._packet.packet import Packet
from gcext._packet.state import loading
from gcext.aggregate import combine
from gcext.distributed import any_failed

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["ReduceScatter"]


class ReduceScatter:
    """A compressed reduce-scatter, for ``FSDPModule.set_custom_reduce_scatter``.

    Each rank sends every other one the packet of its part, which decodes the packets and sums them
    in rank order; what a rank keeps for itself is exact. That takes a codec whose error averages
    out: unbiased, without a residual. One object serves all modules of a model.

    Args:
        codec: a codec or its spec, such as ``qsgd:bits=4``, ``natural``, ``terngrad``, ``polar``.
        seed: the same on all ranks, which derive their own.

    Attributes:
        sent_bytes: length of the messages that this rank sent to others so far.

    Raises ValueError for a codec that is biased.

    >>> import gcext.fsdp, torch
    >>> import torch.distributed as dist
    >>> from torch.distributed.fsdp import fully_shard
    >>> dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    >>> mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (1,))
    >>> model = fully_shard(torch.nn.Linear(4, 1), mesh=mesh)
    >>> model.set_custom_reduce_scatter(gcext.fsdp.ReduceScatter("qsgd:bits=4"))
    >>> dist.destroy_process_group()
    """

    def __init__(self, codec: Codec | str, *, seed: int = 0) -> None:
        self.codec = codec if isinstance(codec, Codec) else _plain_codec(codec)
        if not self.codec.unbiased:
            raise ValueError(
                f"fsdp.ReduceScatter: needs an unbiased codec, got {self.codec.spec}, whose error "
                "would never be made up for. Use qsgd, natural, terngrad or polar, fsdp.compress "
                "with a residual between sites, or MixedPrecisionPolicy(reduce_dtype=...)."
            )
        self.sent_bytes = 0
        own = derive(seed, dist.get_rank()) if self.codec.stochastic else None
        self._sender = Sender(self.codec, own)

    def allocate(self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Return an empty tensor; torch calls this for the gradients and for the result."""
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(
        self,
        output_tensor: Tensor,
        input_tensor: Tensor,
        group: ProcessGroup,
        op: Any,
        async_op: bool = False,
    ) -> None:
        """Write the sum or the mean of all ranks' parts for this one; it is there on return.

        Raises, on all ranks, where a gradient of one is not finite, and ValueError for an op that
        is no sum or mean.
        """
        if op not in (dist.ReduceOp.SUM, dist.ReduceOp.AVG):
            raise ValueError(
                f"fsdp.ReduceScatter: op must be SUM or AVG, got {op}. "
                "Call set_force_sum_reduction_for_comms(True) on the module."
            )
        world, own = dist.get_world_size(group), dist.get_rank(group)
        parts = input_tensor.view(world, -1)
        try:
            packets = self._encode(parts, own, group)
            received = _all_to_all(packets, parts.device, group)
        except BaseException:
            self._sender.rollback()
            raise
        self._sender.commit()
        self.sent_bytes += sum(each.nbytes for at, each in enumerate(packets) if at != own)
        weight = 1.0 if op == dist.ReduceOp.SUM else 1.0 / world
        combine(received, [weight] * world, out=output_tensor)

    def _encode(self, parts: Tensor, own: int, group: ProcessGroup) -> list[Packet]:
        """Return the packet of each part; raise, on all ranks of the group, where one cannot."""
        error: Exception | None = None
        packets: list[Packet] = []
        try:
            others = {str(at): part for at, part in enumerate(parts) if at != own}
            exact = Dense().encode(parts[own])
            sent = self._sender.compress(others, commit=False) if others else None
            packets = list(sent.members) if sent else []
            packets.insert(own, exact)
            Packet.pack_all(packets)  # raises what is deferred
        except Exception as raised:
            error = raised
        failed = any_failed(error is not None, parts, group)
        if error is not None:
            raise error
        if failed:
            raise RuntimeError(
                "fsdp.ReduceScatter: every rank must have packets, got none from another rank. "
                "See the error on that rank."
            )
        return packets

    def state_dict(self) -> dict[str, Any]:
        """Return this rank's counts of seeds, under a key with its rank."""
        return {f"rank{dist.get_rank()}": (self._sender.state_dict(),)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state of the same rank; ValueError for one that does not fit."""
        key = f"rank{dist.get_rank()}"
        if not isinstance(state, dict) or key not in state:
            raise ValueError(f"fsdp.ReduceScatter: state must hold {key!r}. Load this rank's own.")
        with loading("fsdp.ReduceScatter", state):
            self._sender.load_state_dict(state[key][0])


def _plain_codec(spec: str) -> Codec:
    """Return the codec of a spec; ValueError for a recipe, or for one with feedback."""
    if not isinstance(spec, str) or "feedback" in spec:
        raise ValueError(
            f"fsdp.ReduceScatter: needs a codec without a residual, got {spec!r}. "
            "Use fsdp.compress with it, between sites."
        )
    return make_codec(spec)


def _all_to_all(packets: list[Packet], device: torch.device, group: ProcessGroup) -> list[Packet]:
    """Return the packets that all ranks have for this one, in rank order."""
    messages = Packet.pack_all(packets)
    mine = torch.tensor([len(each) for each in messages], device=device)
    theirs = torch.empty_like(mine)
    dist.all_to_all_single(theirs, mine, group=group)
    sizes = theirs.tolist()
    sent = torch.frombuffer(bytearray(b"".join(messages)), dtype=torch.uint8).to(device)
    received = sent.new_empty(sum(sizes))
    dist.all_to_all_single(received, sent, sizes, mine.tolist(), group=group)
    rows = torch.split(received.cpu(), sizes)
    shape = packets[dist.get_rank(group)].shape
    return [Packet.from_bytes(row.numpy().tobytes(), device, shape) for row in rows]
