"""A pytest plugin: torch's own CUDA operators run on the CPU, on the very memory.

Preloaded, runtime.cpp lets torch allocate, copy, order streams and capture graphs; what it cannot
do is launch a kernel of torch. So every operator that would is queued on its stream, to be run on
CPU tensors over the same memory, and gcext's own go their way. Operators whose result has a size
that only the data know wait, as they do on a GPU.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map

RUNTIME = ctypes.CDLL(os.environ["FAKEGPU_RUNTIME"])
CALL = ctypes.CFUNCTYPE(None)
RUNTIME.fakegpu_call.argtypes = [ctypes.c_void_p, CALL]
RUNTIME.fakegpu_run.argtypes = RUNTIME.fakegpu_capturing.argtypes = [ctypes.c_void_p]
QUEUED: list[Any] = []  # a graph may call them at any time

# These launch nothing: they allocate, view the same memory in another way, or wait and read.
_NAMES = (
    "_local_scalar_dense _pin_memory _reshape_alias _unsafe_view alias as_strided detach empty "
    "empty_like empty_strided expand is_pinned new_empty new_empty_strided permute record_stream "
    "resize_ select set_ slice split split_with_sizes squeeze t transpose unbind unsqueeze "
    "view"
)
WITHOUT_KERNELS = set(_NAMES.split())
WAITS = {
    "_unique2",
    "equal",
    "index",
    "masked_select",
    "nonzero",
}  # for the device, before it knows its size

FEWER = ("REPLAYS", "CALLS")  # of a test module: the emulator is slow
SMALLER = 2_200_000  # elements of what a test module lists in SIZES: enough for select's last way
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


def on_meta(x: Any) -> Any:
    return x.to("meta") if isinstance(x, Tensor) else x


def buffer_for(x: Any) -> Any:
    """Return a tensor of CUDA with a tensor's layout."""
    if not isinstance(x, Tensor):
        return x
    return torch.empty_strided(x.size(), x.stride(), dtype=x.dtype, device="cuda")


def fill(buffer: Any, made: Any) -> None:
    """Copy the tensors of a result to those of its buffer, seen from the CPU."""
    for to, source in zip(tree_leaves(buffer), tree_leaves(made), strict=True):
        if isinstance(to, Tensor):
            to.copy_(source)


def queue(work: Callable[[], object]) -> None:
    """Run work when the current stream does, undisturbed by the mode."""

    def call() -> None:
        with _disable_current_modes():
            work()

    QUEUED.append(CALL(call))
    RUNTIME.fakegpu_call(torch.cuda.current_stream().cuda_stream, QUEUED[-1])


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
        to = torch.device(kwargs["device"]).type if kwargs.get("device") is not None else None
        reads = any(map(on_cuda, tree_leaves((args, kwargs))))
        launches = (reads or to == "cuda") and space != "gcext" and name not in WITHOUT_KERNELS
        if not launches or is_memcpy(name, args, kwargs.get("dtype")):
            return func(*args, **kwargs)
        if name in WAITS or to == "cpu":
            wait_for(func)
        work = self._here(func, args, kwargs)
        if to == "cpu":
            return work()
        if func._schema.is_mutable:
            queue(work)
            return kwargs.get("out", args[0]) if func._schema.returns else None
        if reads and name not in WAITS:
            meta = {**tree_map(on_meta, kwargs), **({"device": "meta"} if to else {})}
            made, later = func(*tree_map(on_meta, args), **meta), work
        else:  # random numbers are drawn in the order of the calls
            made = work()
            later = lambda: made  # noqa: E731
        buffer = tree_map(buffer_for, made)
        seen = tree_map(same_memory, buffer)
        queue(lambda: fill(seen, later()))
        return buffer

    @staticmethod
    def _here(func: Any, args: Any, kwargs: dict[str, Any]) -> Callable[[], Any]:
        """Return the call, on the CPU: what memory it sees is settled now."""
        if kwargs.get("device") is not None:
            kwargs = {**kwargs, "device": "cpu"}
        args, kwargs = tree_map(same_memory, (args, kwargs))
        return lambda: func(*args, **kwargs)


def wait_for(func: object) -> None:
    """Let the current stream catch up, where that may be."""
    stream = torch.cuda.current_stream().cuda_stream
    if torch.cuda.get_sync_debug_mode() == 2 or RUNTIME.fakegpu_capturing(stream):
        raise RuntimeError(f"fakegpu: {func} waits for the device.")
    RUNTIME.fakegpu_run(stream)


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
        sizes = getattr(module, "SIZES", None)
        if isinstance(sizes, list):
            sizes[:] = [min(size, SMALLER) for size in sizes]
    items[:] = [item for item in items if not (item.name.startswith(NOT_HERE) or is_slow(item))]


def is_slow(item: pytest.Item) -> bool:
    """Whether a test takes minutes here, and another one the same way through the kernels."""
    params = getattr(getattr(item, "callspec", None), "params", {})
    return bool(params.get("n") == 10**7 and params.get("dtype") not in (None, torch.float32))
