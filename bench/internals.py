"""What the benchmarks use of gcext's private modules, in one place."""

from __future__ import annotations

import torch
from torch import Tensor

import gcext
from gcext._native.ops import select as select  # accumulate and exact top-k
from gcext._native.polar import polar_pack as pack_symbols  # to packed bits
from gcext._native.polar import polar_unpack as unpack  # packed bits to symbols
from gcext._native.polar import rotate as rotate
from gcext._native.polar import rotate_back as rotate_back
from gcext._packet.codes import Contents
from gcext._wire import TILE as TILE  # indices that share a Rice parameter
from gcext._wire import bits_pack as bits_pack
from gcext._wire import bits_unpack as bits_unpack
from gcext._wire import rice_pack as rice_pack
from gcext.aggregate._project import kept as kept  # how many updates the projection leaves alone
from gcext.aggregate._project import project as project  # its coefficients, from a Gram matrix
from gcext.polar._design import crossover as crossover  # rate to distortion
from gcext.polar._design import frozen_set as frozen_set
from gcext.polar._values import chunks_of as chunks_of  # how a rotated vector is split
from gcext.polar._values import layout_of as layout_of  # the sizes of a rotation's chunks

__all__ = ["pack_symbols", "unpack"]


def pairs(packet: gcext.Packet) -> tuple[Tensor, Tensor]:
    """Return the packet's own index (int32 below 2^31 elements) and value, not copies."""
    index, value = packet.entries()
    assert index is not None
    return index, value


def dense(packet: gcext.Packet) -> Tensor:
    """Return the decoded tensor of a single packet."""
    out = packet.to_dense()
    assert isinstance(out, Tensor)
    return out


def ternary(n: int, index: Tensor, value: Tensor, scale: float) -> gcext.Packet:
    """Return the packet of a flat float32 tensor of n elements from its pairs."""
    return gcext.Packet("ternary", (n,), torch.float32, Contents(index, value, scale))
