"""The torch-free extension module: bodies as plain tuples. Use `gcext.wire`.

A body is a tuple of method code, dtype code, shape, and what the method needs:

    1 dense    value
    2 sparse   index, value
    3 ternary  index, value, scale
    4 merged   index, value, scales, place, negative     (gcext.wire.Members)

    6 random   support, value
    7 sign     support, scale, bits                                   (gcext.values.Signs)
    8 levels   support, steps, bucket, norms, at, level               (gcext.values.Levels)
    9 polar    support, message, block, kept, soft, scale, seed       (gcext.values.Polar)

and a group is (5, [bodies]). A ternary body whose streams a device has made is (3, dtype, shape,
(k, streams), scale), gcext.wire.Made; one that it shall open has a gcext.wire.Located in that
place. A support is None for all elements, an index array, or (seed, k) where
k elements are drawn. Arrays are one-dimensional and contiguous: value, scales, norms and a polar
code's scale float32, index and at int32 or int64, place int64, level int16, negative, bits,
message and streams uint8.
"""

from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

TILE: Final[int]
NO_DIM: Final[int]  # in expect: a dimension that no message can say

def isa() -> str: ...
def pack(body: tuple[Any, ...], digest: Callable[[memoryview], int]) -> bytes: ...
def unpack(
    message: bytes | bytearray | memoryview,
    digest: Callable[[memoryview], int],
    expect: tuple[bool, Sequence[Sequence[int]]] | None = None,
    closed: bool = False,  # ternary bodies with elements stay so
) -> tuple[Any, ...]: ...
def merge(
    dtype: int, shape: Sequence[int], bodies: Sequence[tuple[Any, ...]]
) -> tuple[Any, ...]: ...
def unmerge(body: tuple[Any, ...]) -> list[tuple[Any, npt.NDArray[np.float32], float]]: ...

# float32 of n sign bits: the scale, negative where the bit is set. Of several scales each serves a
# run of values, a multiple of 8.
def signs_unpack(
    bits: npt.NDArray[np.uint8], n: int, scale: float | npt.NDArray[np.float32], run: int = 0
) -> npt.NDArray[np.float32]: ...

# float32 of levels: norm * level / steps. at must rise below the elements that the norms cover.
def level_values(
    steps: int,
    bucket: int,
    norms: npt.NDArray[np.float32],
    at: npt.NDArray[np.int32] | npt.NDArray[np.int64],
    level: npt.NDArray[np.int16],
) -> npt.NDArray[np.float32]: ...

# The kernel rooms bits and rice, for tests and benchmarks.
def bits_pack(value: npt.NDArray[np.uint32], b: int) -> bytes: ...
def bits_unpack(plane: bytes, n: int, b: int) -> npt.NDArray[np.uint32]: ...
def rice_pack(
    index: npt.NDArray[np.int32] | npt.NDArray[np.int64], limit: int
) -> tuple[bytes, bytes, bytes]: ...
