"""What a packet holds where it is not plain arrays: supports and value codes.

A *support* names the elements that travel: all of them (None), those of an index tensor, or
``Random``. A *value code* is what they became where they are not float32: ``Signs``, ``Levels``,
``Codes`` (tables.py), ``Powers`` (powers.py) or ``Polar`` (gcext.polar). Contents never change;
values are computed from them when asked for.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from dataclasses import fields as dataclass_fields
from typing import Any, ClassVar, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gcext._native import ops

__all__ = ["Code", "Contents", "Levels", "Levels2", "Merged", "Random", "Signs", "register_code"]
__all__ += ["signed"]

_Code = TypeVar("_Code", bound="Code")


class Contents(NamedTuple):
    """What a packet of one tensor holds.

    support: the elements that travel: None for all of them, their indices (int32, from 2^31
        elements on int64, rising), or ``Random``.
    coded: what they became: float32 values, or a value code.
    scale: of a ternary packet; 0 where it holds no element.
    """

    support: Tensor | Random | None
    coded: Tensor | Code
    scale: float = 0.0

    def sent(self, numel: int) -> int:
        """Return the elements of the support, of a source of ``numel``."""
        if self.support is None:
            return numel
        return self.support.numel() if isinstance(self.support, Tensor) else self.support.k

    def count(self, numel: int) -> int:
        """Return the elements of the support that have a value."""
        # Not "is it a Code": an abstract class takes long to answer.
        place = None if isinstance(self.coded, Tensor) else self.coded.place
        return self.sent(numel) if place is None else place.numel()

    def tensors(self) -> list[Tensor]:
        """Return all tensors among the contents."""
        coded = [self.coded] if isinstance(self.coded, Tensor) else self.coded.tensors()
        return [self.support, *coded] if isinstance(self.support, Tensor) else coded

    def map(self, move: Callable[[Tensor], Tensor]) -> Contents:
        """Return the contents with ``move`` applied to every tensor."""
        support = move(self.support) if isinstance(self.support, Tensor) else self.support
        coded = move(self.coded) if isinstance(self.coded, Tensor) else self.coded.map(move)
        return Contents(support, coded, self.scale)


@dataclass(frozen=True)
class Random:
    """A support of ``k`` elements drawn from ``seed``, any integer; csrc/support.h.

    >>> Random(seed=1, k=3).draw(10)
    tensor([1, 6, 7], dtype=torch.int32)
    """

    seed: int
    k: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "seed", int(self.seed) % 2**64)

    def draw(self, numel: int, device: torch.device | str = "cpu") -> Tensor:
        """Return the indices: rising, int32, from 2^31 elements int64; each is equally likely."""
        index = ops.random_support(self.seed, self.k, numel)
        if torch.device(device).type == "cuda":  # a copy from pageable memory would synchronize
            return index.pin_memory().to(device, non_blocking=True)
        return index.to(device)


@dataclass(frozen=True)
class Merged:
    """Which of the J parts of a merged packet hold which of its k elements: K entries.

    scales: float32 (J,), each part's scale, 0 where the part is empty.
    place: int64 (K,), element * J + part, rising.
    negative: uint8 (K,), 1 where that part has -scale there.
    """

    scales: npt.NDArray[np.float32]
    place: npt.NDArray[np.int64]
    negative: npt.NDArray[np.uint8]


class Code(ABC):
    """The values of a packet, in the order of the elements that its support names."""

    method: ClassVar[str]
    """The packet's method."""

    @property
    def place(self) -> Tensor | None:
        """Which of the support's elements are not zero; None where each has a value."""
        return None

    @property
    def limits(self) -> Tensor | None:
        """Floats whose largest magnitude no value is beyond; None where all values would tell."""
        return None

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where the contents are."""

    @abstractmethod
    def decode(self, sent: int) -> Tensor:
        """Return the values, float32: those at ``place``, or of all ``sent`` elements."""

    def fields(self) -> tuple[Any, ...]:
        """Return the fields in order."""
        return tuple(getattr(self, field.name) for field in dataclass_fields(self))  # type: ignore[arg-type]

    def tensors(self) -> list[Tensor]:
        """Return all tensors among the fields."""
        return [each for each in self.fields() if isinstance(each, Tensor)]

    def map(self: _Code, move: Callable[[Tensor], Tensor]) -> _Code:
        """Return the contents with ``move`` applied to every tensor."""
        return type(self)(*(move(x) if isinstance(x, Tensor) else x for x in self.fields()))


CODES: dict[str, type[Code]] = {}


def register_code(code: type[_Code]) -> type[_Code]:
    """Make packets of ``code.method`` decode to this class."""
    CODES[code.method] = code
    return code


@register_code
@dataclass(frozen=True, eq=False)
class Signs(Code):
    """Plus or minus one scale.

    scale: at least 0, a float32; 0 only where no bit is set.
    bits: uint8, element i is bit i & 7 of byte i >> 3 and a one is negative; zeros after the last.
        These are the bytes that travel.

    >>> Signs(0.5, torch.tensor([0b10], dtype=torch.uint8)).decode(3)
    tensor([ 0.5000, -0.5000,  0.5000])
    """

    scale: float
    bits: Tensor

    method = "sign"

    @staticmethod
    def contents(bits: Tensor, scale: float) -> Contents:
        """Return the contents of a packet of all elements' signs."""
        return Contents(None, Signs(scale, bits))

    @property
    def device(self) -> torch.device:
        """See Code."""
        return self.bits.device

    def decode(self, sent: int) -> Tensor:
        """See Code."""
        return signed(self.bits, sent, self.scale)


