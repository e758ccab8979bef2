"""The polar source coder against plain recursion, its distortion, and its promises."""

from __future__ import annotations

from typing import Any

import numpy as np
import polar_oracle as oracle
import pytest
import torch
from isa_kit import at_every_isa
from polar_kit import RATES, bits, code, distortion

from gcext import polar
from gcext._native import polar as ops
from gcext.polar import _code as _polar_code
from gcext.polar import _design as design

CASES = [
    (32, 16, 1),
    (32, 0, 100),
    (32, 1, 32 * 65),
    (32, 32, 64 * 32 + 7),
    (64, 40, 64 * 64 * 2),
    (256, 255, 256 * 70 - 3),
    (256, 77, 256 * 64 + 256 * 3),
    (1024, 512, 1024 * 66 + 511),
    (4096, 410, 4096 * 5 - 1),
]


@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize(("block", "kept", "numel"), CASES)
def test_binary_source_matches_the_oracle(block: int, kept: int, numel: int, linear: bool) -> None:
    source = bits(np.random.default_rng(numel), numel)
    weight, correction = _polar_code._steps(kept, block, False, linear)
    sent, decoded = oracle.message(source, code(block, kept), weight, correction)
    coded = polar.encode(torch.from_numpy(source), kept / block, block, linear=linear)
    assert coded.kept == kept
    assert np.array_equal(coded.message.numpy(), sent)
    assert np.array_equal(polar.decode(coded).numpy(), decoded)


@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize(("block", "kept", "numel"), CASES)
def test_soft_source_matches_the_oracle(block: int, kept: int, numel: int, linear: bool) -> None:
    rng = np.random.default_rng(numel)
    source = (rng.standard_normal(numel) * np.exp(2 * rng.standard_normal(numel))).astype("f")
    source[rng.random(numel) < 0.1] = 0
    weight, correction = _polar_code._steps(kept, block, True, linear)
    sent, decoded = oracle.message(source, code(block, kept, True), weight, correction)
    coded = polar.encode(torch.from_numpy(source), kept / block, block, soft=True, linear=linear)
    assert np.array_equal(coded.message.numpy(), sent)
    assert np.array_equal(polar.decode(coded).numpy(), decoded)


@pytest.mark.parametrize("correction", [0, 5, 22, 127])
def test_every_pair_of_llrs_in_f_and_g(correction: int) -> None:
    """A block of two halves of free and frozen indices meets all 255 x 255 pairs."""
    a, b = (x.reshape(-1) for x in np.mgrid[-127:128, -127:128])
    lanes = len(a) + -len(a) % 64
    frozen = np.ones(32, np.uint8)
    frozen[15], frozen[31] = 0, 0
    # Only symbol 15 of each half differs from 0, so the leaves see f(a, b) and g(a, b, u).
    values = np.zeros((32, lanes), np.float32)
    values[15, : len(a)], values[31, : len(a)] = a, b
    u, _ = oracle.encode(values.T.astype(np.int64), frozen, correction)
    rows = np.concatenate([values[:, i : i + 64].reshape(-1) for i in range(0, lanes, 64)])
    for start in range(0, len(rows), 32 * 64):
        group = rows[start : start + 32 * 64]
        total = np.abs(group).sum(dtype=np.float64)
        weight = total / len(group)  # a step is 1
        if weight == 0:
            continue
        message, *_ = ops.polar_encode(
            torch.from_numpy(group), torch.from_numpy(frozen), 2, len(group), weight, correction
        )
        got = np.unpackbits(message.numpy(), bitorder="little").reshape(2, 64).T
        lane = start // 32
        assert np.array_equal(got, u[lane : lane + 64][:, [15, 31]])


# Mean Hamming distortion, at most, of the default coder.
BOUNDS = {
    256: (0.3430, 0.2185, 0.1350, 0.0705, 0.0203),
    512: (0.3410, 0.2130, 0.1305, 0.0680, 0.0188),
    1024: (0.336, 0.209, 0.127, 0.0655, 0.0178),
    2048: (0.3325, 0.2060, 0.1240, 0.0632, 0.0172),
    8192: (0.3285, 0.2015, 0.1200, 0.0603, 0.0161),
    1 << 17: (0.3236, 0.1964, 0.1155, 0.0568, 0.0145),
}


@pytest.mark.parametrize("block", BOUNDS)
def test_distortion(block: int) -> None:
    for rate, bound in zip(RATES, BOUNDS[block], strict=True):
        blocks = 2048 if block < 1 << 17 else 128  # so long a block is a mean of its own
        assert distortion(block, rate, blocks) <= bound, rate


def test_linear_correction_helps() -> None:
    for rate in RATES[:4]:
        plain = distortion(1024, rate, 2048, linear=False)
        assert distortion(1024, rate, 2048) < plain - 0.0003


def test_better_than_the_published_curve_where_it_should_be() -> None:
    published = {256: 0.1445, 512: 0.1315, 1024: 0.1315, 2048: 0.1291}
    for block, bound in published.items():
        got = distortion(block, 0.5, 2048)
        assert 0.1100 < got < bound


