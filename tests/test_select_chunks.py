"""The exact top-k of every chunk against its oracle: same indices, values, mean and residual."""

from __future__ import annotations

import chunk_oracle
import numpy as np
import pytest
import torch
from chunk_oracle import count_of
from isa_kit import at_every_isa
from test_select import KINDS, Rng, denormal, same_bits

import gcext

select_chunks = torch.ops.gcext.select_chunks.default
SHARES = [0.001, 1 / 64, 0.1, 0.5, 1.0]
CHUNKS = [1, 3, 16, 50, 1000, 4096, 65536]


def sizes(n: int, p: float, chunk: int) -> tuple[int, int, int]:
    """Return the operator's chunk, k and last."""
    rest = n % chunk or min(n, chunk)
    return chunk, count_of(p, chunk), count_of(p, rest)


def draw(rng: Rng, n: int | None = None) -> tuple[np.ndarray, np.ndarray, float, int, bool]:
    if n is None:
        n = int(10 ** rng.uniform(0, 4.7)) - 1 if rng.random() < 0.95 else 200_000
    kind = KINDS[int(rng.integers(len(KINDS)))]
    tensor = (kind(rng, n) if n else np.empty(0)).astype(np.float32)
    scale = float(rng.choice([0.0, 0.1, 1.0]))
    held = ((kind(rng, n) if n else np.empty(0)) * scale).astype(np.float32)
    least = 16 if n > 10_000 else 1  # of single elements the oracle takes long
    chunk = int(rng.choice([each for each in CHUNKS if each >= least]))
    return tensor, held, float(rng.choice(SHARES)), chunk, bool(rng.random() < 0.5)


@pytest.mark.parametrize("block", range(6))
def test_three_thousand_cases(block: int) -> None:
    torch.set_num_threads(1 + block % 3)
    for case in range(block * 500, block * 500 + 500):
        tensor, held, p, chunk, ternary = draw(np.random.default_rng(case))
        form = ("none", "place", "slots")[case % 3]
        want = chunk_oracle.select(tensor, None if form == "none" else held, p, chunk, ternary)
        memory = torch.from_numpy(held.copy())
        out = {"none": None, "place": memory, "slots": torch.empty_like(memory)}[form]
        given = memory if form == "slots" else None
        rule = (*sizes(len(tensor), p, chunk), 1.0, 1.0, ternary)
        index, value, info = select_chunks(torch.from_numpy(tensor), given, out, *rule)
        count, status, _, mean = info.tolist()
        assert status == 0, case
        assert np.array_equal(index[:count].numpy(), want.index), case
        assert same_bits(value[:count].numpy(), want.value), case
        assert np.uint32(mean) == want.mean.view(np.uint32), case
        if out is not None:
            assert same_bits(out.numpy(), want.residual), case
        if form == "slots":
            assert same_bits(memory.numpy(), held), case


