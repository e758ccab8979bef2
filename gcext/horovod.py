"""Horovod's and BytePS' interface: ``compress(tensor) -> (tensor, ctx)`` and ``decompress``.

The engine sums what ``compress`` returns over all ranks, so only linear codecs fit: a 16-bit float,
the same random elements on all ranks, the same count sketch. Horovod is not needed to import this,
and nothing here was run with Horovod itself.
"""

from __future__ import annotations

import operator
from abc import ABC, abstractmethod
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor

from gcext._codecs.base import flatten
from gcext._codecs.seeds import derive
from gcext._codecs.sketch import CountSketch
from gcext._codecs.topk import RandomK, count_of
from gcext._native import sketch
from gcext._native.status import is_ok
from gcext._packet.codes import Random
from gcext._packet.state import loading
from gcext._recipes import recipes
from gcext._spec import plain

__all__ = ["Compression"]


class _None:
    """Nothing is changed."""

    @staticmethod
    def compress(tensor: Tensor) -> tuple[Tensor, Any]:
        """Return the tensor as it is."""
        return tensor, None

    @staticmethod
    def decompress(tensor: Tensor, ctx: Any) -> Tensor:
        """Return the tensor as it is."""
        return tensor


class _Float16:
    """Floating tensors travel as float16; beyond 65504 they become infinite, the sum as well."""

    dtype = torch.float16

    @classmethod
    def compress(cls, tensor: Tensor) -> tuple[Tensor, Any]:
        """Return the tensor in 16 bits, and its dtype."""
        return tensor.to(cls.dtype) if tensor.dtype.is_floating_point else tensor, tensor.dtype

    @staticmethod
    def decompress(tensor: Tensor, ctx: Any) -> Tensor:
        """Return the tensor in its first dtype."""
        return tensor.to(ctx)


class _Bfloat16(_Float16):
    """Floating tensors travel as bfloat16."""

    dtype = torch.bfloat16


class _Context(NamedTuple):
    """What ``decompress`` needs: of the source, and the seed of its step."""

    shape: torch.Size
    dtype: torch.dtype
    seed: int


class _Linear(ABC):
    """A linear map drawn anew each step, from a seed that all ranks share.

    The interface names no tensors, and the ranks' engines may ask for them in any order, so all
    tensors of one size get the same map within a step. A step begins with the first ``compress``
    after a ``decompress``: an engine compresses all gradients of a backward pass, and decompresses
    them before the optimizer's step. On ranks that do otherwise the maps would differ.
    """

    def __init__(self, seed: int = 0, exact_below: int = 1024) -> None:
        self.seed = plain("Compression", "seed", int, seed)
        self.exact_below = plain("Compression", "exact_below", int, exact_below)
        self._step, self._ended = 0, False

    def compress(self, tensor: Tensor) -> tuple[Tensor, _Context | None]:
        """Return what the engine is to sum, flat, and the context for ``decompress``.

        Raises ValueError for a tensor that is not strided or of no float dtype.
        """
        flat = flatten(tensor, f"Compression.{type(self).__name__.lower()}")
        if self._ended:
            self._step, self._ended = self._step + 1, False
        if not max(self.exact_below, self._size(flat.numel()) + 1) <= flat.numel():
            return tensor, None
        seed = derive(self.seed, "step", self._step, flat.numel())
        return self._project(flat, seed), _Context(tensor.shape, tensor.dtype, seed)

    def decompress(self, tensor: Tensor, ctx: _Context | None) -> Tensor:
        """Return the estimate of the sum (or mean), in the source's shape and dtype."""
        self._ended = True
        if ctx is None:
            return tensor
        estimate = self._estimate(tensor, ctx.shape.numel(), ctx.seed)
        return estimate.view(ctx.shape).to(ctx.dtype)

    @abstractmethod
    def _size(self, n: int) -> int:
        """Return the elements that travel of n."""

    @abstractmethod
    def _project(self, flat: Tensor, seed: int) -> Tensor:
        """Return what travels of a flat float32 tensor."""

    @abstractmethod
    def _estimate(self, sent: Tensor, n: int, seed: int) -> Tensor:
        """Return the n elements that a sum of projections stands for."""

    def state_dict(self) -> dict[str, Any]:
        """Return the count of steps; the same on all ranks."""
        return {"seed": self.seed, "step": self._step, "ended": self._ended}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state; ValueError for another seed's."""
        with loading("Compression", state):
            if set(state) != set(self.state_dict()) or state["seed"] != self.seed:
                raise ValueError(
                    f"Compression: state must be of seed {self.seed}, got {state!r:.100}. "
                    "Construct with the same seed."
                )
            self._step, self._ended = operator.index(state["step"]), bool(state["ended"])


