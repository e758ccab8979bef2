"""What codecs send of a sum, in plain PyTorch as one would write it: values, not packed.

Each returns the decoded tensor, from which the residual follows. Those that round at random use
torch's generator, so they send other values than gcext, of the same law.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import pad

from gcext import Codec

Eager = Callable[[Tensor, Codec], Tensor]


def _steps(codec: Codec) -> int:
    return int(2 ** codec.options()["bits"] - 1)


def _buckets(x: Tensor, codec: Codec) -> Tensor:
    size = codec.options()["bucket"] or x.numel()
    return pad(x, (0, -x.numel() % size)).view(-1, size)


def stc(x: Tensor, codec: Codec) -> Tensor:
    """The mean magnitude of the largest, with their signs."""
    k = max(int(codec.options()["p"] * x.numel()), 1)
    index = torch.topk(x.abs(), k).indices
    value = x[index]
    return torch.zeros_like(x).index_copy_(0, index, value.abs().mean() * value.sign())


def dense(x: Tensor, codec: Codec) -> Tensor:
    """Everything."""
    return x.clone()


def randomk(x: Tensor, codec: Codec) -> Tensor:
    """A random k."""
    k = max(int(codec.options()["p"] * x.numel()), 1)
    index = torch.randperm(x.numel())[:k]
    return torch.zeros_like(x).index_copy_(0, index, x[index])


def sign(x: Tensor, codec: Codec) -> Tensor:
    """Plus or minus the mean magnitude."""
    scale = x.abs().mean()
    return torch.where(x < 0, -scale, scale)


def qsgd(x: Tensor, codec: Codec) -> Tensor:
    """Levels of each bucket's 2-norm."""
    rows, steps = _buckets(x, codec), _steps(codec)
    norm = torch.linalg.vector_norm(rows, dim=1, keepdim=True).clamp_min(1e-30)
    level = (rows.abs() / norm * steps + torch.rand_like(rows)).floor()
    sent: Tensor = rows.sign() * level * norm / steps
    return sent.view(-1)[: x.numel()]


def terngrad(x: Tensor, codec: Codec) -> Tensor:
    """The largest magnitude, with the probability that keeps the mean."""
    largest = x.abs().max()
    return x.sign() * largest * (torch.rand_like(x) * largest < x.abs())


def natural(x: Tensor, codec: Codec) -> Tensor:
    """A power of two on either side."""
    mantissa, exponent = torch.frexp(x.abs())
    up = torch.rand_like(x) < 2 * mantissa - 1
    return x.sign() * torch.ldexp(torch.ones_like(x), exponent - 1 + up.int())


def fp16(x: Tensor, codec: Codec) -> Tensor:
    """The nearest float16."""
    return x.half().float()


def bf16(x: Tensor, codec: Codec) -> Tensor:
    """The nearest bfloat16."""
    return x.bfloat16().float()


def dorefa(x: Tensor, codec: Codec) -> Tensor:
    """Equidistant levels up to each bucket's largest magnitude."""
    rows, steps = _buckets(x, codec), _steps(codec)
    top = rows.abs().amax(dim=1, keepdim=True).clamp_min(1e-30)
    code = (rows / top * (steps / 2) + (steps + 1) / 2 + torch.rand_like(rows) - 0.5).floor()
    return ((2 * code - steps) / steps * top).view(-1)[: x.numel()]


def int8(x: Tensor, codec: Codec) -> Tensor:
    """The nearest value of the dynamic tree."""
    magnitudes = [0.0]
    for t in range(1, 128):
        i = t.bit_length() - 1
        magnitudes.append((2 * 2**i + 18 * (t - 2**i) + 9) / (2 * 2**i * 10 ** (7 - i)))
    table = torch.tensor([*magnitudes, 1.0])
    rows = _buckets(x, codec)
    top = rows.abs().amax(dim=1, keepdim=True).clamp_min(1e-30)
    nearest = torch.bucketize(rows.abs() / top, (table[1:] + table[:-1]) / 2)
    return (rows.sign() * table[nearest] * top).view(-1)[: x.numel()]


