"""Packets as bytes: what gcext._wire (csrc/wire) reads of a packet and makes of a message.

The format is docs/wire-format.md. The extension reads packets by attribute, and gives the parts of
a decoded one by name; torch is unknown there, so tensors are NumPy arrays on the way out.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from xxhash import xxh3_64_intdigest

import gcext._packet.tables  # noqa: F401  (registers its value code)
import gcext._wire as _wire
from gcext._packet.codes import CODES, Contents, Merged, Random
from gcext._packet.joined import DTYPE_OF, Head, Joined
from gcext._packet.sums import Sum

if TYPE_CHECKING:
    from gcext._packet.packet import Packet

__all__ = ["Encoded", "Located", "as_message", "as_shapes", "locate", "merge", "pack", "unmerge"]
__all__ += ["unpack"]


class Encoded(NamedTuple):
    """The streams of a ternary packet's k elements as a device has encoded them."""

    k: int
    scale: float
    streams: npt.NDArray[np.uint8]  # from the tile table to the signs


class Located(NamedTuple):
    """Where the streams of k elements lie in a message, in bytes, for a device to decode."""

    k: int
    begin: int
    end: int
    remainder_bytes: int
    scale_bits: int
    scale: float


def pack(packet: Packet) -> bytes:
    """Return the message of a packet on the host: its one byte string.

    Of a ternary packet's values only the sign bits are read; of a merged one's, nothing; encoded
    streams are taken as they are.

    Raises ValueError where the contents do not make a packet: indices not strictly rising below the
    number of elements, a scale or value that is zero or non-finite, wrong lengths or dtypes.
    """
    return _wire.pack(packet, xxh3_64_intdigest)


def as_message(buf: Any) -> Any:
    """Return a message that a tensor may hold as a buffer; a CUDA tensor is copied to the host."""
    if not isinstance(buf, Tensor):
        return buf
    if buf.dtype != torch.uint8:
        raise TypeError(
            f"from_bytes: a tensor must be uint8, the message's bytes, got {buf.dtype}."
        )
    if buf.dim() != 1 or not buf.is_contiguous():
        raise ValueError(
            "from_bytes: a tensor must be contiguous and of one dimension, got "
            f"{tuple(buf.shape)} with strides {buf.stride()}. Call .contiguous().view(-1)."
        )
    return buf.detach().cpu().numpy()


def unpack(
    kind: type[Packet], message: Any, expect: Any = None, budget: tuple[int, int] | None = None
) -> Packet:
    """Return the packet in a message. Nothing in proportion to k is allocated before all is valid.

    kind: the class to make. expect: the shape of a single packet, or the shapes of a group's
    members (an empty sequence is the shape of a 0-d tensor). budget: work and memory; None: the
    default where a shape is expected, else no limit. Raises gcext.DecodeError on anything
    wrong: code, field and byte offset tell what and where; TypeError where message is no buffer,
    ValueError where expect is no shape.
    """
    return _unpack(kind, message, expect, False, budget)


def locate(
    kind: type[Packet], message: Any, expect: Any = None, budget: tuple[int, int] | None = None
) -> Packet:
    """Return the packet in a message, with ternary ones that hold elements only Located.

    Of these the structure is valid, the contents of the tiles unknown. Raises as unpack does, but
    where unpack would find such a tile wrong first, this may find what comes later.
    """
    return _unpack(kind, message, expect, True, budget)


def merge(kind: type[Packet], packets: Sequence[Packet]) -> Packet:
    """Merge ternary packets of one shape and dtype into one, without loss.

    Raises ValueError for less than 2 or more than 4096, for other methods, for unequal shapes or
    dtypes, and where a sum overflows float32.
    """
    for packet in packets:
        first = packets[0]
        if packet.method != "ternary":
            raise ValueError(f"merge: packets must be ternary, got {packet.method}. Send it alone.")
        if (packet.shape, packet.dtype) != (first.shape, first.dtype):
            raise ValueError(
                "merge: packets must have one shape and dtype, "
                f"got {first.shape} {first.dtype} and {packet.shape} {packet.dtype}."
            )
    if len(packets) < 2:
        raise ValueError(f"merge: needs at least 2 packets, got {len(packets)}.")
    merged: Packet = _wire.merge(packets, _builder(kind))
    return merged