class _RandomK(_Linear):
    """The same share p of random elements on all ranks, times n/k; see gcext's codec randomk.

    Unbiased, but its variance is 1/p times the gradient's square: no memory makes up for what is
    not drawn, as the interface names no tensors.
    """

    def __init__(self, p: float = 0.01, seed: int = 0, exact_below: int = 1024) -> None:
        super().__init__(seed, exact_below)
        self.p = RandomK(p).p

    def __call__(self, p: float = 0.01, seed: int = 0, exact_below: int = 1024) -> _RandomK:
        """Return one with other options, and steps of its own.

        p: share of the elements, in (0, 1]. seed: the same on all ranks. exact_below: smaller
        tensors travel whole.
        """
        return _RandomK(p, seed, exact_below)

    def _size(self, n: int) -> int:
        return count_of(self.p, n)

    def _project(self, flat: Tensor, seed: int) -> Tensor:
        index = Random(seed, self._size(flat.numel())).draw(flat.numel(), flat.device)
        return flat.index_select(0, index)

    def _estimate(self, sent: Tensor, n: int, seed: int) -> Tensor:
        index = Random(seed, sent.numel()).draw(n, sent.device)
        return sent.new_zeros(n).index_copy_(0, index.long(), sent * (n / sent.numel()))


class _Sketch(_Linear):
    """A count sketch of the same hashes on all ranks; see gcext's codec sketch.

    Elements far above ``|x|_2/sqrt(cols)`` are found again, the others decode to noise.
    """

    def __init__(
        self, p: float = 0.1, rows: int = 5, seed: int = 0, exact_below: int = 1024
    ) -> None:
        super().__init__(seed, exact_below)
        self._codec = CountSketch(rows=rows, p=p)

    def __call__(
        self, p: float = 0.1, rows: int = 5, seed: int = 0, exact_below: int = 1024
    ) -> _Sketch:
        """Return one with other options, and steps of its own.

        p: sums over elements, in (0, 1]. rows: hashes, 1 to 64. seed, exact_below: as randomk.
        """
        return _Sketch(p, rows, seed, exact_below)

    def _size(self, n: int) -> int:
        return self._codec.rows * self._codec.columns(n)

    def _project(self, flat: Tensor, seed: int) -> Tensor:
        kind = self._codec.rows, self._codec.columns(flat.numel()), seed
        table, info = sketch.sketch(flat, None, *kind)
        # Raising here would leave the other ranks waiting in the engine: all get NaN instead.
        return torch.where(is_ok(info), table, torch.nan)

    def _estimate(self, sent: Tensor, n: int, seed: int) -> Tensor:
        return sketch.sketch_query(sent, None, n, self._codec.rows, self._codec.columns(n), seed)


class _Names(type):
    """Refuses the methods that no sum fits, by their names."""

    def __getattr__(cls, name: str) -> NoReturn:
        if name in recipes():
            raise ValueError(
                f"Compression: {name} must not be summed by an engine, which only suits none, "
                "fp16, bf16, randomk and sketch. Use gcext.ddp.hook, or gcext.parameter_server."
            )
        raise AttributeError(f"type object {cls.__name__!r} has no attribute {name!r}")


class Compression(metaclass=_Names):
    """Compressors for ``hvd.DistributedOptimizer(..., compression=)``, and for BytePS' alike.

    * ``none``, ``fp16``, ``bf16``: as they are.
    * ``randomk``, ``randomk(p=0.01, seed=0, exact_below=1024)``: the same random elements on all
      ranks, others each step.
    * ``sketch``, ``sketch(p=0.1, rows=5, seed=0, exact_below=1024)``: a count sketch, likewise.

    Any other method of gcext's is a ValueError that points to what it runs on.

    Raises ValueError for options out of range, or a method that is not linear.

    >>> import gcext.horovod, torch
    >>> compression = gcext.horovod.Compression.randomk(p=0.5, seed=1, exact_below=0)
    >>> sent, ctx = compression.compress(torch.arange(6.0))  # three of them
    >>> compression.decompress(sent + sent, ctx)  # the engine's sum over two ranks
    tensor([ 0.,  0.,  0.,  0., 16., 20.])
    >>> gcext.horovod.Compression.stc
    Traceback (most recent call last):
    ValueError: Compression: stc must not be summed by an engine, ...
    """

    none = _None
    fp16 = _Float16
    bf16 = _Bfloat16
    randomk = _RandomK()
    sketch = _Sketch()
