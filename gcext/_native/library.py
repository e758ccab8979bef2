"""Loads the native code, reports what was built, and knows which devices have kernels."""

from __future__ import annotations

import ctypes
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

__all__ = ["DTYPES", "DTYPE_NAMES", "VERSION", "build_info", "capturing", "current_stream"]
__all__ += ["memory_error", "release_memory", "require_device", "tensor_error", "touched"]

DTYPES: dict[torch.dtype, str] = {
    torch.float32: "float32",
    torch.float64: "float64",
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
}
DTYPE_NAMES = ", ".join(DTYPES.values())  # for errors

_HERE = Path(__file__).resolve().parents[1]  # the package


def _not_built(missing: str) -> str:
    """Return why there is no native code beside these modules, and what to do.

    Python looks in the current folder first, so there the sources hide an installed package. Its
    libraries are not taken in their stead: they may be of other sources.
    """
    places = (Path(entry or ".").resolve() / "gcext" for entry in sys.path)
    for installed in places:
        if installed != _HERE and (installed / "_build.json").exists():
            return (
                f"{_HERE} holds sources without native code and hides the package installed in "
                f"{installed}, since Python looks in {_HERE.parent} first. Leave that folder, use "
                "the command `gcext`, or run `pip install -e .` there."
            )
    return (
        f"its native code must be built, got no {missing}. Install torch and a C++17 compiler, "
        f"then run `pip install -e .` in {_HERE.parent}."
    )


def _load() -> tuple[dict[str, str], str]:
    """Load the libraries; return the build's record and why CUDA is off ("" where it is on)."""
    try:
        build = json.loads((_HERE / "_build.json").read_text())
        import gcext._wire as _wire

        _wire.isa()  # raises what GCEXT_ISA has wrong, before a kernel could
        torch.ops.load_library(str(_HERE / "_ops.so"))  # type: ignore[no-untyped-call]
    except FileNotFoundError as error:
        raise ImportError(f"gcext: {_not_built(error.filename)}") from error
    ops = ctypes.CDLL(str(_HERE / "_ops.so"))
    _wire.lend(*map(_address, (ops.gcext_threads, ops.gcext_run, ops.gcext_take, ops.gcext_give)))
    if build["cuda_why"]:
        return build, build["cuda_why"]
    if torch.version.cuda is None:
        return build, f"torch {torch.__version__} has no CUDA; install a CUDA build of torch"
    try:
        torch.ops.load_library(str(_HERE / "_cuda.so"))  # type: ignore[no-untyped-call]
    except OSError as error:
        return build, f"_cuda.so could not be loaded: {error}"
    if not torch.cuda.is_available():
        return build, "torch finds no CUDA device; see nvidia-smi"
    _load_kernels()
    return build, ""


def _address(function: Any) -> int:
    """Return where a function of a loaded library is."""
    return cast("int", ctypes.cast(function, ctypes.c_void_p).value)


def _load_kernels() -> None:
    """Load the kernels on the devices that have a context; on others the first operator does.

    To import gcext must not make one: it takes memory on a device that may be another process's.
    """
    has_context = getattr(torch._C, "_cuda_hasPrimaryContext", None)
    if has_context is None or not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return
    for device in range(torch.cuda.device_count()):
        if has_context(device):
            torch.ops.gcext.load_kernels.default(device)


_BUILD, _WHY_NO_CUDA = _load()
VERSION = _BUILD["version"]


def build_info() -> dict[str, Any]:
    """Return what runs here: instruction set, threads, CUDA architectures, versions.

    ``why_no_cuda`` says why CUDA tensors cannot be encoded and what to do; it is empty where they
    can.

    >>> import gcext
    >>> sorted(gcext.build_info())[:3]
    ['compiler', 'cuda', 'cuda_archs']
    """
    import gcext._wire as _wire

    return {
        "gcext": VERSION,
        "torch": torch.__version__,
        "isa": _wire.isa(),
        "isas_built": _BUILD["isas"].split(";"),
        "threads": torch.get_num_threads(),
        "compiler": _BUILD["compiler"],
        "cuda": not _WHY_NO_CUDA,
        "cuda_archs": _BUILD["cuda_archs"].split(";") if _BUILD["cuda_compiler"] else [],
        "cuda_compiler": _BUILD["cuda_compiler"],
        "why_no_cuda": _WHY_NO_CUDA,
    }


def release_memory(idle: float = 0.0) -> int:
    """Free the memory of the CPU kernels that is kept for later calls; return how many bytes.

    Scratch, and packets and dense results that nobody has any more, are used again, because fresh
    memory costs more than the kernels themselves. What was in use at once is kept, until calls had
    no use for it for a minute; a sender that goes frees all of it.

    Args:
        idle: seconds; what had a use since then stays.

    >>> import gcext
    >>> gcext.release_memory() >= 0
    True
    """
    if not idle >= 0:
        raise ValueError(f"release_memory: idle must be at least 0 seconds, got {idle}.")
    freed: int = torch.ops.gcext.release_memory.default(float(idle))
    return freed


def tensor_error(op: str, given: Any) -> TypeError:
    """Return the error that something else than a tensor was passed."""
    return TypeError(
        f"{op}: tensor must be a torch.Tensor, got {type(given).__name__}. "
        "Convert it with torch.as_tensor."
    )


def require_device(tensor: Tensor, op: str) -> None:
    """Raise RuntimeError with the remedy where no kernel serves the tensor's device."""
    if tensor.device.type == "cuda" and _WHY_NO_CUDA:
        raise RuntimeError(f"{op}: CUDA kernels are off: {_WHY_NO_CUDA}. Or move to the CPU.")
    if tensor.device.type not in ("cpu", "cuda"):
        raise ValueError(
            f"{op}: tensor must be on cpu or cuda, got {tensor.device}. Move it with .cpu()."
        )


def current_stream(device: torch.device) -> torch.Stream | None:
    """Return the stream that work on the device goes to; None on the CPU.

    Of torch.accelerator, which takes a seventh of torch.cuda's time.
    """
    return torch.accelerator.current_stream(device.index) if device.type == "cuda" else None


def capturing() -> bool:
    """Return whether a CUDA graph is being captured on the current stream."""
    initialized: bool = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return initialized and torch.cuda.is_current_stream_capturing()


def touched(tensors: Sequence[Tensor]) -> None:
    """Record for autograd that an operator wrote to the tensors; the stable ABI does not."""
    torch.autograd.graph.increment_version([x for x in tensors if not x.is_inference()])


def memory_error(op: str, error: RuntimeError) -> MemoryError | None:
    """Return the MemoryError that a failed allocation of torch amounts to; None for others."""
    texts = ("can't allocate memory", "std::bad_alloc")  # torch's, and C++'s through its operators
    if isinstance(error, torch.OutOfMemoryError) or any(text in str(error) for text in texts):
        return MemoryError(f"{op}: no memory: {error}. Encode in parts.")
    return None
