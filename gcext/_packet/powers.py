"""The value code of natural compression: signed powers of two, csrc/natural.h."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gcext._native import natural
from gcext._packet.codes import Code, Contents, register_code

__all__ = ["Powers"]


@register_code
@dataclass(frozen=True, eq=False)
class Powers(Code):
    """Plus or minus a power of two times one scale, or zero: natural compression, once drawn.

    scale: positive, a float32; 1 where nothing is scaled.
    power: int16, an element each: 0 is zero, p is ``scale * 2^(p - 150)``, -p its negative, for p
        from 1 to 278 as far as that is finite in float32. Or of no element, where all are zero.

    >>> Powers(1.0, torch.tensor([0, 150, -151, 148], dtype=torch.int16)).decode(4)
    tensor([ 0.0000,  1.0000, -2.0000,  0.2500])
    """

    scale: float
    power: Tensor

    method = "powers"

    @staticmethod
    def contents(by: float, power: Tensor, scale: float) -> Contents:
        """Return the contents of a packet of all elements' powers, scaled by ``by``."""
        return Contents(None, Powers(by, power))

    @property
    def device(self) -> torch.device:
        """See Code."""
        return self.power.device

    def decode(self, sent: int) -> Tensor:
        """See Code. float64 scale times power, rounded to float32."""
        if self.power.numel() == 0:
            return torch.zeros(sent, device=self.device)
        return natural.power_values(self.power, self.scale)
