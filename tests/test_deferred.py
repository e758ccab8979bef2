"""Deferred packets of every codec: synchronized on first access."""

from __future__ import annotations

import copy
import pickle
from contextlib import nullcontext
from typing import Any, cast

import pytest
import torch
from emu.backends import same_bits
from emu.deferred import DeferredCodec
from packet_kit import dense
from torch import Tensor

import gcext
from gcext import Packet
from gcext._packet import streams
from gcext._packet.streams import Ready

SPECS = [
    "stc:p=0.1", "topk:p=0.02", "dense", "sign", "qsgd:bits=2,bucket=100", "terngrad:clip=2.5",
    "stc:p=0.1,chunk=50", "topk:p=0.1,chunk=50",
    "sparseloco:p=0.1,chunk=64", "adacomp:bin=50",
    "natural", "randomk:p=0.1", "polar:rate=0.5,block=64", "polar:rate=0.5,block=64,rotate=false",
    "polar:rate=0.5,block=64,select=randomk,p=0.3",
    "strom:tau=1.0", "ajiheafield:drop=0.8", "sbc:p=0.1", "dryden:p=0.1", "wangni:p=0.1",
    "repeat:rounds=3,codec=stc:p=0.05", "repeat:rounds=2,codec=qsgd:bits=2,bucket=100",
    "repeat:rounds=2,codec=polar:rate=0.5,block=64",
    "fp16", "bf16", "dorefa:bits=3,bucket=100", "uniform", "int8:bucket=100", "onebit:bucket=100",
    "dct:k=4,block=64,signs=true", "dct:k=3,block=16,signs=false", "lowrank:rank=2",
]  # fmt: skip
SIZES = [0, 1, 33, 1001]
STATUS = {"tensor": "tensor must", "residual": "residual must", "sum": "plus residual must"}


def odd_values(n: int) -> Tensor:
    """Zeros of both signs, denormals, and, from 40 elements on, a NaN with bits of its own."""
    x = torch.randn(n)
    x[::7], x[1::7], x[2::7] = -0.0, 0.0, -(2.0**-149)
    if n > 40:
        x.view(torch.int32)[39] = 0x7FC12345
    return x


@pytest.fixture(autouse=True, scope="module")
def _designs() -> None:
    """What is designed once a process reads tensors of the CPU, which the emulator cannot tell."""
    for spec in SPECS:
        for n in SIZES:
            gcext.codec(spec).encode(torch.randn(n), torch.zeros(n), seed=1)


