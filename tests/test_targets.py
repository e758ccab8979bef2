"""Tensors that packets are added to: any strides, any float dtype, alone and in groups."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import gcext
from gcext import Packet

SHAPE = (6, 5, 4)
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
FORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x.clone(),
    "permuted": lambda x: x.permute(2, 0, 1).contiguous().permute(1, 2, 0),
    "channels": lambda x: x.unsqueeze(0).contiguous(memory_format=torch.channels_last).squeeze(0),
    "spaced": lambda x: torch.zeros(12, 5, 8, dtype=x.dtype)[::2, :, ::2].copy_(x),
    "inside": lambda x: torch.zeros(8, 7, 6, dtype=x.dtype)[1:7, 1:6, 1:5].copy_(x),
    "flat": lambda x: x.flatten(),
}
SPECS = ["stc:p=0.2", "topk:p=0.01", "dense", "sign", "randomk:p=0.3"]


def sum_of(target: Tensor, packet: Packet, alpha: float) -> Tensor:
    """What add_to_ documents: float64 in float64, all others in float32, then rounded once."""
    dense = packet.to_dense()
    assert isinstance(dense, Tensor)
    wide = torch.float64 if target.dtype == torch.float64 else torch.float32
    product = torch.tensor(alpha, dtype=torch.float32).to(wide) * dense.to(wide)
    total = (target.to(wide) + product.view(target.shape)).to(target.dtype)
    untouched = torch.ones(dense.numel(), dtype=torch.bool)
    untouched[packet.indices()] = False
    return torch.where(untouched.view(target.shape), target, total)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("spec", SPECS)
def test_any_strides_and_dtype(spec: str, dtype: torch.dtype) -> None:
    packet = gcext.codec(spec).encode(torch.randn(SHAPE), seed=3)
    for name, form in FORMS.items():
        target = form(torch.randn(SHAPE).to(dtype))
        want, version = sum_of(target, packet, -0.3), target._version
        assert packet.add_to_(target, -0.3) is target
        assert torch.equal(target, want), name
        assert target._version > version


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [2**18, 2**18 + 1, 3 * 2**18 - 1])
def test_large_tensors_are_added_to_in_pieces(n: int, dtype: torch.dtype) -> None:
    packet = gcext.codec("sign").encode(torch.randn(n))
    target = torch.randn(n).to(dtype)
    want = sum_of(target, packet, -0.3)
    assert torch.equal(packet.add_to_(target, -0.3), want)


def test_what_lies_between_is_not_touched() -> None:
    packet = gcext.codec("dense").encode(torch.randn(SHAPE))
    for sent in (packet, gcext.stc(torch.randn(SHAPE), 0.5)):
        for dtype in DTYPES:
            whole = torch.zeros(12, 7, 8, dtype=dtype)
            sent.add_to_(whole[::2, 1:6, ::2])
            assert whole.count_nonzero() == sent.k
            assert whole[::2, 1:6, ::2].count_nonzero() == sent.k


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_group_is_its_members(dtype: torch.dtype) -> None:
    shapes = [SHAPE, (), (0, 3), (7,), (40, 1000)]
    sent = [torch.randn(shape) for shape in shapes]
    packets = [gcext.stc(x, 0.3) for x in sent] + [gcext.codec("dense").encode(torch.randn(3))]
    group = Packet.from_bytes(Packet.group(packets).to_bytes())
    targets = [torch.randn(p.shape).to(dtype) for p in packets]
    targets[0], targets[3] = FORMS["permuted"](targets[0].float()), targets[3].double()
    alone = [target.clone() for target in targets]
    versions = [target._version for target in targets]
    assert group.add_to_(targets, 0.7) is targets
    for packet, one, other, version in zip(packets, targets, alone, versions, strict=True):
        packet.add_to_(other, 0.7)
        assert torch.equal(one, other)
        assert one._version > version or one.numel() == 0


def test_targets_that_share_memory_are_added_to_in_turn() -> None:
    torch.set_num_threads(2)
    packets = [gcext.stc(torch.randn(100_000), 0.9) for _ in range(2)]
    target, want = torch.zeros(100_000), torch.zeros(100_000)
    Packet.group(packets).add_to_([target, target])
    for packet in packets:
        packet.add_to_(want)
    assert torch.equal(target, want)


def test_a_parameter_and_an_inference_tensor() -> None:
    packets = [gcext.stc(torch.ones(3, 2), p=1), gcext.stc(torch.ones(2), p=1)]
    with torch.inference_mode():
        frozen = torch.zeros(2)
    layer = torch.nn.Linear(2, 3)
    before = layer.weight.detach().clone()
    Packet.group(packets).add_to_([layer.weight, frozen])
    assert torch.equal(layer.weight.detach(), before + 1) and layer.weight.is_leaf
    assert frozen.tolist() == [1, 1]
    half = torch.nn.Parameter(torch.zeros(2, dtype=torch.float16))
    packets[1].add_to_(half)
    assert half.tolist() == [1, 1] and half.requires_grad


BAD = {
    "too short": torch.zeros(119),
    "integers": torch.zeros(SHAPE, dtype=torch.int32),
    "complex": torch.zeros(SHAPE, dtype=torch.complex64),
    "meta": torch.zeros(SHAPE, device="meta"),
    "sparse": torch.zeros(SHAPE).to_sparse(),
    "expanded": torch.zeros(1, 5, 4).expand(SHAPE),
    "overlapping": torch.zeros(200).as_strided(SHAPE, (4, 4, 1)),
    "none": None,
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_target_changes_none(name: str) -> None:
    packet, good = gcext.stc(torch.randn(SHAPE), 0.5), torch.zeros(SHAPE)
    match = "must not share memory" if name in ("expanded", "overlapping") else "must be of float32"
    if BAD[name] is not None:
        with pytest.raises(ValueError, match=match):
            packet.add_to_(BAD[name])  # type: ignore[type-var]
    group = Packet.group([packet, packet, packet])
    for fine in (good, FORMS["permuted"](good)):
        with pytest.raises(ValueError, match=match):
            group.add_to_([fine, BAD[name], fine])  # type: ignore[type-var]
        assert fine.count_nonzero() == 0
    with pytest.raises(ValueError, match="needs a tensor a member, got 2 tensors for a group of 3"):
        group.add_to_([good, good])
    with pytest.raises(ValueError, match="needs a tensor a member, got a tensor for a group of 3"):
        group.add_to_(good)


def test_the_operator_of_many_is_sound() -> None:
    dense, value = [torch.randn(4, 5), torch.randn(3)], [torch.randn(2), torch.randn(3)]
    index = [torch.tensor([1, 7]), torch.empty(0, dtype=torch.int32)]
    operator = torch.ops.gcext.combine_add_many_.default
    torch.library.opcheck(operator, (dense, index, value, 0.5))
    before = [x.clone() for x in dense]
    with pytest.raises(RuntimeError, match="packet 1 does not"):
        operator(dense, [index[0], torch.tensor([0, 1, 3])], value, 0.5)
    with pytest.raises(RuntimeError, match="needs an index and a value for every tensor"):
        operator(dense, index[:1], value, 0.5)
    assert all(torch.equal(x, y) for x, y in zip(dense, before, strict=True))


def test_inference_tensors_of_any_form() -> None:
    tensors = [torch.randn(4), torch.randn(3, 2), torch.randn(5)]
    group = Packet.group([gcext.codec("topk:p=0.5").encode(x) for x in tensors])
    with torch.inference_mode():
        targets = [torch.zeros(4), torch.zeros(2, 3).t(), torch.zeros(5, dtype=torch.float64)]
    group.add_to_(targets)
    for target, member in zip(targets, group.members, strict=True):
        assert torch.equal(target.double(), sum_of(torch.zeros(target.shape).double(), member, 1.0))
