"""Packets in memory: what the fixed names give back, groups, merging, adding."""

from __future__ import annotations

import copy
import pickle
import threading
from typing import Any

import pytest
import torch
from packet_kit import dense

import gcext
from gcext import Packet


def packets(count: int, n: int = 3000, p: float = 0.05) -> list[Packet]:
    return [gcext.stc(torch.randn(n), p=p) for _ in range(count)]


def test_fixed_names() -> None:
    tensor = torch.randn(20, 30)
    packet = gcext.stc(tensor, p=0.1)
    assert (packet.shape, packet.numel, packet.k, packet.method) == ((20, 30), 600, 60, "ternary")
    assert packet.nbytes == len(packet.to_bytes())
    assert packet.indices().dtype == torch.int64
    assert packet.values().dtype == torch.float32
    got = dense(packet)
    assert got.dtype == torch.float32
    assert got.shape == tensor.shape
    assert torch.equal(got.flatten()[packet.indices()], packet.values())
    assert torch.count_nonzero(got) == 60
    assert set(packet.values().abs().tolist()) == {packet.scale}
    assert "ternary" in repr(packet)


def test_what_is_returned_is_the_callers() -> None:
    packet = gcext.stc(torch.randn(100), p=0.1)
    before = dense(packet)
    packet.values().zero_()
    dense(packet).zero_()
    assert torch.equal(dense(packet), before)
    other = gcext.codec("dense").encode(torch.ones(3))
    dense(other).zero_()
    assert dense(other).tolist() == [1, 1, 1]


def test_dense_packet_has_every_index() -> None:
    packet = gcext.codec("dense").encode(torch.arange(6.0).view(2, 3))
    assert packet.indices().tolist() == list(range(6))
    assert packet.values().tolist() == list(range(6))


@pytest.mark.parametrize("alpha", [float("nan"), float("inf"), 1e39])
def test_add_to_refuses_an_alpha_that_is_not_finite(alpha: float) -> None:
    target = torch.ones(100)
    with pytest.raises(ValueError, match="alpha must be finite"):
        gcext.stc(torch.randn(100)).add_to_(target, alpha)
    assert target.sum() == 100


def test_add_to() -> None:
    packet = gcext.stc(torch.randn(50, 4), p=0.1)
    target = torch.randn(50, 4)
    want = target + torch.tensor(-0.3) * dense(packet)
    packet.add_to_(target, alpha=-0.3)
    assert torch.equal(target, want)
    for bad in (torch.ones(199), torch.ones(200).int(), torch.ones(200).bool()):
        with pytest.raises(ValueError, match="add_to_: tensor must be of float32, float64"):
            packet.add_to_(bad)


@pytest.mark.parametrize("expect", [(5, 2), (10,), [10, 1], ()])
def test_expect_pins_the_shape(expect: tuple[int, ...]) -> None:
    packet = gcext.stc(torch.randn(2, 5), p=0.5)
    with pytest.raises(gcext.DecodeError) as caught:
        Packet.from_bytes(packet.to_bytes(), expect=expect)
    assert caught.value.code == "expect"
    assert Packet.from_bytes(packet.to_bytes(), expect=packet).k == 5


@pytest.mark.parametrize("wrap", [bytes, bytearray, memoryview])
def test_any_buffer(wrap: type) -> None:
    packet = gcext.stc(torch.randn(100), p=0.1)
    assert torch.equal(dense(Packet.from_bytes(wrap(packet.to_bytes()))), dense(packet))


def test_bytes_are_canonical() -> None:
    for packet in [*packets(3), gcext.codec("topk:p=0.1").encode(torch.randn(77))]:
        message = packet.to_bytes()
        assert Packet.from_bytes(memoryview(message)).to_bytes() == message  # packed anew
        assert Packet.from_bytes(message).to_bytes() is message


