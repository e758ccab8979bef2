"""Packets: what travels. Index-sorted pairs of a tensor, or all of it, or a group of packets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from gcext._errors import DecodeError
from gcext._native import library as _lib
from gcext._native.library import BY_NAME, DTYPES
from gcext._packet import device as _device
from gcext._packet import wire
from gcext._packet.codes import CODES, Code, Random

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["Packet", "made_there", "open_there"]


class Packet:
    """A compressed tensor. Made by a codec or by ``from_bytes``; never changed afterwards.

    Attributes:
        method: "dense", "sparse" (float32 values), "ternary" (plus or minus one scale), "merged"
            (several ternary packets, the very ones, in one), "group" (packets of many tensors),
            "random" (float32 values of a random support), "sign", "levels" or "polar" (the codes
            of gcext.values, on any support).
        shape: of the source; of a group, the tuple of its members' shapes.
        dtype: of the source, for information: all arithmetic is float32.
        support: which elements travel: None for all of them, their indices, or values.Random.
        coded: what they became: float32, or one of the codes Signs, Levels and Polar.
        scale: of a ternary packet; 0 where it holds no element.
        members: of a group.

    >>> import gcext, torch
    >>> packet = gcext.stc(torch.tensor([0.0, 4.0, -2.0]), p=0.7)
    >>> gcext.Packet.from_bytes(packet.to_bytes(), expect=(3,)).to_dense()
    tensor([ 0.,  3., -3.])
    """

    __slots__ = (
        "_bytes",
        "_parts",
        "coded",
        "dtype",
        "members",
        "method",
        "scale",
        "shape",
        "support",
    )

    def __init__(
        self,
        method: str,
        shape: tuple[Any, ...],
        dtype: torch.dtype,
        support: Tensor | Random | None,
        coded: Tensor | Code,
        scale: float = 0.0,
        members: tuple[Packet, ...] = (),
        parts: wire.Members | None = None,
    ) -> None:
        self.method = method
        self.shape = shape
        self.dtype = dtype
        self.support = support
        self.coded = coded
        self.scale = scale
        self.members = members
        self._parts = parts
        self._bytes: bytes | None = None

    @property
    def index(self) -> Tensor | None:
        """Where the elements are: int32, from 2^31 elements on int64; k long, rising.

        None where all of them travel. Drawn or looked up each time, unless the packet holds it.
        """
        place = self._place
        if self.support is None:
            return place
        if isinstance(self.support, Random):
            index = self.support.draw(self.numel, self.device)
        else:
            index = self.support
        return index if place is None else index[place.long()]

    @property
    def value(self) -> Tensor:
        """The elements: float32, k long. Decoded each time, unless the packet holds them."""
        # Not "is it a Code", which an abstract class takes long to answer.
        return self.coded if isinstance(self.coded, Tensor) else self.coded.decode(self._sent)

    @property
    def numel(self) -> int:
        """Elements of the source; of a group, of all its members."""
        if self.method == "group":
            return sum(member.numel for member in self.members)
        return math.prod(self.shape)

    @property
    def k(self) -> int:
        """Elements that travel; of levels, those that are not zero."""
        if self.method == "group":
            return sum(member.k for member in self.members)
        place = self._place
        return self._sent if place is None else place.numel()

    @property
    def _place(self) -> Tensor | None:
        """Which of the support's elements have a value; None for each of them."""
        return None if isinstance(self.coded, Tensor) else self.coded.place

    @property
    def _sent(self) -> int:
        """Elements of the support."""
        if self.support is None:
            return self.numel
        return self.support.k if isinstance(self.support, Random) else self.support.numel()

    @property
    def nbytes(self) -> int:
        """Length of ``to_bytes()``."""
        return len(self.to_bytes())

    @property
    def device(self) -> torch.device:
        """Where the contents are."""
        return self.members[0].device if self.members else self.coded.device

    def __repr__(self) -> str:
        scale = f", scale={self.scale:.6g}" if self.method == "ternary" else ""
        return f"Packet({self.method}, shape={self.shape}, k={self.k}{scale})"

    def indices(self) -> Tensor:
        """Return where the elements are in the flat source: int64, rising, shape (k,)."""
        self._not_group("indices")
        index = self.index
        if index is None:
            return torch.arange(self.numel, device=self.device)
        return index.to(torch.int64, copy=True)

    def values(self) -> Tensor:
        """Return the elements that travel: float32, shape (k,)."""
        self._not_group("values")
        value = self.value
        return value.clone() if value is self.coded else value

    def to_dense(self) -> Any:
        """Return the decoded tensor: float32, the source's shape. A group gives a list of them."""
        if self.method == "group":
            return [member.to_dense() for member in self.members]
        if self.support is None and self._place is None:
            return self.values().view(self.shape)
        dense = torch.zeros(self.numel, dtype=torch.float32, device=self.device)
        self.add_to_(dense)
        return dense.view(self.shape)

    def add_to_(self, tensor: Tensor, alpha: float = 1.0) -> None:
        """Add ``alpha`` times the decoded tensor to ``tensor``, in place, touching k elements.

        Args:
            tensor: float32, contiguous, as many elements as the source.
            alpha: rounded to float32; the product and the sum are rounded once each.

        Raises ValueError where the tensor does not fit.
        """
        from gcext._native import ops

        self._not_group("add_to_")
        fits = tensor.numel() == self.numel and tensor.device == self.device
        if not (fits and tensor.dtype == torch.float32 and tensor.is_contiguous()):
            raise ValueError(
                f"Packet.add_to_: tensor must be float32, contiguous, of {self.numel} elements on "
                f"{self.device}, got {tensor.dtype} {tuple(tensor.shape)} on {tensor.device}."
            )
        if not math.isfinite(alpha) or abs(alpha) > torch.finfo(torch.float32).max:
            raise ValueError(f"Packet.add_to_: alpha must be finite in float32, got {alpha}.")
        index, value = self.index, self.value
        if index is None:
            index = _EMPTY.to(self.device)
        ops.combine_add_(tensor.detach().view(-1), index, value, alpha)
        if tensor.numel():
            _lib.touched(tensor)

    def to(self, device: torch.device | str) -> Packet:
        """Return the packet with its contents on ``device``."""
        support = self.support.to(device) if isinstance(self.support, Tensor) else self.support
        members = tuple(member.to(device) for member in self.members)
        return Packet(
            self.method, self.shape, self.dtype, support, self.coded.to(device), self.scale,
            members, self._parts,
        )  # fmt: skip

    def to_bytes(self) -> bytes:
        """Return the message, docs/wire-format.md: one content, one byte string."""
        if self._bytes is not None:
            return self._bytes
        message = wire.pack(_finished_body(self))
        if self._lasts:
            self._bytes = message
        return message

    @classmethod
    def from_bytes(
        cls,
        buf: Buffer,
        device: torch.device | str = "cpu",
        expect: Sequence[Any] | Packet | None = None,
    ) -> Packet:
        """Return the packet that ``buf`` says; everything is checked before anything is allocated.

        Args:
            buf: any contiguous buffer, exactly one message.
            device: where the pairs go.
            expect: the shape that the caller knows (a group: the shapes of its members), or a
                packet of that shape. Without it a message may name any shape, up to 2^63-1
                elements, and to_dense would allocate it.

        Raises DecodeError on anything wrong; its code, field and offset say what and where.
        """
        shape = expect.shape if isinstance(expect, Packet) else expect
        kind = torch.device(device).type
        packet = open_there(buf, device, shape) if kind == "cuda" else None
        if packet is None:
            packet = _packet(wire.unpack(buf, shape))  # type: ignore[arg-type]
            packet = packet if kind == "cpu" else packet.to(device)
        if isinstance(buf, bytes):  # one content, one byte string: this is what to_bytes would give
            packet._bytes = buf
        return packet

    @classmethod
    def group(cls, packets: Sequence[Packet]) -> Packet:
        """Put the packets of many tensors under one header and checksum.

        Raises ValueError for no packets, and for a group within a group.

        >>> import gcext, torch
        >>> model = [gcext.stc(torch.ones(3), p=1), gcext.stc(torch.ones(2, 2), p=1)]
        >>> gcext.Packet.group(model).shape
        ((3,), (2, 2))
        """
        packets = tuple(packets)
        if not packets:
            raise ValueError("Packet.group: needs at least one packet, got none.")
        for packet in packets:
            packet._not_group("group")
        shapes = tuple(packet.shape for packet in packets)
        return cls("group", shapes, packets[0].dtype, None, torch.empty(0), members=packets)

    @classmethod
    def merge(cls, packets: Sequence[Packet]) -> Packet:
        """Merge ternary packets of one shape, oldest first, into one that says the same.

        ``parts()`` gives the very packets back; ``values()`` are their exact sums, rounded once.
        Raises ValueError for other methods, unequal shapes, or fewer than two.
        """
        return _packet(wire.merge([_body(packet) for packet in packets]))

    def parts(self) -> tuple[Packet, ...]:
        """Return the packets that a merged one was made of, byte for byte, in order."""
        return tuple(_packet(body) for body in wire.unmerge(_body(self)))

    # What is asked of a packet whose streams a device makes; a late one answers otherwise.

    @property
    def _lasts(self) -> bool:
        """Whether the packet says the same for ever."""
        return all(member._lasts for member in self.members)

    def _pairs(self) -> _device.Pairs:
        """Return a ternary packet as it is on its device."""
        assert isinstance(self.support, Tensor)
        assert isinstance(self.coded, Tensor)
        info = self.coded.new_empty(0, dtype=torch.int64)
        return _device.Pairs(self.support, self.coded, info, self.numel, self._maker())

    def _told(self, info: list[int]) -> tuple[int, float]:
        """Return k and scale, given select's info."""
        return self.k, self.scale

    def _maker(self) -> torch.Stream | None:
        """Return the stream that made the packet; None on the CPU."""
        return _lib.current_stream(self.device)

    def _not_group(self, what: str) -> None:
        if self.method == "group":
            raise ValueError(f"Packet.{what}: needs a single packet, got a group. Use .members.")


