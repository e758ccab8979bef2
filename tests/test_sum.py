"""Packets that are sums of others: their values, their bytes, and what they refuse."""

from __future__ import annotations

import pickle
from collections.abc import Callable

import numpy as np
import pytest
import torch
from emu.deferred import DeferredCodec
from packet_kit import dense
from torch import Tensor

import gcext
from gcext import Packet
from gcext._packet.codes import Contents

SPECS = ["stc:p=0.1", "topk:p=0.02", "dense", "sign", "qsgd:bits=2,bucket=100", "randomk:p=0.1"]
SPECS += ["polar:rate=0.5,block=64", "polar:rate=0.5,block=64,rotate=false,select=topk,p=0.1"]
PAIRS = [(0, 1), (1, 0), (0, 3), (2, 4), (5, 6), (7, 1), (0, 0, 1, 5), tuple(range(8))]


def terms_of(which: tuple[int, ...], shape: tuple[int, ...] = (20, 50)) -> list[Packet]:
    return [
        gcext.codec(SPECS[i]).encode(torch.randn(shape), seed=seed) for seed, i in enumerate(which)
    ]


def added(terms: list[Packet]) -> Tensor:
    """In NumPy's float32, in order."""
    total = np.zeros(terms[0].shape, np.float32)
    for term in terms:
        total = total + dense(term).numpy()
    return torch.from_numpy(total)


def same(got: Tensor | list[Tensor], want: Tensor) -> bool:
    return isinstance(got, Tensor) and torch.equal(got, want)


@pytest.mark.parametrize("which", PAIRS, ids=str)
class TestEverySum:
    def test_values_are_added_in_order(self, which: tuple[int, ...]) -> None:
        terms = terms_of(which)
        packet, want = Packet.sum(terms), added(terms)
        assert dense(packet).numpy().tobytes() == want.numpy().tobytes()
        index = packet.indices()
        assert packet.k == len(index) == len({i for t in terms for i in t.indices().tolist()})
        assert torch.equal(packet.values(), want.flatten()[index])
        for start in (torch.ones(20, 50), torch.ones(50, 20, dtype=torch.float64).t()):
            assert torch.equal(packet.add_to_(start.clone(), -1.0), start - want)
        out = torch.full((20, 50), 9.0)
        packet.to_dense(out=out)
        assert torch.equal(out, want)

    def test_bytes_round_trip(self, which: tuple[int, ...]) -> None:
        terms = terms_of(which)
        packet = Packet.sum(terms)
        again = Packet.from_bytes(packet.to_bytes(), expect=(20, 50))
        assert again == packet
        assert again.method == "sum" and again.dtype == packet.dtype
        assert torch.equal(dense(again), dense(packet))
        assert [part.to_bytes() for part in again.parts()] == [term.to_bytes() for term in terms]
        assert packet.nbytes == sum(term.nbytes for term in terms) - 13 * len(terms) + 18
        assert pickle.loads(pickle.dumps(packet)) == packet
        group = Packet.group([packet, terms[0], packet])
        assert torch.equal(dense(Packet.from_bytes(bytes(group)).members[2]), dense(packet))
        assert packet.to("cpu") == packet

    def test_the_server_takes_them(self, which: tuple[int, ...]) -> None:
        terms = terms_of(which)
        packet, x = Packet.sum(terms), added(terms)
        y = dense(terms[0])
        want = (x.double() * 2 + y.double()).float()
        assert same(gcext.combine([packet, terms[0]], [2.0, 1.0]), want)
        dots = gcext.gram([packet, terms[0]])
        flat = torch.stack([x.flatten(), y.flatten()]).double()
        assert torch.allclose(dots, flat @ flat.T)
        assert same(gcext.aggregate.mean([packet, packet]), x)
        trimmed = gcext.aggregate.TrimmedMean(0.34)
        three = dict.fromkeys(range(3), packet)
        assert same(trimmed.aggregate(three), x)


def test_deferred_terms_make_a_deferred_sum() -> None:
    x = torch.randn(300)
    codecs = [gcext.codec(spec) for spec in ("stc:p=0.1", "qsgd", "randomk:p=0.1")]
    want = Packet.sum([codec.encode(x, seed=1) for codec in codecs])
    got = Packet.sum([DeferredCodec(codec).encode(x, seed=1) for codec in codecs])
    assert repr(got).endswith("deferred on cpu)")
    assert got.to_bytes() == want.to_bytes()
    assert got.deferred is None and not got.is_captured
    x[3] = torch.nan
    wrong = Packet.sum([DeferredCodec(codec).encode(x, seed=1) for codec in codecs])
    with pytest.raises(ValueError, match=r"tensor must be finite.* at index 3"):
        wrong.to_dense()


def test_a_sum_of_deferred_and_others_synchronizes() -> None:
    x = torch.randn(300)
    codec = gcext.codec("stc:p=0.1")
    mixed = Packet.sum([DeferredCodec(codec).encode(x), codec.encode(x)])
    assert mixed.deferred is None
    assert mixed == Packet.sum([codec.encode(x)] * 2)


def test_values_start_at_zero_and_may_cancel() -> None:
    index = torch.tensor([1, 3], dtype=torch.int32)
    plus, minus = (
        Packet("ternary", (5,), torch.float32, Contents(index, s * torch.tensor([2.0, -2.0]), 2.0))
        for s in (1, -1)
    )
    packet = Packet.sum([plus, minus])
    assert packet.k == 2 and not dense(packet).any()
    zeros = Packet("dense", (5,), torch.float32, Contents(None, -torch.zeros(5)))
    assert not torch.signbit(dense(Packet.sum([zeros, zeros]))).any()


def wrong() -> dict[str, Callable[[], Packet]]:
    a, b = gcext.stc(torch.ones(3), p=1), gcext.stc(torch.ones(4), p=1)
    half, merged = gcext.stc(torch.ones(3).half(), p=1), Packet.merge([a, a])
    return {
        "needs 2 to 64 packets, got 1": lambda: Packet.sum([a]),
        "needs 2 to 64 packets, got 65": lambda: Packet.sum([a] * 65),
        "must have one shape, dtype and device": lambda: Packet.sum([a, b]),
        "dtype and device, got .3,. torch.float32.*float16": lambda: Packet.sum([a, half]),
        "a term must not be a group packet": lambda: Packet.sum([Packet.group([a]), a]),
        "a term must not be a merged packet": lambda: Packet.sum([merged, a]),
        "a term must not be a sum packet": lambda: Packet.sum([Packet.sum([a, a]), a]),
    }


@pytest.mark.parametrize("text", wrong())
def test_what_is_no_sum_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=rf"Packet\.sum: .*{text}"):
        wrong()[text]()
    with pytest.raises(TypeError, match="needs a list of packets"):
        Packet.sum(gcext.stc(torch.ones(3)))  # type: ignore[arg-type]


def test_an_overflow_is_refused_when_packed() -> None:
    large = gcext.stc(torch.full((3,), 2e38), p=1)
    packet = Packet.sum([large, large])
    for _ in range(2):
        with pytest.raises(ValueError, match="largest magnitudes of the terms must have a finite"):
            packet.to_bytes()
    Packet.sum([large, gcext.stc(torch.full((3,), 1e38), p=1)]).to_bytes()
