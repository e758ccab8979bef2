"""A codec under the emulator, whose packets are looked at late, as they are on a GPU."""

from __future__ import annotations

from functools import partial

from emu.select import Emu, Schedule

from gcext._codec_base import Sum, refuse
from gcext._codec_topk import TopK, count
from gcext._selected import Selected


class Late(TopK):
    """STC, with the kernels of CUDA."""

    def encode_sum(self, acc: Sum, seed: int) -> Selected:
        k = count(self.p, acc.tensor.numel())
        run = Emu(Schedule(tiny=0))
        index, value, info = run.select(acc.tensor, acc.memory, acc.out, k, 1.0, acc.decay)
        shape, dtype = tuple(acc.source.shape), acc.source.dtype
        return Selected("ternary", shape, dtype, index, value, info, partial(refuse, self.name))