def unmerge(kind: type[Packet], packet: Packet) -> tuple[Packet, ...]:
    """Return the very ternary packets that a merged one was made of, in order."""
    if packet.method != "merged":
        raise ValueError(f"unmerge: the packet must be merged, got {packet.method}.")
    return tuple(_wire.unmerge(packet, _builder(kind)))


def _unpack(
    kind: type[Packet], message: Any, expect: Any, located: bool, budget: tuple[int, int] | None
) -> Packet:
    if not isinstance(message, bytes):
        try:
            memoryview(message).release()
        except TypeError:
            raise TypeError(
                "from_bytes: message must be bytes, another contiguous buffer or a uint8 tensor, "
                f"got {type(message).__name__}. Pass bytes."
            ) from None
    expected = None if expect is None else as_shapes("from_bytes", expect)
    packet: Packet = _wire.unpack(
        message, xxh3_64_intdigest, _builder(kind), expected, located, budget
    )
    return packet


def _builder(kind: type[Packet]) -> Callable[..., Packet]:
    """Return what makes a packet of the parts that the extension gives."""

    def build(
        method: str,
        shape: Sequence[int] = (),
        dtype: str = "float32",
        support: Any = None,
        coded: Any = None,
        scale: float = 0.0,
        merged: Mapping[str, Any] | None = None,
        located: Mapping[str, Any] | None = None,
        members: Sequence[Any] = (),
    ) -> Packet:
        if members:
            return _group(kind, members, _tensor(support), _tensor(coded))
        head = (method, tuple(shape), DTYPE_OF[dtype])
        if located is not None:
            return kind(*head, encoded=Located(scale=scale, **located))
        if isinstance(coded, list):
            coded = Sum(tuple(coded))
        elif isinstance(coded, dict):
            coded = CODES[method](**{name: _tensor(part) for name, part in coded.items()})
        support = Random(**support) if isinstance(support, dict) else _tensor(support)
        contents = Contents(support, _tensor(coded), scale)
        if merged is not None:
            return kind(*head, contents, merged=Merged(**merged))
        return kind(*head, contents)

    return build


def _group(
    kind: type[Packet], members: Sequence[Head | Packet], index: Tensor, value: Tensor
) -> Packet:
    """Return a group of members: packets, and heads of those whose elements the arrays hold."""
    if index.numel() == 0 and not any(isinstance(each, tuple) for each in members):
        return kind.group(cast("Sequence[Packet]", members))
    first = members[0]
    dtype = DTYPE_OF[first[2]] if isinstance(first, tuple) else first.dtype
    shapes = tuple([each[1] if isinstance(each, tuple) else each.shape for each in members])
    return kind("group", shapes, dtype, joined=Joined(members, index, value))


def _tensor(x: Any) -> Any:
    return torch.from_numpy(x) if isinstance(x, np.ndarray) else x


def as_shapes(op: str, expect: Any) -> tuple[bool, list[list[int]]]:
    """Return whether a group is expected, and the shapes; tensors stand for theirs.

    op: what was called, for errors. Raises ValueError where expect is no shape.
    """
    if isinstance(expect, tuple):  # what it mostly is
        for dim in expect:
            if type(dim) is not int or not -(2**63) < dim < 2**63:
                break
        else:
            return False, [list(expect)]
    try:
        if isinstance(expect, Mapping):
            return True, [_dims(each) for each in expect.values()]
        items = _items(expect)
        group = len(items) > 0 and not _is_integer(items[0])
        return group, [_dims(each) for each in (items if group else [items])]
    except TypeError:
        raise ValueError(
            f"{op}: expect must be a shape of integers, or for a group a sequence of "
            f"shapes, got {expect!r:.200}. Pass the tensor's shape."
        ) from None


def _dims(shape: Any) -> list[int]:
    return [_dim(item) for item in _items(shape)]


def _items(sequence: Any) -> list[Any]:
    if isinstance(sequence, Tensor):
        return list(sequence.shape)
    if isinstance(sequence, (str, bytes)) or not isinstance(sequence, (Sequence, np.ndarray)):
        raise TypeError
    return list(sequence)


def _is_integer(item: Any) -> bool:
    if isinstance(item, Tensor):  # one of a group's, also where it holds an integer
        return False
    try:
        operator.index(item)
    except TypeError:
        return False
    return True


def _dim(item: Any) -> int:
    dim = operator.index(item)
    return dim if -(2**63) < dim < 2**63 else _wire.NO_DIM