@pytest.mark.parametrize("block", [32, 512])
@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_codeword_is_zero_on_the_frozen_set(block: int, rate: float) -> None:
    source = bits(np.random.default_rng(1), 64 * block)
    coded = polar.encode(torch.from_numpy(source), rate, block)
    words = polar.decode(coded).numpy().reshape(block, 64).T
    u = oracle.transform(words)
    frozen = code(block, coded.kept)
    assert frozen.sum() == block - coded.kept
    assert not u[:, frozen == 1].any() and u[:, frozen == 0].any()


def test_a_codeword_is_coded_without_loss() -> None:
    rng = np.random.default_rng(2)
    for block, kept in ((32, 5), (1024, 512), (2048, 1900)):
        u = np.zeros((64, block), np.uint8)
        free = code(block, kept) == 0
        u[:, free] = bits(rng, 64 * kept).reshape(64, kept)
        source = torch.from_numpy(np.ascontiguousarray(oracle.transform(u).T).reshape(-1))
        coded = polar.encode(source, kept / block, block)
        assert torch.equal(polar.decode(coded), source)


def test_soft_follows_the_weights() -> None:
    """Large values keep their sign much more often than small ones."""
    source = torch.randn(1 << 18, generator=torch.Generator().manual_seed(0))
    wrong = polar.decode(polar.encode(source, 0.5, soft=True)) != (source < 0)
    large = source.abs() > source.abs().median()
    assert float(wrong[large].float().mean()) < 0.2 * float(wrong[~large].float().mean())


def cosine(source: torch.Tensor, rate: float, block: int) -> float:
    y = 1.0 - 2.0 * polar.decode(polar.encode(source, rate, block, soft=True)).double()
    x = source.double()
    return float((x @ y) ** 2 / (x @ x) / len(x))


def test_squared_cosine_of_gaussian_values() -> None:
    source = torch.randn(8192 * 128, generator=torch.Generator().manual_seed(0))
    for rate, bound in ((0.1, 0.111), (0.5, 0.470), (0.9, 0.628)):
        assert cosine(source, rate, 8192) >= bound, rate
    for rate, bound in ((0.1, 0.104), (0.5, 0.458), (0.9, 0.625)):
        assert cosine(source, rate, 1024) >= bound, rate


def test_zero_decides_zero() -> None:
    for rate in (0.1, 0.5, 1.0):
        coded = polar.encode(torch.zeros(100_000), rate, soft=True)
        assert not coded.message.any() and not polar.decode(coded).any()


@pytest.mark.parametrize("scale", [1e-38, 1e-44 / 0.7, 3e37])
def test_soft_at_the_ends_of_float32(scale: float) -> None:
    rng = np.random.default_rng(3)
    signs = np.where(bits(rng, 1024 * 64), -1, 1).astype(np.float32)
    reference = polar.encode(torch.from_numpy(signs), 0.5, soft=True)
    scaled = polar.encode(torch.from_numpy(signs * np.float32(scale)), 0.5, soft=True)
    assert torch.equal(reference.message, scaled.message)


def test_shapes_dtypes_and_strides() -> None:
    source = torch.from_numpy(bits(np.random.default_rng(4), 6 * 500).reshape(6, 500))
    reference = polar.encode(source, 0.5, 256)
    assert polar.decode(reference).shape == (6, 500)
    for other in (source.bool(), source.long() * -7, source.T.contiguous().T):
        assert torch.equal(polar.encode(other, 0.5, 256).message, reference.message)
    packed = np.packbits(source.numpy().reshape(-1), bitorder="little")
    from_packed = polar.encode(torch.from_numpy(packed).view(3, -1), 0.5, 256, packed=True)
    assert torch.equal(from_packed.message, reference.message)
    back = polar.decode(from_packed)
    assert back.shape == (3, 125) and back.dtype == torch.uint8
    assert np.array_equal(
        np.unpackbits(back.numpy().reshape(-1), bitorder="little"),
        polar.decode(reference).numpy().reshape(-1),
    )
    values = torch.where(source.bool(), -1.0, 1.0)
    soft = polar.encode(values.double(), 0.5, 256, soft=True)
    assert torch.equal(soft.message, polar.encode(values.half(), 0.5, 256, soft=True).message)
    for shape in ((), (0,), (0, 3)):
        empty = torch.ones(shape, dtype=torch.uint8)
        assert polar.decode(polar.encode(empty, 1.0)).equal(empty)


@pytest.mark.parametrize("block", [1 << 15, 1 << 20])
def test_long_blocks(block: int) -> None:
    n = block * 2 - 5
    source = torch.from_numpy(bits(np.random.default_rng(5), n))
    coded = polar.encode(source, 0.5, block)
    assert coded.nbytes == block // 8
    wrong = float((polar.decode(coded) != source).float().mean())
    assert 0.105 < wrong < 0.119


