"""The fused accumulate and exact top-k against its oracle: same indices, mean and residual."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import oracle
import pytest
import torch
from isa_kit import at_every_isa
from torch import Tensor

import gcext

select = torch.ops.gcext.select.default

DTYPES = [torch.float32, torch.float32, torch.float64, torch.float16, torch.bfloat16]
SHARES = [0.0005, 0.001, 0.01, 0.1, 0.5, 1.0]
Rng = np.random.Generator


def gaussian(rng: Rng, n: int) -> np.ndarray:
    return rng.standard_normal(n)


def tied(rng: Rng, n: int) -> np.ndarray:
    return np.round(rng.standard_normal(n) * 2) / 2


def equal(rng: Rng, n: int) -> np.ndarray:
    return rng.choice([-0.75, 0.75], n)


def zeros(rng: Rng, n: int) -> np.ndarray:
    return rng.choice([0.0, -0.0], n)


def sparse(rng: Rng, n: int) -> np.ndarray:
    return rng.standard_normal(n) * (rng.random(n) < 0.004)


def denormal(rng: Rng, n: int) -> np.ndarray:
    return rng.integers(-40, 40, n) * 2.0**-149


def layered(rng: Rng, n: int) -> np.ndarray:
    cuts = np.sort(rng.integers(0, n + 1, 12))
    scale = 10.0 ** rng.uniform(-6, 0, 13)
    return rng.standard_normal(n) * np.repeat(scale, np.diff(cuts, prepend=0, append=n))


def clustered(rng: Rng, n: int) -> np.ndarray:
    """Against the bracket: what is largest stands in one run that sampling is likely to miss."""
    x = rng.standard_normal(n) * 1e-3
    length = min(n, int(rng.integers(1, 3000)))
    start = int(rng.integers(0, n - length + 1))
    x[start : start + length] += 5
    return x


def rising(rng: Rng, n: int) -> np.ndarray:
    return np.linspace(-1, 1, n)


def near_threshold(rng: Rng, n: int) -> np.ndarray:
    """Against the bracket: all magnitudes within a few units in the last place."""
    return (1 + rng.integers(0, 3, n) * 2.0**-23) * rng.choice([-1, 1], n)


KINDS: list[Callable[[Rng, int], np.ndarray]] = [
    gaussian, tied, equal, zeros, sparse, denormal, layered, clustered, rising, near_threshold,
]  # fmt: skip


def draw(rng: Rng, n: int | None = None) -> tuple[Tensor, np.ndarray, int, bool]:
    # Every kind at every size: from 65,536 elements on there is more than one part.
    if n is None:
        n = (
            int(10 ** rng.uniform(4.8, 6))
            if rng.random() < 0.04
            else int(10 ** rng.uniform(0, 4.8)) - 1
        )
    kind = KINDS[int(rng.integers(len(KINDS)))]
    dtype = DTYPES[int(rng.integers(len(DTYPES)))]
    tensor = torch.from_numpy(kind(rng, n) if n else np.empty(0)).to(dtype)
    scale = float(rng.choice([0.0, 0.1, 1.0]))
    residual = (kind(rng, n) * scale if n else np.empty(0)).astype(np.float32)
    share = float(rng.choice(SHARES))
    return tensor, residual, max(int(share * n), 1) if n else 0, bool(rng.random() < 0.8)


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and bool(np.array_equal(a.view(np.uint32), b.view(np.uint32)))


@pytest.mark.parametrize("block", range(10))
def test_ten_thousand_cases(block: int) -> None:
    for case in range(block * 1000, block * 1000 + 1000):
        rng = np.random.default_rng(case)
        tensor, held, k, ternary = draw(rng)
        flat = tensor.float().contiguous()
        form = ("none", "place", "slots")[case % 3]
        memory = torch.from_numpy(held.copy())
        want = oracle.stc(flat.numpy(), None if form == "none" else held, k, ternary)
        out = {"none": None, "place": memory, "slots": torch.empty_like(memory)}[form]
        given = memory if form == "slots" else None
        index, value, info = select(flat, given, out, k, 1.0, 1.0, ternary)
        count, status, _, mean = info.tolist()
        assert status == 0, case
        assert np.array_equal(index[:count].numpy(), want.index), case
        assert same_bits(value[:count].numpy(), want.value), case
        assert np.uint32(mean) == want.mean.view(np.uint32), case
        if out is not None:
            assert same_bits(out.numpy(), want.residual), case
        if form == "slots":
            assert same_bits(memory.numpy(), held), case


@pytest.mark.parametrize(
    ("values", "mean"),
    [
        ([1, 1 + 2**-23], 1),  # a tie, to even
        ([1, 1, 1 + 2**-23, 2**-100], 0.75 + 2**-24),  # a little more, far below
        ([1, 1, 1 + 2**-23, 2**-149], 0.75 + 2**-24),
        ([1 + 2**-23, 1 + 2**-22, 2**-126], (2 / 3) * (1 + 3 * 2**-24)),  # a third left over
        ([2**-149, 2**-148], 2**-148),  # 1.5 of the least denormal
        ([2.0**127, 2.0**127 * (1 + 2**-23)], 2.0**127),
    ],
)
def test_the_mean_is_rounded_once(values: list[float], mean: float) -> None:
    info = select(torch.tensor(values), None, None, len(values), 1.0, 1.0, True)[2]
    assert info[3:].int().view(torch.float32).item() == np.float32(mean)


def test_scaled_sum_is_three_roundings() -> None:
    tensor, memory = torch.randn(100_000), torch.randn(100_000)
    out = torch.empty_like(memory)
    a, b = np.float32(0.3), np.float32(0.9)
    select(tensor, memory, out, 1000, float(a), float(b), True)
    want = oracle.stc(a * tensor.numpy(), b * memory.numpy(), 1000)
    assert same_bits(out.numpy(), want.residual)


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_fallback_is_exact_on_many_threads(threads: int) -> None:
    """A million equal magnitudes overflow every bracket, so the radix select must answer."""
    torch.set_num_threads(threads)
    n, k = 1_000_000, 123_457
    tensor = torch.ones(n)
    tensor[::3] = -1
    residual = torch.zeros(n)
    index, _, info = select(tensor, None, residual, k, 1.0, 1.0, True)
    assert info.tolist()[0] == k
    assert torch.equal(index, torch.arange(k, dtype=torch.int32))
    assert int(torch.count_nonzero(residual)) == n - k


CORPUS = """
import hashlib, sys, torch
import numpy as np
import test_select as t
for threads in (1, 2, 7):
    torch.set_num_threads(threads)
    one = hashlib.sha256()
    for case in range(120):
        rng = np.random.default_rng(case)
        tensor, held, k, ternary = t.draw(rng, n=300_000 if case % 4 == 0 else None)
        residual = torch.from_numpy(held)
        name = "stc" if ternary else "topk"
        packet = t.gcext.codec(f"{name}:p=0.03").encode(tensor, residual)
        one.update(packet.to_bytes() + residual.numpy().tobytes())
    print(one.hexdigest())
