"""Codecs: stateless, ``tensor -> packet -> tensor``; a selection of elements and their values.

``ErrorFeedback`` (gcext.link) puts a memory in front of one; ``recipes`` puts two ends together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, overload

from torch import Tensor

from gcext._codecs import quantize as _codec_quantize
from gcext._codecs import topk as _codec_topk
from gcext._codecs.base import Codec
from gcext._codecs.input import Sum, refuse
from gcext._codecs.quantize import Levelled, Sign
from gcext._codecs.topk import Dense, RandomK, TopK
from gcext._packet.packet import Packet
from gcext._spec import Spec, parse
from gcext.polar import _codec as _codec_polar
from gcext.polar._codec import PolarSigns

__all__ = ["Codec", "Dense", "Levelled", "PolarSigns", "RandomK", "Sign", "Sum", "TopK", "codec"]
__all__ += ["codecs", "make", "refuse", "register", "stc"]

_CODECS: dict[str, Callable[[Spec], Codec]] = {
    "stc": _codec_topk.topk,
    "topk": _codec_topk.topk,
    "randomk": _codec_topk.randomk,
    "sign": _codec_quantize.sign,
    "qsgd": _codec_quantize.qsgd,
    "terngrad": _codec_quantize.terngrad,
    "polar": _codec_polar.polar,
    "dense": _codec_topk.dense,
}


def codecs() -> list[str]:
    """Return the names that ``codec`` knows."""
    return list(_CODECS)


def register(name: str, make: Callable[[Spec], Codec]) -> None:
    """Make a codec known by name: ``make`` takes its options from a Spec; see ``codec``.

    Raises ValueError for a name that is taken or that no spec could hold.
    """
    if name in _CODECS or not name.isidentifier():
        raise ValueError(f"register: name must be a new identifier, got {name!r}. Choose another.")
    _CODECS[name] = make


def make(spec: Spec) -> Codec:
    """Return the codec of a parsed spec; options that it does not know are left in it."""
    return _CODECS[spec.name](spec)


def codec(spec: str) -> Codec:
    """Return the codec of a spec, ``name`` or ``name:key=value,key=value``.

    * ``stc:p=0.01``, ``topk:p=0.01``: the largest; TopK.
    * ``randomk:p=0.01``: at random; RandomK.
    * ``sign``: one bit each; Sign.
    * ``qsgd:bits=4,bucket=512``, ``terngrad:clip=0,bucket=0``: stochastic levels; Levelled.
    * ``polar:rate=0.5,block=1024,rotate=true`` and ``,select=topk|randomk,p=0.01``; PolarSigns.
    * ``dense``: all of it.

    Values given here are the defaults. Raises ValueError for an unknown name or option, or an
    option out of range.

    >>> import gcext, torch
    >>> gcext.codec("stc:p=0.5").encode(torch.tensor([3.0, -1.0, 1.0, -1.0])).to_dense()
    tensor([ 2., -2.,  0.,  0.])
    >>> gcext.codec("qsgd:bits=2").encode(torch.tensor([3.0, -4.0]), seed=1).k
    2
    """
    parsed = parse(spec, "codec", codecs())
    made = make(parsed)
    parsed.finish()
    return made


@overload
def stc(tensor: Tensor, p: float = 0.01, residual: Tensor | None = None) -> Packet: ...
@overload
def stc(
    tensor: Sequence[Tensor], p: float = 0.01, residual: Sequence[Tensor] | None = None
) -> list[Packet]: ...
def stc(tensor: Any, p: float = 0.01, residual: Any = None) -> Packet | list[Packet]:
    """Sparse ternary compression: the share p of largest magnitude, sent as plus or minus its mean.

    Exactly ``min(max(floor(p*n), 1), non-zeros)`` elements travel, ties to the lower index, and the
    mean is the exact sum rounded once (Sattler et al. 2019, arXiv:1903.02891).

    A list of tensors, with a list of residuals, gives the list of packets that single calls would
    give, on CUDA in a handful of launches; ``Packet.group`` makes one packet of them. On CUDA
    nothing waits for the device: what is not finite is raised when the packet is first looked at.

    Args:
        tensor: any shape, strides and float dtype; converted to float32 first.
        p: share of elements to send, in (0, 1].
        residual: float32, the tensor's shape; added to the tensor, and updated in place to what
            the packet lacks of the sum (error feedback).

    Raises:
        ValueError: p out of range; a NaN or Inf in the tensor (names the first index, and the
            residual is left as it was); a residual of other shape or dtype. A residual that is
            itself not finite, or overflows, is reported after it was updated: ErrorFeedback holds
            two slots and loses nothing then.
        MemoryError: no memory for the work. The residual is as it was, or, where the lack showed
            in the middle of the pass, holds the whole sum: nothing is lost.

    >>> import gcext, torch
    >>> residual = torch.zeros(4)
    >>> gcext.stc(torch.tensor([3.0, -1.0, 1.0, -1.0]), p=0.5, residual=residual).to_dense()
    tensor([ 2., -2.,  0.,  0.])
    >>> residual
    tensor([ 1.,  1.,  1., -1.])
    """
    made: Packet | list[Packet] = TopK(p, ternary=True).encode(tensor, residual)
    return made
