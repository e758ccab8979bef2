"""A selection over a whole model: one threshold for all tensors, a scale for each."""

from __future__ import annotations

import numpy as np
import oracle
import pytest
import torch
from isa_kit import at_every_isa
from test_select import KINDS, same_bits
from torch import Tensor

import gcext

Rng = np.random.Generator


def draw(rng: Rng) -> list[np.ndarray]:
    """A list of flat tensors of one kind, some of them empty, of scales that differ or do not."""
    kind = KINDS[int(rng.integers(len(KINDS)))]
    largest = 5.2 if rng.random() < 0.1 else 3.5
    sizes = [int(10 ** rng.uniform(0, largest)) - 1 for _ in range(int(rng.integers(1, 12)))]
    scales = 10.0 ** rng.uniform(-2, 0, len(sizes)) if rng.random() < 0.5 else np.ones(len(sizes))
    tensors = [kind(rng, n) if n else np.empty(0) for n in sizes]
    return [(t * s).astype(np.float32) for t, s in zip(tensors, scales, strict=True)]


def count(p: float, n: int) -> int:
    return max(int(p * n), 1) if n else 0


@pytest.mark.parametrize("block", range(4))
def test_random_models_against_the_oracle(block: int) -> None:
    for case in range(block * 150, block * 150 + 150):
        rng = np.random.default_rng(case)
        torch.set_num_threads(int(rng.integers(1, 5)))
        tensors = draw(rng)
        start = [np.round(rng.standard_normal(t.size), 1).astype(np.float32) for t in tensors]
        held = start if case % 3 else None
        p, ternary = float(rng.choice([0.001, 0.01, 0.2, 1.0])), bool(rng.random() < 0.8)
        k = count(p, sum(t.size for t in tensors))
        want = oracle.stc_model(tensors, held, k, ternary)
        residuals = None if held is None else [torch.from_numpy(r.copy()) for r in held]
        codec = gcext.codec(f"{'stc' if ternary else 'topk'}:p={p!r}")
        given = [torch.from_numpy(t) for t in tensors]
        packets = codec.encode(given, residuals, scope="model")
        for i, (packet, answer) in enumerate(zip(packets, want, strict=True)):
            assert np.array_equal(packet.indices().numpy(), answer.index), (case, i)
            assert same_bits(packet.values().numpy(), answer.value), (case, i)
            assert packet.scale == (answer.mean if ternary else 0), (case, i)
            if residuals is not None:
                assert same_bits(residuals[i].numpy(), answer.residual), (case, i)
        group = gcext.Packet.group(packets)
        again = gcext.Packet.from_bytes(group.to_bytes(), expect=group.shape)
        assert again == group and again.k == group.k


def test_one_tensor_is_the_usual_selection() -> None:
    tensor, residuals = torch.randn(300, 70), [torch.randn(300, 70)] * 2
    residuals = [residual.clone() for residual in residuals]
    (packet,) = gcext.stc([tensor], 0.02, residuals[:1], scope="model")
    assert packet == gcext.stc(tensor, 0.02, residuals[1])
    assert same_bits(residuals[0].numpy(), residuals[1].numpy())


def test_shapes_dtypes_and_strides() -> None:
    tensors = [
        torch.randn(9, 4).t(),
        torch.tensor(3.0),
        torch.zeros(0, 5),
        torch.randn(50).double(),
    ]
    tensors.append(torch.randn(20, 3).bfloat16())
    packets = gcext.stc(tensors, 0.1, scope="model")
    flat = torch.cat([t.float().flatten() for t in tensors])
    assert sum(packet.k for packet in packets) == int(0.1 * flat.numel())
    assert [packet.shape for packet in packets] == [tuple(t.shape) for t in tensors]
    assert [packet.dtype for packet in packets] == [t.dtype for t in tensors]
    threshold = flat.abs().sort(descending=True).values[sum(p.k for p in packets) - 1]
    for packet, tensor in zip(packets, tensors, strict=True):
        chosen = tensor.float().flatten()[packet.indices()]
        assert (chosen.abs() >= threshold).all()


