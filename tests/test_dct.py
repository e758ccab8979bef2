"""The cosine transform by blocks, its largest coefficients, and the codec of DeMo."""

from __future__ import annotations

from decimal import Decimal, getcontext

import numpy as np
import pytest
import torch
from isa_kit import at_every_isa
from numpy_transforms import cuts
from packet_kit import dense
from torch import Tensor

import gcext
from gcext._native.dct import dct_select, dct_values
from gcext._packet.transforms import Dct, dct_view

PI = Decimal("3.14159265358979323846264338327950288419716939937510582097494459")


def cosines(n: int) -> np.ndarray:
    """The orthonormal DCT-II as the paper's code has it, scipy's with norm="ortho"; float64."""
    u, x = np.arange(n)[:, None], np.arange(n)
    matrix = np.sqrt(2 / n) * np.cos(np.pi * (2 * x + 1) * u / (2 * n))
    matrix[0] = np.sqrt(1 / n)
    return matrix


def largest(block: np.ndarray, k: int) -> np.ndarray:
    """All but the k largest set to 0, ties to the lower index."""
    kept = np.argsort(-np.abs(block).reshape(-1), kind="stable")[:k]
    out = np.zeros(block.size)
    out[kept] = block.reshape(-1)[kept]
    return out.reshape(block.shape)


def demo(momentum: np.ndarray, chunk: int, k: int) -> np.ndarray:
    """What DeMo transmits of a matrix that chunks divide, transformed back (Algorithm 1)."""
    c, out = cosines(chunk), np.zeros_like(momentum)
    for y in range(0, momentum.shape[0], chunk):
        for x in range(0, momentum.shape[1], chunk):
            part = np.s_[y : y + chunk, x : x + chunk]
            out[part] = c.T @ largest(c @ momentum[part] @ c.T, k) @ c
    return out


