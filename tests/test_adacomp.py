"""AdaComp against a transcription of the paper's pack()."""

from __future__ import annotations

import chunk_oracle
import numpy as np
import pytest
import torch
from isa_kit import at_every_isa
from packet_kit import dense
from test_select import KINDS, Rng, same_bits
from torch import Tensor

import gcext

adacomp = torch.ops.gcext.adacomp.default
BINS = [1, 7, 50, 64, 500, 5000, 65536]


def draw(rng: Rng, n: int | None = None) -> tuple[np.ndarray, np.ndarray, int]:
    n = int(10 ** rng.uniform(0, 4.7)) - 1 if n is None else n
    kinds = [KINDS[int(rng.integers(len(KINDS)))] for _ in range(2)]
    scale = float(rng.choice([0.0, 0.1, 1.0]))
    tensor, held = (kind(rng, n) if n else np.empty(0) for kind in kinds)
    return tensor.astype(np.float32), (held * scale).astype(np.float32), int(rng.choice(BINS))


@pytest.mark.parametrize("block", range(3))
def test_a_thousand_cases(block: int) -> None:
    torch.set_num_threads(1 + block)
    for case in range(block * 333, block * 333 + 333):
        tensor, held, bin_size = draw(np.random.default_rng(case))
        form = ("none", "place", "slots")[case % 3]
        want = chunk_oracle.adacomp(tensor, None if form == "none" else held, bin_size)
        memory = torch.from_numpy(held.copy())
        out = {"none": None, "place": memory, "slots": torch.empty_like(memory)}[form]
        given = memory if form == "slots" else None
        index, value, info = adacomp(torch.from_numpy(tensor), given, out, 1.0, bin_size)
        mean = want.mean.view(np.uint32) if want.index.size else 0
        assert info.tolist() == [want.index.size, 0, 0, mean], case
        assert np.array_equal(index.numpy(), want.index), case
        assert same_bits(value.numpy(), want.value), case
        if out is not None:
            assert same_bits(out.numpy(), want.residual), case
        if form == "slots":
            assert same_bits(memory.numpy(), held), case


def test_ties_zeros_and_what_shrinks() -> None:
    """Bins of three: two tie; zeros alone; the largest shrinks, and so nothing is sent; H ties."""
    tensor = torch.tensor([1.0, -1, 0.4, 0, -0.0, 0, -1, 0, 0, 0, 2, 4])
    residual = torch.tensor([0.0, 0, 0, 0, 0, 0, 5, 1, 2, 0, 0, 0])
    packet = gcext.codec("adacomp:bin=3").encode(tensor, residual)
    scale = (1 + 0 + 4 + 4) / 4
    assert packet.indices().tolist() == [0, 1, 10, 11]
    assert packet.values().tolist() == [scale, -scale, scale, scale]
    assert residual.tolist() == [1 - scale, scale - 1, tensor[2].item(), 0, 0, 0, 4, 1, 2, 0,
                                 2 - scale, 4 - scale]  # fmt: skip


def test_a_scale_that_rounds_to_zero_sends_nothing() -> None:
    tensor, residual = torch.zeros(300), torch.zeros(300)
    tensor[7] = 2.0**-149
    packet = gcext.codec("adacomp:bin=10").encode(tensor, residual)
    assert packet.k == 0 and packet.scale == 0
    assert torch.equal(residual, tensor)


def test_fewer_are_sent_of_larger_bins() -> None:
    """Of normal values: |2 g| >= max |g|. The paper has 40 to 200 times, from residuals."""
    tensor, n = torch.randn(10**6), 10**6
    counts = [gcext.codec(f"adacomp:bin={size}").encode(tensor).k for size in (1, 50, 500)]
    assert counts[0] == n
    assert 0.15 * n < counts[1] < 0.3 * n
    assert 0.08 * n < counts[2] < 0.16 * n
    comp = gcext.ErrorFeedback("adacomp:bin=500")
    sent = [comp.compress(torch.randn(100_000), "w").k for _ in range(30)]
    assert max(sent[20:]) < 0.03 * 100_000


