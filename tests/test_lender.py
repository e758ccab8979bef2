"""Messages on several threads and in memory that is used again: the same bytes, and no more."""

from __future__ import annotations

import gc
import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from xxhash import xxh3_64_intdigest

import gcext
import gcext._packet.wire as wire
from gcext._packet.codes import Contents, Levels
from gcext._packet.powers import Powers

N = 900_001  # enough for several parts of each kind of stream, and some that is left
SPECS = ["natural", "qsgd", "qsgd:bits=2,bucket=0", "qsgd:bits=8", "stc:p=0.3", "topk:p=0.5"]
SPECS += ["strom", "terngrad", "dense"]


@pytest.fixture(autouse=True)
def _restore_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def encoded(spec: str, n: int = N) -> gcext.Packet:
    tensor = torch.randn(n, generator=torch.Generator().manual_seed(5))
    packet = gcext.codec(spec).encode(tensor, seed=3)
    assert isinstance(packet, gcext.Packet)
    return packet


def model(spec: str) -> gcext.Packet:
    """A group: members that are large and small, and two that lie beside the others."""
    generator = torch.Generator().manual_seed(7)
    sizes = [5, 300_000, 70_000, 1, 90_001, *[9000] * 30, 0, 60_000]
    tensors = [torch.randn(n, generator=generator) for n in sizes]
    packets = list(gcext.codec(spec).encode(tensors))
    packets[2] = gcext.codec("natural").encode(tensors[2], seed=4)
    packets[9] = gcext.codec("qsgd").encode(tensors[9], seed=4)
    return gcext.Packet.group(packets)


def on_threads(threads: int, packet: gcext.Packet) -> bytes:
    torch.set_num_threads(threads)
    return wire.pack(packet)


@pytest.mark.parametrize("spec", SPECS)
def test_any_number_of_threads_writes_the_same_bytes(spec: str) -> None:
    packet = encoded(spec)
    alone = on_threads(1, packet)
    for threads in (2, 3, 5, 8):
        assert on_threads(threads, packet) == alone


@pytest.mark.parametrize("spec", SPECS)
def test_any_number_of_threads_reads_the_same(spec: str) -> None:
    packet = encoded(spec)
    message = packet.to_bytes()
    for threads in (1, 2, 3, 5, 8):
        torch.set_num_threads(threads)
        back = gcext.Packet.from_bytes(message)
        for own, other in zip(back.contents.tensors(), packet.contents.tensors(), strict=True):
            assert own.dtype == other.dtype and torch.equal(own, other)


@pytest.mark.parametrize("spec", ["stc:p=0.6", "topk:p=0.6", "strom"])
def test_any_number_of_threads_writes_and_reads_the_same_group(spec: str) -> None:
    packet = model(spec)
    alone = on_threads(1, packet)
    assert alone == on_threads(1, gcext.Packet.group(packet.members))
    for threads in (2, 3, 5, 8):
        assert on_threads(threads, packet) == alone
        assert on_threads(threads, gcext.Packet.from_bytes(alone)) == alone


def verdict(message: bytes) -> tuple[str, str, int] | None:
    try:
        gcext.Packet.from_bytes(message)
    except gcext.DecodeError as error:
        return error.code, error.field, error.offset
    return None