class TestGroup:
    def test_round_trip(self) -> None:
        model = [torch.randn(30, 4), torch.randn(()), torch.randn(0), torch.randn(7).double()]
        members = [gcext.stc(t, p=0.2) for t in model]
        members.append(gcext.codec("dense").encode(torch.randn(3)))
        group = Packet.group(members)
        again = Packet.from_bytes(group.to_bytes(), expect=group.shape)
        assert again.shape == ((30, 4), (), (0,), (7,), (3,))
        assert again.numel == 131
        assert again.k == sum(m.k for m in members)
        for got, want in zip(again.to_dense(), members, strict=True):
            assert torch.equal(got, dense(want))
        alone = sum(m.nbytes for m in members)
        assert group.nbytes <= alone - 12 * (len(members) - 1)

    def test_is_not_one_tensor(self) -> None:
        group = Packet.group(packets(2))
        for name in ("indices", "values"):
            with pytest.raises(ValueError, match="got a group"):
                getattr(group, name)()
        with pytest.raises(ValueError, match="got a group"):
            Packet.group([group])

    def test_empty(self) -> None:
        with pytest.raises(ValueError, match="at least one"):
            Packet.group([])


class TestMerge:
    @pytest.mark.parametrize("count", [2, 3, 10])
    def test_gives_the_very_packets_back(self, count: int) -> None:
        singles = packets(count)
        merged = Packet.from_bytes(Packet.merge(singles).to_bytes(), expect=(3000,))
        assert [p.to_bytes() for p in merged.parts()] == [p.to_bytes() for p in singles]

    def test_decodes_to_the_exact_sum(self) -> None:
        singles = packets(5)
        terms = [dense(p).double() for p in singles]
        exact = sum(terms, torch.zeros(3000).double())  # 24-bit terms: exact in float64
        assert torch.equal(dense(Packet.merge(singles)), exact.float())

    def test_refuses_others(self) -> None:
        with pytest.raises(ValueError, match="at least 2"):
            Packet.merge(packets(1))
        with pytest.raises(ValueError, match="one shape"):
            Packet.merge([*packets(1), *packets(1, n=5)])
        with pytest.raises(ValueError, match="ternary"):
            Packet.merge([gcext.codec("dense").encode(torch.ones(3))] * 2)
        with pytest.raises(ValueError, match="merged"):
            packets(1)[0].parts()


SPECS = [
    "stc:p=0.01", "topk:p=0.01", "randomk:p=0.01", "dense", "sign", "qsgd:bits=3", "terngrad",
    "polar", "sketch",
]  # fmt: skip


