"""Compression in DistributedDataParallel: a communication hook for every recipe that fits."""
# No `from __future__ import annotations`: torch compares the hook's annotations with types.

from typing import Any

import torch
import torch.distributed
from torch.futures import Future

from gcext.ddp._state import State

GradBucket: Any = getattr(torch.distributed, "GradBucket", Any)  # a torch may lack it

__all__ = ["State", "hook"]


def hook(state: State, bucket: GradBucket) -> Future[torch.Tensor]:
    """Average a bucket's gradients over all ranks, compressed as the state's recipe says."""
    return state.run(bucket)
