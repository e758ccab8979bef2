"""A pytest plugin: torch's own CUDA operators run on the CPU, on the very memory.

Preloaded, runtime.cpp lets torch allocate, copy, order streams and capture graphs; what it cannot
do is launch a kernel of torch. So every operator that would is run on CPU tensors over the same
memory, after its stream has caught up, and gcext's own go their way.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

RUNTIME = ctypes.CDLL(os.environ["FAKEGPU_RUNTIME"])
for _name in ("fakegpu_run", "fakegpu_capturing"):
    getattr(RUNTIME, _name).argtypes = [ctypes.c_void_p]

# These launch nothing: they allocate, look at the same memory in another way, or wait and read.
WITHOUT_KERNELS = {
    *(
        "_local_scalar_dense",
        "_pin_memory",
        "_reshape_alias",
        "_unsafe_view",
        "alias",
        "as_strided",
    ),
    *("detach", "empty", "empty_like", "empty_strided", "expand", "is_pinned", "new_empty"),
    *(
        "new_empty_strided",
        "permute",
        "record_stream",
        "resize_",
        "select",
        "set_",
        "slice",
        "split",
    ),
    *("split_with_sizes", "squeeze", "t", "transpose", "unbind", "unsqueeze", "view"),
}
WAITS = {"equal", "index", "masked_select", "nonzero"}  # for the device, before it knows its size

FEWER = ("REPLAYS", "CALLS")  # of a test module: the emulator is slow
# The emulator runs a kernel in the thread that waits, with that thread's rounding.
NOT_HERE = ("test_keeps_denormals_where_the_caller_flushes_them",)


def on_cuda(x: object) -> bool:
    return isinstance(x, Tensor) and x.is_cuda


def same_memory(x: Any) -> Any:
    """Return a CUDA tensor as one of the CPU over the same memory; anything else as it is."""
    if not on_cuda(x):
        return x
    storage = x.untyped_storage()
    if storage.nbytes() == 0:
        return torch.empty(x.shape, dtype=x.dtype)
    memory = (ctypes.c_char * storage.nbytes()).from_address(storage.data_ptr())
    here = torch.frombuffer(memory, dtype=torch.uint8).untyped_storage()
    return torch.empty(0, dtype=x.dtype).set_(here, x.storage_offset(), x.size(), x.stride())


def to_device(x: Any) -> Any:
    """Return a CPU tensor as one of CUDA, without a wait."""
    if not isinstance(x, Tensor):
        return x
    there = torch.empty_strided(x.size(), x.stride(), dtype=x.dtype, device="cuda")
    same_memory(there).copy_(x)
    return there


def is_memcpy(name: str, args: Sequence[Any], dtype: torch.dtype | None) -> bool:
    """Whether torch copies without a kernel: between contiguous tensors of one dtype."""
    if name in ("clone", "_to_copy"):
        return bool(args[0].is_contiguous()) and dtype in (None, args[0].dtype)
    if name != "copy_":
        return False
    to, source = args[:2]
    alike = to.dtype == source.dtype and to.shape == source.shape
    return alike and bool(to.is_contiguous()) and bool(source.is_contiguous())


class OnTheCpu(TorchDispatchMode):
    """Runs what would launch a kernel of torch."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        space, name = func._schema.name.split("::")
        device = kwargs.get("device")
        target = device is not None and torch.device(device).type == "cuda"
        there = target or any(map(on_cuda, tree_leaves((args, kwargs))))
        if not there or space == "gcext" or name in WITHOUT_KERNELS:
            return func(*args, **kwargs)
        if is_memcpy(name, args, kwargs.get("dtype")):
            return func(*args, **kwargs)
        stream = torch.cuda.current_stream().cuda_stream
        if RUNTIME.fakegpu_capturing(stream):
            raise RuntimeError(f"fakegpu: {func} cannot be captured here.")
        if name in WAITS and torch.cuda.get_sync_debug_mode() == 2:
            raise RuntimeError(f"fakegpu: {func} waits for the device.")
        RUNTIME.fakegpu_run(stream)
        if device is not None:
            kwargs = {**kwargs, "device": "cpu"}
        out = func(*tree_map(same_memory, args), **tree_map(same_memory, kwargs))
        if func._schema.is_mutable:
            return kwargs.get("out", args[0])
        return out if device is not None and not target else tree_map(to_device, out)


def pytest_configure(config: pytest.Config) -> None:
    """Take torch's operators for the whole run."""
    torch.cuda.init()
    OnTheCpu().__enter__()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what the emulator cannot show, and repeat less."""
    for module in {item.module for item in items if isinstance(item, pytest.Function)}:
        for name in FEWER:
            if hasattr(module, name):
                setattr(module, name, 20)
    items[:] = [item for item in items if not item.name.startswith(NOT_HERE)]
