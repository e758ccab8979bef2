"""The operators of the native code: types here, the fake for torch.compile beside each.

Those over the tensors of a whole model are in gcext._native.lists, polar's in gcext._native.polar.

A wrapper takes what the schema takes, in its order; the kernel's header has the contract. Tensors
are flat and contiguous. Where an operator encodes ``a*tensor + b*memory``, all three are float32
and of one length: ``memory`` is read, ``out`` gets the new residual; without ``memory`` out is
both, and without either the tensor alone is encoded. ``info`` is int64 of shape (4,): the number of
elements found, a status and where it applies (gcext._native.status), the bits of the scale.

Seeds are any integers; the operators take them modulo 2^64.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gcext._native import library  # noqa: F401  (loads the operators)

_ops = torch.ops.gcext


def fake(name: str, function: Callable[..., Any]) -> None:
    """Register what torch.compile is to know of an operator: the shapes and dtypes it returns."""
    torch.library.register_fake(f"gcext::{name}", function)


def bytes_for(bits: int) -> int:
    """Return how many bytes so many packed bits take."""
    return (bits + 7) // 8


def _info(like: Tensor) -> Tensor:
    return like.new_empty((4,), dtype=torch.int64)


def signed(seed: int) -> int:
    """Return the seed modulo 2^64 as the signed integer that an operator takes."""
    return (seed + 2**63) % 2**64 - 2**63


def _index_type(numel: int) -> torch.dtype:
    return torch.int64 if numel >= 2**31 else torch.int32


# --- select: exact top-k fused with the residual's update, csrc/select/select.h ---


def select(
    tensor: Tensor,
    memory: Tensor | None,
    out: Tensor | None,
    k: int,
    a: float,
    b: float,
    ternary: bool,
    sent: Tensor | None = None,
    next: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return index, value (of k elements each) and info of the k of largest magnitude.

    ternary: values are plus or minus the mean magnitude, whose bits are in info. sent: int64 of
    shape (3,), what memory lacks. next: likewise; where given, out becomes the sum, and next what
    was sent of it.
    """
    rest = k, a, b, ternary, sent, next
    index, value, info = _ops.select.default(tensor, memory, out, *rest)
    return index, value, info


def select_rest(memory: Tensor, sent: Tensor) -> Tensor:
    """Return a sum less what was sent of it: see select."""
    rest: Tensor = _ops.select_rest.default(memory, sent)
    return rest


def _fake_select(tensor: Tensor, memory: Any, out: Any, k: int, *_: Any) -> tuple[Tensor, ...]:
    index = tensor.new_empty((k,), dtype=_index_type(tensor.numel()))
    return index, tensor.new_empty((k,)), _info(tensor)


fake("select", _fake_select)
fake("select_rest", lambda memory, sent: memory.new_empty((memory.numel(),)))


def new_floats(like: Tensor, n: int) -> Tensor:
    """Return n float32 on the device of ``like``, uninitialised.

    On the CPU in memory that was in use before.
    """
    if not like.is_cpu:
        return like.new_empty(n, dtype=torch.float32)
    made: Tensor = _ops.pooled_floats.default(n)
    return made


