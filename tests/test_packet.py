"""Packets in memory: what the fixed names give back, groups, merging, adding."""

from __future__ import annotations

import pickle
import threading

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
