"""Packets that only the device knows: looked at late, on CPU tensors and on a GPU."""

from __future__ import annotations

import copy
import pickle
from functools import partial

import pytest
import torch
from emu.backends import same_bits
from emu.late import Late
from torch import Tensor

import gcext
from gcext import _lib
from gcext._codec_base import refuse
from gcext._selected import Selected


def late(tensor: Tensor, p: float = 0.1) -> Selected:
    return Late(p, ternary=True).encode(tensor)  # type: ignore[return-value]


@pytest.mark.parametrize("share", [1.0, 0.01])
def test_says_what_an_ordinary_packet_says(share: float) -> None:
    tensor = torch.randn(70, 100) * (torch.rand(70, 100) < share)
    want = gcext.stc(tensor, 0.1)
    assert late(tensor).to_bytes() == want.to_bytes()
    assert late(tensor).k == want.k
    assert late(tensor).scale == want.scale
    assert repr(late(tensor)) == repr(want)
    assert torch.equal(late(tensor).indices(), want.indices())
    assert same_bits(late(tensor).to_dense(), want.to_dense())
    assert late(tensor).to("cpu").nbytes == want.nbytes
    assert late(tensor).device == tensor.device
    assert gcext.Packet.group([late(tensor)]).to_bytes() == gcext.Packet.group([want]).to_bytes()
    for copied in (copy.deepcopy(late(tensor)), pickle.loads(pickle.dumps(late(tensor)))):
        assert type(copied) is gcext.Packet
        assert copied.to_bytes() == want.to_bytes()
    with pytest.raises(AttributeError, match="no attribute 'suport'"):
        late(tensor).suport  # noqa: B018


def test_raises_at_every_look() -> None:
    tensor = torch.randn(100)
    tensor[7] = float("inf")
    packet = late(tensor)
    tensor.zero_()  # as an optimizer does before anybody looks
    for look in (packet.to_bytes, lambda: packet.k, packet.to_dense, lambda: repr(packet)):
        with pytest.raises(ValueError, match=r"stc: tensor must be finite.*got NaN or Inf at .* 7"):
            look()


def test_a_late_error_leaves_the_feedback_as_it_was() -> None:
    """Promise 4: the swap has happened, but what was refused left a copy of the old residual."""
    now, later = (gcext.ErrorFeedback(codec) for codec in ("stc:p=0.1", Late(0.1, ternary=True)))
    bad = torch.randn(5000)
    bad[17] = float("nan")
    overflow = torch.full((5000,), 3e38)
    for step, tensor in enumerate([torch.randn(5000), bad, torch.randn(5000), overflow, overflow]):
        packet = later.compress(tensor, "w")
        try:
            want = now.compress(tensor, "w").to_bytes()
        except ValueError:
            assert step in (1, 4)
            with pytest.raises(ValueError, match="finite"):
                packet.to_bytes()
        else:
            assert packet.to_bytes() == want
        assert same_bits(now.residual("w"), later.residual("w"))


def test_a_captured_packet_is_a_window() -> None:
    index, value = torch.arange(3, dtype=torch.int32), torch.full((3,), 2.0)
    info = torch.tensor([3, 0, 0, 0x40000000])
    packet = Selected("ternary", (9,), torch.float32, index, value, info, partial(refuse, "stc"))
    packet._captured = True
    kept, message = packet.to("cpu"), packet.to_bytes()
    assert (packet.k, packet.scale) == (3, 2.0)
    index.add_(1)
    value.fill_(-1.0)
    info.copy_(torch.tensor([2, 0, 0, 0x3F800000]))  # the next replay
    assert (packet.k, packet.scale) == (2, 1.0)
    assert packet.indices().tolist() == [1, 2]
    assert packet.to_bytes() != message
    assert kept.to_bytes() == message
    info[1] = 1
    with pytest.raises(ValueError, match="finite"):
        packet.to_bytes()


@pytest.mark.parametrize("spec", ["stc:p=0.1", "topk:p=0.02", "dense", "sign"])
def test_a_list_is_its_members(spec: str) -> None:
    codec = gcext.codec(spec)
    tensors = [torch.randn(n) for n in (1, 40_000, 0, 33)] + [torch.randn(7, 9).half().t()]
    residuals = [torch.randn(t.shape) for t in tensors]
    mirrors = [residual.clone() for residual in residuals]
    packets = codec.encode(tensors, residuals)
    for packet, tensor, mirror in zip(packets, tensors, mirrors, strict=True):
        assert packet.to_bytes() == codec.encode(tensor, mirror).to_bytes()
    assert all(same_bits(x, y) for x, y in zip(residuals, mirrors, strict=True))
    assert [p.to_bytes() for p in codec.encode(tensors)] == [
        codec.encode(t).to_bytes() for t in tensors
    ]
    assert codec.encode([]) == []


def test_a_list_of_seeds() -> None:
    codec, tensors = gcext.codec("randomk:p=0.1"), [torch.randn(100), torch.randn(200)]
    packets = codec.encode(tensors, seed=[5, 6])
    for packet, tensor, seed in zip(packets, tensors, (5, 6), strict=True):
        assert packet.to_bytes() == codec.encode(tensor, seed=seed).to_bytes()
    with pytest.raises(ValueError, match="needs a seed"):
        codec.encode(tensors)
    with pytest.raises(ValueError, match="seed must be a list as long as the tensors', got 1 for"):
        codec.encode(tensors, seed=[5])


@pytest.mark.parametrize("spec", ["stc:p=0.1", "dense"])
def test_a_list_with_a_bad_tensor_changes_nothing(spec: str) -> None:
    tensors = [torch.randn(50), torch.tensor([1.0, float("nan")])]
    residuals = [torch.randn(50), torch.randn(2)]
    kept = [residual.clone() for residual in residuals]
    name = spec.partition(":")[0]
    with pytest.raises(ValueError, match=rf"{name}\[1\]: tensor must be finite.*nan at index 1"):
        gcext.codec(spec).encode(tensors, residuals)
    assert all(same_bits(x, y) for x, y in zip(residuals, kept, strict=True))
    with pytest.raises(ValueError, match=rf"{name}\[0\]: residual must have the tensor's shape"):
        gcext.codec(spec).encode(tensors, residuals[::-1])


def test_operator_of_many_is_sound() -> None:
    tensors, outs = [torch.randn(50), torch.randn(3)], [torch.randn(50), torch.randn(3)]
    torch.library.opcheck(_lib.select_many, (tensors, [], outs, [5, 1], 1.0, 1.0, True))
    torch.library.opcheck(_lib.select_many, (tensors, [], [], [5, 1], 1.0, 1.0, False))
    with pytest.raises(RuntimeError, match="needs a k for every tensor"):
        _lib.select_many(tensors, [], outs, [5], 1.0, 1.0, True)
