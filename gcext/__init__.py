"""gcext: gradient compression for PyTorch at the speed of memory.

A tensor becomes a packet, and a packet becomes bytes::

    packet = gcext.stc(tensor, p=0.01, residual=residual)  # exact top-k, ternary, error feedback
    message = packet.to_bytes()                            # real bytes, checksummed
    update = gcext.Packet.from_bytes(message, expect=tensor.shape).to_dense()
"""

from typing import TYPE_CHECKING as _TYPE_CHECKING
from typing import Any as _Any

try:
    import torch as _torch  # noqa: F401
except ModuleNotFoundError as error:
    raise ImportError(
        "gcext: torch >= 2.10 must be installed, found none. "
        "`pip install torch --index-url https://download.pytorch.org/whl/cpu` installs the CPU "
        "build, `pip install torch` the one with CUDA, several GB."
    ) from error

from gcext import aggregate, distributed, functional, polar
from gcext._codecs.base import Codec, register_codec
from gcext._codecs.input import CodecInput
from gcext._codecs.registry import codec, codecs, stc
from gcext._codecs.seeds import derive
from gcext._links.feedback import Diagnostics, ErrorFeedback
from gcext._links.link import Link
from gcext._links.lowrank import PowerSGD
from gcext._links.sender import Sender
from gcext._links.stages import Clip, LastValue, Lazy, MomentumCorrection, Stage, Trajectory
from gcext._native.library import build_info, release_memory
from gcext._packet.budget import Budget
from gcext._packet.errors import DecodeError
from gcext._packet.packet import Packet
from gcext._recipes import (
    Advice,
    Breakeven,
    MethodRow,
    Recipe,
    Schedule,
    advise,
    breakeven,
    methods,
    recipe,
    recipes,
    register_recipe,
)
from gcext._spec import option
from gcext.aggregate import combine, gram, register_aggregator
from gcext.aggregate._history import History
from gcext.aggregate._history_check import HistoryError

if _TYPE_CHECKING:
    from gcext import checkpoint, ddp
    from gcext.outer import OuterOptimizer

# These are imported when they are first used: some need an extra, all take time.
_ADAPTERS = (
    "checkpoint",
    "ddp",
    "flower",
    "fsdp",
    "horovod",
    "nvflare",
    "outer",
    "parameter_server",
)
_NEED = {"flower": "flwr", "nvflare": "nvflare"}  # what has to be there for them


def __getattr__(name: str) -> _Any:
    """Import an adapter by its name; ImportError, which names the extra, where that is missing."""
    from importlib import import_module

    if name in _ADAPTERS:
        return import_module(f"gcext.{name}")
    if name == "OuterOptimizer":
        return import_module("gcext.outer").OuterOptimizer
    raise AttributeError(f"module 'gcext' has no attribute {name!r}")


def __dir__() -> list[str]:
    """Return the names that getattr gives, without importing: adapters where their extra is."""
    from importlib.util import find_spec

    here = [name for name in _ADAPTERS if name not in _NEED or find_spec(_NEED[name]) is not None]
    return sorted({*globals(), *here, "OuterOptimizer"})


__version__: str = build_info()["gcext"]

__all__ = [
    "Advice",
    "Breakeven",
    "Budget",
    "Clip",
    "Codec",
    "CodecInput",
    "DecodeError",
    "Diagnostics",
    "ErrorFeedback",
    "History",
    "HistoryError",
    "LastValue",
    "Lazy",
    "Link",
    "MethodRow",
    "MomentumCorrection",
    "OuterOptimizer",
    "Packet",
    "PowerSGD",
    "Recipe",
    "Schedule",
    "Sender",
    "Stage",
    "Trajectory",
    "__version__",
    "advise",
    "aggregate",
    "breakeven",
    "build_info",
    "checkpoint",
    "codec",
    "codecs",
    "combine",
    "ddp",
    "derive",
    "distributed",
    "functional",
    "gram",
    "methods",
    "option",
    "polar",
    "recipe",
    "recipes",
    "register_aggregator",
    "register_codec",
    "register_recipe",
    "release_memory",
    "stc",
]
