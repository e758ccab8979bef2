"""What only a GPU can show: streams, graphs, memory, and the public calls from end to end."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
import wire_bodies as wire
from emu.backends import same_bits
from test_deferred import SPECS
from xxhash import xxh3_64_intdigest

import gcext
from gcext import DecodeError, Packet

pytestmark = pytest.mark.cuda

SIZES = [1, 31, 32, 33, 10**3, 32_768, 32_769, 10**5, 10**7]
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
REPLAYS, CALLS = 1000, 10_000
LARGE = [pytest.param(n, marks=pytest.mark.large) for n in (10**8, 2**31 + 5)]


# Nothing is drawn, so a graph may hold it.
DETERMINISTIC = [spec for spec in SPECS if not gcext.codec(spec).stochastic]


@contextmanager
def no_sync() -> Iterator[None]:
    """Torch raises where one of its own calls would wait for the device."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the mode is a prototype
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def fresh(n: int) -> torch.Tensor:
    return torch.randn(n)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [*SIZES, *LARGE])
def test_same_bytes_as_the_cpu(n: int, dtype: torch.dtype) -> None:
    tensor, residual = fresh(n).to(dtype), fresh(n)
    there = residual.cuda()
    want = gcext.stc(tensor, 0.01, residual=residual)
    got = gcext.stc(tensor.cuda(), 0.01, residual=there)
    assert got.to_bytes() == want.to_bytes()
    assert same_bits(there.cpu(), residual)


@pytest.mark.parametrize("p", [0.001, 0.01, 0.3])
def test_a_message_is_opened_there(p: float) -> None:
    tensor = fresh(1_000_003)
    want = gcext.stc(tensor, p).to_bytes()
    opened = Packet.from_bytes(want, device="cuda", expect=tensor.shape)
    assert opened.device.type == "cuda"
    assert opened.to("cuda").to_bytes() == want  # not the bytes that it came as
    bad = want[:-9] + bytes([want[-9] ^ 0x80]) + want[-8:]
    with pytest.raises(DecodeError):
        Packet.from_bytes(bad, device="cuda")


def test_a_model_in_one_call() -> None:
    tensors = [fresh(n) for n in [*SIZES, 0, 5000, 70_000] * 8]
    residuals = [fresh(t.numel()) for t in tensors]
    there = [r.cuda() for r in residuals]
    want = gcext.stc(tensors, 0.01, residual=residuals)
    got = gcext.stc([t.cuda() for t in tensors], 0.01, residual=there)
    assert [packet.to_bytes() for packet in got] == [packet.to_bytes() for packet in want]
    assert all(same_bits(x.cpu(), y) for x, y in zip(there, residuals, strict=True))


def test_a_group_is_packed_and_opened_there() -> None:
    tensors = [fresh(n) for n in [*SIZES[:-1], 0, *[256] * 60, 70_000, 2_000_003]]
    codec, dense = gcext.codec("stc:p=0.01"), gcext.codec("dense")
    want = Packet.group([*codec.encode(tensors), dense.encode(tensors[4])]).to_bytes()
    there = [tensor.cuda() for tensor in tensors]
    packets = [*codec.encode(there), dense.encode(there[4])]
    assert Packet.group(packets).to_bytes() == want
    opened = Packet.from_bytes(want, device="cuda")
    assert {member.device.type for member in opened.members} == {"cuda"}
    assert Packet.group(opened.members).to_bytes() == want


def test_a_group_with_a_bad_member_is_refused_as_on_the_cpu() -> None:
    packets = gcext.stc([fresh(n) for n in (1000, 300_000, 1000)], 0.01)
    good = Packet.group(packets).to_bytes()
    closed = wire.locate(good).members[1].encoded
    sound = 0
    for i in range(closed.begin, closed.end, 7):
        message = bytearray(good[:-8])
        message[i] ^= 1
        bad = bytes(message) + xxh3_64_intdigest(bytes(message)).to_bytes(8, "little")
        try:
            Packet.from_bytes(bad)
        except DecodeError as error:
            with pytest.raises(DecodeError) as raised:
                Packet.from_bytes(bad, device="cuda")
            assert (raised.value.code, raised.value.offset) == (error.code, error.offset)
        else:
            opened = Packet.from_bytes(bad, device="cuda")
            assert Packet.group(opened.members).to_bytes() == bad
            sound += 1
    assert 0 < sound < len(range(closed.begin, closed.end, 7))


