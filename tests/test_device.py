"""Packets made and opened on a device: the road around the kernels, which the emulator runs."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, cast

import pytest
import torch
from emu.backends import same_bits
from emu.deferred import DeferredCodec
from emu.rice import Emu
from packet_kit import dense
from torch import Tensor
from xxhash import xxh3_64_intdigest

import gcext
from gcext import DecodeError, Packet
from gcext._packet import device, streams, wire
from gcext._packet.codes import Contents
from gcext._packet.deferred import Deferred
from gcext._packet.streams import Ready
from gcext._packet.wire import Located


@pytest.fixture(autouse=True)
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Take the CPU for a device: it gets the operators that only CUDA has, and notes their use."""
    run, done = Emu(), []

    def note(name: str) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            done.append(name)
            return getattr(run, name)(*args)

        return call

    for name in ("pack_ternary", "unpack_ternary"):
        monkeypatch.setattr(torch.ops.gcext, name, note(name), raising=False)
    monkeypatch.setattr(Packet, "is_resident", False)
    monkeypatch.setattr(device, "encodes", lambda packet: packet.method == "ternary")
    return done


def selected(index: Tensor, value: Tensor, info: Tensor, op: str) -> Packet:
    deferred = Deferred(op, info, (index, value), cast(Any, lambda *_: None))
    return Packet("ternary", (9,), torch.float32, deferred=deferred)


def by_host(packet: Packet) -> bytes:
    return wire.pack(packet.to("cpu"))


def open_there(message: bytes, where: str, shape: Any) -> Packet | None:
    return device.decode(Packet, message, where, shape)


def cases() -> list[Packet]:
    draw = random.Random(5)
    packets = []
    for n in (1, 33, 1000, 5000, 100_000):
        scale = draw.choice([1.0, 1e-42, 3e37])
        tensor = torch.randn(n).half().float() * scale
        packets.append(gcext.stc(tensor.view(1, -1), p=draw.choice([0.01, 0.3, 1.0])))
    return packets


def any_packet(draw: random.Random) -> Packet:
    """Return what a group may have for a member, now and then nothing that a device packs."""
    n = draw.choice([0, 1, 31, 33, 1000, 1025, int(5000 ** draw.random())])
    tensor = torch.randn(n) * draw.choice([0, 1, 1, 1, 1e-42])
    p = draw.choice([0.001, 0.1, 0.5, 1.0])
    kind = draw.choice(["stc", "stc", "stc", "deferred", "deferred", "topk", "dense", "merged"])
    if kind == "deferred":
        return DeferredCodec(gcext.codec(f"stc:p={p}")).encode(tensor)
    if kind == "merged":
        return Packet.merge([gcext.stc(tensor, p), gcext.stc(torch.randn(n), p)])
    if kind == "dense":
        return gcext.codec("dense").encode(tensor)
    return gcext.codec(f"{kind}:p={p}").encode(tensor)


def dtype_of(tensor: Tensor | None) -> torch.dtype | None:
    return None if tensor is None else tensor.dtype


def same_contents(one: Packet, other: Packet) -> bool:
    """Whether two packets have the same contents in the same types."""
    pairs = zip(one.members or (one,), other.members or (other,), strict=True)
    return by_host(one) == by_host(other) and all(
        type(x.support) is type(y.support)
        and dtype_of(x.entries()[0]) == dtype_of(y.entries()[0])
        and same_bits(x.values(), y.values())
        for x, y in pairs
    )


def rehash(message: bytes) -> bytes:
    return message[:-8] + xxh3_64_intdigest(message[:-8]).to_bytes(8, "little")


def test_same_message(calls: list[str]) -> None:
    for packet in cases():
        assert packet.to_bytes() == by_host(packet)
    assert calls == ["pack_ternary"] * len(cases())


@pytest.mark.parametrize("seed", range(15))
def test_a_group_of_anything(seed: int, calls: list[str]) -> None:
    """Its message is the host's, in one copy; opened, it has the contents that the host finds."""
    draw = random.Random(seed)
    for _ in range(20):
        packets = [any_packet(draw) for _ in range(draw.choice([1, 2, 3, 10]))]
        group, calls[:] = Packet.group(packets), []
        message = group.to_bytes()
        assert calls == ["pack_ternary"] * any(each.method == "ternary" for each in packets)
        assert message == by_host(Packet.group(packets))
        assert group.to_bytes() is message
        host = Packet.from_bytes(message)
        calls.clear()
        for shape in (None, group.shape, list(group.shape)):
            opened = open_there(message, "cpu", shape)
            assert opened is not None
            assert same_contents(opened, host)
        some = any(each.method == "ternary" and each.k for each in packets)
        assert calls == ["unpack_ternary"] * 3 * some
        assert open_there(message, "cpu", (3, 3)) is None
        assert open_there(message, "cpu", (*group.shape, (1,))) is None