def new_like(like: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return an uninitialised tensor of the shape of ``like``; see new_floats."""
    n = like.numel()
    words = new_floats(like, -(-n * dtype.itemsize // 4))
    return words.view(dtype)[:n].view(like.shape)


def copy_of(tensor: Tensor) -> Tensor:
    """Return a contiguous copy; see new_floats."""
    return new_like(tensor, tensor.dtype).copy_(tensor)


fake("pooled_floats", lambda n: torch.empty(n, dtype=torch.float32))


def to_float32(tensor: Tensor) -> Tensor:
    """Return a flat tensor of another float type as float32, on the CPU; csrc/convert.h."""
    made: Tensor = _ops.to_float32.default(tensor)
    return made


fake("to_float32", lambda x: x.new_empty((x.numel(),), dtype=torch.float32))


# --- quantize: an element becomes a bit or a few, csrc/quantize.h ---


def sign(
    tensor: Tensor,
    memory: Tensor | None,
    out: Tensor | None,
    decay: float,
    sent: Tensor | None = None,
    next: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the sign bits (uint8, 8 a byte) and info, with the mean magnitude's bits.

    sent, next: as of select.
    """
    bits, info = _ops.sign.default(tensor, memory, out, decay, sent, next)
    return bits, info


fake("sign", lambda x, *_: (x.new_empty((bytes_for(x.numel()),), dtype=torch.uint8), _info(x)))


def levels(
    tensor: Tensor,
    memory: Tensor | None,
    out: Tensor | None,
    decay: float,
    steps: int,
    bucket: int,
    largest: bool,
    clip: float,
    fit: bool,
    seed: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return norms, at and level (the fields of codes.Levels) and info; drawn from ``seed``.

    largest: the norm is a bucket's largest magnitude, clipped at ``clip`` root mean squares where
    that is above 0; otherwise the 2-norm. fit: draw by that, and return least squares' norms.
    """
    norms, at, level, info = _ops.levels.default(
        tensor, memory, out, decay, steps, bucket, largest, clip, fit, signed(seed)
    )
    return norms, at, level, info


def _fake_levels(
    tensor: Tensor, memory: Any, out: Any, decay: float, steps: int, bucket: int, *_: Any
) -> tuple[Tensor, ...]:
    n, new = tensor.numel(), tensor.new_empty
    found = (torch.library.get_ctx().new_dynamic_size(),)
    at, level = new(found, dtype=_index_type(n)), new(found, dtype=torch.int16)
    return new((-(-n // bucket) if bucket else min(n, 1),)), at, level, _info(tensor)


fake("levels", _fake_levels)


def level_values(norms: Tensor, at: Tensor, level: Tensor, bucket: int, steps: int) -> Tensor:
    """Return float32 norm*level/steps; the fields are those of codes.Levels."""
    return _ops.level_values(norms, at, level, bucket, steps)


fake("level_values", lambda norms, at, level, *_: torch.empty_like(level, dtype=torch.float32))


def unpack_signs(bits: Tensor, n: int, scale: float, scales: Tensor | None, run: int) -> Tensor:
    """Return n float32, plus or minus the scale (of many: one every ``run`` values)."""
    return _ops.unpack_signs(bits, n, scale, scales, run)


fake("unpack_signs", lambda bits, n, *_: bits.new_empty((n,), dtype=torch.float32))


# --- support: elements drawn by counter, csrc/support.h ---


def random_support(seed: int, k: int, numel: int) -> Tensor:
    """Return k of numel indices, rising, each equally likely: int32, from 2^31 on int64."""
    return _ops.random_support.default(signed(seed), k, numel)


def take_out(sum: Tensor, index: Tensor, info: Tensor) -> Tensor:
    """Return float32 elements at rising indices, and leave zeros there; on the CPU.

    Where info has an error zeros are returned, and the sum stays as it is.
    """
    return _ops.take_out.default(sum, index, info)


fake("take_out", lambda sum, index, info: sum.new_empty((index.numel(),)))
fake("random_support", lambda seed, k, numel: torch.empty(k, dtype=_index_type(numel)))


# --- rice: ternary packets as bytes, on CUDA only, cuda/rice_launch.h ---


def pack_ternary(
    index: Sequence[Tensor], value: Sequence[Tensor], info: Sequence[Tensor], numel: Sequence[int]
) -> Tensor:
    """Return the streams of many ternary packets as one uint8 tensor, a table of them first."""
    return _ops.pack_ternary(index, value, info, numel)


def unpack_ternary(
    message: Tensor,
    begin: Sequence[int],
    end: Sequence[int],
    remainder_bytes: Sequence[int],
    k: Sequence[int],
    numel: Sequence[int],
    scale: Sequence[int],
) -> tuple[Tensor, Tensor, Tensor]:
    """Return index (int64) and value, concatenated, and a flag a packet that is not canonical."""
    index, value, wrong = _ops.unpack_ternary(message, begin, end, remainder_bytes, k, numel, scale)
    return index, value, wrong


# --- combine, gram, project, robust, vote: the server's side ---
# Packets are lists of index (int32 or int64, rising strictly; empty beside numel values where all
# elements travel) and value (float32). On the CPU, where ``Codes`` are given, a value may also be
# coded, without an index that of all elements: csrc/common/packet.h.


class Codes(NamedTuple):
    """What values that are not float32 stand for; an entry a packet, or none in any list.

    scale: of sign bits and powers, else 0.
    norms, steps, bucket: of levels, as codes.Levels has them; of codes their scales, width and
        bucket, as tables.Codes has them; else any.
    table: of codes its number, of powers ``codes.POWERS``, else -1.
    """

    scale: Sequence[float] = ()
    norms: Sequence[Tensor] | None = None
    steps: Sequence[int] = ()
    bucket: Sequence[int] = ()
    table: Sequence[int] = ()


def _fake_sum(index: Any, value: list[Tensor], weights: Any, numel: int, *_: Any) -> Tensor:
    return value[0].new_empty((numel,), dtype=torch.float32)


def combine(
    index: Sequence[Tensor],
    value: Sequence[Tensor],
    weights: Sequence[float],
    numel: int,
    codes: Codes = Codes(),  # noqa: B008  (immutable)
) -> Tensor:
    """Return the weighted sum of packets, float32 of shape (numel,); csrc/combine.h."""
    return _ops.combine.default(index, value, weights, numel, *codes)


fake("combine", _fake_sum)


def combine_add_(
    dense: Tensor, index: Tensor, value: Tensor, alpha: float, info: Tensor | None = None
) -> None:
    """Add alpha times a packet to float32 ``dense`` in place; csrc/combine.h.

    info: nothing is added where it reports an error.
    """
    _ops.combine_add_.default(dense, index, value, alpha, info)


fake("combine_add_", lambda dense, index, value, alpha, info=None: None)


def gram(
    index: Sequence[Tensor],
    value: Sequence[Tensor],
    scale: Sequence[float],
    numel: int,
    codes: Codes = Codes(),  # noqa: B008
) -> Tensor:
    """Return all dot products, float64 (m, m); csrc/gram/gram.h.

    scale: of sign bits; a positive one of float32 values says that they are ternary.
    """
    return _ops.gram.default(index, value, scale, numel, *codes[1:])


def squared_norm(tensor: Tensor) -> Tensor:
    """Return the sum of the squares of flat float32, float64 of shape (), in a fixed order."""
    index = tensor.new_empty(0, dtype=torch.int32)
    return gram([index], [tensor], [0.0], tensor.numel()).view(())


fake("gram", lambda i, value, *_: value[0].new_empty((len(value), len(value)), dtype=torch.float64))


def project(dots: Tensor, m: int, kept: int, first: Sequence[int], last: Sequence[int]) -> Tensor:
    """Return the projection's coefficients, float64 of shape (M,); csrc/project.h.

    dots: float64 (M, M) on the CPU; the spans of remembered updates are [first, last).
    """
    return _ops.project.default(dots, m, kept, first, last)


fake("project", lambda dots, *_: dots.new_empty((dots.shape[0],)))


def trimmed_mean(
    index: Sequence[Tensor],
    value: Sequence[Tensor],
    drop: int,
    numel: int,
    codes: Codes = Codes(),  # noqa: B008
) -> Tensor:
    """Return each element's mean without its ``drop`` least and greatest values; csrc/robust.h."""
    return _ops.trimmed_mean.default(index, value, drop, numel, *codes)


fake("trimmed_mean", _fake_sum)


def vote(
    plane: Sequence[Tensor],
    index: Sequence[Tensor],
    value: Sequence[Tensor],
    scale: float,
    numel: int,
) -> Tensor:
    """Return the majority's sign times scale, float32 of shape (numel,); csrc/vote.h.

    plane: uint8, the sign bits of voters on every element. index, value: voters on some of them.
    """
    return _ops.vote.default(plane, index, value, scale, numel)


fake("vote", lambda plane, index, value, scale, n: _fake_sum(index, [*plane, *value], None, n))