def onebit(x: Tensor, codec: Codec) -> Tensor:
    """The mean of either side."""
    above = x >= 0
    count = above.sum()
    positive = torch.where(above, x, 0.0).sum() / count
    negative = torch.where(above, 0.0, x).sum() / (x.numel() - count)
    return torch.where(above, positive, negative)


def strom(x: Tensor, codec: Codec) -> Tensor:
    """Plus or minus tau, of what is beyond it."""
    tau = codec.options()["tau"]
    return torch.where(x.abs() > tau, tau * x.sign(), 0.0)


def ajiheafield(x: Tensor, codec: Codec) -> Tensor:
    """What is at least as large as a quantile of a sample."""
    size = max(x.numel() // 1000, 256)
    sample = x[torch.randint(x.numel(), (size,))].abs().sort().values
    least = sample[int(codec.options()["drop"] * size)]
    return torch.where(x.abs() >= least, x, 0.0)


def wangni(x: Tensor, codec: Codec) -> Tensor:
    """Each with a probability of its own, by two iterations, as its inverse's multiple."""
    magnitude, k = x.abs(), codec.options()["p"] * x.numel()
    p = (k * magnitude / magnitude.sum()).clamp(max=1.0)
    for _ in range(2):
        below = p < 1
        p = (p * ((k - (~below).sum()) / p[below].sum()).clamp(min=1.0)).clamp(max=1.0)
    return torch.where(torch.rand_like(x) < p, x / p, 0.0)


def _side(x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    value, index = torch.topk(x, k)
    return index, value.mean()


def sbc(x: Tensor, codec: Codec) -> Tensor:
    """The largest of one side, as their mean."""
    k = max(int(codec.options()["p"] * x.numel()), 1)
    (above, up), (below, down) = _side(x, k), _side(-x, k)
    index, sent = (above, up) if up >= down else (below, -down)
    return torch.zeros_like(x).index_fill_(0, index, float(sent))


def dryden(x: Tensor, codec: Codec) -> Tensor:
    """The largest of both sides, as the means of these."""
    sent, p = torch.zeros_like(x), codec.options()["p"]
    for sign in (1.0, -1.0):
        index, mean = _side(sign * x, max(int(p * int((sign * x > 0).sum())), 1))
        sent.index_fill_(0, index, sign * float(mean))
    return sent


def sparseloco(x: Tensor, codec: Codec) -> Tensor:
    """The largest of every chunk, as the means of bins; their places packed in 12 bits each."""
    chunk, bins = codec.options()["chunk"], 2 ** codec.options()["bits"]
    rows = pad(x, (0, -x.numel() % chunk)).view(-1, chunk)
    index = torch.topk(rows.abs(), int(codec.options()["p"] * chunk), dim=1, sorted=False).indices
    value = rows.gather(1, index)
    _twelve_bits(index)
    mean = value.mean()
    centred = value - mean
    code = (centred / (6 * centred.std() / bins) + bins // 2).round().clamp_(0, bins - 1).long()
    sums = torch.zeros(bins).scatter_add_(0, code.view(-1), centred.view(-1))
    table = sums / torch.bincount(code.view(-1), minlength=bins).clamp_min(1) + mean
    return torch.zeros_like(rows).scatter_(1, index, table[code]).view(-1)[: x.numel()]


def _twelve_bits(index: Tensor) -> Tensor:
    even, odd = index.view(-1, 2).to(torch.int32).unbind(1)
    low, middle, high = even & 255, even >> 8 | (odd & 15) << 4, odd >> 4
    return torch.stack((low, middle, high), 1).to(torch.uint8)


EAGER: dict[str, Eager] = {
    each.__name__: each
    for each in (
        stc, dense, randomk, sign, qsgd, terngrad, natural, fp16, bf16, dorefa, int8, onebit,
        strom, ajiheafield, wangni, sbc, dryden, sparseloco,
    )
}  # fmt: skip