@pytest.mark.parametrize("bin_size", [1, 50, 200])
@pytest.mark.parametrize("kind", ["noise", "constant"])
def test_the_residual_stays_bounded(bin_size: int, kind: str) -> None:
    """Over 2,000 steps of normal noise, or of one gradient: by m steps' worth, of m bins."""
    n, noise = 200, torch.Generator().manual_seed(0)
    comp, norms = gcext.ErrorFeedback(f"adacomp:bin={bin_size}"), []
    one = torch.randn(n, generator=noise)
    for _ in range(2000):
        comp.compress(torch.randn(n, generator=noise) if kind == "noise" else one, "w")
        norms.append(float(comp.residual("w").norm()))
        assert comp.residual("w").abs().max() <= 5 * (n // bin_size + 5)
    early, late = np.mean(norms[1000:1500]), np.mean(norms[1500:])
    assert late <= 1.1 * early


def test_the_residual_grows_by_no_more_than_the_tensor() -> None:
    residual = torch.zeros(3000)
    for step in range(200):
        tensor = torch.randn(3000) * 10.0 ** (step % 5)
        most = residual.abs().max() + tensor.abs().max()
        gcext.codec("adacomp:bin=70").encode(tensor, residual)
        assert residual.abs().max() <= most * (1 + 2.0**-23)


def test_a_bin_whose_largest_shrinks_is_never_sent() -> None:
    """The failure that the docstring names: others of the bin grow far beyond a step."""
    residual = torch.zeros(50)
    residual[0] = 100
    tensor = torch.ones(50)
    tensor[0] = -0.001
    for _ in range(95):
        assert gcext.codec("adacomp:bin=50").encode(tensor, residual).k == 0
    assert residual[1:].min() == 95


CORPUS = """
import hashlib, torch
import numpy as np
import test_adacomp as t
for threads in (1, 2, 7):
    torch.set_num_threads(threads)
    one = hashlib.sha256()
    for case in range(60):
        rng = np.random.default_rng(case)
        tensor, held, bin_size = t.draw(rng, n=300_000 if case % 4 == 0 else None)
        out = torch.empty(len(tensor))
        arrays = t.adacomp(torch.from_numpy(tensor), torch.from_numpy(held), out, 0.9, bin_size)
        for each in (*arrays, out):
            one.update(each.numpy().tobytes())
    print(one.hexdigest())
"""


def test_same_bytes_for_every_isa_and_thread_count() -> None:
    digests = {digest for printed in at_every_isa(CORPUS).values() for digest in printed}
    assert len(digests) == 1, digests


def test_what_is_not_finite_is_refused_and_nothing_written() -> None:
    for bad in (float("nan"), float("inf")):
        tensor, memory = torch.randn(100_000), torch.randn(100_000)
        tensor[[31_313, 70_000]] = bad
        held = memory.clone()
        assert adacomp(tensor, None, memory, 1.0, 50)[2].tolist() == [0, 1, 31_313, 0]
        assert adacomp(tensor, None, None, 1.0, 50)[2].tolist() == [0, 1, 31_313, 0]
        assert torch.equal(memory, held)
        memory[5] = bad
        assert adacomp(torch.ones(100_000), None, memory, 1.0, 50)[2].tolist() == [0, 2, 5, 0]
    big = torch.full((9,), 3e38)
    assert adacomp(big, None, big.clone(), 1.0, 50)[2].tolist() == [0, 3, 0, 0]
    packet = gcext.codec("adacomp").encode(big)  # H overflows, G does not
    assert torch.equal(dense(packet), big)


def test_spec_and_residuals_without_a_constant() -> None:
    codec = gcext.codec("adacomp:bin=500")
    assert codec.spec == "adacomp:bin=500" and not codec.contracts
    with pytest.raises(ValueError, match="declares its contraction"):
        codec.contraction(10)
    assert gcext.ErrorFeedback(codec).compress(torch.randn(10), "w").k > 0
    for bad in (0, 65_537):
        with pytest.raises(ValueError, match=r"bin must be in \[1, 65536\]"):
            gcext.codec(f"adacomp:bin={bad}")
        with pytest.raises(RuntimeError, match="bin must be in"):
            adacomp(torch.ones(3), None, None, 1.0, bad)


def test_op_passes_opcheck() -> None:
    tensor, memory, out = torch.randn(1000), torch.randn(1000), torch.empty(1000)
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    given: list[tuple[Tensor, Tensor | None, Tensor | None]] = [
        (tensor, None, None), (tensor, memory, out), (tensor, None, out.zero_()),
    ]  # fmt: skip
    for each in given:
        torch.library.opcheck(adacomp, (*each, 0.5, 50), test_utils=tests)