_EMPTY = torch.empty(0, dtype=torch.int32)


def made_there(packet: Packet) -> bool:
    """Whether the packet's streams are made on its device."""
    return packet.method == "ternary" and packet.device.type == "cuda"


def _finished_body(packet: Packet) -> wire.Body:
    """Return what the packet says, with streams that are finished where its device makes them."""
    packets = packet.members if packet.method == "group" else (packet,)
    there = [i for i, each in enumerate(packets) if made_there(each)]
    streams = _device.make_streams([packets[i]._pairs() for i in there])
    bodies = {i: _closed_body(packets[i], each) for i, each in zip(there, streams, strict=True)}
    members = tuple(bodies.get(i) or _body(each) for i, each in enumerate(packets))
    return wire.Body("group", members=members) if packet.method == "group" else members[0]


def _closed_body(packet: Packet, streams: _device.Streams) -> wire.Body:
    k, scale = packet._told(streams.info)
    if streams.wrong:  # the host can tell where
        return _body(packet)
    made = wire.Made(k, streams.made)
    return wire.Body("ternary", packet.shape, DTYPES[packet.dtype], scale=scale, closed=made)


def open_there(buf: Buffer, device: torch.device | str, shape: Any) -> Packet | None:
    """Return the packet that ``buf`` says, its ternary parts opened on the device.

    None where anything is wrong, since the host can tell what, and where a shape is too large.
    """
    try:
        found = wire.locate(buf, shape)  # type: ignore[arg-type]
    except DecodeError:
        return None
    bodies = found.members if found.method == "group" else (found,)
    closed = [each for each in bodies if each.closed is not None]
    if any(math.prod(each.shape) > _device.MOST for each in closed):
        return None
    opened = _device.open_streams(buf, device, closed) if closed else []
    if opened is None:
        return None
    pairs = iter(opened)
    packets = [
        _packet(each).to(device)
        if each.closed is None
        else Packet("ternary", each.shape, BY_NAME[each.dtype], *next(pairs), each.scale)
        for each in bodies
    ]
    return Packet.group(packets) if found.method == "group" else packets[0]