@pytest.mark.parametrize("ternary", [False, True])
def test_one_chunk_is_select(ternary: bool) -> None:
    tensor, memory = torch.randn(30_000), torch.randn(30_000)
    outs = [torch.empty(30_000), torch.empty(30_000)]
    want = torch.ops.gcext.select(tensor, memory, outs[0], 300, 0.3, 0.9, ternary)
    got = select_chunks(tensor, memory, outs[1], 30_000, 300, 300, 0.3, 0.9, ternary)
    for x, y in zip((*got, outs[1]), (*want, outs[0]), strict=True):
        assert torch.equal(x, y)


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_changing_scales_from_chunk_to_chunk(threads: int) -> None:
    """Against the guess of the next chunk's bound: it is too high, too low, and everything ties."""
    torch.set_num_threads(threads)
    rng = np.random.default_rng(threads)
    n, chunk, p = 400_000, 4096, 1 / 64
    tensor = rng.standard_normal(n).astype(np.float32)
    tensor *= np.repeat(10.0 ** rng.integers(-30, 20, n // chunk + 1), chunk)[:n].astype(np.float32)
    tensor[5 * chunk : 7 * chunk] = -0.75
    tensor[9 * chunk : 11 * chunk] = 0
    for ternary in (False, True):
        out = torch.zeros(n)
        want = chunk_oracle.select(tensor, None, p, chunk, ternary)
        rule = (*sizes(n, p, chunk), 1.0, 1.0, ternary)
        index, value, info = select_chunks(torch.from_numpy(tensor), None, out, *rule)
        count = int(info[0])
        assert np.array_equal(index[:count].numpy(), want.index)
        assert same_bits(value[:count].numpy(), want.value)
        assert same_bits(out.numpy(), want.residual)


CORPUS = """
import hashlib, torch
import numpy as np
import test_select_chunks as t
for threads in (1, 2, 7):
    torch.set_num_threads(threads)
    one = hashlib.sha256()
    for case in range(80):
        rng = np.random.default_rng(case)
        tensor, held, p, chunk, ternary = t.draw(rng, n=300_000 if case % 4 == 0 else None)
        out, rule = torch.empty(len(tensor)), t.sizes(len(tensor), p, chunk)
        index, value, info = t.select_chunks(
            torch.from_numpy(tensor), torch.from_numpy(held), out, *rule, 1.0, 0.9, ternary
        )
        count = int(info[0])
        for each in (index[:count], value[:count], info, out):
            one.update(each.numpy().tobytes())
    print(one.hexdigest())
"""


def test_same_bytes_for_every_isa_and_thread_count() -> None:
    digests = {digest for printed in at_every_isa(CORPUS).values() for digest in printed}
    assert len(digests) == 1, digests


@pytest.mark.parametrize("ternary", [False, True])
@pytest.mark.parametrize("threads", [1, 2])
def test_what_is_not_finite(ternary: bool, threads: int) -> None:
    torch.set_num_threads(threads)
    n, rule = 100_000, (*sizes(100_000, 0.02, 4096), 1.0, 1.0, ternary)
    for bad in (float("nan"), float("inf")):
        tensor, memory = torch.randn(n), torch.randn(n)
        tensor[[31_313, 70_000]] = bad
        held = memory.clone()
        assert select_chunks(tensor, None, memory, *rule)[2].tolist() == [0, 1, 31_313, 0]
        assert torch.equal(memory, held)  # nothing was written
        assert select_chunks(tensor, memory, held.clone(), *rule)[2].tolist() == [0, 1, 31_313, 0]
        assert select_chunks(tensor, None, None, *rule)[2].tolist() == [0, 1, 31_313, 0]
        tensor = torch.randn(n)
        memory[50_000] = bad
        assert select_chunks(tensor, memory, held.clone(), *rule)[2].tolist() == [0, 2, 50_000, 0]
        whole = tensor + memory
        assert select_chunks(tensor, None, memory, *rule)[2].tolist() == [0, 3, 50_000, 0]
        assert torch.equal(memory.nan_to_num(7.0), whole.nan_to_num(7.0))  # nothing is lost
    big = torch.zeros(n)
    big[60_000] = 3e38
    assert select_chunks(big, big, torch.empty(n), *rule)[2].tolist() == [0, 3, 60_000, 0]


def test_op_passes_opcheck() -> None:
    tensor, memory, out = torch.randn(1000), torch.randn(1000), torch.empty(1000)
    for args in (
        (tensor, None, None, 300, 10, 3, 1.0, 1.0, True),
        (tensor, memory, out, 300, 10, 3, 1.0, 0.5, False),
        (tensor, None, out.zero_(), 1000, 10, 10, 1.0, 1.0, True),
    ):
        torch.library.opcheck(select_chunks, args)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"chunk": 0}, "chunk must be in"),
        ({"chunk": 65_537}, "chunk must be in"),
        ({"k": 0}, "k must be in"),
        ({"k": 5}, "k must be in"),
        ({"last": 3}, "last must be in"),
        ({"last": 0}, "last must be in"),
        ({"tensor": torch.ones(8), "out": torch.ones(8), "last": 2}, "last must be in"),
        ({"tensor": torch.ones(10).double()}, "wrong dtype"),
        ({"out": torch.ones(9)}, "10 elements"),
        ({"memory": torch.ones(10), "out": None}, "memory needs out"),
    ],
)
def test_raw_op_refuses_what_does_not_fit(change: dict[str, object], match: str) -> None:
    args: dict[str, object] = {"tensor": torch.ones(10), "memory": None, "out": torch.ones(10)}
    args |= {"chunk": 4, "k": 3, "last": 1} | change
    with pytest.raises(RuntimeError, match=match):
        select_chunks(*args.values(), 1.0, 1.0, True)


@pytest.mark.parametrize("spec", ["stc:p=0.1,chunk=100", "topk:p=0.1,chunk=4096"])
def test_flushing_denormals_changes_nothing(spec: str) -> None:
    tiny = torch.from_numpy(denormal(np.random.default_rng(0), 50_000))
    residuals = (tiny.flip(0).float(), tiny.flip(0).float())
    kept = gcext.codec(spec).encode(tiny, residuals[0])
    assert torch.set_flush_denormal(True)
    try:
        flushed = gcext.codec(spec).encode(tiny, residuals[1])
        message = flushed.to_bytes()
    finally:
        torch.set_flush_denormal(False)
    assert kept.k > 0
    assert kept.to_bytes() == message
    assert same_bits(residuals[0].numpy(), residuals[1].numpy())


def test_specs_name_the_chunk_where_there_is_one() -> None:
    for name in ("stc", "topk"):
        assert gcext.codec(f"{name}:p=0.1,chunk=64").spec == f"{name}:p=0.1,chunk=64"
        assert gcext.codec(f"{name}:p=0.1,chunk=0").spec == f"{name}:p=0.1"
        assert repr(gcext.codec(f"{name}:p=0.1")).lower() == f"{name}(p=0.1)"
        assert repr(gcext.codec(f"{name}:chunk=64")).lower() == f"{name}(p=0.01, chunk=64)"
        assert gcext.codec(f"{name}:chunk=64") != gcext.codec(name)
        with pytest.raises(ValueError, match=r"chunk must be in \[0, 65536\]"):
            gcext.codec(f"{name}:chunk=65537")
        with pytest.raises(ValueError, match="scope must be 'tensor' where chunk is above 0"):
            gcext.codec(f"{name}:chunk=64").encode([torch.ones(3)], scope="model")