"""


def test_same_bytes_for_every_isa_and_thread_count() -> None:
    digests = {digest for printed in at_every_isa(CORPUS).values() for digest in printed}
    assert len(digests) == 1, digests


@pytest.mark.parametrize("spec", ["stc:p=0.1", "topk:p=0.1", "dense"])
@pytest.mark.parametrize("dtype", DTYPES[1:])
def test_flushing_denormals_changes_nothing(spec: str, dtype: torch.dtype) -> None:
    tiny = torch.from_numpy(denormal(np.random.default_rng(0), 50_000))
    tensor, residuals = tiny.to(dtype), (tiny.flip(0).float(), tiny.flip(0).float())
    kept = gcext.codec(spec).encode(tensor, residuals[0])
    assert torch.set_flush_denormal(True)
    try:
        flushed = gcext.codec(spec).encode(tensor, residuals[1])
        message = flushed.to_bytes()
    finally:
        torch.set_flush_denormal(False)
    assert kept.k > 0
    assert kept.to_bytes() == message
    assert same_bits(residuals[0].numpy(), residuals[1].numpy())


def test_no_k_gives_the_sum_alone() -> None:
    tensor, memory = torch.randn(70_001), torch.randn(70_001)
    out = torch.empty_like(memory)
    index, value, info = select(tensor, memory, out, 0, 1.0, 1.0, True)
    assert torch.equal(out, tensor + memory)
    assert (len(index), len(value), info.tolist()) == (0, 0, [0, 0, 0, 0])


def test_op_passes_opcheck_and_compiles_whole() -> None:
    tensor, memory, out = torch.randn(1000), torch.randn(1000), torch.empty(1000)
    for args in (
        (tensor, None, None, 10, 1.0, 1.0, True),
        (tensor, memory, out, 10, 1.0, 0.5, False),
        (tensor, None, out.zero_(), 10, 1.0, 1.0, True),
    ):
        torch.library.opcheck(select, args)

    def step(tensor: Tensor, memory: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        out = torch.empty_like(memory)
        index, value, _ = torch.ops.gcext.select(tensor, memory, out, 10, 1.0, 1.0, True)
        return index + 1, value * 2, out

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for got, want in zip(compiled(tensor, memory), step(tensor, memory), strict=True):
        assert torch.equal(got, want)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"k": -1}, "k must be in"),
        ({"k": 11}, "k must be in"),
        ({"tensor": torch.ones(10).double()}, "wrong dtype"),
        ({"tensor": torch.ones(20)[::2]}, "contiguous"),
        ({"out": torch.ones(9)}, "10 elements"),
        ({"memory": torch.ones(10), "out": None}, "memory needs out"),
    ],
)
def test_raw_op_refuses_what_does_not_fit(change: dict[str, object], match: str) -> None:
    args = {"tensor": torch.ones(10), "memory": None, "out": torch.ones(10), "k": 3} | change
    with pytest.raises(RuntimeError, match=match):
        select(*args.values(), 1.0, 1.0, True)


@pytest.mark.large
def test_beyond_two_to_the_31() -> None:
    n = 2**31 + 5
    tensor = torch.zeros(n)
    tensor[[3, 2**31 - 1, 2**31, n - 1]] = torch.tensor([1.0, -2.0, 3.0, -4.0])
    packet = gcext.stc(tensor, p=3 / n)
    assert packet.indices().tolist() == [2**31 - 1, 2**31, n - 1]
    again = gcext.Packet.from_bytes(packet.to_bytes(), expect=tensor.shape)
    assert again.indices().tolist() == packet.indices().tolist()
    assert packet.scale == 3.0