def _body(packet: Packet) -> wire.Body:
    if packet.method == "group":
        return wire.Body("group", members=tuple(_body(member) for member in packet.members))
    index: wire.Index | wire.Drawn | None
    if isinstance(packet.support, Random):
        index = wire.Drawn(packet.support.seed, packet.support.k)
    else:
        index = None if packet.support is None else packet.support.cpu().numpy()
    head = (packet.method, packet.shape, DTYPES[packet.dtype], index)
    if isinstance(packet.coded, Code):
        return wire.Body(*head, code=tuple(map(_array, packet.coded.fields())))
    return wire.Body(*head, _array(packet.coded), packet.scale, merged=packet._parts)


def _array(x: Any) -> Any:
    return x.cpu().numpy() if isinstance(x, Tensor) else x


def _tensor(x: Any) -> Any:
    return torch.from_numpy(x) if isinstance(x, np.ndarray) else x


def _packet(body: wire.Body) -> Packet:
    if body.method == "group":
        return Packet.group([_packet(member) for member in body.members])
    index = body.index
    support = Random(*index) if isinstance(index, wire.Drawn) else _tensor(index)
    code = CODES.get(body.method)
    coded = _tensor(body.value) if code is None else code(*map(_tensor, body.code))
    return Packet(
        body.method, body.shape, BY_NAME[body.dtype], support, coded, body.scale, parts=body.merged
    )