class TestPickle:
    """A pickle is the message: as small, and checked by the decoder."""

    @staticmethod
    def all_kinds() -> list[Packet]:
        singles = [gcext.codec(s).encode(torch.randn(100, 50).half(), seed=1) for s in SPECS]
        group = Packet.group([*singles, gcext.stc(torch.zeros(0)), gcext.stc(torch.ones(()))])
        return [*singles, Packet.merge(packets(3)), group]

    @pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
    def test_round_trip(self, protocol: int) -> None:
        for packet in self.all_kinds():
            again = pickle.loads(pickle.dumps(packet, protocol))
            assert again == packet and again.dtype == packet.dtype and repr(again) == repr(packet)
            assert [m.dtype for m in again.members] == [m.dtype for m in packet.members]
        merged = Packet.merge(packets(3))
        assert pickle.loads(pickle.dumps(merged, protocol)).parts() == merged.parts()

    def test_is_as_small_as_the_message(self) -> None:
        for packet in self.all_kinds():
            assert packet.nbytes < len(pickle.dumps(packet)) <= packet.nbytes + 200

    def test_of_damaged_bytes_is_refused(self) -> None:
        packet = packets(1)[0]
        pickled = bytearray(pickle.dumps(packet))
        pickled[pickled.index(packet.to_bytes()) + packet.nbytes // 2] ^= 1
        with pytest.raises(gcext.DecodeError) as caught:
            pickle.loads(pickled)
        assert caught.value.code == "checksum"

    def test_of_what_is_no_packet_raises(self) -> None:
        with pytest.raises(ValueError, match="got a group"):
            pickle.dumps(Packet("ternary", (3,), torch.float32))


def test_copies_are_the_packet_itself() -> None:
    for packet in TestPickle.all_kinds():
        assert copy.copy(packet) is packet and copy.deepcopy({"p": packet})["p"] is packet


def test_as_bytes() -> None:
    for packet in TestPickle.all_kinds():
        assert bytes(packet) == packet.to_bytes()
    with pytest.raises(TypeError, match="not iterable"):
        iter(packets(1)[0])  # type: ignore[call-overload]


class TestTensorsAsMessages:
    def test_uint8_tensors(self) -> None:
        packet = packets(1)[0]
        padded = torch.zeros(packet.nbytes + 9, dtype=torch.uint8)
        message = padded[4 : 4 + packet.nbytes]
        message[:] = torch.frombuffer(bytearray(packet.to_bytes()), dtype=torch.uint8)
        got = Packet.from_bytes(message, expect=packet)
        padded.zero_()  # as a receive buffer that is used again
        assert got == packet and torch.equal(dense(got), dense(packet))

    @pytest.mark.parametrize(
        ("message", "error", "text"),
        [
            (torch.zeros(40), TypeError, r"must be uint8, .*, got torch\.float32"),
            (torch.zeros(40, dtype=torch.int8), TypeError, r"got torch\.int8"),
            (torch.zeros(2, 20, dtype=torch.uint8), ValueError, r"got \(2, 20\) with strides"),
            (torch.zeros((), dtype=torch.uint8), ValueError, r"one dimension, got \(\)"),
            (torch.zeros(80, dtype=torch.uint8)[::2], ValueError, r"strides \(2,\)\. Call"),
            (torch.zeros(40, dtype=torch.uint8), gcext.DecodeError, "magic"),
        ],
    )
    def test_other_tensors_are_refused(
        self, message: torch.Tensor, error: type[Exception], text: str
    ) -> None:
        with pytest.raises(error, match=text):
            Packet.from_bytes(message)


class TestExpectedTensors:
    def test_single(self) -> None:
        packet = gcext.stc(torch.randn(2, 5), p=0.5)
        assert Packet.from_bytes(bytes(packet), expect=torch.empty(2, 5)) == packet
        with pytest.raises(gcext.DecodeError, match=r"must be \(5, 2\), as the caller expects"):
            Packet.from_bytes(bytes(packet), expect=torch.empty(5, 2))

    def test_group(self) -> None:
        model = torch.nn.Linear(4, 3)
        named = dict(model.named_parameters())
        packet = Packet.group([gcext.stc(p, p=0.5) for p in model.parameters()])
        for expect in (list(model.parameters()), tuple(model.parameters()), named, packet):
            assert Packet.from_bytes(bytes(packet), expect=expect) == packet
        wrong: list[Any] = [
            list(named.values())[::-1], [named["weight"]], {"a": named["weight"]}, {},
            named["weight"], [torch.tensor(4), torch.tensor(3)],
        ]  # fmt: skip
        for expect in wrong:
            with pytest.raises(gcext.DecodeError) as caught:
                Packet.from_bytes(bytes(packet), expect=expect)
            assert caught.value.code == "expect"


def test_error_keeps_its_fields_through_pickle() -> None:
    with pytest.raises(gcext.DecodeError) as caught:
        Packet.from_bytes(b"\x89GCX" + bytes(30))
    error = pickle.loads(pickle.dumps(caught.value))
    assert (error.code, error.field, error.offset) == (
        caught.value.code,
        caught.value.field,
        caught.value.offset,
    )
    assert isinstance(error, ValueError)


def test_threads_do_not_disturb_each_other() -> None:
    tensors = [torch.randn(200_000) for _ in range(4)]
    want = [gcext.stc(t, p=0.02).to_bytes() for t in tensors]
    got: list[bytes | None] = [None] * len(tensors)

    def work(i: int) -> None:
        for _ in range(20):
            got[i] = gcext.stc(tensors[i], p=0.02).to_bytes()
            back = dense(Packet.from_bytes(got[i] or b""))
            assert int(torch.count_nonzero(back)) == 4000

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(tensors))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == want