@pytest.mark.parametrize("spec", ["natural", "qsgd", "terngrad", "topk:p=0.5", "group"])
def test_any_number_of_threads_refuses_the_same_for_the_same_reason(spec: str) -> None:
    """Bits turned anywhere but in the header, behind a checksum that fits."""
    packet = model("topk:p=0.6") if spec == "group" else encoded(spec, 400_000)
    message = bytearray(packet.to_bytes())
    rng = np.random.default_rng(2)
    reasons = set()
    for _ in range(60):
        at = int(10 ** rng.uniform(1.5, math.log10(len(message) - 9)))
        changed = message.copy()
        changed[at] ^= 1 << int(rng.integers(8))
        changed[-8:] = xxh3_64_intdigest(changed[:-8]).to_bytes(8, "little")
        torch.set_num_threads(1)
        alone = verdict(bytes(changed))
        torch.set_num_threads(3)
        assert verdict(bytes(changed)) == alone
        reasons.add(alone and alone[0])
    assert len(reasons) > 1, reasons


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("spec", ["qsgd", "stc:p=0.3"])
def test_places_end_below_the_number_of_elements(spec: str, threads: int) -> None:
    """A shape that is too small by less than the last part of the stream."""
    message = bytearray(encoded(spec).to_bytes())
    at = message.index(varint(N), 0, 32)
    message[at : at + 3] = varint(N - 40)
    message[-8:] = xxh3_64_intdigest(message[:-8]).to_bytes(8, "little")
    torch.set_num_threads(threads)
    found = verdict(bytes(message))
    assert found is not None and found[0] == "index"


def varint(x: int) -> bytes:
    return bytes([x & 0x7F | 0x80, x >> 7 & 0x7F | 0x80, x >> 14])


@pytest.mark.parametrize("threads", [1, 4])
def test_what_is_wrong_first_is_named(threads: int) -> None:
    """Two faults, in the parts of two threads: the error is the first one's."""
    torch.set_num_threads(threads)
    code = encoded("qsgd").coded
    assert isinstance(code, Levels)
    level, at = code.level.clone(), code.at.clone()
    at[len(at) - 5] = at[len(at) - 6]
    at[len(at) // 2] = at[len(at) // 2 - 1]
    place = int(at[len(at) // 2])
    wrong = type(code)(code.steps, code.bucket, code.norms, at, level)
    packet = encoded("qsgd")
    packet = gcext.Packet(
        "levels2", packet.shape, packet.dtype, packet.contents._replace(coded=wrong)
    )
    with pytest.raises(ValueError, match=rf"places must rise strictly below {N}, got {place}\."):
        wire.pack(packet)
    powers = encoded("natural")
    assert isinstance(powers.coded, Powers)
    power = powers.coded.power.clone()
    power[10], power[-10] = 300, -400
    contents = powers.contents._replace(coded=Powers(powers.coded.scale, power))
    packet = gcext.Packet("powers", powers.shape, powers.dtype, contents)
    index = torch.arange(N, dtype=torch.int32)
    index[N - 1000], index[300_000] = 5, 7
    pairs = gcext.Packet("sparse", (N,), torch.float32, Contents(index, torch.ones(N)))
    with pytest.raises(ValueError, match="a fall or a repetition among places 299008 to 300031"):
        wire.pack(pairs)
    with pytest.raises(ValueError, match=r"powers must be in \[-278, 278\], got -400\."):
        wire.pack(packet)


def pairs(packet: gcext.Packet) -> tuple[torch.Tensor, torch.Tensor]:
    index, value = packet.contents.support, packet.contents.coded
    assert isinstance(index, torch.Tensor) and isinstance(value, torch.Tensor)
    return index, value


def test_what_was_read_outlives_its_packet() -> None:
    message = gcext.stc(torch.randn(10**6), p=0.2).to_bytes()
    first = gcext.Packet.from_bytes(message)
    index, value = pairs(first)
    kept_index, kept_value = index.clone(), value.clone()
    del first
    gc.collect()
    gcext.release_memory()
    others = [gcext.Packet.from_bytes(message) for _ in range(3)]
    assert all(torch.equal(pairs(other)[0], kept_index) for other in others)
    assert torch.equal(index, kept_index) and torch.equal(value, kept_value)


def test_what_nobody_has_any_more_is_used_again() -> None:
    message = gcext.stc(torch.randn(10**6), p=0.2).to_bytes()
    gcext.release_memory()
    packet = gcext.Packet.from_bytes(message)
    place = pairs(packet)[0].data_ptr()
    assert gcext.release_memory() == 0
    del packet
    gc.collect()
    again = gcext.Packet.from_bytes(message)
    assert place in [each.data_ptr() for each in pairs(again)]
    del again
    gc.collect()
    assert gcext.release_memory() >= 2 * 4 * 200_000
