"""combine and combine_add_: against NumPy bit for bit, at the edges, and under torch.compile."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from packet_kit import single
from wire_kit import peak_growth

import gcext
from gcext._native import ops

NONE = torch.empty(0, dtype=torch.int32)


def sparse(
    rng: np.random.Generator, numel: int, k: int, dtype: Any = np.int32
) -> tuple[torch.Tensor, torch.Tensor]:
    index = np.sort(rng.choice(numel, k, replace=False)).astype(dtype)
    return torch.from_numpy(index), torch.from_numpy(rng.standard_normal(k).astype(np.float32))


def dense(rng: np.random.Generator, numel: int) -> tuple[torch.Tensor, torch.Tensor]:
    return NONE, torch.from_numpy(rng.standard_normal(numel).astype(np.float32))


def expected(
    packets: list[tuple[torch.Tensor, torch.Tensor]], weights: list[float], numel: int
) -> np.ndarray:
    """Packet by packet in float64, rounded once."""
    total = np.zeros(numel)
    for (index, value), weight in zip(packets, weights, strict=True):
        at = slice(None) if len(index) == 0 and len(value) == numel else index.numpy()
        total[at] += weight * value.numpy().astype(np.float64)
    return total.astype(np.float32)


def combine(
    packets: list[tuple[torch.Tensor, torch.Tensor]], weights: list[float], numel: int
) -> torch.Tensor:
    return ops.combine([p[0] for p in packets], [p[1] for p in packets], weights, numel)


@pytest.mark.parametrize("numel", [1, 5, 16383, 16384, 16385, 100_003])
def test_exact_over_tiles_and_kinds(numel: int) -> None:
    rng = np.random.default_rng(numel)
    packets = [
        sparse(rng, numel, numel // 3 + 1),
        dense(rng, numel),
        sparse(rng, numel, 0),
        sparse(rng, numel, min(numel, 7), np.int64),
        sparse(rng, numel, numel),
    ]
    weights = [0.1, -3.7, 1.0, 1e-3, 0.3]
    for chosen in ([0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [0], [1], [2], [3], [0, 3]):
        some, of = [packets[i] for i in chosen], [weights[i] for i in chosen]
        out = combine(some, of, numel)
        assert out.dtype == torch.float32 and out.shape == (numel,)
        assert out.numpy().tobytes() == expected(some, of, numel).tobytes()


def test_a_cluster_after_a_long_gap() -> None:
    """Tiles that no packet enters are zeros, also after one that was full."""
    numel = 20 * 16384
    index = torch.cat([torch.arange(100), torch.arange(numel - 100, numel)]).int()
    packet = (index, torch.full((200,), 0.5))
    for packets in ([packet], [packet, packet]):
        out = combine(packets, [2.0] * len(packets), numel)
        assert out.nonzero().flatten().tolist() == index.tolist()
        assert set(out[index.long()].tolist()) == {float(len(packets))}


def test_sums_are_float64_in_packet_order() -> None:
    parts = [(NONE, torch.tensor([x])) for x in (1e30, 1.0, -1e30)]
    assert combine(parts, [1.0, 1.0, 1.0], 1).item() == 0.0
    assert combine([parts[0], parts[2], parts[1]], [1.0, 1.0, 1.0], 1).item() == 1.0
    small = [(NONE, torch.tensor([x])) for x in (1.0, 2.0**-30, -1.0)]
    assert combine(small, [1.0, 1.0, 1.0], 1).item() == 2.0**-30  # float32 sums would lose it


def test_a_lone_packet_is_a_sum_of_one() -> None:
    packet = (torch.tensor([0, 2]).int(), torch.tensor([-1.5, 2.0]))
    empty = (NONE, torch.empty(0))
    alone = combine([packet], [0.0], 4)
    assert alone.numpy().tobytes() == combine([packet, empty], [0.0, 1.0], 4).numpy().tobytes()
    assert not torch.signbit(alone).any()  # 0 * -1.5 added to 0 is +0


def test_no_elements_and_no_dimensions() -> None:
    empty = (NONE, torch.empty(0))
    assert combine([empty, empty], [1.0, 2.0], 0).shape == (0,)
    assert combine([empty], [1.0], 3).tolist() == [0.0, 0.0, 0.0]
    scalar = gcext.codec("dense").encode(torch.tensor(2.0))
    assert single(gcext.combine([scalar, scalar], [1.0, 0.25])).item() == 2.5
    assert single(gcext.combine([scalar], [1.0])).shape == ()


def test_memory_is_the_output() -> None:
    numel = 5_000_000
    rng = np.random.default_rng(0)
    packets = [sparse(rng, numel, 1000) for _ in range(8)]
    combine(packets, [1.0] * 8, numel)  # the threads exist
    assert peak_growth(lambda: combine(packets, [1.0] * 8, numel)) < 4 * numel + (4 << 20)


@pytest.mark.parametrize("alpha", [1.0, -1.0, 0.1])
@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_add_in_place_rounds_twice(alpha: float, dtype: Any) -> None:
    rng = np.random.default_rng(1)
    numel = 300_001
    for index, value in (sparse(rng, numel, 90_000, dtype), dense(rng, numel)):
        start = rng.standard_normal(numel).astype(np.float32)
        target = torch.from_numpy(start.copy())
        ops.combine_add_(target, index, value, alpha)
        at = index.numpy() if len(index) else slice(None)
        start[at] += np.float32(alpha) * value.numpy()
        assert target.numpy().tobytes() == start.tobytes()


def test_denormals_are_kept_whatever_the_caller_flushes() -> None:
    index, value = torch.arange(4).int(), torch.full((4,), 1e-40)
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor flushes nothing")
    try:
        out = [combine([(index, value)] * m, [1.0] * m, 4).numpy().tobytes() for m in (1, 2)]
        target = torch.zeros(4)
        ops.combine_add_(target, index, value, 1.0)
        bits = target.numpy().tobytes()
    finally:
        torch.set_flush_denormal(False)
    one = np.full(4, 1e-40, np.float32)
    assert out == [one.tobytes(), (one + one).tobytes()] and bits == one.tobytes()


BAD = {
    "rise strictly": ([1, 1], [1.0, 2.0]),
    r"within \[0, 4\)": ([1, 4], [1.0, 2.0]),
    "packet 0 does not": ([-1, 2], [1.0, 2.0]),
    "must rise": ([2, 0, 3], [1.0, 2.0, 3.0]),
    "one length": ([1], [1.0, 2.0]),
    "numel = 4, got 0 and 3": ([], [1.0, 2.0, 3.0]),
}


@pytest.mark.parametrize("rule", BAD)
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_bad_packets_are_refused_before_anything_is_written(rule: str, dtype: Any) -> None:
    index, value = torch.tensor(BAD[rule][0], dtype=dtype), torch.tensor(BAD[rule][1])
    with pytest.raises(RuntimeError, match=rule):
        ops.combine([index], [value], [1.0], 4)
    target = torch.zeros(4)
    with pytest.raises(RuntimeError, match=rule):
        ops.combine_add_(target, index, value, 1.0)
    assert not target.any()


def test_bad_arguments_are_refused() -> None:
    index, value = torch.tensor([1]).int(), torch.tensor([1.0])
    with pytest.raises(RuntimeError, match="combine: wrong dtype"):
        ops.combine([index], [value.double()], [1.0], 4)
    with pytest.raises(RuntimeError, match="index must be int32 or int64"):
        ops.combine([index.short()], [value], [1.0], 4)
    with pytest.raises(RuntimeError, match="weight for every packet, got 2 for 1"):
        ops.combine([index], [value], [1.0, 2.0], 4)
    with pytest.raises(RuntimeError, match="index for every value, got 2 and 1"):
        ops.combine([index, index], [value], [1.0], 4)
    with pytest.raises(RuntimeError, match="numel must not be negative, got -1"):
        ops.combine([index], [value], [1.0], -1)
    with pytest.raises(RuntimeError, match="dense: must be contiguous"):
        ops.combine_add_(torch.zeros(8)[::2], index, value, 1.0)
    with pytest.raises(RuntimeError, match="packet 2 does not"):
        ops.combine([index, index, index + 9], [value] * 3, [1.0] * 3, 4)


@pytest.mark.parametrize("numel", [4, 5000])
def test_opcheck_and_compile(numel: int) -> None:
    rng = np.random.default_rng(2)
    packets = [sparse(rng, numel, 3), dense(rng, numel)]
    index, value = [p[0] for p in packets], [p[1] for p in packets]
    torch.library.opcheck(torch.ops.gcext.combine.default, (index, value, [0.5, 2.0], numel))
    torch.library.opcheck(
        torch.ops.gcext.combine_add_.default, (torch.zeros(numel), *packets[0], 0.5)
    )

    def step(a: list[torch.Tensor], b: list[torch.Tensor]) -> torch.Tensor:
        total = ops.combine(a, b, [0.5, 2.0], numel) + 1
        ops.combine_add_(total, a[0], b[0], -1.0)
        return total

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(index, value), step(index, value))