@pytest.mark.parametrize(("shape", "block", "k"), [((128, 64), 64, 4), ((24, 40), 8, 3)])
def test_is_demo_where_chunks_divide(shape: tuple[int, int], block: int, k: int) -> None:
    """M <- decay m + g;  send the top k of its chunks;  m <- m - what was sent."""
    codec = gcext.codec(f"dct:k={k},block={block},signs=false")
    rng = np.random.default_rng(block)
    momentum, memory = np.zeros(shape), torch.zeros(shape)
    for _ in range(6):
        gradient = rng.standard_normal(shape).astype(np.float32)
        momentum = 0.999 * momentum + gradient
        sent = demo(momentum, block, k)
        momentum -= sent
        out = torch.empty(shape)
        packet = codec.advance(torch.from_numpy(gradient), memory, out, 0.999)
        assert np.allclose(dense(packet).numpy(), sent, atol=2e-6)
        assert np.allclose(out.numpy(), momentum, atol=1e-5)
        memory = out
    assert len(coefficients(packet).index) == k * (shape[0] // block) * (shape[1] // block)


def coefficients(packet: gcext.Packet) -> Dct:
    assert isinstance(packet.coded, Dct)
    return packet.coded


SHAPES = [(), (1,), (2,), (63,), (1009,), (7, 3), (65, 64), (150, 131), (200, 1), (6, 5, 3, 3)]


@pytest.mark.parametrize("shape", SHAPES)
def test_coefficients_of_every_shape(shape: tuple[int, ...]) -> None:
    x = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    rows, cols = dct_view(shape)
    for block, k in ((64, 5), (13, 2), (64, 5000)):
        index, value, _ = select(torch.from_numpy(x), block, k)
        got = np.zeros(x.size)
        got[index.numpy()] = value.numpy()
        matrix = x.reshape(rows, cols).astype(np.float64)
        for r, h in cuts(rows, block):
            for c, w in cuts(cols, block):
                part = cosines(h) @ matrix[r : r + h, c : c + w] @ cosines(w).T
                first = r * cols + h * c
                want = largest(part, k).reshape(-1)
                assert np.allclose(got[first : first + h * w], want, atol=1e-5)
        if k == 5000:
            assert np.allclose(dct_values(index, value, rows, cols, block), x.ravel(), atol=1e-5)


def select(x: Tensor, block: int, k: int, ternary: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    return dct_select(x.reshape(-1), None, None, 1.0, *dct_view(x.shape), block, k, ternary)


def cosine(x: Decimal) -> Decimal:
    term = total = Decimal(1)
    for i in range(1, 80, 2):
        term *= -x * x / (i * (i + 1))
        total += term
    return total


def test_the_basis_is_rounded_to_nearest() -> None:
    """Of every size: element by element from a unit coefficient, against 40 digits."""
    getcontext().prec = 40
    for n in range(1, 65):
        root, root2 = (Decimal(c) / n for c in (1, 2))
        exact = [root2.sqrt() * cosine(PI * j / (2 * n)) for j in range(n)]
        for u in range(n):
            row = dct_values(torch.tensor([u]), torch.ones(1), 1, n, 64).numpy()
            for x in range(n):
                m = (2 * x + 1) * u % (4 * n)
                m = min(m, 4 * n - m)
                want = exact[m] if m < n else Decimal(0) if m == n else -exact[2 * n - m]
                want = root.sqrt() if u == 0 else want
                got = row[x]
                near = [np.nextafter(got, np.float32(side)) for side in (-2, 2)]
                off = abs(Decimal(float(got)) - want)
                assert all(off < abs(Decimal(float(other)) - want) for other in near) or got == want


def test_ties_go_to_the_lower_number() -> None:
    index, value, _ = select(torch.tensor([1.0, 0.0]), 64, 1)
    assert index.tolist() == [0] and value.tolist() == [float(np.float32(0.5**0.5))]
    # Coefficients 1/2, .65, 1/2, .27: of the equal ones the lower frequency.
    for k, want in ((1, [1]), (2, [0, 1]), (3, [0, 1, 2])):
        assert select(torch.tensor([1.0, 0, 0, 0]), 64, k)[0].tolist() == want
    # One element a block: each is its own coefficient.
    assert select(torch.tensor([1.0, 0.0, -1.0]), 1, 1)[0].tolist() == [0, 2]


def test_zeros_are_not_sent_and_denormals_are_kept() -> None:
    for spec in ("dct", "dct:signs=false"):
        assert len(coefficients(gcext.codec(spec).encode(torch.zeros(100, 70))).index) == 0
    tiny = 2.0**-149
    for scale in (tiny, 2.0**-130):
        x = torch.randn(70, 30).sign() * scale
        residual = torch.zeros_like(x)
        packet = gcext.codec("dct:signs=false,k=5000").encode(x, residual)
        assert torch.equal(x - dense(packet), residual)
        if scale > tiny:
            assert float(residual.double().norm() / x.double().norm()) < 1e-3


@pytest.mark.parametrize("shape", [(1000,), (130, 97)])
def test_signs_carry_the_mean_of_what_was_chosen(shape: tuple[int, ...]) -> None:
    x, residual = torch.randn(shape), torch.zeros(shape)
    plain = coefficients(gcext.codec("dct:signs=false").encode(x))
    packet = gcext.codec("dct").encode(x, residual)
    signs = coefficients(packet)
    assert torch.equal(signs.index, plain.index)
    mean = float(np.float32(plain.value.double().abs().mean()))
    assert signs.scale == mean and torch.equal(signs.value, plain.value.sign() * mean)
    assert torch.equal(residual, x - dense(packet))


def test_a_smooth_tensor_is_a_few_coefficients() -> None:
    t = torch.linspace(0, 1, 256)
    x = torch.outer(torch.cos(3 * t), 1 + t * t)
    kept = gcext.codec("dct:k=8,signs=false").encode(x)
    direct = gcext.codec("topk:p=0.002").encode(x)  # as many
    assert (
        float((x - dense(kept)).norm() / x.norm())
        < 0.01
        < float((x - dense(direct)).norm() / x.norm())
    )


def test_bits_of_a_kept_value() -> None:
    """The number of each block's set, of 44 bits or, for one of 64, 20; a sign; the frame."""
    for shape, most in (((10**6,), 6.01), ((1000, 1000), 12.25), ((1024, 1024), 12.25)):
        packet = gcext.codec("dct:k=4,block=64,signs=true").encode(torch.randn(shape))
        kept = len(coefficients(packet).index)
        assert 8 * packet.nbytes <= most * kept


def test_indices_travel_by_block_where_that_is_shorter() -> None:
    x = torch.randn(640, 640)
    assert coefficients(gcext.codec("dct").encode(x)).by_block
    assert not coefficients(gcext.codec("dct:k=9").encode(x)).by_block  # a block code holds 8
    x[64:] = 0
    packet = gcext.codec("dct").encode(x)
    assert len(coefficients(packet).index) == 40 and not coefficients(packet).by_block
    assert packet.nbytes < 100  # by block the 90 empty ones would take 495 bytes
    assert not coefficients(gcext.codec("dct").encode(torch.zeros(9, 9))).by_block


def test_what_would_overflow_is_refused() -> None:
    for spec in ("dct", "dct:signs=false"):
        codec, residual = gcext.codec(spec), torch.randn(64, 64)
        held = residual.clone()
        with pytest.raises(ValueError, match="small enough to be transformed in float32"):
            codec.encode(torch.full((64, 64), 3e38), residual)
        assert torch.equal(residual, held)
        most = torch.full((64, 64), 2.0**110)  # a coefficient of 2^116
        assert dense(codec.encode(most)).isfinite().all()


def test_sums_of_packets() -> None:
    packets = [gcext.codec("dct").encode(torch.randn(40, 30)) for _ in range(3)]
    got = gcext.aggregate.mean(packets)
    want = sum(dense(packet).double() for packet in packets) / 3
    assert torch.allclose(got, want.float(), atol=1e-7)  # type: ignore[arg-type, union-attr]
    assert packets[0].k == 1200 and packets[0].indices().tolist() == list(range(1200))


def test_the_operators_are_well_formed() -> None:
    x, residual = torch.randn(300), torch.randn(300)
    index, value, _ = select(x.view(10, 30), 64, 3)
    torch.library.opcheck(torch.ops.gcext.dct_values, (index, value, 10, 30, 64))
    # Gives an unbacked size, which opcheck's test of dynamic shapes does not take.
    for out in (None, residual):
        torch.library.opcheck(
            torch.ops.gcext.dct_select, (x, None, out, 0.9, 10, 30, 64, 3, True),
            test_utils=("test_schema", "test_autograd_registration", "test_faketensor"),
        )  # fmt: skip


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda x: dct_select(x, None, None, 1.0, 3, 4, 64, 1, True), "rows\\*cols elements"),
        (lambda x: dct_select(x, None, None, 1.0, 2, 5, 0, 1, True), r"block must be in \[1, 64\]"),
        (lambda x: dct_select(x, None, None, 1.0, 2, 5, 64, 0, True), "k must be at least 1"),
        (lambda x: dct_values(x[:2].int(), x[:2], 2, 5, 64), "rise strictly"),
        (lambda x: dct_values(x[:2].int(), x[:1], 2, 5, 64), "one length"),
        (lambda x: dct_values(x[:1].int(), x[:1], 2**40, 2**40, 64), "below 2\\^63"),
    ],
)
def test_what_does_not_fit(call: object, match: str) -> None:
    with pytest.raises(RuntimeError, match=match):
        call(torch.zeros(10))  # type: ignore[operator]


def test_same_bits_everywhere() -> None:
    script = """
import hashlib, torch, gcext
torch.set_flush_denormal(True)
for threads in (1, 2, 7):
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    made = []
    for shape in ((70_001,), (300, 500), (90, 4, 3, 3)):
        for spec in ("dct", "dct:k=50,block=30,signs=false"):
            for scale in (1.0, 2.0**-140):
                tensor, residual = torch.randn(shape) * scale, torch.randn(shape) * scale
                packet = gcext.codec(spec).encode(tensor, residual)
                made += [packet.to_bytes(), residual.numpy(), packet.to_dense().numpy()]
    print(hashlib.sha256(b"".join(bytes(x) for x in made)).hexdigest())
"""
    printed = at_every_isa(script)
    assert len({word for words in printed.values() for word in words}) == 1, printed
