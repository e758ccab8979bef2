"""Lists of tensors, encoded in one call."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from emu.backends import same_bits
from test_select import KINDS

import gcext
from gcext._native import lists, ops


@pytest.mark.parametrize(
    "spec", ["stc:p=0.1", "topk:p=0.02", "topk:p=0.1,chunk=50", "dense", "sign"]
)
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


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("form", ["none", "place", "slots"])
def test_a_model_is_its_members(form: str, threads: int) -> None:
    """Tensors that are cut among threads, tensors that are one thread's work, and tiny ones."""
    torch.set_num_threads(threads)
    for case in range(8):
        rng = np.random.default_rng(case)
        sizes = [int(10 ** rng.uniform(0, 4.6)) for _ in range(20)] + [0, 300_000, 1, 900_000]
        rng.shuffle(sizes)
        flat = [torch.from_numpy(KINDS[int(rng.integers(len(KINDS)))](rng, n)).float() if n
                else torch.empty(0) for n in sizes]  # fmt: skip
        ks = [max(n // 50, 1) if n else 0 for n in sizes]
        held = [torch.randn(n) for n in sizes]
        memory = held if form == "slots" else []
        outs = [] if form == "none" else [x.clone() for x in held]
        single = [x.clone() for x in outs]
        index, value, info = lists.select_many(flat, memory, outs, ks, 1.0, 0.5, True)
        at = 0
        for i, k in enumerate(ks):
            out = None if form == "none" else single[i]
            given = held[i] if form == "slots" else None
            its_index, its_value, its_info = ops.select(flat[i], given, out, k, 1.0, 0.5, True)
            count = int(its_info[0])
            assert torch.equal(info[i], its_info), (case, i)
            assert torch.equal(index[at : at + count], its_index[:count]), (case, i)
            assert same_bits(value[at : at + count], its_value[:count]), (case, i)
            assert out is None or same_bits(outs[i], out), (case, i)
            at += k


@pytest.mark.parametrize("where", [0, 1, 2, 3])
def test_a_model_with_a_bad_tensor_changes_nothing(where: int) -> None:
    torch.set_num_threads(2)
    tensors = [torch.randn(n) for n in (3, 700_000, 20_000, 300_000)]
    residuals = [torch.randn(t.shape) for t in tensors]
    kept = [residual.clone() for residual in residuals]
    tensors[where][-1] = float("nan")
    place = tensors[where].numel() - 1
    with pytest.raises(ValueError, match=rf"stc\[{where}\]: .* finite .*nan at index {place}\."):
        gcext.stc(tensors, 0.01, residuals)
    assert all(same_bits(x, y) for x, y in zip(residuals, kept, strict=True))


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
    torch.library.opcheck(
        torch.ops.gcext.select_many.default, (tensors, [], outs, [5, 1], 1.0, 1.0, True, [], [])
    )
    torch.library.opcheck(
        torch.ops.gcext.select_many.default, (tensors, [], [], [5, 1], 1.0, 1.0, False, [], [])
    )
    with pytest.raises(RuntimeError, match="needs a k for every tensor"):
        torch.ops.gcext.select_many.default(tensors, [], outs, [5], 1.0, 1.0, True, [], [])
    held = torch.randn(60)
    before = held.clone()
    for memory, out in [  # an out that is read, or written to, elsewhere; none that touch
        ([], [held[:50], held[49:52]]),
        ([held[:50], tensors[1]], [torch.randn(50), held[10:13]]),
        ([torch.randn(50), held[:3]], [held[:50], torch.randn(3)]),
    ]:
        with pytest.raises(RuntimeError, match="must not share memory with other tensors"):
            torch.ops.gcext.select_many.default(
                tensors, memory, out, [5, 1], 1.0, 1.0, True, [], []
            )
        assert same_bits(held, before)
    torch.ops.gcext.select_many.default(
        tensors, [], [held[:50], held[50:53]], [5, 1], 1.0, 1.0, True, [], []
    )


@pytest.mark.parametrize("spec", ["stc:p=0.1", "sign"])
def test_residuals_of_a_list_share_no_memory(spec: str) -> None:
    codec, memory = gcext.codec(spec), torch.randn(30)
    before = memory.clone()
    a, b = torch.randn(20), torch.randn(20)
    for tensors, residuals in [
        ([a, b], [memory[:20], memory[:20]]),
        ([a, b], [memory[:20], memory[10:]]),
        ([memory[:20], b], [torch.zeros(20), memory[5:25]]),
        ([a, memory[:20]], [memory[5:25], torch.zeros(20)]),
    ]:
        with pytest.raises(ValueError, match="residuals must not share memory"):
            codec.encode(tensors, residuals)
        assert torch.equal(memory, before)
    codec.encode([a[:15], a[5:], a[:0]], [memory[:15], memory[15:], memory[:0]])  # side by side


@pytest.mark.parametrize("spec", ["stc:p=0.1", "sign", "dense"])
def test_residuals_may_be_inference_tensors(spec: str) -> None:
    tensor, residual = torch.randn(20), torch.zeros(20)
    with torch.inference_mode():
        held = torch.zeros(20)
    codec = gcext.codec(spec)
    assert codec.encode([tensor], [held]) == codec.encode([tensor], [residual])
    assert same_bits(held, residual)
