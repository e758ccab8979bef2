"""Many threads: each encodes as if it were alone, and none keeps the others from running."""

from __future__ import annotations

import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

import gcext

SPECS = ["stc:p=0.01", "topk:p=0.01", "qsgd", "sign", "int8", "dct", "natural", "sbc", "polar"]


@pytest.mark.parametrize("spec", SPECS)
def test_64_threads_make_the_bytes_of_one(spec: str) -> None:
    codec = gcext.codec(spec)
    tensors = [torch.randn(5000, generator=torch.Generator().manual_seed(i)) for i in range(64)]

    def encode(i: int) -> list[bytes]:
        start.wait()
        residual = torch.zeros(5000)
        packets = [codec.encode(tensors[i], residual, seed=i) for _ in range(3)]
        return [each.to_bytes() for each in packets if isinstance(each, gcext.Packet)]

    start = threading.Barrier(1)
    alone = [encode(i) for i in range(64)]
    start = threading.Barrier(64)
    with ThreadPoolExecutor(64) as pool:
        together = list(pool.map(encode, range(64)))
    assert alone == together


def test_64_threads_decode_and_aggregate_as_one() -> None:
    tensors = [torch.randn(3000, generator=torch.Generator().manual_seed(i)) for i in range(8)]
    messages = [gcext.stc(tensor, p=0.05).to_bytes() for tensor in tensors]
    start = threading.Barrier(64)

    def aggregate(_: int) -> bytes:
        start.wait()
        packets = [gcext.Packet.from_bytes(each, expect=(3000,)) for each in messages]
        whole: Any = gcext.combine(packets, [1 / 8] * 8)
        return bytes(whole.numpy().tobytes())

    with ThreadPoolExecutor(64) as pool:
        assert len(set(pool.map(aggregate, range(64)))) == 1


@pytest.mark.parametrize("spec", ["stc:p=0.01", "topk:p=0.01", "sign", "qsgd", "int8"])
def test_another_thread_runs_during_an_encode(spec: str) -> None:
    """Counted, not timed: threads switch only where one waits or releases the interpreter."""
    codec, tensor = gcext.codec(spec), torch.randn(1 << 21)
    counted, stop = [0], threading.Event()

    def count() -> None:
        while not stop.is_set():
            counted[0] += 1
            time.sleep(0)  # gives the interpreter back

    interval, grown = sys.getswitchinterval(), False
    other = threading.Thread(target=count)
    other.start()
    sys.setswitchinterval(1000)
    try:
        for i in range(1000):  # on a busy machine the other thread may not run in the first few
            before = counted[0]
            packet = codec.encode(tensor, seed=i)
            if grown := counted[0] > before:
                break
    finally:
        sys.setswitchinterval(interval)
        stop.set()
        other.join()
    assert isinstance(packet, gcext.Packet) and packet.numel == 1 << 21
    assert grown
