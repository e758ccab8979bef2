"""Weighted sums, means and dot products of packets: the algebra under the aggregators."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar, overload

import torch
from torch import Tensor

from gcext._native import ops
from gcext._native.codes import POWERS, TABLES
from gcext._native.library import memory_error
from gcext._packet.arguments import as_packets, as_targets
from gcext._packet.budget import Budget
from gcext._packet.codes import Levels, Random, Signs
from gcext._packet.dense import overwrite
from gcext._packet.device import settle
from gcext._packet.packet import Packet
from gcext._packet.powers import Powers
from gcext._packet.tables import Codes
from gcext.aggregate._finite import check_finite, largest, normalised

__all__ = ["as_number", "check_alike", "check_cost", "combine", "gram", "is_dense", "is_weight"]
__all__ += ["mean", "operands", "pairs", "per_tensor", "weighted_sum"]

_Out = TypeVar("_Out", bound="Tensor | Sequence[Tensor]")
# Methods whose packets combine, gram and trimmed_mean read as they are.
_CODED = {"sign", "levels", "levels2", "powers", "codes"}


@overload
def combine(
    packets: Iterable[Packet], weights: Sequence[float] | None = None, out: None = None
) -> Tensor | list[Tensor]: ...
@overload
def combine(packets: Iterable[Packet], weights: Sequence[float] | None, out: _Out) -> _Out: ...
@overload
def combine(
    packets: Iterable[Packet], weights: Sequence[float] | None = None, *, out: _Out
) -> _Out: ...
def combine(
    packets: Iterable[Packet], weights: Sequence[float] | None = None, out: Any = None
) -> Any:
    """Return the weighted sum of packets of one shape, whatever their methods.

    Each element is summed in float64 in the packets' order and rounded once, so the result does
    not depend on threads or instruction set.

    Args:
        packets: at least one.
        weights: one finite number for each packet; None: ones, so the plain sum.
        out: overwritten and returned: a tensor of the packets' shape, or flat, of any strides and
            float dtype, which the float32 sum is converted to; for groups a list of them. Whatever
            is raised, it is as it was. None: a new tensor.

    Returns:
        float32 of the packets' shape; a list, one for each member, where the packets are groups.

    Raises TypeError for what are no packets or numbers, ValueError where shapes differ, weights do
    not fit or are not finite, out does not fit, or the sum is not finite in float32 or in the dtype
    of out. The last is not looked for on CUDA, where it would synchronize.

    >>> import gcext, torch
    >>> a, b = (gcext.stc(torch.tensor(t), p=0.5) for t in ([3.0, 0.0], [0.0, -1.0]))
    >>> gcext.combine([a, b]), gcext.combine([a, b], [1.0, 0.5])
    (tensor([ 3., -1.]), tensor([ 3.0000, -0.5000]))
    """
    listed = check_alike("combine", packets)
    if weights is None:
        numbers = [1.0] * len(listed)
    else:
        numbers = _checked("combine", listed, weights, math.isfinite, "finite")
    return _sum_into("combine", listed, numbers, out)


def gram(packets: Iterable[Packet]) -> Tensor:
    """Return all pairwise dot products of packets of one shape, whatever their methods.

    Between two ternary packets, or two of all elements' signs, the product is integer work: the
    scales' product times (agreements - disagreements) of the signs, so its sign is exact. Other
    pairs are summed in float64 in a fixed order. The dot product of two groups is the sum over
    their members.

    Returns:
        float64 of shape (m, m), symmetric bit for bit.

    Raises TypeError for what are no packets, ValueError where shapes differ or there is none.

    >>> import gcext, torch
    >>> a, b = (gcext.stc(torch.tensor(t), p=1) for t in ([3.0, 3.0], [-1.0, -1.0]))
    >>> gcext.gram([a, b])
    tensor([[18., -6.],
            [-6.,  2.]], dtype=torch.float64)
    """
    packets = check_alike("gram", packets)
    if packets[0].method == "group":
        total = torch.zeros(len(packets), len(packets), dtype=torch.float64)
        for members in _columns(packets):
            total += gram(members).to(total.device)
        return total
    index, value, codes = operands(packets)
    scale = list(codes.scale) or [0.0] * len(packets)
    scale = [
        p.scale if p.method == "ternary" else own for p, own in zip(packets, scale, strict=True)
    ]
    return ops.gram(index, value, scale, packets[0].numel, codes)


@overload
def mean(
    packets: Iterable[Packet], weights: Sequence[float] | None = None, out: None = None
) -> Tensor | list[Tensor]: ...
@overload
def mean(packets: Iterable[Packet], weights: Sequence[float] | None, out: _Out) -> _Out: ...
@overload
def mean(
    packets: Iterable[Packet], weights: Sequence[float] | None = None, *, out: _Out
) -> _Out: ...
def mean(packets: Iterable[Packet], weights: Sequence[float] | None = None, out: Any = None) -> Any:
    """Return the mean of packets of one shape, weighted where weights are given.

    Args:
        packets: at least one.
        weights: one positive, finite number for each packet, such as its client's samples; they
            are divided by their sum. None: all the same.
        out: as of ``gcext.combine``.

    Returns:
        float32 of the packets' shape; a list, one for each member, where the packets are groups.

    Raises TypeError for what are no packets or numbers, ValueError where shapes differ, weights do
    not fit or are not positive and finite, or out does not fit; see also ``gcext.combine``.

    >>> import gcext, torch
    >>> packets = [gcext.codec("dense").encode(torch.tensor([x])) for x in (1.0, 5.0)]
    >>> gcext.aggregate.mean(packets), gcext.aggregate.mean(packets, [3, 1])
    (tensor([3.]), tensor([2.]))
    """
    listed = check_alike("mean", packets)
    if weights is None:
        return _sum_into("mean", listed, [1.0 / len(listed)] * len(listed), out)
    numbers = _checked("mean", listed, weights, is_weight, "positive and finite")
    return _sum_into("mean", listed, normalised(numbers), out)


def _sum_into(op: str, packets: Sequence[Packet], weights: Sequence[float], out: Any) -> Any:
    """Return the weighted sum, in ``out`` where there is one."""
    outs = [] if out is None else as_targets(op, packets[0], out)
    made = _weighted(packets, weights)
    if packets[0].device.type == "cpu":
        check_finite(op, made, packets, weights)
    if out is None:
        return made
    parts = made if isinstance(made, list) else [made]
    for target, part in zip(outs, parts, strict=True):
        most = torch.finfo(target.dtype).max
        if target.is_cpu and target.itemsize == 2 and not largest(part.to(target.dtype)) <= most:
            raise ValueError(
                f"{op}: the sum must be finite in {target.dtype}, the dtype of out, got up to "
                f"{largest(part):.4g}. Pass a float32 tensor."
            )
    overwrite(outs, parts)
    return out


def weighted_sum(
    op: str,
    packets: Sequence[Packet],
    weights: Sequence[float],
    clients: Sequence[Any],
    most: float,
) -> Tensor | list[Tensor]:
    """Return the weighted sum of clients' packets as an aggregator's update: finite.

    op: the aggregator. most: the largest magnitude allowed. Raises ValueError, which names a
    client, where an element is beyond.
    """
    made = _weighted(packets, weights)
    check_finite(op, made, packets, weights, clients, most)
    return made


def _weighted(packets: Sequence[Packet], weights: Sequence[float]) -> Tensor | list[Tensor]:
    """``combine`` without its checks."""

    def combined(each: Sequence[Packet]) -> Tensor:
        index, value, codes = operands(each)
        return ops.combine(index, value, weights, each[0].numel, codes)

    return per_tensor(combined, packets)


def per_tensor(
    function: Callable[[Sequence[Packet]], Tensor], packets: Sequence[Packet]
) -> Tensor | list[Tensor]:
    """Return ``function(packets)`` in the packets' shape; of groups a list, one for each tensor.

    Args:
        function: of single packets of one shape; it returns as many elements as that shape has.
        packets: at least one, of one shape.

    Raises MemoryError where there is none for as many elements.
    """

    def called(singles: Sequence[Packet]) -> Tensor:
        try:
            return function(singles).view(singles[0].shape)
        except RuntimeError as error:
            if memory_error("aggregate", error) is None:
                raise
            numel = singles[0].numel
            raise MemoryError(
                f"aggregate: a dense result of {numel} elements needs {4 * numel / 2**30:.4g} GiB, "
                "for which there is no memory. Pin the shape of packets with expect=, or aggregate "
                "the tensors of a model one after the other."
            ) from error

    if packets[0].method == "group":
        settle([member for packet in packets for member in packet.members])
        return [called(members) for members in _columns(packets)]
    return called(packets)


def pairs(packets: Sequence[Packet]) -> tuple[list[Tensor], list[Tensor]]:
    """Return indices (empty where a packet is dense) and float32 values, as the operators take."""
    none = torch.empty(0, dtype=torch.int32, device=packets[0].device)
    settle(packets)
    entries = [packet.entries() for packet in packets]  # some packets compute them each time
    return [none if index is None else index for index, _ in entries], [v for _, v in entries]


def operands(packets: Sequence[Packet]) -> tuple[list[Tensor], list[Tensor], ops.Codes]:
    """Return ``pairs``, but on the CPU coded values as they are, and what they stand for."""
    coded = {packet.method for packet in packets} & _CODED
    if not coded or packets[0].device.type != "cpu":
        return *pairs(packets), ops.Codes()
    none = torch.empty(0, dtype=torch.int32)
    rows = [_operand(packet, none) for packet in packets]
    index, value, scale, norms, steps, bucket, table = map(list, zip(*rows, strict=True))
    return index, value, ops.Codes(scale, norms, steps, bucket, table)


def _operand(packet: Packet, none: Tensor) -> tuple[Tensor, Tensor, float, Tensor, int, int, int]:
    support, coded, _ = packet.contents
    if isinstance(coded, Levels) and support is None:
        return coded.at, coded.level, 0.0, coded.norms, coded.steps, coded.bucket, -1
    held: tuple[Tensor, float, Tensor, int, int, int] | None = None
    if isinstance(coded, Signs):
        held = coded.bits, coded.scale, none, 0, 0, -1
    elif isinstance(coded, Powers) and coded.power.numel() > 0:
        held = coded.power, coded.scale, none, 0, 0, POWERS
    elif isinstance(coded, Codes) and coded.width > 0:
        table = TABLES.index(coded.table)
        held = coded.bits, 0.0, coded.scales, coded.width, coded.bucket, table
    if held is not None:
        at = support.draw(packet.numel) if isinstance(support, Random) else support
        return none if at is None else at, *held
    index, value = packet.entries()
    return none if index is None else index, value, 0.0, none, 0, 0, -1


def is_dense(packet: Packet) -> bool:
    """Return whether a single packet has float32 values, or a code of them, for all elements."""
    code = None if isinstance(packet.coded, Tensor) else packet.coded
    return packet.support is None and (code is None or code.place is None)


def check_alike(
    op: str, packets: Iterable[Packet], clients: Sequence[Any] | None = None
) -> Sequence[Packet]:
    """Return the packets as a list or tuple; raise unless there are some, all of one shape.

    TypeError for what is no packet, else ValueError; they name the clients where these are given.
    """
    listed = as_packets(Packet, op, packets, clients)
    if not listed:
        raise ValueError(f"{op}: needs at least one packet, got none.")
    first = listed[0]
    shape, group = first.shape, first.method == "group"
    for i, packet in enumerate(listed):
        if packet.shape != shape or (packet.method == "group") != group:
            one, other = ("", "") if clients is None else (clients[0], clients[i])
            of = " from client " if clients is not None else ""
            raise ValueError(
                f"{op}: packets must have one shape, got {_described(first)}{of}{one} and "
                f"{_described(packet)}{of}{other}."
            )
    return listed


def check_cost(op: str, budget: Budget, client: Any, packet: Packet) -> None:
    """Raise ValueError for a client's packet that costs more to decode than the budget."""
    needed = Budget.needed(packet)
    if not budget.admits(needed):
        raise ValueError(
            f"{op}: a packet must be within {budget}, got one of {needed} from client {client}. "
            "Leave the client out, or allow more."
        )


