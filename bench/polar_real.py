"""The parts of ``python -m bench polar`` on real values: squared cosine, bias and variance.

Gaussian and Laplace values, vectors of two and three non-zeros, and the updates that clients of a
federated run send (left out where the data is missing).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import gcext
from gcext import polar

from .internals import chunks_of, dense, layout_of, pack_symbols, rotate, rotate_back
from .report import Row

RATES = (0.1, 0.3, 0.5, 0.7, 0.9)
CLIENTS = 16


def updates(data: str, data_dir: Path | None, seed: int = 0) -> list[Tensor]:
    """Return what CLIENTS clients send after an epoch on their share; empty without the data.

    They start from a model that has seen everything once, so that the updates are not those of
    chance weights.
    """
    try:
        from gcext.fl import build, initial, load, local_sgd

        loaded = load(data, data_dir)
    except (ImportError, FileNotFoundError, ValueError):
        return []
    model, part = build(data), loaded.train
    images, labels = loaded.inputs(part, slice(None)), part.labels
    rng = np.random.default_rng(seed)

    def train(start: Tensor, index: Tensor) -> Tensor:
        chosen = images[index], labels[index]
        update, _ = local_sgd(model, start, *chosen, lr=0.05, batch=32, epochs=1, rng=rng)
        return update

    order = torch.from_numpy(rng.permutation(len(labels)))
    start = initial(data, seed)
    start = start - train(start, order)
    return [train(start, index) for index in order.tensor_split(CLIENTS)]


def laplace(n: int, generator: torch.Generator) -> Tensor:
    """Return n Laplace values of scale 1."""
    uniform = torch.rand(n, generator=generator) - 0.5
    return -uniform.sign() * torch.log1p(-2 * uniform.abs())


def _squared_cosine(x: Tensor, y: Tensor) -> float:
    x, y = x.double(), y.double()
    norms = float(x.square().sum() * y.square().sum())
    return float(x @ y) ** 2 / norms if norms else 0.0


def cosine(real: list[Tensor], n: int = 1 << 20, seed: int = 0) -> list[Row]:
    """Return cos^2 of the decoded and the original vector, at equal true bytes.

    weighted, plain, rotated: polar coding of the values, of their signs alone, of the rotated
    values. signs: of a random share. memory: what sparse ternary compression at 1 % keeps back.
    """
    generator = torch.Generator().manual_seed(seed)
    sources = [
        ("gaussian", 8192, torch.randn(n, generator=generator)),
        ("laplace", 8192, laplace(n, generator)),
    ]
    if real:
        memory = torch.zeros_like(real[0])
        for update in real:
            gcext.stc(update, p=0.01, residual=memory)
        sources += [("update", 1024, real[0]), ("memory", 1024, memory)]
    rows = []
    for source, block, x in sources:
        chunks = chunks_of(len(x), block)
        padded = sum(size for _, size in chunks)
        for rate in RATES:
            coded = polar.encode(x, rate, block, soft=True)
            plain = polar.encode(x < 0, rate, block)
            capacity = 8 * (coded.nbytes - 4 * len(chunks) - 8)
            reached = int(capacity / padded * block) / block
            rotated = polar.encode_rotated(x, reached, block, seed=seed)
            chosen = torch.randperm(len(x), generator=generator)[: 8 * coded.nbytes]
            signs = torch.zeros_like(x)
            signs[chosen] = x[chosen].sign()
            share, packet = _stc_of_size(x, coded.nbytes)
            extra = {
                "source": source, "block": block, "rate": rate, "bytes": coded.nbytes,
                "weighted": _squared_cosine(x, 1.0 - 2.0 * polar.decode(coded)),
                "plain": _squared_cosine(x, 1.0 - 2.0 * polar.decode(plain)),
                "rotated": _squared_cosine(x, rotated.to_dense()),
                "rotated_bytes": rotated.nbytes,
                "signs": _squared_cosine(x, signs),
                "stc": _squared_cosine(x, dense(packet)),
                "stc_p": share, "stc_bytes": packet.nbytes,
            }  # fmt: skip
            rows.append(Row("polar-cosine", len(x), extra=extra))
    return rows


def _stc_of_size(x: Tensor, nbytes: int) -> tuple[float, gcext.Packet]:
    """Return the largest share whose packet is no longer than nbytes, and the packet."""
    low, high = 0.0, 1.0
    best = gcext.stc(x, p=1e-6)
    for _ in range(14):
        p = (low + high) / 2
        packet = gcext.stc(x, p=p)
        if packet.nbytes <= nbytes:
            low, best = p, packet
        else:
            high = p
    return low, best


def bias(real: list[Tensor], draws: tuple[int, ...] = (250, 1000, 4000)) -> list[Row]:
    """Return T |mean of T estimates - x|^2 / |x|^2: flat in T where the estimate is unbiased.

    A bias b adds T b^2.
    """
    sources = {
        "gaussian": torch.randn(1024, generator=torch.Generator().manual_seed(1)),
        "two": torch.tensor([1.0, 0.5] + 1022 * [0.0]),
        "three": torch.tensor([3.0, 2.0, 1.0] + 1021 * [0.0]),
    }
    if real:
        sources["update"] = real[0]
    rows = []
    for source, x in sources.items():
        total = torch.zeros(len(x), dtype=torch.float64)
        extra: dict[str, str | float] = {"source": source, "rate": 0.5}
        for seed in range(max(draws)):
            total += polar.encode_rotated(x, 0.5, seed=seed).to_dense()
            if seed + 1 in draws:
                error = float((total / (seed + 1) - x).square().sum() / x.double().square().sum())
                extra[f"T={seed + 1}"] = error * (seed + 1)
        rows.append(Row("polar-bias", len(x), extra=extra))
    return rows


def subsampled_signs(x: Tensor, bits: list[int], seed: int) -> Tensor:
    """Return an unbiased estimate: of each chunk's rotated values the signs of ``bits``.

    Which ones is drawn from the seed. The rotation is polar's, the scale |x|^2 / <y, signs> too.
    """
    generator = torch.Generator().manual_seed(seed)
    size, least = layout_of(1024)
    y, norm = rotate(x, size, least, seed)
    chosen, scale = torch.zeros(len(y), dtype=torch.bool), torch.zeros(len(norm))
    for index, (start, count) in enumerate(chunks_of(len(x), 1024)):
        part = slice(start, start + count)
        chosen[part][torch.randperm(count, generator=generator)[: bits[index]]] = True
        agreement = float(y[part][chosen[part]].double().abs().sum())
        scale[index] = float(norm[index]) / agreement if agreement else 0.0
    # A vector of -1, 0 and 1 is half the sum of two of signs, which are all that is rotated back.
    halves = [torch.where(chosen, y < 0, rest) for rest in torch.tensor([False, True])]
    signs = [pack_symbols(half.to(torch.uint8)) for half in halves]
    back = [rotate_back(each, scale / 2, len(x), size, least, seed) for each in signs]
    return back[0] + back[1]


def variance(real: list[Tensor], rounds: int = 8, n: int = 1 << 16) -> list[Row]:
    """Return the error of the mean over clients, of polar and of subsampled signs in equal bytes.

    Each is E|mean of estimates - mean|^2 over sum |x_i|^2 / m^2, so 1 is the energy of one client's
    vector in the mean.
    """
    generator = torch.Generator().manual_seed(2)
    sources = {"gaussian": [torch.randn(n, generator=generator) for _ in range(CLIENTS)]}
    if real:
        sources["update"] = real
    rows = []
    for source, vectors in sources.items():
        for rate in (0.5, 0.25, 0.1):
            chunks = chunks_of(len(vectors[0]), 1024)
            bits = [size // 1024 * round(rate * 1024) for _, size in chunks]

            def code(x: Tensor, seed: int, rate: float = rate) -> Tensor:
                return polar.encode_rotated(x, rate, seed=seed).to_dense()

            def sample(x: Tensor, seed: int, bits: list[int] = bits) -> Tensor:
                return subsampled_signs(x, bits, seed)

            ours, theirs = (_error_of_mean(vectors, f, rounds) for f in (code, sample))
            extra = {
                "source": source, "clients": len(vectors), "rounds": rounds, "rate": rate,
                "bytes": polar.encode_rotated(vectors[0], rate, seed=0).nbytes,
                "signs_bytes": (sum(bits) + 7) // 8 + 4 * len(chunks) + 8,
                "polar": ours, "signs": theirs, "ratio": ours / theirs,
            }  # fmt: skip
            rows.append(Row("polar-variance", len(vectors[0]), extra=extra))
    return rows


def _error_of_mean(
    vectors: list[Tensor], estimate: Callable[[Tensor, int], Tensor], rounds: int
) -> float:
    true = torch.stack([x.double() for x in vectors])
    energy = float(true.square().sum()) / len(vectors) ** 2
    error = 0.0
    for turn in range(rounds):
        mean = torch.zeros_like(true[0])
        for client, x in enumerate(vectors):
            mean += estimate(x, 1000 * turn + client) / len(vectors)
        error += float((mean - true.mean(0)).square().sum()) / energy / rounds
    return error
