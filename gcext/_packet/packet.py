"""Packets: what travels. Index-sorted pairs of a tensor, or all of it, or a group of packets."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, overload

import torch
from torch import Tensor

from gcext._native import ops
from gcext._native.status import raise_for
from gcext._packet import dense, sums, targets, wire
from gcext._packet import device as on_device
from gcext._packet.arguments import as_packets
from gcext._packet.budget import Budget, as_pair
from gcext._packet.codes import Code, Contents, Merged, Random, Signs
from gcext._packet.deferred import Deferred
from gcext._packet.joined import Joined
from gcext._packet.streams import SETTLED, Ready, reading, use_here

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["Packet"]

_Out = TypeVar("_Out", bound="Tensor | Sequence[Tensor]")

_LARGEST = torch.finfo(torch.float32).max


def _assemble(
    finish: Callable[..., Contents], whole: int, scaled: bool, numbers: list[int], *arrays: Tensor
) -> Contents:
    """Return the contents, given info's numbers and the arrays, those not whole cut to length.

    Cut arrays are copied where that is not all of them, so that the rest is freed.
    """
    count = numbers[0]
    scale = Packet.scale_of(numbers[3]) if scaled else 0.0
    if len(arrays) > whole and count != arrays[-1].numel():  # those to be cut are of one length
        arrays = (*arrays[:whole], *(ops.copy_of(x[:count]) for x in arrays[whole:]))
    return finish(*arrays, scale)


def _packed(packets: Sequence[Packet]) -> list[bytes]:
    """Return the message of each of these packets, which are on devices, and keep it."""
    messages = []
    for packet, here in zip(packets, on_device.on_host(packets), strict=True):
        messages.append(wire.pack(here))
        if not packet.is_captured:
            packet._bytes = messages[-1]
    return messages


@dataclass(eq=False, repr=False, slots=True)
class Packet:
    """A compressed tensor. Made by a codec or by ``from_bytes``; never changed afterwards.

    Packets are equal where their contents are: method, shape, dtype and bytes. A pickle is the
    message: it is validated when it is loaded, onto the CPU. A copy is the packet itself.

    Attributes:
        method: "dense", "sparse" (float32 values), "ternary" (plus or minus one scale), "merged"
            (several ternary packets in one, without loss), "group" (packets of many tensors),
            "random" (float32 values of a random support), "sign", "levels", "levels2", "powers",
            "polar" or "codes" (value codes, on any support), "sum" (several packets of one tensor,
            whose values are added up), "lowrank" (two factors), "sketch" (sums that all elements
            are estimated from) or "dct" (coefficients).
        shape: of the source; of a group, the tuple of its members' shapes.
        dtype: of the source, for information: all arithmetic is float32.

    >>> import gcext, torch
    >>> packet = gcext.stc(torch.tensor([0.0, 4.0, -2.0]), p=0.7)
    >>> packet
    Packet(ternary, shape=(3,), k=2, scale=3)
    >>> gcext.Packet.from_bytes(packet.to_bytes(), expect=(3,)) == packet
    True
    """

    method: str
    shape: tuple[Any, ...]
    dtype: torch.dtype
    _contents: Contents | None = None
    _members: tuple[Packet, ...] = ()
    merged: Merged | None = None
    encoded: wire.Encoded | wire.Located | None = None
    deferred: Deferred | None = None
    joined: Joined | None = None  # what the contents, or a group's members, are made of when asked
    place: int = 0  # among those of joined
    _bytes: bytes | None = field(default=None, init=False)
    _settled: bool = field(default=False, init=False)  # the host has waited for the contents

    @classmethod
    def from_kernel(
        cls,
        method: str,
        op: str,
        source: Tensor,
        info: Tensor,
        finish: Callable[..., Contents],
        whole: tuple[Tensor, ...] = (),
        cut: tuple[Tensor, ...] = (),
        ready: Ready | None = None,
    ) -> Packet:
        """Return the packet of what a kernel left; on CUDA it is deferred.

        Args:
            method: see Packet. op: names the codec in errors. source: the tensor as it was given.
            info: the kernel's; gcext._native.ops.
            finish: returns the contents, given ``whole``, the elements of ``cut`` that info reports
                as written, and the scale (0 of a method that has none).
            ready: of packets that one call encodes, to be recorded once; see Deferred.

        Raises what info reports: on the CPU at once, on CUDA when the packet is first read.

        :meta private:
        """
        scaled = method in ("ternary", "sign", "dct")
        if info.is_cuda:
            assemble = partial(_assemble, finish, len(whole), scaled)
            deferred = Deferred(op, info, (*whole, *cut), assemble, ready)
            return cls(method, tuple(source.shape), source.dtype, deferred=deferred)
        numbers = info.tolist()
        if numbers[1]:
            raise_for(op, numbers[1], numbers[2], source)
        contents = _assemble(finish, len(whole), scaled, numbers, *whole, *cut)
        return cls(method, tuple(source.shape), source.dtype, contents)

    @staticmethod
    def scale_of(bits: int) -> float:
        """Return the non-negative float32 of these bits, also where denormals are being flushed.

        :meta private:
        """
        exponent, mantissa = bits >> 23, bits & 0x7FFFFF
        return math.ldexp(mantissa | (0x800000 if exponent else 0), max(exponent, 1) - 150)

    @property
    def contents(self) -> Contents:
        """Support, coded values and scale, of a single packet; synchronizes a deferred one."""
        deferred = self.deferred  # before _contents: another thread may be setting both
        if self._contents is not None:
            return self._contents
        if self.joined is not None and self.method != "group":
            self._contents = self.joined.contents(self.place)
            return self._contents
        if deferred is None:
            raise ValueError("Packet: needs a single packet, got a group. Use .members.")
        contents = deferred.synchronize()
        if not deferred.captured:
            self.keep(contents)
        return contents

    @property
    def members(self) -> tuple[Packet, ...]:
        """The packets of a group; () of a single packet.

        Those of one message, or of one call, share memory: one that is kept keeps all of it.
        """
        if not self._members and self.joined is not None and self.method == "group":
            self._members = self.joined.packets(type(self))
        return self._members

    def settle(self) -> None:
        """Synchronize the deferred members of a group, all at once.

        :meta private:
        """
        if any(member.deferred is not None for member in self._members):
            on_device.settle(self.members)

    def keep(self, contents: Contents) -> None:
        """Keep the contents of a deferred packet, which the host has waited for.

        :meta private:
        """
        use_here(contents.tensors())
        self._settled = True
        self._contents = contents
        self.deferred = None  # what of its arrays is not among the contents is freed

    def of_dtype(self, dtype: torch.dtype) -> Packet:
        """Return the single packet with another dtype of the source.

        :meta private:
        """
        contents = None if self.joined is None else self.contents
        return replace(self, dtype=dtype, _contents=contents or self._contents, joined=None)

    def having(self, contents: Contents) -> Packet:
        """Return the single packet with its contents elsewhere.

        :meta private:
        """
        return Packet(self.method, self.shape, self.dtype, contents, merged=self.merged)

    @property
    def support(self) -> Tensor | Random | None:
        """The elements that travel, as None (all), their indices, or a random support."""
        return self.contents.support

    @property
    def coded(self) -> Tensor | Code:
        """What they became, as float32 values or a value code."""
        return self.contents.coded

    @property
    def scale(self) -> float:
        """Magnitude of a ternary packet's values; 0 where it holds no element."""
        return self.contents.scale

    @property
    def numel(self) -> int:
        """Elements of the source; of a group, of all its members."""
        if self.method == "group":
            return sum(map(math.prod, self.shape))
        return math.prod(self.shape)

    @property
    def k(self) -> int:
        """Elements that travel; of levels, those that are not zero."""
        if self.members:
            self.settle()
            return sum(member.k for member in self.members)
        return self.contents.count(self.numel)

    @property
    def nbytes(self) -> int:
        """Length of ``to_bytes()``, which this packs, and keeps."""
        return len(self.to_bytes())

    @property
    def device(self) -> torch.device:
        """Where the contents are."""
        if self.joined is not None:
            return self.joined.index.device
        if self.members:
            return self.members[0].device
        deferred = self.deferred  # once: another thread may resolve it meanwhile
        return self.coded.device if deferred is None else deferred.info.device

    @property
    def is_captured(self) -> bool:
        """Whether a CUDA graph's next replay will change what the packet shows."""
        for each in self._members or (self,):
            deferred = each.deferred
            if deferred is not None and deferred.captured:
                return True
        return False

    @property
    def is_settled(self) -> bool:
        """Whether the host has waited for the contents, so that any stream may read them.

        :meta private:
        """
        return self._settled

    @property
    def is_resident(self) -> bool:
        """Whether all contents are on the host already.

        :meta private:
        """
        if self.joined is not None:
            return True
        for each in self._members or (self,):
            contents = each._contents
            if contents is None:
                return False
            coded = contents.coded  # Tensor.device.type takes ten times as long as is_cpu
            if not (coded.is_cpu if isinstance(coded, Tensor) else coded.device.type == "cpu"):
                return False
        return True

    def __repr__(self) -> str:
        if self.method == "group":
            return f"Packet(group of {len(self.shape)}, numel={self.numel})"
        if self.deferred is not None:
            return f"Packet({self.method}, shape={self.shape}, deferred on {self.device})"
        scale = f", scale={self.scale:.6g}" if self.method == "ternary" else ""
        return f"Packet({self.method}, shape={self.shape}, k={self.k}{scale})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Packet):
            return NotImplemented
        mine, theirs = (self.method, self.shape), (other.method, other.shape)
        return mine == theirs and self.to_bytes() == other.to_bytes()

    def __hash__(self) -> int:
        return hash((self.method, self.shape))

    def __bytes__(self) -> bytes:
        return self.to_bytes()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self).from_bytes, (self.to_bytes(),)

    def __copy__(self) -> Packet:
        """Return the packet itself, which never changes; of a captured one what it shows now."""
        return self.to(self.device) if self.is_captured else self

    def __deepcopy__(self, memo: dict[int, Any]) -> Packet:
        return self.__copy__()

    def entries(self) -> tuple[Tensor | None, Tensor]:
        """Return indices (int32, from 2^31 elements on int64; None: all) and float32 values.

        Computed each time where the packet does not hold them; not to be written to.
        """
        coded = (self._contents or self.contents).coded
        index = self.places()
        if isinstance(coded, Tensor):
            return index, coded
        return index, coded.decode(self.contents.sent(self.numel))

    def places(self) -> Tensor | None:
        """Return the indices of ``entries``; the values are not computed.

        :meta private:
        """
        support, coded, _ = self._contents or self.contents
        index = support.draw(self.numel, self.device) if isinstance(support, Random) else support
        place = None if isinstance(coded, Tensor) else coded.place
        if index is None or place is None:
            return place if index is None else index
        return index[place.long()]

    @property
    def magnitude(self) -> float:
        """That of every value, where all share one: of ternary packets and of signs. Else 0.

        :meta private:
        """
        contents = self._contents or self.contents
        return contents.coded.scale if isinstance(contents.coded, Signs) else contents.scale

    def indices(self) -> Tensor:
        """Return where the elements are in the flat source: int64, rising, shape (k,)."""
        index, value = self.entries()
        if index is None:
            return torch.arange(self.numel, device=value.device)
        return index.to(torch.int64, copy=True)

    def values(self) -> Tensor:
        """Return the elements that travel: float32, shape (k,)."""
        value = self.entries()[1]
        return ops.copy_of(value) if value is self.coded else value

    @overload
    def to_dense(
        self, out: None = None, dtype: torch.dtype | None = None
    ) -> Tensor | list[Tensor]: ...
    @overload
    def to_dense(self, out: _Out, dtype: torch.dtype | None = None) -> _Out: ...
    def to_dense(self, out: Any = None, dtype: torch.dtype | None = None) -> Any:
        """Return the decoded tensor in the source's shape. A group gives a list of them.

        Args:
            out: overwritten and returned: a tensor of the packet's shape, or flat, of any strides
                and float dtype, on its device; for a group a list of them. Float32 and contiguous
                is fastest. Whatever is raised, all are as they were. None: a new tensor.
            dtype: a float dtype, by default float32, or out's. The float32 values are rounded to
                it once; float64 holds them exactly.

        Raises TypeError where out is no tensor or list, ValueError where it does not fit.

        >>> import gcext, torch
        >>> packet = gcext.stc(torch.tensor([0.0, 4.0, -2.0]), p=0.7)
        >>> packet.to_dense(out=torch.ones(3, dtype=torch.float64))
        tensor([ 0.,  3., -3.], dtype=torch.float64)
        """
        if out is not None:
            dense.decode_into(self, out, dtype)
            return out
        tensors = dense.decode(self, dtype)
        return tensors if self.members else tensors[0]

    def add_to_(self, tensor: _Out, alpha: float = 1.0) -> _Out:
        """Add ``alpha`` times the decoded tensor to ``tensor``, in place, touching k elements.

        Args:
            tensor: float32, float64, float16 or bfloat16, of any strides that do not overlap, as
                many elements as the source; for a group a list of tensors, one a member. All are
                validated before any is changed.
            alpha: rounded to float32; the product and the sum are rounded once each. For float64
                the sum is made in float64 and rounded once; for the 16-bit types it is made in
                float32 and then rounded to theirs.

        Returns what it was given, as torch's in-place methods do. Raises ValueError where a
        tensor does not fit, alpha is not finite, or a sum would not be (what is not finite before
        may stay so); the tensors are then as they were. On CUDA, where it would synchronize, sums
        are not looked at. Contiguous float32 is fastest.

        >>> import gcext, torch
        >>> gcext.stc(torch.tensor([0.0, 4.0, -2.0]), p=0.7).add_to_(torch.ones(3), alpha=-1)
        tensor([ 1., -2.,  4.])
        """
        if not isinstance(alpha, (int, float)) or not abs(alpha) <= _LARGEST:
            raise ValueError(f"Packet.add_to_: alpha must be finite in float32, got {alpha}.")
        if isinstance(tensor, Tensor) and self._is_plain(tensor):
            index, value = self.entries()
            index = targets.ALL.to(value.device) if index is None else index
            into = tensor.detach() if tensor.requires_grad else tensor
            if not into.is_cpu or 0 < self.magnitude * abs(alpha) < targets.HARMLESS:
                ops.combine_add_(into, index, value, alpha)
            else:
                targets.add_finite([into], [index], [value], alpha)
            if not tensor.is_inference():  # the stable ABI does not tell autograd
                torch.autograd.graph.increment_version(tensor)
            return tensor
        targets.add(self, tensor, alpha)
        return tensor

    def _is_plain(self, tensor: Tensor) -> bool:
        """Return whether a tensor for a single packet fits, is float32 and contiguous."""
        if self.method == "group" or tensor.layout is not torch.strided:
            return False
        if tensor.dtype != torch.float32 or not tensor.is_contiguous():
            return False
        here = (self.is_resident and tensor.is_cpu) or tensor.device == self.device
        return here and tensor.numel() == math.prod(self.shape)

    def to(self, device: torch.device | str) -> Packet:
        """Return the packet with its contents on ``device``."""
        if self.members:
            self.settle()
            members = tuple(member.to(device) for member in self.members)
            return type(self)(self.method, self.shape, self.dtype, _members=members)
        contents, moved = self.contents, torch.device(device)
        fetched = self._settled and moved.type == "cpu" and self.device.type != "cpu"
        with reading(self.device, (SETTLED if fetched else None,)):
            return self.having(contents.map(lambda tensor: tensor.to(moved)))

    def to_bytes(self) -> bytes:
        """Return the message, docs/wire-format.md: one content, one byte string."""
        if self._bytes is not None:
            return self._bytes
        if self.is_resident:
            self._bytes = wire.pack(self)
            return self._bytes
        return _packed((self,))[0]

    @staticmethod
    def pack_all(packets: Sequence[Packet]) -> list[bytes]:
        """Return ``to_bytes()`` of each packet, those on a device synchronized all at once.

        :meta private:
        """
        away = [packet for packet in packets if packet._bytes is None and packet._is_away]
        made = dict(zip(map(id, away), _packed(away), strict=True))
        return [made.get(id(packet)) or packet.to_bytes() for packet in packets]

    @property
    def _is_away(self) -> bool:
        """Whether contents are on a device, or left there by a kernel."""
        singles = self._members or (self,)
        return any(each.deferred or each._contents for each in singles) and not self.is_resident

    @classmethod
    def from_bytes(
        cls,
        buf: Buffer | Tensor,
        device: torch.device | str = "cpu",
        expect: Sequence[Any] | Tensor | Mapping[str, Tensor] | Packet | None = None,
        budget: Budget | None = None,
    ) -> Packet:
        """Return the packet in ``buf``; everything is validated before anything is allocated.

        Args:
            buf: any contiguous buffer, or a contiguous uint8 tensor of one dimension, holding
                exactly one message. A CUDA tensor is copied to the host, which synchronizes.
            device: where the contents go.
            expect: the shape that the caller knows, or a tensor or packet of that shape; of a
                group a list of shapes or tensors, or a mapping to tensors. Without it a message may
                name any shape, up to 2^63-1 elements, and to_dense would allocate it.
            budget: the most that the message may cost to decode. None: ``Budget.default`` of the
                expected shape; without one, no limit.

        Raises DecodeError on anything wrong; its code, field and offset tell what and where. A
        message beyond the budget is refused before anything is allocated, with the code "budget".
        """
        message = wire.as_message(buf)
        shape = expect.shape if isinstance(expect, Packet) else expect
        kind = device if device == "cpu" else torch.device(device).type
        most = None if budget is None else as_pair(budget)
        packet = on_device.decode(cls, message, device, shape, most) if kind == "cuda" else None
        if packet is None:
            packet = wire.unpack(cls, message, shape, most)
            packet = packet if kind == "cpu" else packet.to(device)
        if isinstance(buf, bytes):  # one content, one byte string: this is what to_bytes would give
            packet._bytes = buf
        return packet

    @classmethod
    def group(cls, packets: Iterable[Packet]) -> Packet:
        """Put the packets of many tensors under one header and checksum.

        Raises ValueError for no packets, and for a group within a group.

        >>> import gcext, torch
        >>> model = [gcext.stc(torch.ones(3), p=1), gcext.stc(torch.ones(2, 2), p=1)]
        >>> gcext.Packet.group(model).shape
        ((3,), (2, 2))
        """
        packets = tuple(as_packets(Packet, "Packet.group", packets))
        if not packets:
            raise ValueError("Packet.group: needs at least one packet, got none.")
        if any(packet.method == "group" for packet in packets):
            raise ValueError("Packet.group: needs single packets, got a group. Use its .members.")
        shapes = tuple([packet.shape for packet in packets])
        joined = Joined.of(packets)
        return cls("group", shapes, packets[0].dtype, _members=packets, joined=joined)

    @classmethod
    def merge(cls, packets: Iterable[Packet]) -> Packet:
        """Merge ternary packets of one shape, oldest first, into one of the same contents.

        ``parts()`` gives the very packets back; ``values()`` are their exact sums, rounded once.
        Raises ValueError for other methods, unequal shapes, or fewer than two.
        """
        return wire.merge(cls, [p.to("cpu") for p in as_packets(Packet, "Packet.merge", packets)])

    @classmethod
    def sum(cls, packets: Iterable[Packet]) -> Packet:
        """Put packets of one tensor under one header: its values are theirs, added up in order.

        Each addition is rounded to float32; ``parts()`` gives the packets back. A deferred packet
        is not synchronized.

        Args:
            packets: 2 to 64 of one shape, dtype and device, no groups, merged ones or sums.

        Raises TypeError for what are no packets, else ValueError; ``to_bytes`` raises it where the
        packets' largest magnitudes do not have a finite float32 sum.

        >>> import gcext, torch
        >>> tensor = torch.tensor([4.0, -2.0, 2.0])
        >>> first = gcext.stc(tensor, p=0.4)
        >>> second = gcext.codec("sign").encode(tensor - first.to_dense())
        >>> gcext.Packet.sum([first, second]).to_dense()
        tensor([ 5.3333, -1.3333,  1.3333])
        """
        return sums.make(cls, as_packets(Packet, "Packet.sum", packets))

    def parts(self) -> tuple[Packet, ...]:
        """Return the packets that a merged one or a sum was made of, byte for byte, in order."""
        if self.method == "sum":
            coded = self.coded
            assert isinstance(coded, sums.Sum)
            return coded.terms
        return wire.unmerge(type(self), self.to("cpu"))
