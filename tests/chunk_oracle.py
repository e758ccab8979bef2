"""The exact answers of chunked selection, SparseLoCo and AdaComp: the papers' formulas in NumPy."""

from __future__ import annotations

import math

import numpy as np

from bench.oracle import Answer, Floats, Index, exact_mean, top_k


def count_of(p: float, n: int) -> int:
    return max(math.floor(p * n), 1) if n else 0


def select(
    tensor: Floats, residual: Floats | None, p: float, chunk: int, ternary: bool = True
) -> Answer:
    """Return the exact top-k of every chunk of tensor + residual."""
    with np.errstate(over="ignore", under="ignore"):
        acc = tensor.copy() if residual is None else tensor + residual
        index = chosen(acc, p, chunk)
        mean = exact_mean(acc[index])
        value = np.copysign(mean, acc[index]) if ternary else acc[index]
        left = acc.copy()
        left[index] = acc[index] - value
    return Answer(index, value, left, mean)


def chosen(acc: Floats, p: float, chunk: int) -> Index:
    found = [np.empty(0, np.int64)]
    for begin in range(0, acc.size, chunk):
        one = acc[begin : begin + chunk]
        found.append(begin + top_k(one, count_of(p, one.size)))
    return np.concatenate(found)


def signed_mean(values: Floats) -> np.float32:
    """Return the exact mean of values of any sign, rounded once to float32, ties to even."""
    units = sum(int(math.ldexp(float(x), 149)) for x in values)
    size, count = abs(units), values.size
    divisor = count << max((size // count).bit_length() - 24, 0)
    kept, rest = divmod(size, divisor)
    kept += 2 * rest > divisor or (2 * rest == divisor and kept & 1)
    mean = math.ldexp(kept, max((size // count).bit_length() - 24, 0) - 149)
    return np.float32(-mean if units < 0 and mean else mean)


def bin_means(values: Floats, bits: int, sigmas: float) -> tuple[Floats, Index]:
    """Return the table and each value's code: the quantizer in the code of SparseLoCo's authors.

    ``q = round((val - shift)/scale + offset)``, clamped, with ``scale = sigmas*std/bins``; then
    the mean of each bin. Here a tie goes up, and few values have a bin each.
    """
    bins = 2**bits
    table = np.zeros(bins, np.float32)
    if values.size <= bins:
        table[: values.size] = values
        return table, np.arange(values.size)
    x = values.astype(np.float64)
    shift = math.fsum(x) / x.size
    spread = math.fsum((x - shift) ** 2) / (x.size - 1)
    scale = sigmas * math.sqrt(spread) / bins
    q = (x - shift) / scale + bins // 2 if scale > 0 else np.full(x.size, bins // 2)
    code = np.clip(np.floor(q + 0.5), 0, bins - 1).astype(np.int64)
    for each in np.unique(code):
        table[each] = signed_mean(values[code == each])
    return table, code


def adacomp(tensor: Floats, residual: Floats | None, bin_size: int) -> Answer:
    """Return what ``pack()`` of AdaComp sends and leaves: Chen et al. 2018, Algorithm 2.

    G = residue + dW; H = G + dW; of every bin, where |H| >= gmax, the largest |G|, Gq is sign(G)
    times the scale, the mean of gmax over the bins, and residue = G - Gq; elsewhere residue = G.
    """
    with np.errstate(over="ignore"):
        total = tensor.copy() if residual is None else residual + tensor
        soon = total + tensor
    gmax = [
        np.abs(total[at : at + bin_size]).max(initial=0) for at in range(0, total.size, bin_size)
    ]
    scale = exact_mean(np.array(gmax, np.float32))
    reach = np.repeat(np.array(gmax, np.float32), bin_size)[: total.size]
    sent = np.where(np.abs(soon) >= reach, np.sign(total) * scale, np.float32(0)).astype(np.float32)
    index = np.flatnonzero(sent)
    return Answer(index, sent[index], np.where(sent != 0, total - sent, total), scale)
