"""The combinator of codecs: several rounds of one, each of what the others left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from gcext._codecs.base import CODECS, Codec, register_codec, require_contraction
from gcext._codecs.input import CodecInput
from gcext._codecs.seeds import derive
from gcext._native import ops
from gcext._native.status import is_ok
from gcext._packet.packet import Packet
from gcext._spec import option, parse

__all__ = ["Repeat"]


@register_codec
@dataclass(frozen=True)
class Repeat(Codec):
    """``rounds`` packets of another codec in one, each of what those before it left of the sum.

    ``c_1 = C(x), c_r = C(x - c_1 - .. - c_(r-1))``, and the packet is the sum of all: the fast
    compressed communication of NEOLITHIC (Huang et al. 2022, arXiv:2206.03665). Every round is
    encoded as with a residual. A contraction by ``1 - (1 - delta)^rounds``, delta being the
    codec's; one that has none under a residual is refused. What a packet lacks is rounded once a
    round. The packet's method is sum; a codec whose packets cannot be its terms is refused when
    it encodes.

    Attributes:
        rounds: how many, 2 to 64.
        codec: its spec, the last of the options: all that follow are its own. Or the codec.

    >>> import gcext, torch
    >>> codec = gcext.codec("repeat:rounds=2,codec=stc:p=0.5")
    >>> codec.encode(torch.tensor([8.0, 4.0, 1.0, -1.0])).to_dense()
    tensor([8., 4., 0., 0.])
    """

    rounds: int = option(2, "[2, 64]")
    codec: str = "stc:p=0.01"

    name = "repeat"

    def __post_init__(self) -> None:
        given: Any = self.codec
        object.__setattr__(self, "codec", given.spec if isinstance(given, Codec) else given)
        super().__post_init__()
        inner = self._inner
        if isinstance(inner, Repeat):
            raise ValueError("repeat: codec must not be repeat itself. Raise rounds.")
        if not inner.contracts:
            raise ValueError(f"repeat: codec must be a contraction, got {inner.name}.")
        require_contraction(inner)
        object.__setattr__(self, "codec", inner.spec)

    @classmethod
    def from_options(cls, options: Mapping[str, str]) -> Codec:
        """See Codec. What follows codec belongs to it."""
        mine = dict(options)
        if "codec" in mine:
            names = list(mine)
            for key in names[names.index("codec") + 1 :]:
                mine["codec"] += f"{',' if ':' in mine['codec'] else ':'}{key}={mine.pop(key)}"
        return super().from_options(mine)

    @property
    def _inner(self) -> Codec:
        return _made(self.codec)

    @property
    def stochastic(self) -> bool:
        """See Codec."""
        return self._inner.stochastic

    def contraction(self, n: int) -> float:
        """See Codec."""
        return float(1 - (1 - self._inner.contraction(n)) ** self.rounds)

    def encode_input(self, acc: CodecInput, seed: int) -> Packet:
        """See Codec. Rounds after the first encode 0 plus a residual, in place."""
        inner, flat = self._inner, acc.tensor
        held = acc.out if acc.memory is None else acc.memory  # what is left where an error is
        rest = acc.out  # memory stays readable
        if rest is None or acc.memory is None:
            rest = ops.new_like(flat).zero_()
        nothing = ops.new_like(flat).zero_()
        packets = []
        for step in range(self.rounds):
            its = acc._replace(memory=held, out=rest)
            if step:
                its = acc._replace(tensor=nothing, memory=None, out=rest, decay=1.0)
            packets.append(inner.encode_input(its, derive(seed, "round", step)))
        if acc.out is not None:
            assert held is not None
            _settle(packets, rest.view(acc.out.shape), held.view(acc.out.shape), acc.out)
        return Packet.sum(packets)


@lru_cache(maxsize=64)
def _made(spec: str) -> Codec:
    name, options = parse(spec, "repeat: codec", list(CODECS))
    return CODECS[name].from_options(options)


def _settle(packets: Sequence[Packet], rest: Tensor, held: Tensor, out: Tensor) -> None:
    """Leave the rest in ``out``, or what was held before where a packet has an error."""
    infos = [packet.deferred.info for packet in packets if packet.deferred is not None]
    if infos:
        fine = torch.stack([is_ok(info) for info in infos]).all()
        torch.where(fine, rest, held, out=out)
    elif rest.data_ptr() != out.data_ptr():
        with torch.inference_mode() if out.is_inference() else nullcontext():
            out.copy_(rest)
