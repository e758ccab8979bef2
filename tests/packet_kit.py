"""What tests of single packets share: the one tensor of a result that may be a group's list."""

from __future__ import annotations

import torch

import gcext


def single(result: torch.Tensor | list[torch.Tensor]) -> torch.Tensor:
    """The tensor of a single packet's result."""
    assert isinstance(result, torch.Tensor)
    return result


def dense(packet: gcext.Packet) -> torch.Tensor:
    """The dense tensor of a single packet."""
    return single(packet.to_dense())
