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
    """Average a bucket's gradients over all ranks, compressed as the state's recipe says.

    For ``model.register_comm_hook(state, gcext.ddp.hook)``; DDP calls it. The future has the
    bucket's buffer, of the same dtype.

    Raises RuntimeError, on all ranks: gradients that are sparse, or single ones of the Python
    reducer; ValueError where the ranks' states do not go together. What happens to one rank alone
    comes through the future, and DDP raises it as a RuntimeError at the end of the backward pass,
    on all ranks; the model can go on with the next step.
    """
    return state.run(bucket)