def test_a_group_waits_for_the_streams_of_all_its_members() -> None:
    tensors = [fresh(100_000) for _ in range(4)]
    want = Packet.group([gcext.stc(tensor * 2) for tensor in tensors]).to_bytes()
    there = [tensor.cuda() for tensor in tensors]
    Packet.group([gcext.stc(there[0])]).to_bytes()  # loads the kernels
    torch.cuda.synchronize()
    packets = []
    for i, tensor in enumerate(there):
        with torch.cuda.stream(torch.cuda.Stream()):
            torch.cuda._sleep(10**8 * i)  # about a twentieth of a second; the first is ready first
            packets.append(gcext.stc(tensor.mul_(2)))
    assert Packet.group(packets).to_bytes() == want


def test_a_group_with_a_captured_member_shows_the_latest_replay() -> None:
    tensor, other = torch.zeros(1000, device="cuda"), gcext.stc(fresh(500).cuda())
    gcext.stc(tensor)  # loads the kernels
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        packet = gcext.stc(tensor)
    group = Packet.group([other, packet])
    for _ in range(3):
        data = fresh(1000)
        tensor.copy_(data)
        graph.replay()
        assert group.to_bytes() == Packet.group([other, gcext.stc(data)]).to_bytes()


@pytest.mark.parametrize("n", [1000, 10**6])
@pytest.mark.parametrize("spec", SPECS)
def test_encoding_does_not_wait_for_a_delayed_stream(spec: str, n: int) -> None:
    codec, seed = gcext.codec(spec), 5
    tensor, mirrors = fresh(n), [torch.zeros(n), torch.zeros(n)]
    there, residual = tensor.cuda(), torch.zeros(n, device="cuda")
    memory, out = torch.zeros_like(there), torch.zeros_like(there)
    codec.encode(there, residual.clone(), seed=0)  # loads the kernels, and a polar code's set
    torch.cuda.synchronize()
    side, done = torch.cuda.Stream(), torch.cuda.Event()
    with no_sync(), torch.cuda.stream(side):
        torch.cuda._sleep(2 * 10**9)  # about a second
        there.mul_(2)  # unless the call is on the stream, it sees the old ones
        packets = [
            codec.encode(there, seed=seed),
            codec.encode(there, residual, seed=seed),
            codec.advance(there, memory, out, seed=seed),
            *codec.encode([there, there], seed=[seed, seed]),
        ]
        done.record()
        assert not done.query()
    plain = codec.encode(tensor * 2, seed=seed).to_bytes()
    fed = [codec.encode(tensor * 2, mirror, seed=seed).to_bytes() for mirror in mirrors]
    got = [packet.to_bytes() for packet in packets]  # on the default stream
    assert got == [plain, *fed, plain, plain]
    assert same_bits(residual.cpu(), mirrors[0])
    assert same_bits(out.cpu(), mirrors[1])