@pytest.mark.parametrize("tensor", [torch.randn(5000), torch.zeros(70), torch.eye(40)])
def test_packets_that_were_not_synchronized(
    tensor: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their message is one copy: the device is not synchronized before."""
    select = DeferredCodec(gcext.codec("stc:p=0.1"))
    want = gcext.stc(tensor, 0.1)
    packet, group = select.encode(tensor), Packet.group([select.encode(tensor), want] * 2)
    with monkeypatch.context() as still:
        still.setattr(Deferred, "synchronize", None)
        assert packet.to_bytes() == by_host(want)
        message = group.to_bytes()
    assert message == by_host(Packet.group([want] * 4))
    assert dense(packet).equal(dense(want))


def test_a_bad_member_is_named_by_its_codec_and_nothing_is_kept() -> None:
    select = DeferredCodec(gcext.codec("stc:p=0.1"))
    good, bad = select.encode(torch.randn(50)), select.encode(torch.full((5,), torch.inf))
    buffers = (torch.zeros(9, dtype=torch.int32), torch.zeros(9))
    worse = selected(*buffers, torch.tensor([0, 1, 7, 0]), "stc[2]")
    for packets, place in [
        ([bad], r"stc: tensor must be finite.*index 0"),
        ([good, worse, bad], r"stc\[2\]: tensor must be finite.*index 7"),
        ([good, bad, worse], r"stc: tensor must be finite.*index 0"),
    ]:
        group = packets[0] if len(packets) == 1 else Packet.group(packets)
        for _ in range(2):
            with pytest.raises(ValueError, match=place):
                group.to_bytes()
    assert good.to_bytes() == Packet.group([good]).members[0].to_bytes()


def test_a_group_with_a_captured_member_is_packed_anew() -> None:
    index, value = torch.arange(3, dtype=torch.int32), torch.full((3,), 2.0)
    info = torch.tensor([3, 0, 0, 0x40000000])
    captured = selected(index, value, info, "stc")
    assert captured.deferred is not None
    captured.deferred.captured = True
    other = gcext.stc(torch.randn(40))
    group = Packet.group([other, captured])
    first = group.to_bytes()
    assert Packet.from_bytes(first).members[1].k == 3
    index.add_(1)
    info.copy_(torch.tensor([2, 0, 0, 0x3F800000]))  # the next replay
    opened = Packet.from_bytes(group.to_bytes()).members[1]
    assert (opened.indices().tolist(), opened.scale) == ([1, 2], 1.0)
    info[1] = 1
    with pytest.raises(ValueError, match="finite"):
        group.to_bytes()
    info[1] = 0
    assert group.to_bytes() != first


class Stream(nullcontext[None]):
    """What torch.Stream does for those who wait, and for those who use it."""

    def __init__(self) -> None:
        self.waited: list[str] = []
        self.used = self.synchronized = 0

    def __enter__(self) -> None:
        self.used += 1

    def record_event(self) -> str:
        return "later"

    def wait_event(self, event: str) -> None:
        self.waited.append(event)

    def synchronize(self) -> None:
        self.synchronized += 1


def test_members_made_on_several_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    """What reads waits once for each event of theirs, and is not on the current stream.

    Where a packet has none, as others may still write to it, on the current one.
    """
    own, now = Stream(), Stream()
    select = DeferredCodec(gcext.codec("stc:p=0.1"))

    def made_at(event: str) -> Packet:
        packet = select.encode(torch.randn(9))
        assert packet.deferred is not None
        packet.deferred.ready = Ready(cast(Any, now), cast(Any, event))
        return packet

    monkeypatch.setattr(Tensor, "record_stream", lambda x, stream: None)
    monkeypatch.setattr(streams, "current_stream", lambda device: now)
    monkeypatch.setattr(streams, "_own_stream", lambda device: own)
    Packet.group([made_at("one"), made_at("one")]).to_bytes()
    assert (own.used, own.waited, own.synchronized) == (1, ["one"], 1)
    assert (now.used, now.waited) == (0, [])
    ordinary = gcext.stc(torch.randn(9))
    read = made_at("two")
    assert (read.k, own.synchronized, read.is_settled) == (1, 2, True)
    monkeypatch.setattr(type(read), "is_resident", False)  # as on a GPU
    own.waited.clear()
    Packet.group([read, made_at("three")]).to_bytes()
    assert (own.waited, own.synchronized, now.waited) == (["three"], 3, [])
    Packet.group([made_at("four"), ordinary]).to_bytes()
    assert (own.synchronized, now.waited) == (3, ["four"])


def test_a_hundred_packets_are_packed_with_one_synchronization(
    calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A history asks for the bytes of a whole round; of other methods it takes two."""
    own, now = Stream(), Stream()
    codec, sign = gcext.codec("stc:p=0.1"), gcext.codec("sign")
    tensors = {client: torch.randn(50 + client) for client in range(100)}
    want = {client: codec.encode(x).to_bytes() for client, x in tensors.items()}
    signs = {client: sign.encode(x).to_bytes() for client, x in tensors.items()}
    monkeypatch.setattr(Tensor, "record_stream", lambda x, stream: None)
    monkeypatch.setattr(streams, "current_stream", lambda device: now)
    monkeypatch.setattr(streams, "_own_stream", lambda device: own)
    history = gcext.History()
    calls.clear()
    history.put(1, {client: DeferredCodec(codec).encode(x) for client, x in tensors.items()})
    assert (calls, own.synchronized) == (["pack_ternary"], 1)
    assert {client: history.packet(client).to_bytes() for client in tensors} == want
    calls.clear()
    history.put(2, {client: DeferredCodec(sign).encode(x) for client, x in tensors.items()})
    assert (calls, own.synchronized) == ([], 2)  # and within, for the sizes
    assert {client: history.packet(client).to_bytes() for client in tensors} == signs
    history.keep_unpacked(2)
    history.put(3, {client: DeferredCodec(codec).encode(x) for client, x in tensors.items()})
    assert (calls, own.synchronized) == (
        ["pack_ternary"],
        4,
    )  # once more for the contents that are kept


def test_a_shape_beyond_narrow_indices_beside_others() -> None:
    index, scale = torch.tensor([5, 2**31 + 1]), torch.tensor([0.5, -0.5])
    wide = Packet("ternary", (2**31 + 5,), torch.float32, Contents(index, scale, 0.5))
    group = Packet.group([gcext.stc(torch.randn(3000)), wide, gcext.stc(torch.randn(30))])
    message = group.to_bytes()
    assert message == by_host(group)
    opened = open_there(message, "cpu", group.shape)
    assert opened is not None
    assert same_contents(opened, group)
    huge = Packet("ternary", (2**52 + 1,), torch.float32, Contents(index, scale, 0.5))
    assert open_there(huge.to_bytes(), "cpu", None) is None


@pytest.mark.parametrize("grouped", [False, True])
def test_damaged_messages_are_decoded_on_the_host(grouped: bool) -> None:
    draw = random.Random(3)
    tensors = [torch.randn(n) for n in (3000, 7, 2100, 20_000)]
    packet = gcext.stc(tensors[0], p=0.1)
    if grouped:
        dense = gcext.codec("dense").encode(tensors[1])
        packet = Packet.group([packet, dense, *gcext.stc(tensors[1:], p=0.1)])
    message = packet.to_bytes()
    opened_as = {True: 0, False: 0}
    for place in range(0, len(message) - 8, 4 if grouped else 1):
        bad = bytearray(message)
        bad[place] ^= 1 << draw.randrange(8)
        opened = open_there(rehash(bytes(bad)), "cpu", packet.shape)
        opened_as[opened is None] += 1
        if opened is None:
            with pytest.raises(DecodeError):
                wire.unpack(Packet, rehash(bytes(bad)), packet.shape)
        else:
            assert same_contents(opened, Packet.from_bytes(rehash(bytes(bad)), expect=packet.shape))
    assert min(opened_as.values()) > 10


def test_the_first_broken_rule_is_reported() -> None:
    """A tile of the first member comes before the second's scale, which is what locate finds."""
    message = bytearray(Packet.group([gcext.stc(torch.randn(3000), 0.1)] * 2).to_bytes())
    first, second = (each.encoded for each in wire.locate(Packet, bytes(message)).members)
    assert isinstance(first, Located) and isinstance(second, Located)
    message[first.begin + 3 + first.remainder_bytes] ^= 0x10  # another number of ones
    message[second.begin - 4 : second.begin] = bytes(4)
    bad = rehash(bytes(message))
    with pytest.raises(DecodeError, match=r"members\[1\].scale"):
        wire.locate(Packet, bad)
    assert open_there(bad, "cpu", None) is None
    with pytest.raises(DecodeError, match=r"members\[0\].unary"):
        Packet.from_bytes(bad)


def test_what_the_host_opens_is_checked_there() -> None:
    dense = gcext.codec("dense").encode(torch.tensor([1.0, 2.0]))
    message = bytearray(Packet.group([gcext.stc(torch.randn(50)), dense]).to_bytes())
    message[-12:-8] = b"\0\0\x80\x7f"  # infinite
    with pytest.raises(DecodeError, match=r"members\[1\].values"):
        wire.locate(Packet, rehash(bytes(message)))


def test_checksum_first() -> None:
    message = bytearray(gcext.stc(torch.randn(3000)).to_bytes())
    message[-20] ^= 1
    assert open_there(bytes(message), "cpu", None) is None
    with pytest.raises(DecodeError, match="checksum"):
        Packet.from_bytes(bytes(message))


def test_indices_that_fall() -> None:
    packet = gcext.stc(torch.randn(3000))
    index, value = packet.entries()
    assert index is not None
    fallen = Packet("ternary", (3000,), torch.float32, Contents(index.flip(0), value, 1.0))
    for each in (fallen, Packet.group([packet, fallen, packet])):
        with pytest.raises(ValueError, match="pack: index must rise strictly from 0, got a fall"):
            each.to_bytes()