def test_ties_go_to_the_earlier_tensor() -> None:
    tensors = [torch.ones(3), torch.zeros(0), -torch.ones(2, 2), torch.ones(5)]
    packets = gcext.stc(tensors, 0.5, scope="model")  # 6 of 12
    assert [packet.indices().tolist() for packet in packets] == [[0, 1, 2], [], [0, 1, 2], []]
    assert [packet.scale for packet in packets] == [1, 0, 1, 0]


def test_a_model_of_zeros_or_of_nothing_sends_nothing() -> None:
    for tensors in ([torch.zeros(4), torch.zeros(())], [torch.zeros(0), torch.zeros(0, 2)]):
        residuals = [torch.zeros_like(t) for t in tensors]
        group = gcext.Packet.group(gcext.stc(tensors, 1.0, residuals, scope="model"))
        assert group.k == 0
        again = gcext.Packet.from_bytes(group.to_bytes(), expect=group.shape)
        for dense, tensor in zip(again.to_dense(), tensors, strict=True):
            assert torch.equal(dense, tensor)
    assert gcext.stc([], scope="model") == []


def test_a_bad_tensor_changes_nothing() -> None:
    tensors = [torch.randn(40_000), torch.tensor([1.0, float("inf")]), torch.randn(5)]
    residuals = [torch.randn(t.shape) for t in tensors]
    kept = [residual.clone() for residual in residuals]
    with pytest.raises(ValueError, match=r"stc\[1\]: tensor must be finite.*inf at index 1"):
        gcext.stc(tensors, 0.01, residuals, scope="model")
    assert all(torch.equal(x, y) for x, y in zip(residuals, kept, strict=True))
    tensors[1][1] = 0
    residuals[2][3] = float("nan")
    with pytest.raises(ValueError, match=r"stc\[2\]: .*bad residual at index 3"):
        gcext.stc(tensors, 0.01, residuals, scope="model")


def test_a_scope_that_a_codec_does_not_have_is_refused() -> None:
    tensors = [torch.randn(5), torch.randn(6)]
    with pytest.raises(ValueError, match="sign: scope must be 'tensor' for a codec that does not"):
        gcext.codec("sign").encode(tensors, scope="model")
    with pytest.raises(ValueError, match="stc: scope must be 'tensor' or 'model', got 'layer'"):
        gcext.stc(tensors, scope="layer")  # type: ignore[call-overload]
    with pytest.raises(ValueError, match="stc: scope is of a list of tensors"):
        gcext.codec("stc").encode(tensors[0], scope="model")  # type: ignore[call-overload]


CORPUS = """
import hashlib, torch
import numpy as np
import test_scope as t
for threads in (1, 2, 7):
    torch.set_num_threads(threads)
    one = hashlib.sha256()
    for case in range(60):
        rng = np.random.default_rng(case)
        tensors = [torch.from_numpy(x) for x in t.draw(rng)]
        for scope in ("model", "tensor"):
            residuals = [x.flip(0) for x in tensors]
            packets = t.gcext.stc(tensors, 0.02, residuals, scope=scope)
            one.update(t.gcext.Packet.group(packets).to_bytes())
            one.update(b"".join(r.numpy().tobytes() for r in residuals))
    print(one.hexdigest())
"""


def test_same_bytes_for_every_isa_and_thread_count() -> None:
    digests = {digest for printed in at_every_isa(CORPUS).values() for digest in printed}
    assert len(digests) == 1, digests


@pytest.mark.parametrize("slots", [False, True])
def test_operator_is_sound(slots: bool) -> None:
    tensors = [torch.randn(50), torch.randn(0), torch.randn(3)]
    outs = [torch.randn(t.shape) for t in tensors]
    memory: list[Tensor] = [torch.randn(t.shape) for t in tensors] if slots else []
    operator = torch.ops.gcext.select_model.default
    torch.library.opcheck(operator, (tensors, memory, outs, 5, 1.0, 0.5, True, [], []))
    torch.library.opcheck(operator, (tensors, [], [], 53, 1.0, 1.0, False, [], []))
    with pytest.raises(
        RuntimeError, match=r"select_model: k must be in \[0, numel\], got 54 of 53"
    ):
        operator(tensors, memory, outs, 54, 1.0, 1.0, True, [], [])