@pytest.mark.parametrize("spec", ["stc:p=0.1", "topk:p=0.1", "dense", "sign", "qsgd:bits=1"])
def test_memory_is_kept_for_the_stream_that_synchronized(spec: str) -> None:
    n, side, codec = 10**6, torch.cuda.Stream(), gcext.codec(spec)
    tensor = fresh(n)
    there = tensor.cuda()
    codec.encode(there, seed=1).values()  # loads the kernels
    torch.cuda.synchronize()
    with torch.cuda.stream(side):
        packet = codec.encode(there, seed=1)
    torch.cuda._sleep(10**9)  # on the default stream, as what follows
    kept = packet.values()
    del packet
    with torch.cuda.stream(side):
        for size in [n // 32, n // 10, n // 2, n] * 5:  # would be given the packet's memory
            torch.full((size,), 7.0, device="cuda")
    torch.cuda.synchronize()
    assert same_bits(kept.cpu(), codec.encode(tensor, seed=1).values())


def test_packets_stay_on_their_device() -> None:
    tensor = fresh(10**5)
    want = gcext.stc(tensor).to_bytes()
    for device in range(torch.cuda.device_count()):  # the current one stays the first
        packet = gcext.stc(tensor.to(f"cuda:{device}"))
        assert packet.device.index == device
        assert packet.to_bytes() == want
    assert torch.cuda.current_device() == 0


@pytest.mark.parametrize("n", [1000, 10**6])
def test_a_thousand_replays(n: int) -> None:
    tensor, residual = torch.randn(n, device="cuda"), torch.zeros(n, device="cuda")
    mirror = torch.zeros(n)
    gcext.stc(tensor, 0.01, residual=residual)  # loads the kernels
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        packet = gcext.stc(tensor, 0.01, residual=residual)
    residual.zero_()
    for _ in range(REPLAYS):
        data = fresh(n)
        tensor.copy_(data)
        graph.replay()
        assert packet.to_bytes() == gcext.stc(data, 0.01, residual=mirror).to_bytes()
    assert same_bits(residual.cpu(), mirror)


@pytest.mark.parametrize("spec", DETERMINISTIC)
def test_every_codec_that_draws_nothing_is_captured(spec: str) -> None:
    codec, n = gcext.codec(spec), 5000
    tensor, residual, mirror = torch.randn(n).cuda(), torch.zeros(n).cuda(), torch.zeros(n)
    codec.encode(tensor, residual)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        packet = codec.encode(tensor, residual)
    residual.zero_()
    for _ in range(20):
        data = fresh(n)
        tensor.copy_(data)
        graph.replay()
        assert packet.to_bytes() == codec.encode(data, mirror).to_bytes()
    assert same_bits(residual.cpu(), mirror)


@pytest.mark.parametrize("n", [1, 1000, 10**6])
@pytest.mark.parametrize("spec", SPECS)
def test_a_deferred_error_leaves_the_feedback_unchanged(spec: str, n: int) -> None:
    feedback = gcext.ErrorFeedback(spec, seed=1)
    good, bad = torch.randn(n, device="cuda"), torch.randn(n, device="cuda")
    bad[n // 2] = float("nan")
    feedback.compress(good, "w")
    with no_sync():
        before = feedback.residual("w")
        packet = feedback.compress(bad, "w")
        after = feedback.residual("w")
    with pytest.raises(ValueError, match=f"finite.*at index {n // 2}"):
        packet.to_bytes()
    assert same_bits(before.cpu(), after.cpu())


@pytest.mark.parametrize("n", [1, 1000, 10**6])
@pytest.mark.parametrize("spec", SPECS)
def test_in_place_a_bad_tensor_leaves_the_residual(spec: str, n: int) -> None:
    residual, bad = torch.randn(n, device="cuda"), torch.randn(n, device="cuda")
    bad[n - 1] = float("inf")
    before = residual.clone()
    packet = gcext.codec(spec).encode(bad, residual, seed=1)
    with pytest.raises(ValueError, match=f"tensor must be finite.*at index {n - 1}"):
        packet.to_bytes()
    assert same_bits(before.cpu(), residual.cpu())


def test_memory_neither_grows_nor_peaks() -> None:
    n, p = 10**6, 0.01
    tensor, residual = torch.randn(n, device="cuda"), torch.zeros(n, device="cuda")
    gcext.stc(tensor, p, residual=residual)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    for _ in range(CALLS):
        packet = gcext.stc(tensor, p, residual=residual)
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() - before
    assert peak <= 4 * n + 2 * 8 * packet.k + 2048  # two packets' outputs are alive at once
    del packet
    assert torch.cuda.memory_allocated() == before