def _described(packet: Packet) -> str:
    return f"a group of {packet.shape}" if packet.method == "group" else str(packet.shape)


def is_weight(number: float) -> bool:
    """Return whether a number can be a weight of a mean."""
    return math.isfinite(number) and number > 0


def _columns(groups: Sequence[Packet]) -> list[tuple[Packet, ...]]:
    """Return the packets of each tensor, given groups of one shape."""
    return list(zip(*(group.members for group in groups), strict=True))


def _checked(
    op: str,
    packets: Sequence[Packet],
    weights: Sequence[float],
    holds: Callable[[float], bool],
    rule: str,
) -> list[float]:
    sized = weights.dim() > 0 if isinstance(weights, Tensor) else hasattr(weights, "__len__")
    if not sized or isinstance(weights, (str, bytes, Mapping)):
        raise TypeError(
            f"{op}: weights must be a list of numbers, one for each packet, got "
            f"{type(weights).__name__}."
        )
    if len(weights) != len(packets):
        raise ValueError(
            f"{op}: needs a weight for every packet, got {len(weights)} for {len(packets)}."
        )
    numbers = [as_number(op, "weights", each, f"packet {i}") for i, each in enumerate(weights)]
    for i, number in enumerate(numbers):
        if not holds(number):
            raise ValueError(f"{op}: weights must be {rule}, got {number} for packet {i}.")
    return numbers


def as_number(op: str, what: str, given: Any, whose: str) -> float:
    """Return a number as float; TypeError where it is none. ``whose`` is named in the error."""
    try:
        if not isinstance(given, (str, bytes)):
            return float(given)
    except (TypeError, ValueError):
        pass
    raise TypeError(f"{op}: {what} must be numbers, got {given!r:.100} for {whose}.")