def test_any_number_of_threads() -> None:
    source = torch.from_numpy(bits(np.random.default_rng(6), 64 * 1024 * 9 + 5000))
    values = torch.randn(len(source), generator=torch.Generator().manual_seed(6))
    threads, seen = torch.get_num_threads(), []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            hard, soft = polar.encode(source), polar.encode(values, soft=True)
            seen.append((hard.message, soft.message, polar.decode(hard), polar.decode(soft)))
    finally:
        torch.set_num_threads(threads)
    for other in seen[1:]:
        assert all(torch.equal(x, y) for x, y in zip(seen[0], other, strict=True))


DIGEST = """
import hashlib, torch, gcext
from gcext import polar
g = torch.Generator().manual_seed(0)
digest = hashlib.sha256()
for block in (32, 256, 1024, 4096):
    for rate in (0.05, 0.3, 0.5, 0.9, 1.0):
        for n in (64 * block * 2, 64 * block + 3 * block - 1):
            values = torch.randn(n, generator=g) * torch.randn(n, generator=g).exp()
            for linear in (False, True):
                for source, soft in (((values < 0), False), (values, True)):
                    coded = polar.encode(source, rate, block, soft=soft, linear=linear)
                    digest.update(coded.message.numpy().tobytes())
                    digest.update(polar.decode(coded).numpy().tobytes())
for options in ({"list_size": 4}, {"seed": 1}):
    digest.update(polar.encode(values[:5000], 0.3, 256, soft=True, **options).message.numpy())
print(gcext.build_info()["isa"], digest.hexdigest())
"""


def test_the_same_bytes_at_every_instruction_set() -> None:
    seen = at_every_isa(DIGEST)
    assert all(name == isa for isa, (name, _) in seen.items())
    assert len({digest for _, digest in seen.values()}) == 1, seen


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rate": 1.5}, "rate must be in"),
        ({"rate": float("nan")}, "rate must be in"),
        ({"block": 1000}, "power of two"),
        ({"block": 16}, "power of two"),
        ({"block": 1 << 21}, "power of two"),
        ({"list_size": 0}, "list_size must be in"),
        ({"list_size": 33}, "list_size must be in"),
        ({"list_size": 4, "seed": 1}, "takes no seed"),
        ({"soft": True}, "must be float"),
        ({"soft": True, "packed": True}, "must not be packed"),
    ],
)
def test_refusals(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        polar.encode(torch.ones(10, dtype=torch.uint8), **options)


def test_refuses_wrong_sources() -> None:
    with pytest.raises(ValueError, match="soft=True"):
        polar.encode(torch.ones(10))
    with pytest.raises(ValueError, match="packed must be uint8"):
        polar.encode(torch.ones(10, dtype=torch.int32), packed=True)
    for bad in (float("nan"), float("inf"), -float("inf")):
        source = torch.ones(64 * 1024 * 3)
        source[150_000] = bad
        for size in (1, 2):
            with pytest.raises(ValueError, match="at index 150000"):
                polar.encode(source, soft=True, list_size=size)


@pytest.mark.parametrize("kept", [0, 1, 13, 64])
@pytest.mark.parametrize("soft", [False, True])
def test_the_symbols_are_what_the_message_decodes_to(kept: int, soft: bool) -> None:
    frozen = design.frozen_set(64, kept, soft)
    for numel in (0, 5, 64 * 64, 64 * 64 * 2 + 77):
        source = torch.randn(numel) if soft else torch.randint(0, 256, (-(-numel // 8),)).byte()
        message, _, symbols = ops.polar_encode(source, frozen, kept, numel, 9.0, 4, True)
        assert torch.equal(symbols, ops.polar_decode(message, frozen, numel))


def test_operators() -> None:
    frozen = design.frozen_set(64, 30)
    source = torch.randint(0, 256, (100,), dtype=torch.uint8)
    values = torch.randn(777)
    cases = [
        ("polar_pack", (source,)),
        ("polar_unpack", (source, 797)),
        ("polar_encode", (source, frozen, 30, 800, 1.0, 0, False)),
        ("polar_encode", (values, frozen, 30, 777, 12.0, 8, True)),
        ("polar_decode", (torch.zeros(49, dtype=torch.uint8), frozen, 800)),
        ("polar_search", (values, frozen, 30, 777, 100, 4, None)),
        ("polar_search", (source, frozen, 30, 800, 100, 1, 7)),
        ("polar_order", (torch.full((255,), 1 << 24), 64)),
    ]
    for name, args in cases:
        torch.library.opcheck(getattr(torch.ops.gcext, name).default, args)
    with pytest.raises(RuntimeError, match="zeros in frozen"):
        ops.polar_encode(source, frozen, 31, 800, 1.0, 0)
    with pytest.raises(RuntimeError, match="K bits a block"):
        ops.polar_decode(source, frozen, 800)
    with pytest.raises(RuntimeError, match="power of two"):
        ops.polar_decode(source, frozen[:63].clone(), 800)
