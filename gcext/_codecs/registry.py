"""The codecs by name, and the function that most callers need."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from importlib import import_module
from pkgutil import iter_modules
from typing import overload

from torch import Tensor

from gcext._codecs import __path__
from gcext._codecs.base import CODECS, Codec, Scope
from gcext._codecs.topk import STC
from gcext._packet.packet import Packet
from gcext._spec import parse

__all__ = ["codec", "codec_class", "codecs", "stc"]

for _module in iter_modules(__path__):
    import_module(f"gcext._codecs.{_module.name}")  # each registers its codecs


def codecs() -> list[str]:
    """Return the names that ``codec`` knows.

    >>> import gcext
    >>> "stc" in gcext.codecs()
    True
    """
    return list(CODECS)


def codec_class(name: str) -> type[Codec]:
    """Return the codec's class, for its options; KeyError for an unknown name."""
    return CODECS[name]


def codec(spec: str) -> Codec:
    """Return the codec of a spec, ``name`` or ``name:key=value,key=value``.

    * ``stc:p=0.01``, ``topk:p=0.01``: the elements of largest magnitude, and with ``,chunk=4096``
      those of every chunk.
    * ``sparseloco:p=0.015625,chunk=4096,bits=2``: the largest of every chunk in two bits.
    * ``adacomp:bin=50``: in every bin what is about to be the largest.
    * ``randomk:p=0.01``: random elements.
    * ``sign``: one bit each.
    * ``qsgd:bits=4,bucket=512``, ``terngrad:clip=0,bucket=0``: stochastic levels.
    * ``natural``: powers of two.
    * ``fp16``, ``bf16``: the nearest 16-bit float.
    * ``dorefa:bits=4,bucket=512``, ``uniform:bits=4,bucket=512``: a grid, at random or nearest.
    * ``int8:bucket=4096``: 8 bits with a decimal exponent.
    * ``onebit:bucket=0``: one bit, two means a column.
    * ``polar:rate=0.5,block=1024,rotate=true`` and ``,select=topk|randomk,p=0.01``: signs in less
      than a bit.
    * ``strom:tau=0.01``, ``ajiheafield:drop=0.99``: what is beyond a threshold.
    * ``dryden:p=0.01``, ``sbc:p=0.01``: the largest of each sign, or of one, as their means.
    * ``wangni:p=0.01``: each with a probability of its own.
    * ``repeat:rounds=2,codec=SPEC``: several rounds of a codec, each of what the others left.
    * ``sketch:rows=5,p=0.1,cols=0,hash=0``: random signed sums, which add up.
    * ``dct:k=4,block=64,signs=true``: the largest cosine coefficients of each block of a matrix.
    * ``lowrank:rank=2,iterations=1``: the product of two thin matrices.
    * ``dense``: all of it.

    Values given here are the defaults. Raises ValueError for an unknown name or option, or an
    option out of range.

    >>> import gcext, torch
    >>> gcext.codec("stc:p=0.5").encode(torch.tensor([3.0, -1.0, 1.0, -1.0])).to_dense()
    tensor([ 2., -2.,  0.,  0.])
    >>> gcext.codec("qsgd:bits=2").encode(torch.tensor([3.0, -4.0]), seed=1).k
    2
    """
    name, options = parse(spec, "codec", codecs())
    return CODECS[name].from_options(options)


_stc = lru_cache(maxsize=64)(STC)


@overload
def stc(tensor: Tensor, p: float = 0.01, residual: Tensor | None = None) -> Packet: ...
@overload
def stc(
    tensor: Sequence[Tensor],
    p: float = 0.01,
    residual: Sequence[Tensor] | None = None,
    scope: Scope = "tensor",
) -> list[Packet]: ...
def stc(
    tensor: Tensor | Sequence[Tensor],
    p: float = 0.01,
    residual: Tensor | Sequence[Tensor] | None = None,
    scope: Scope = "tensor",
) -> Packet | list[Packet]:
    """Sparse ternary compression: the share p of largest magnitude, sent as plus or minus its mean.

    Exactly ``min(max(floor(p*n), 1), non-zeros)`` elements travel, ties to the lower index, and the
    mean is the exact sum rounded once (Sattler et al. 2019, arXiv:1903.02891).

    A list of tensors, with a list of residuals, gives the list of packets that single calls would
    give, on CUDA in a handful of launches; ``Packet.group`` makes one packet of them. On CUDA
    nothing synchronizes: what is not finite is raised when the packet is first read.

    Args:
        tensor: any shape, strides and float dtype; converted to float32 first.
        p: share of elements to send, in (0, 1].
        residual: float32, the tensor's shape; added to the tensor, and updated in place to what
            the packet lacks of the sum (error feedback).
        scope: of a list; "model" takes the share p of all tensors together, by one threshold, and
            keeps a scale for each; see Codec.encode.

    Raises:
        ValueError: p out of range or no number; a NaN or Inf in the tensor (names the first index,
            and the residual is left as it was); a residual of other shape or dtype. A residual that
            is itself not finite, or overflows, is reported after it was updated: ErrorFeedback
            holds two slots and loses nothing then.
        MemoryError: no memory for the work. The residual is as it was, or, where the lack showed
            in the middle of the pass, holds the whole sum: nothing is lost.

    >>> import gcext, torch
    >>> residual = torch.zeros(4)
    >>> gcext.stc(torch.tensor([3.0, -1.0, 1.0, -1.0]), p=0.5, residual=residual).to_dense()
    tensor([ 2., -2.,  0.,  0.])
    >>> residual
    tensor([ 1.,  1.,  1., -1.])
    """
    share = p if type(p) is float else STC(p).p  # the cache takes True and 1 for 1.0
    packets: Packet | list[Packet] = _stc(share).encode(tensor, residual, scope=scope)  # type: ignore[arg-type]
    return packets