@pytest.fixture(params=SPECS, ids=lambda spec: spec.replace("=", ""))
def spec(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("n", SIZES)
def test_encoding_never_synchronizes_and_gives_the_same_bytes(spec: str, n: int) -> None:
    codec = gcext.codec(spec)
    tensor, memory = torch.randn(n).half(), torch.randn(n)
    assert (
        DeferredCodec(codec).encode(tensor, seed=3).to_bytes()
        == codec.encode(tensor, seed=3).to_bytes()
    )
    places = [memory.clone(), memory.clone()]
    want, got = (
        c.encode(tensor, places[i], seed=4) for i, c in enumerate((codec, DeferredCodec(codec)))
    )
    assert got.to_bytes() == want.to_bytes()
    assert same_bits(*places)
    outs = [torch.full((n,), 5.0), torch.full((n,), 6.0)]
    want = codec.advance(tensor, memory, outs[0], 0.9, seed=5)
    got = DeferredCodec(codec).advance(tensor, memory, outs[1], 0.9, seed=5)
    assert got.to_bytes() == want.to_bytes()
    assert same_bits(*outs)


def test_reports_what_an_ordinary_packet_does(spec: str) -> None:
    codec, tensor = gcext.codec(spec), torch.randn(7, 100).double()
    want = codec.encode(tensor, seed=1)

    def fresh() -> Packet:
        return DeferredCodec(codec).encode(tensor, seed=1)

    assert (fresh().shape, fresh().dtype, fresh().device) == (want.shape, want.dtype, want.device)
    assert (fresh().k, fresh().scale) == (want.k, want.scale)
    shown = fresh()
    assert repr(shown).endswith("deferred on cpu)")  # to be shown must not synchronize
    assert (shown.k, repr(shown)) == (want.k, repr(want))
    assert torch.equal(fresh().indices(), want.indices())
    assert same_bits(fresh().values(), want.values())
    assert same_bits(dense(fresh()), dense(want))
    assert fresh().to("cpu").nbytes == want.nbytes
    assert Packet.group([fresh()]).to_bytes() == Packet.group([want]).to_bytes()
    for copied in (copy.deepcopy(fresh()), pickle.loads(pickle.dumps(fresh()))):
        assert type(copied) is Packet
        assert copied.to_bytes() == want.to_bytes()
    with pytest.raises(AttributeError, match="no attribute 'suport'"):
        fresh().suport  # type: ignore[attr-defined]  # noqa: B018


def test_raises_at_every_access(spec: str) -> None:
    tensor = torch.randn(100)
    tensor[7] = float("inf")
    packet = DeferredCodec(gcext.codec(spec)).encode(tensor, seed=1)
    tensor.zero_()  # as an optimizer does before the packet is synchronized
    for access in (
        packet.to_bytes,
        packet.to_dense,
        lambda: packet.coded,
        lambda: pickle.dumps(packet),
    ):
        with pytest.raises(ValueError, match=r"tensor must be finite.*got NaN or Inf at .* 7\."):
            access()


@pytest.mark.parametrize("n", [1, 33, 1001])
def test_a_deferred_error_leaves_the_feedback_unchanged(spec: str, n: int) -> None:
    """Promise 4: the swap has happened, but what was refused left a copy of the old residual."""
    codec = gcext.codec(spec)
    now, later = (gcext.ErrorFeedback(c, seed=7) for c in (codec, DeferredCodec(codec)))
    bad, overflow = torch.randn(n), torch.full((n,), 3e38)
    bad[n // 2] = float("nan")
    steps = [(torch.randn(n), ""), (bad, "tensor must"), (torch.randn(n), "")]
    for tensor, error in steps:
        packet = later.compress(tensor, "w", commit=False)
        if not error:
            assert packet.to_bytes() == now.compress(tensor, "w").to_bytes()
            later.commit("w")
            continue
        for sender in (lambda: now.compress(tensor, "w"), packet.to_bytes):  # noqa: B023
            with pytest.raises(ValueError, match=error):
                sender()
        later.commit("w")
        assert same_bits(now.residual("w"), later.residual("w"))
        later._seeds.counts = dict(now._seeds.counts)  # the packet that could not be sent
    state = now.state_dict()
    for status, residual, tensor in (
        ("tensor", odd_values(n), bad),
        ("residual", torch.full((n,), torch.nan), torch.randn(n)),
        ("sum", overflow, overflow),
    ):
        state["residuals"]["w"] = residual
        later.load_state_dict(state)
        packet = later.compress(tensor, "w")
        with pytest.raises(ValueError, match=rf"{STATUS[status]} be finite.* at index"):
            packet.to_bytes()
        assert same_bits(later.residual("w"), residual)


@pytest.mark.parametrize("n", [1, 33, 1001])
def test_in_place_a_bad_tensor_leaves_the_residual(spec: str, n: int) -> None:
    residual, bad = odd_values(n), torch.randn(n)
    bad[n - 1] = float("inf")
    before = residual.clone()
    packet = DeferredCodec(gcext.codec(spec)).encode(bad, residual, seed=1)
    with pytest.raises(ValueError, match=f"tensor must be finite.*at index {n - 1}"):
        packet.to_bytes()
    assert same_bits(residual, before)


def test_in_place_a_bad_sum_is_reported(spec: str) -> None:
    for residual in (torch.full((50,), torch.nan), torch.full((50,), 3e38)):
        packet = DeferredCodec(gcext.codec(spec)).encode(torch.full((50,), 3e38), residual, seed=1)
        with pytest.raises(ValueError, match="residual must be finite"):
            packet.to_bytes()


@pytest.mark.parametrize("on_device", [False, True])
def test_a_rotation_that_overflows_is_reported(on_device: bool) -> None:
    codec = gcext.codec("polar:rate=0.5,block=64")
    tensor, memory = torch.full((64,), 3e38), odd_values(64).nan_to_num()
    run = DeferredCodec(codec) if on_device else codec
    held, out = memory.clone(), memory.clone() if not on_device else torch.zeros(64)

    def advance() -> None:
        run.advance(tensor, memory, out, seed=2).to_bytes()

    with pytest.raises(ValueError, match="finite in float32 when rotated"):
        advance()
    assert same_bits(memory, held)
    assert not on_device or same_bits(out, held)
    whole = tensor + memory
    with pytest.raises(ValueError, match="finite in float32 when rotated"):
        run.encode(tensor, memory, seed=2).to_bytes()
    assert same_bits(memory, whole)  # after the fact: nothing is lost


def test_random_k_overflows_by_its_scale() -> None:
    packet = DeferredCodec(gcext.codec("randomk:p=0.25")).encode(torch.full((8,), 2e38), seed=0)
    with pytest.raises(ValueError, match="tensor times n/k must be finite"):
        packet.to_bytes()


def test_a_captured_packet_shows_the_latest_replay(spec: str) -> None:
    codec, n = gcext.codec(spec), 500
    captured, other = (DeferredCodec(codec).encode(torch.randn(n), seed=1) for _ in range(2))
    mine, its = captured.deferred, other.deferred
    assert mine is not None
    assert its is not None
    mine.captured = True
    kept, message, before = captured.to("cpu"), captured.to_bytes(), dense(captured)
    copies = [copy.copy(captured), *copy.deepcopy(Packet.group([captured])).members]
    for array, new in zip((*mine.arrays, mine.info), (*its.arrays, its.info), strict=True):
        array.copy_(new)  # the next replay
    assert captured.to_bytes() == other.to_bytes() != message
    assert same_bits(dense(captured), dense(other))
    assert [packet.to_bytes() for packet in (kept, *copies)] == [message] * 3
    assert same_bits(dense(kept), before)
    assert pickle.loads(pickle.dumps(captured)).to_bytes() == other.to_bytes()
    mine.info[1] = 1
    for access in (captured.to_bytes, captured.to_dense, lambda: captured.to("cpu")):
        with pytest.raises(ValueError, match="tensor must be finite"):
            access()


def test_stochastic_codecs_refuse_graph_capture(spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every replay would repeat them."""
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    codec = gcext.codec(spec)
    if codec.stochastic:
        with pytest.raises(RuntimeError, match="must not be captured in a CUDA graph"):
            codec.encode(torch.randn(10), seed=1)
    else:
        assert codec.encode(torch.randn(10)).shape == (10,)


def test_each_packet_of_a_list_reports_its_own_tensor(spec: str) -> None:
    codec = gcext.codec(spec)
    tensors = [torch.randn(50), torch.tensor([1.0, float("nan")]), torch.randn(70)]
    residuals = [torch.randn(t.shape) for t in tensors]
    mirrors = [residual.clone() for residual in residuals]
    packets = DeferredCodec(codec).encode(tensors, residuals, [1, 2, 3])
    for i in (0, 2):
        assert packets[i].to_bytes() == codec.encode(tensors[i], mirrors[i], i + 1).to_bytes()
    with pytest.raises(ValueError, match=rf"{codec.name}\[1\]: tensor must.*at index 1"):
        packets[1].to_bytes()
    assert all(same_bits(x, y) for x, y in zip(residuals, mirrors, strict=True))


def test_synchronization_frees_what_is_not_needed() -> None:
    packet = DeferredCodec(gcext.codec("terngrad")).encode(torch.randn(1000), seed=1)
    assert packet.deferred is not None
    assert packet.k < 1000
    assert packet.deferred is None
    assert packet.coded.at.untyped_storage().nbytes() == 4 * packet.k


def test_contents_are_kept_for_the_stream_that_synchronized(
    spec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The host waits, on a stream of its own, for the event of the encode and for what it copied.

    Where there is no event, as a graph's replays write to the packet, it is the current stream.
    """
    did: list[Any] = []
    held: list[tuple[Tensor, Any]] = []

    class Stream(nullcontext[None]):
        def __enter__(self) -> None:
            did.append(self)

        def wait_event(self, event: Any) -> None:
            did.append(event)

        def synchronize(self) -> None:
            did.append(self)

    own, here, event = Stream(), Stream(), object()
    monkeypatch.setattr(Tensor, "record_stream", lambda x, stream: held.append((x, stream)))
    for ready in (Ready(cast(Any, here), cast(Any, event)), None):
        packet = DeferredCodec(gcext.codec(spec)).encode(torch.randn(100), seed=1)
        assert packet.deferred is not None
        packet.deferred.ready, packet.deferred.captured = ready, ready is None
        with monkeypatch.context() as patch:
            patch.setattr(streams, "current_stream", lambda device: here)
            patch.setattr(streams, "_own_stream", lambda device: own)
            contents = packet.contents
        assert did == ([event, own, own] if ready is not None else [])
        assert [id(x) for x, _ in held] == [id(x) for x in contents.tensors() if ready is not None]
        assert all(stream is here for _, stream in held)
        assert packet.is_settled == (packet.deferred is None) == (ready is not None)
        did.clear()
        held.clear()