@register_code
@dataclass(frozen=True, eq=False)
class Levels(Code):
    """Norm times level over ``steps``: stochastic quantization, once the draws were made.

    QSGD (Alistarh et al. 2017), and with one step TernGrad (Wen et al. 2017).

    steps: s, from 1 to 2^15 - 1.
    bucket: elements that share a norm, in the order sent; 0 where one norm serves all.
    norms: float32, at least 0; one a bucket, or one in all; none of no element.
    at: the elements whose level is not 0, rising: int32, int64 where numel >= 2^31.
    level: int16, as long as ``at``, from -s to s and never 0.

    >>> norms = torch.tensor([1.0, 4.0])
    >>> code = Levels.of(torch.tensor([0, 2, -1, 0]), steps=2, bucket=2, norms=norms)
    >>> code.at, code.decode(4)
    (tensor([1, 2], dtype=torch.int32), tensor([ 1., -2.]))
    """

    steps: int
    bucket: int
    norms: Tensor
    at: Tensor
    level: Tensor

    method = "levels"

    @classmethod
    def of(cls, level: Tensor, steps: int, bucket: int, norms: Tensor) -> Levels:
        """Return the code of ``level``, one integer an element.

        A bucket that all elements fit into is the same as none.
        """
        at = torch.nonzero(level).flatten()
        if level.numel() < 2**31:
            at = at.to(torch.int32)
        bucket = bucket if bucket < level.numel() else 0
        return cls(steps, bucket, norms, at, level[at.long()].to(torch.int16))

    @classmethod
    def contents(
        cls, steps: int, bucket: int, norms: Tensor, at: Tensor, level: Tensor, scale: float
    ) -> Contents:
        """Return the contents of a packet of all elements' levels; it has no scale."""
        return Contents(None, cls(steps, bucket, norms, at, level))

    @property
    def place(self) -> Tensor:
        """See Code."""
        return self.at

    @property
    def limits(self) -> Tensor:
        """See Code."""
        return self.norms

    @property
    def device(self) -> torch.device:
        """See Code."""
        return self.level.device

    def decode(self, sent: int) -> Tensor:
        """See Code. float64 norm*level/steps, rounded to float32."""
        return ops.level_values(self.norms, self.at, self.level, self.bucket, self.steps)


@register_code
@dataclass(frozen=True, eq=False)
class Levels2(Levels):
    """Levels whose gaps and magnitudes travel in one prefix code: shorter for two steps and more.

    The fields are those of Levels.
    """

    method = "levels2"


def signed(bits: Tensor, n: int, scale: float | Tensor, run: int = 0) -> Tensor:
    """Return n float32 of sign bits: the scale, negative where the bit is set.

    Of several scales each serves ``run`` values, a multiple of 8.
    """
    if isinstance(scale, Tensor):
        run = run if len(scale) > 1 else -(-n // 8) * 8
        return ops.unpack_signs(bits, n, 0.0, scale.to(bits.device), run)
    return ops.unpack_signs(bits, n, scale, None, run)
