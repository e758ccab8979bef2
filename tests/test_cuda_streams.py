"""The host waits for the encode, and not for what was enqueued behind it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_deferred import SPECS

import gcext
from gcext import Packet

pytestmark = pytest.mark.cuda


class Later:
    """Work enqueued on the current stream: at least half a second of a GPU's."""

    def __init__(self) -> None:
        self._tensor = torch.zeros(10, device="cuda")
        self._event = torch.cuda.Event()

    def enqueue(self) -> None:
        torch.cuda._sleep(10**9)
        self._tensor.add_(1)
        self._event.record()

    def is_done(self) -> bool:
        return self._event.query()


READS: dict[str, Callable[[Packet], Any]] = {
    "bytes": Packet.to_bytes,
    "to": lambda packet: packet.to("cpu"),
    "k": lambda packet: packet.k,
    "bytes after k": lambda packet: (packet.k, packet.to_bytes()),
    "group": lambda packet: Packet.group([packet, packet]).to_bytes(),
}


def waits(spec: str, read: str) -> bool:
    """Whether what is read is computed on the device: how many elements the terms of a sum have."""
    sums = gcext.codec(spec).name in ("repeat", "wangni") and "polar" not in spec
    return sums and "k" in read


@pytest.mark.parametrize("read", READS)
@pytest.mark.parametrize("spec", SPECS)
def test_reading_does_not_wait_for_later_work(spec: str, read: str) -> None:
    codec, tensor = gcext.codec(spec), torch.randn(3000)
    there, later = tensor.cuda(), Later()
    READS[read](codec.encode(there, seed=3))  # memory, streams, kernels
    torch.cuda.synchronize()
    packet = codec.encode(there, seed=3)
    later.enqueue()
    READS[read](packet)
    assert later.is_done() == waits(spec, read)
    there.fill_(7.0)
    assert packet.to_bytes() == codec.encode(tensor, seed=3).to_bytes()


def test_members_of_many_encodes_and_streams() -> None:
    """A model's packets, with one that was encoded elsewhere, and errors that all share."""
    tensors = {name: torch.randn(n) for name, n in {"a": 2000, "b": 40_000, "c": 50}.items()}
    there = {name: x.cuda() for name, x in tensors.items()}
    sender, other, later = gcext.ErrorFeedback("stc:p=0.05"), torch.cuda.Stream(), Later()
    here = gcext.ErrorFeedback("stc:p=0.05")
    torch.cuda.synchronize()
    for bad in (False, True, False):
        if bad:
            tensors["b"][77] = there["b"][77] = float("nan")
        group = sender.compress(there)
        with torch.cuda.stream(other):
            single = gcext.codec("sign").encode(there["a"])
        later.enqueue()
        if bad:
            with pytest.raises(ValueError, match="number 1 from 0"):
                group.members[0].to_bytes()
            tensors["b"][77] = there["b"][77] = 1.0
        else:
            message = Packet.group([*group.members, single]).to_bytes()
            assert not later.is_done()
            want = [*here.compress(tensors).members, gcext.codec("sign").encode(tensors["a"])]
            assert message == Packet.group(want).to_bytes()
        torch.cuda.synchronize()


def test_many_packets_are_packed_at_once() -> None:
    codecs = [gcext.codec(spec) for spec in ("stc:p=0.1", "sign", "stc:p=0.02", "qsgd")]
    tensors = [torch.randn(600) for _ in range(12)]
    want = [codecs[i % 4].encode(x, seed=i) for i, x in enumerate(tensors)]
    packets = [codecs[i % 4].encode(x.cuda(), seed=i) for i, x in enumerate(tensors)]
    later = Later()
    later.enqueue()
    history = gcext.History()
    history.keep_unpacked(1)
    history.put(1, dict(enumerate(packets)))
    assert not later.is_done()
    for i, packet in enumerate(want):
        assert packets[i].to_bytes() == packet.to_bytes()
        assert history.packet(i).to_bytes() == packet.to_bytes()
        assert history.packet(i, "cuda:0").device.type == "cuda"


def test_a_copy_that_the_host_did_not_wait_for_is_read_behind_it() -> None:
    """Of a packet sent to the device the contents are as far as its stream is."""
    packet = gcext.codec("topk:p=0.1").encode(torch.randn(2000))
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        torch.cuda._sleep(10**8)
        there = packet.to("cuda")
        assert not there.is_settled
        assert there.to("cpu").to_bytes() == packet.to_bytes()
        assert there.to_bytes() == packet.to_bytes()


def test_slots_go_to_no_other_stream() -> None:
    """A commit on another stream than the call's leaves the spare slot to the call's stream."""
    one, two, n = torch.cuda.Stream(), torch.cuda.Stream(), 5000
    sender, here = gcext.ErrorFeedback("topk:p=0.1"), gcext.ErrorFeedback("topk:p=0.1")
    tensors = {name: torch.randn(n) for name in ("x", "y")}
    there = {name: x.cuda() for name, x in tensors.items()}
    torch.cuda.synchronize()
    with torch.cuda.stream(one):
        sender.compress(there["x"], "x")
    with torch.cuda.stream(two):
        sender.compress(there["y"], "y")
    torch.cuda.synchronize()
    with torch.cuda.stream(one):
        packet = sender.compress(there["x"], "x", commit=False)
    with torch.cuda.stream(two):
        sender.commit("x")  # the old slot of x is being read on the first stream
        sent = sender.compress(there["y"], "y")
        two.synchronize()
    for name in ("x", "y"):
        here.compress(tensors[name], name)
    assert sent.to_bytes() == here.compress(tensors["y"], "y").to_bytes()
    assert packet.to_bytes() == here.compress(tensors["x"], "x").to_bytes()
    keys: Any = list(sender._spare)
    assert {key[2].stream_id for key in keys} == {one.stream_id, two.stream_id}
    state, want = sender.state_dict()["residuals"], here.state_dict()["residuals"]
    assert all(torch.equal(state[name].cpu(), want[name]) for name in want)
