"""Packets of one call or message whose elements lie in two arrays: like packets made one by one."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Sequence

import pytest
import torch
from emu.backends import same_bits
from torch import Tensor

import gcext
from gcext._packet import wire
from gcext._packet.joined import Joined

SIZES = (1, 5_000, 0, 33, 700)


def tensors_of(sizes: Sequence[int] = SIZES) -> list[Tensor]:
    return [torch.randn(n) for n in sizes]


def alone(packet: gcext.Packet) -> gcext.Packet:
    """Return the packet with arrays of its own."""
    return packet.having(packet.contents.map(torch.clone))


def one_by_one(packets: Sequence[gcext.Packet]) -> gcext.Packet:
    group = gcext.Packet.group([alone(packet) for packet in packets])
    assert group.joined is None
    return group


@pytest.mark.parametrize("spec", ["stc:p=0.1", "topk:p=0.1"])
@pytest.mark.parametrize("scope", ["tensor", "model"])
@pytest.mark.parametrize("residual", [False, True])
def test_plain_tensors_are_encoded_as_others_are(spec: str, scope: str, residual: bool) -> None:
    codec, tensors = gcext.codec(spec), tensors_of()
    tensors[1] = tensors[1].view(50, 100)
    strided = [torch.stack([x, x], -1)[..., 0] for x in tensors]  # these are converted first
    held = [torch.randn(x.shape) for x in tensors]
    also = [x.clone() for x in held]
    versions = [x._version for x in held]
    got = codec.encode(tensors, held if residual else None, scope=scope)  # type: ignore[call-overload]
    want = codec.encode(strided, also if residual else None, scope=scope)  # type: ignore[call-overload]
    assert gcext.Packet.group(got).joined is not None
    assert [x.to_bytes() for x in got] == [x.to_bytes() for x in want]
    assert all(same_bits(x, y) for x, y in zip(held, also, strict=True))
    if residual:
        assert all(x._version > version for x, version in zip(held, versions, strict=True))


def test_zeros_leave_no_gap() -> None:
    tensors = tensors_of()
    tensors[1][7:] = 0
    packets = gcext.stc(tensors, 0.1)
    assert [packet.k for packet in packets] == [1, 7, 0, 3, 70]
    joined = gcext.Packet.group(packets).joined
    assert joined is not None and joined.index.numel() == 81
    assert packets[1] == gcext.stc(tensors[1], 0.1)


def test_parameters_and_views_are_plain_and_need_no_detour() -> None:
    model = torch.nn.Linear(30, 20)
    given = list(model.parameters())
    want = [gcext.stc(x.detach(), 0.1) for x in given]
    assert gcext.stc(given, 0.1) == want  # a parameter requires a gradient
    totals = [torch.nn.Parameter(torch.zeros(x.shape)) for x in given]
    gcext.Packet.group(want).add_to_(totals)
    gcext.Packet.from_bytes(gcext.Packet.group(want).to_bytes()).add_to_(totals)
    for total, packet in zip(totals, want, strict=True):
        assert same_bits(total.detach(), packet.add_to_(torch.zeros(total.shape), 2.0))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_are_those_of_single_calls(dtype: torch.dtype) -> None:
    tensors, held = [x.to(dtype) for x in tensors_of()], [torch.randn(n) for n in SIZES]
    also = [x.clone() for x in held]
    got, single = gcext.stc(tensors, 0.1), [gcext.stc(x, 0.1) for x in tensors]
    assert got == single and all(x.dtype == dtype for x in got)
    assert gcext.stc(tensors, 0.1, held) == [
        gcext.stc(x, 0.1, y) for x, y in zip(tensors, also, strict=True)
    ]
    assert all(same_bits(x, y) for x, y in zip(held, also, strict=True))


@pytest.mark.parametrize("pick", ["all", "reversed", "some", "twice", "mixed", "two calls"])
def test_a_group_of_them_is_that_of_single_packets(pick: str) -> None:
    packets = gcext.stc(tensors_of(), 0.1)
    other = gcext.codec("sign").encode(torch.randn(40))
    chosen = {
        "all": packets,
        "reversed": packets[::-1],
        "some": packets[1:4],
        "twice": [*packets, packets[1]],
        "mixed": [other, *packets[:2], other, *packets[2:]],
        "two calls": [*packets, *gcext.stc(tensors_of((5, 9)), 0.2)],
    }[pick]
    group, want = gcext.Packet.group(chosen), one_by_one(chosen)
    assert group.joined is not None or pick in ("reversed", "some", "twice")
    assert group.members == tuple(chosen)
    assert group.to_bytes() == want.to_bytes() and group == want and hash(group) == hash(want)
    assert (group.numel, group.k, group.device) == (want.numel, want.k, want.device)
    assert repr(group) == repr(want)
    back = gcext.Packet.from_bytes(group.to_bytes())
    for each in (back, pickle.loads(pickle.dumps(group)), copy.deepcopy(group)):
        assert each == want and each.shape == group.shape and each.dtype == group.dtype
        assert each.members == want.members
        assert all(same_bits(x, y) for x, y in zip(each.to_dense(), want.to_dense(), strict=True))
    sums = [[torch.randn(shape) for shape in group.shape]]
    sums += [[x.clone() for x in sums[0]] for _ in range(3)]
    for each, to in zip((group, want, back), sums, strict=False):
        assert each.add_to_(to, alpha=-0.5) is to
    for into, packet in zip(sums[3], chosen, strict=True):
        packet.add_to_(into, alpha=-0.5)
    for to in sums[1:]:
        assert all(same_bits(x, y) for x, y in zip(to, sums[0], strict=True))


def test_members_of_a_message_are_made_once_and_keep_their_contents() -> None:
    group = gcext.Packet.from_bytes(gcext.Packet.group(gcext.stc(tensors_of(), 0.1)).to_bytes())
    assert group.members is group.members
    first = group.members[1]
    support = first.support
    assert isinstance(support, Tensor) and first.support is support  # sliced once
    again = gcext.Packet.group(group.members)
    assert again.joined is not None and again == group


def test_what_is_added_is_all_or_nothing() -> None:
    group = gcext.Packet.group(gcext.stc(tensors_of(), 0.1))
    plain = [torch.randn(n) for n in SIZES]
    cases: list[tuple[list[Tensor], float, str]] = [
        (plain[:-1], 1.0, "needs a tensor a member, got 4 tensors for a group of 5"),
        ([*plain[:-1], torch.randn(701)], 1.0, "tensor must be of .* of 700 elements"),
        ([*plain[:-1], torch.randint(9, (700,))], 1.0, "tensor must be of"),
        ([*plain[:-1], torch.randn(1).expand(700)], 1.0, "must not share memory"),
        ([*plain[:-1], torch.full((700,), 3.4e38)], 3.4e38, "sums must be finite in float32"),
    ]
    for into, alpha, message in cases:
        before = [x.clone() for x in into]
        with pytest.raises(ValueError, match=message):
            group.add_to_(into, alpha)
        assert all(same_bits(x, y) for x, y in zip(into, before, strict=True))
    strided = [torch.randn(n, 2)[:, 0] for n in SIZES]
    want = [x + y for x, y in zip(strided, group.to_dense(), strict=True)]
    group.add_to_(strided)
    assert all(same_bits(x, y) for x, y in zip(strided, want, strict=True))


def test_a_tensor_may_be_added_to_twice() -> None:
    group = gcext.Packet.group(gcext.stc(tensors_of((500, 500)), 0.5))
    total, want = torch.zeros(500), torch.zeros(500)
    group.add_to_([total, total])
    for member in group.members:
        member.add_to_(want)
    assert same_bits(total, want)


def test_a_stage_keeps_the_dtype_of_the_source() -> None:
    """Stages make float32 of a tensor; its packet is told the dtype again."""
    tensors = {"a": torch.randn(50).half(), "b": torch.randn(40)}
    sender = gcext.Sender("stc:p=0.1", stages=[gcext.Clip(1.0)])
    group = sender.compress(tensors)
    assert [each.dtype for each in group.members] == [torch.float16, torch.float32]
    back = gcext.Packet.from_bytes(group.to_bytes())
    assert [each.dtype for each in back.members] == [torch.float16, torch.float32]
    assert back.dtype == torch.float16


def test_small_tensors_sent_exact_are_refused_as_single_ones_are() -> None:
    tensors = {"a": torch.randn(50), "b": torch.tensor([1.0, float("inf")])}
    comp = gcext.ErrorFeedback("stc:p=0.1", exact_below=10)
    with pytest.raises(ValueError, match=r"'b': tensor must be finite.* inf at index 1"):
        comp.compress(tensors)
    tensors["b"] = torch.tensor([1.0, -0.0])
    group = comp.compress(tensors)
    assert [each.method for each in group.members] == ["ternary", "dense"]
    assert group.joined is not None
    assert same_bits(gcext.Packet.from_bytes(group.to_bytes()).to_dense()[1], tensors["b"])


@pytest.mark.parametrize("spec", ["stc:p=0.1", "topk:p=0.1", "dense", "sign"])
def test_other_layouts_are_refused_with_their_remedy(spec: str) -> None:
    for other in (torch.eye(3).to_sparse(), torch.eye(3).to_mkldnn()):
        message = r"tensor must be strided, got torch\.\w+\. Call \.to_dense\(\)\."
        with pytest.raises(ValueError, match=r"\[1\]: " + message):
            gcext.codec(spec).encode([torch.randn(4), other])
        with pytest.raises(ValueError, match="'b': " + message):
            gcext.ErrorFeedback(spec, exact_below=100).compress({"a": torch.randn(4), "b": other})
        packet = gcext.codec(spec).encode(torch.eye(3))
        for each, into in ((packet, other), (gcext.Packet.group([packet]), [other])):
            with pytest.raises(ValueError, match=r"tensor must be of .*, strided, of 9 elements"):
                each.add_to_(into)


def test_heads_that_do_not_fit_their_arrays_are_refused() -> None:
    index, value = torch.tensor([0, 2], dtype=torch.int32), torch.tensor([1.0, -1.0])
    head = ("ternary", (3,), "float32", 2, 1.0)

    def pack(*heads: object, index: Tensor = index) -> bytes:
        joined = Joined(heads, index, value)  # type: ignore[arg-type]
        return wire.pack(gcext.Packet("group", ((3,),), torch.float32, joined=joined))

    assert len(gcext.Packet.from_bytes(pack(head)).members) == 1
    with pytest.raises(ValueError, match="a head must name the next of 2 elements, got 2 from 2"):
        pack(head, head)
    with pytest.raises(ValueError, match="a head must name the next of 2 elements, got -1 from 0"):
        pack((*head[:3], -1, 1.0))
    with pytest.raises(ValueError, match="a head must be of a sparse or ternary packet"):
        pack(("dense", *head[1:]))
    with pytest.raises(ValueError, match="value must be as long as index"):
        pack(head, index=index[:1])
    with pytest.raises(ValueError, match="at least one member"):
        pack()


def test_the_operator_of_split_arrays() -> None:
    dense = [torch.zeros(3), torch.zeros(2), torch.zeros(4)]
    index = [torch.tensor([0, 2, 1], dtype=torch.int32), torch.empty(0, dtype=torch.int32)]
    value = [torch.tensor([1.0, 2.0, 3.0]), torch.tensor([4.0, 5.0])]
    operator = torch.ops.gcext.combine_add_finite_.default
    assert operator(dense, index, value, 2.0, [2, -1, 1]) == -1
    assert [each.tolist() for each in dense] == [[2, 0, 4], [8, 10], [0, 6, 0, 0]]
    for split, message in [
        ([2, -1, 2], "add up to the entries, got 2 from 2 on, of 3"),
        ([2, -1, 0], "add up to the entries, got 2 of 3"),
        ([2, -1], "a number for every tensor, got 2 for 3"),
        ([1, 1, 1], "needs an index and a value for every tensor, got 2"),
        ([-2, -1, 1], "add up to the entries"),
        ([3, -1, 0], "must rise strictly"),
    ]:
        before = [each.clone() for each in dense]
        with pytest.raises(RuntimeError, match=message):
            operator(dense, index, value, 1.0, split)
        assert all(same_bits(x, y) for x, y in zip(dense, before, strict=True))
