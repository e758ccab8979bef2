"""Packets made and opened on a device: the road around the kernels, which the emulator runs."""

from __future__ import annotations

import random

import pytest
import torch
from emu.backends import GUARD
from emu.late import Late
from emu.rice import HEAD, Emu
from torch import Tensor
from xxhash import xxh3_64_intdigest

import gcext
from gcext import DecodeError, Packet, _device, wire
from gcext._selected import Selected


@pytest.fixture(autouse=True)
def _emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the CPU the operators that only CUDA has."""
    run = Emu()

    def pack(index: Tensor, value: Tensor, info: Tensor, numel: int) -> Tensor:
        packed = run.pack(index, value, info, numel)
        head = torch.tensor([len(packed.streams), packed.wrong, *packed.info, 0, 0])
        room = torch.zeros(run.bound(index.numel(), numel) - HEAD + GUARD, dtype=torch.uint8)
        out = torch.cat([head.view(torch.uint8), room])
        out[HEAD : HEAD + len(packed.streams)] = torch.tensor(list(packed.streams)).byte()
        return out

    def unpack(
        message: Tensor, begin: int, remainder_bytes: int, k: int, numel: int, scale: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        message_bytes = message.numpy().tobytes()
        got = run.unpack(message_bytes, begin, remainder_bytes, k, numel, scale)
        return got[0], got[1], torch.tensor(got[2])

    monkeypatch.setattr(torch.ops.gcext, "pack_ternary", pack, raising=False)
    monkeypatch.setattr(torch.ops.gcext, "unpack_ternary", unpack, raising=False)


def cases() -> list[Packet]:
    draw = random.Random(5)
    packets = []
    for n in (1, 33, 1000, 5000, 100_000):
        scale = draw.choice([1.0, 1e-42, 3e37])
        tensor = torch.randn(n).half().float() * scale
        packets.append(gcext.stc(tensor.view(1, -1), p=draw.choice([0.01, 0.3, 1.0])))
    return packets


def test_same_message() -> None:
    for packet in cases():
        assert _device.pack(packet) == packet.to_bytes()


@pytest.mark.parametrize("tensor", [torch.randn(5000), torch.zeros(70), torch.eye(40)])
def test_a_packet_nobody_looked_at(tensor: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its message is one copy: nothing of the device is looked at before."""
    select = Late(gcext.codec("stc:p=0.1"))
    want = gcext.stc(tensor, 0.1).to_bytes()
    monkeypatch.setattr(_device, "packs", lambda packet: True)
    packet = select.encode(tensor)
    with monkeypatch.context() as still:
        still.setattr(Selected, "_look", None)
        assert packet.to_bytes() == want
    assert packet.to_dense().equal(Packet.from_bytes(want).to_dense())
    bad = select.encode(torch.full_like(tensor, torch.inf))
    for _ in range(2):
        with pytest.raises(ValueError, match="stc: tensor must be finite"):
            bad.to_bytes()


def test_opens_what_the_host_opens() -> None:
    for packet in cases():
        message = packet.to_bytes()
        for shape in (None, packet.shape, list(packet.shape)):
            opened = _device.unpack(message, "cpu", shape)
            assert opened is not None
            assert opened.to_bytes() == message
            assert torch.equal(opened.to_dense(), packet.to_dense())
        assert _device.unpack(message, "cpu", (3, 3)) is None


def test_leaves_other_messages_to_the_host() -> None:
    tensor = torch.randn(100)
    ternary = gcext.stc(tensor)
    packets = [
        gcext.codec("topk:p=0.1").encode(tensor),
        gcext.codec("dense").encode(tensor),
        gcext.stc(torch.zeros(10)),
        Packet.group([ternary, ternary]),
        Packet.merge([ternary, ternary]),
    ]
    for packet in packets:
        assert _device.unpack(packet.to_bytes(), "cpu", None) is None


def test_hostile_messages_are_refused_or_left_to_the_host() -> None:
    message = gcext.stc(torch.randn(3000), p=0.1).to_bytes()
    refused = left = 0
    for place in range(len(message) - 8):
        bad = bytearray(message[:-8])
        bad[place] ^= 1 << place % 8
        bad += xxh3_64_intdigest(bytes(bad)).to_bytes(8, "little")
        try:
            opened = _device.unpack(bytes(bad), "cpu", (3000,))
        except DecodeError as error:
            with pytest.raises(DecodeError) as raised:
                wire.unpack(bytes(bad))
            assert (raised.value.code, raised.value.offset) == (error.code, error.offset)
            refused += 1
            continue
        if opened is None:
            with pytest.raises(DecodeError):
                wire.unpack(bytes(bad), (3000,))
            left += 1
        else:
            assert wire.unpack(bytes(bad), (3000,)).index.tolist() == opened.index.tolist()
    assert refused > 0
    assert left > 0


def test_checksum_first() -> None:
    message = bytearray(gcext.stc(torch.randn(3000)).to_bytes())
    message[-20] ^= 1
    with pytest.raises(DecodeError, match="checksum"):
        _device.unpack(bytes(message), "cpu", None)


def test_indices_that_fall() -> None:
    packet = gcext.stc(torch.randn(3000))
    fallen = Packet("ternary", (3000,), torch.float32, packet.index.flip(0), packet.value, 1.0)
    with pytest.raises(ValueError, match="must rise strictly"):
        _device.pack(fallen)
