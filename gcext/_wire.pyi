"""The torch-free extension module: packets to bytes and back. Use gcext._packet.wire.

A packet is read by attribute: ``method``, ``shape``, ``dtype`` (its name, "torch." before it or
not), ``members`` of a group, or its ``joined`` (gcext._packet.joined) where it has one,
``_contents`` (where that is None, ``contents``) with ``support``, ``coded`` and ``scale``,
``merged`` with ``scales``, ``place`` and ``negative``, ``encoded`` with ``k``, ``scale`` and
``streams``. A support is None for all elements, an index array, or an object with ``seed`` and
``k``; coded is float32, or an object with the fields of the value code (gcext._packet.codes,
gcext.polar), of a sum ``terms``, packets. Arrays are NumPy's, tensors in host memory, or what an
object's ``numpy()`` returns; one-dimensional and contiguous.

A decoded packet is what ``build`` returns, called with ``method``, ``shape``, ``dtype``,
``support`` (a dict of ``seed`` and ``k`` where it is random), ``coded`` (a dict of the fields of a
value code, of a sum the list of its terms), ``scale``, ``merged`` and ``located`` (dicts), in this
order. Of a group it is called by name, with ``method``, ``members``, ``support`` and ``coded``: a
member is a packet, or of a sparse or ternary one a tuple of method, shape, dtype, k and scale,
whose pairs are the next k of the two arrays.
"""

from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

TILE: Final[int]
UNLIMITED: Final[int]  # in a budget
NO_DIM: Final[int]  # in expect: a dimension that no message can have

def isa() -> str: ...

# Lets packets be written and read on several threads, into memory that is used again: addresses of
# the functions of csrc/wire/lender.h, whose library must stay loaded.
def lend(threads: int, run: int, take: int, give: int) -> None: ...
def pack(packet: Any, digest: Callable[[memoryview], int]) -> bytes: ...
def unpack(
    message: bytes | bytearray | memoryview,
    digest: Callable[[memoryview], int],
    build: Callable[..., Any],
    expect: tuple[bool, Sequence[Sequence[int]]] | None = None,
    located: bool = False,  # of ternary packets with elements, only where their streams lie
    budget: tuple[int, int]
    | None = None,  # work, memory; None: the default, where a shape is pinned
) -> Any: ...

# Work and memory of a message, and those that are allowed by default; csrc/wire/budget.h.
def cost(
    message: bytes | bytearray | memoryview, digest: Callable[[memoryview], int]
) -> tuple[int, int]: ...
def default_budget(expect: tuple[bool, Sequence[Sequence[int]]], bytes: int) -> tuple[int, int]: ...

# Whether a block code holds ``most`` coefficients of each block of a matrix.
def fits_blocks(rows: int, cols: int, block: int, most: int) -> bool: ...
def merge(packets: Sequence[Any], build: Callable[..., Any]) -> Any: ...
def unmerge(packet: Any, build: Callable[..., Any]) -> list[Any]: ...

# The default budget admits the design of this polar code: docs/federated-server.md.
def expect_polar(level: int, tenth: int) -> None: ...

# The fields of a message as far as its structure can be read: dicts of name, offset, size (bytes),
# value (a number, or how many elements or bits an array has; -1: neither) and missing (bytes).
def trace(message: bytes | bytearray | memoryview) -> list[dict[str, Any]]: ...

# The kernels bits and rice, for tests and benchmarks.
def bits_pack(value: npt.NDArray[np.uint32], b: int) -> bytes: ...
def bits_unpack(plane: bytes, n: int, b: int) -> npt.NDArray[np.uint32]: ...
def rice_pack(
    index: npt.NDArray[np.int32] | npt.NDArray[np.int64], limit: int
) -> tuple[bytes, bytes, bytes]: ...
