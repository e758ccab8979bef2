"""PowerSGD: low-rank factors with error feedback and a warm start, for one worker or for many."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gcext._codecs.base import flatten
from gcext._codecs.input import CodecInput
from gcext._codecs.lowrank import (
    LowRankFactors,
    factor,
    fresh,
    next_start,
    orthonormal,
    project,
    rank_of,
)
from gcext._codecs.topk import Dense
from gcext._links.sender import Named, Sender
from gcext._links.slots import all_or_nothing
from gcext._native import ops
from gcext._packet.packet import Packet
from gcext._packet.transforms import lowrank_view, product
from gcext._spec import plain

__all__ = ["PowerSGD"]

_EXACT = Dense()


class _Held(NamedTuple):
    """What is kept of a name."""

    shape: tuple[int, ...]
    residual: Tensor | None  # float32, of that shape; None without feedback
    start: Tensor  # float32 (cols, rank): Q of the last step


class _Step(NamedTuple):
    """A matrix between project and finish."""

    held: _Held
    matrix: Tensor  # the gradient plus the residual
    left: Tensor | None = None
    right: Tensor | None = None  # this worker's


class PowerSGD(Sender):
    """Low-rank factors of each matrix, with error feedback and a warm start.

    PowerSGD (Vogels, Karimireddy & Jaggi 2019, arXiv:1905.13727). Of a tensor M as a matrix, its
    first dimension by all others, with the residual added:

        P = orth(mean of M Q);   Q = mean of M^T P;   decoded P Q^T;   e <- M - P (M^T P)^T

    and Q is kept by name for the next step, so that one product a step follows the leading singular
    vectors. A residual is each worker's own, by its own M^T P (Algorithm 2); the mean of those is
    what the decoded tensor lacks. (The authors' code and PyTorch's hook subtract the decoded mean;
    the mean of the residuals is the same.) Tensors whose factors would be no smaller, such as those
    of one dimension, are sent as float32 and leave no residual.

    One worker, or packets to a server, which may average them: ``compress``, as any sender. Many
    workers, two collectives: ``project``, ``factor`` and ``finish``, or ``reduce``, which calls
    them. The mean of P and of Q takes 4 rank (rows + cols) bytes, whatever the number of workers;
    the gradients' mean itself is what is factored, which no mean of packets is.

    Args:
        rank: columns of either factor.
        seed: of the first Q of each name. The same on all workers that reduce together.
        feedback: keep residuals.
        exact_below: see Sender.

    >>> import torch
    >>> state = PowerSGD(rank=1)
    >>> gradient = torch.outer(torch.arange(1.0, 5.0), torch.ones(6))
    >>> state.compress(gradient, "weight").to_dense().allclose(gradient)
    True
    >>> state.reduce({"weight": gradient, "bias": torch.ones(4)}, lambda flat: flat)["bias"]
    tensor([1., 1., 1., 1.])
    """

    codec: LowRankFactors

    def __init__(
        self, rank: int = 2, seed: int = 0, *, feedback: bool = True, exact_below: int = 0
    ) -> None:
        super().__init__(LowRankFactors(rank), seed, exact_below=exact_below)
        self.feedback = plain("PowerSGD", "feedback", bool, feedback)
        self._held: dict[str, _Held] = {}
        self._pending: dict[str, Any] = {}
        self._steps: dict[str, _Step | Tensor] = {}  # Tensor: float32, as it is

    def __repr__(self) -> str:
        held = f"{len(self._held)} names, {len(self._pending)} pending"
        return f"PowerSGD(rank={self.codec.rank}, {held})"

    def residual(self, name: str) -> Tensor:
        """Return a copy of a name's residual: float32, its tensor's shape; KeyError without one."""
        residual = self._held[name].residual
        if residual is None:
            raise KeyError(name)
        return residual.clone()

    # --- One worker: packets. ---

    def _encode(self, tensor: Tensor, name: str, seed: int | None) -> tuple[Packet, Any]:
        """See Sender."""
        return self._factor(tensor, name, self.codec.name)[:2]

    def _factor(
        self, tensor: Tensor, name: str, op: str
    ) -> tuple[Packet, _Held | None, _Held | None]:
        """Return the packet, what is held once it counts, and what is held now."""
        held = self._start(tensor, name)
        flat = flatten(tensor, op)
        if held is None:
            return _EXACT.encode_input(CodecInput(op, tensor, flat), 0), None, None
        out = None if held.residual is None else ops.new_like(held.residual)
        acc = CodecInput(op, tensor, flat, held.residual, out)
        packet, start = self.codec.encode_from(acc, held.start)
        return packet, _Held(held.shape, out, start), held

    def _encode_all(
        self, tensors: Mapping[str, Tensor], exact: Sequence[Packet]
    ) -> tuple[list[Packet], Mapping[str, Any]]:
        """See Sender."""
        made = {
            name: self._factor(tensor, name, f"{self.codec.name} {name!r}")
            for name, tensor in tensors.items()
        }
        packets = [packet for packet, _, _ in made.values()]
        now = _tensors(old for _, _, old in made.values())
        then = _tensors(new for _, new, _ in made.values())
        all_or_nothing([*exact, *packets], now, then)
        return packets, {name: new for name, (_, new, _) in made.items()}

    def _start(self, tensor: Tensor, name: str) -> _Held | None:
        """Return what is held of a name, at first zeros and a random start; None: send it as is."""
        self._check_shape(tensor, name)
        if (held := self._held.get(name)) is not None:
            return held
        rank = rank_of(tensor.shape, self.codec.rank)
        if rank == 0:
            return None
        seed = self._seeds.next(name)
        assert seed is not None
        with torch.inference_mode(False):  # later calls may be outside of it
            start = fresh(lowrank_view(tensor.shape)[1], rank, seed, tensor.device)
            zeros = torch.zeros(tensor.shape, device=tensor.device) if self.feedback else None
        return _Held(tuple(tensor.shape), zeros, start)

    def _check_shape(self, tensor: Tensor, name: str) -> None:
        """See Sender."""
        held = self._held.get(name)
        if held is not None and (held.shape, held.start.device) != (
            tuple(tensor.shape),
            tensor.device,
        ):
            raise ValueError(
                f"PowerSGD: {name!r} must stay {held.shape} on {held.start.device}, "
                f"got {tuple(tensor.shape)} on {tensor.device}. Use another name."
            )

    def _not_captured(self, commit: bool) -> str | None:
        """See Sender."""
        return "no replay would move its residuals on. Encode outside of it"

    def _commit(self, slots: Mapping[str, Any]) -> None:
        """See Sender."""
        self._held.update(slots)

    # --- Many workers: two collectives. ---

    def reduce(self, tensors: Named, mean: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """Return the mean of all workers' tensors, of low rank: project, factor and finish.

        mean: returns the mean over the workers of a flat float32 tensor, and may overwrite it.
            Every worker must call with tensors of the same names and shapes, in one order.
        """
        return self.finish(mean(self.factor(mean(self.project(tensors)))))

    def beside(self) -> PowerSGD:
        """Return a sender of the same residuals and starts, with a step of its own.

        So the steps of other names can be under way at once, such as of DDP's next bucket.
        """
        other = copy(self)
        other._steps = {}
        return other

    def project(self, tensors: Named) -> Tensor:
        """Begin a step: return this worker's P = M Q of all tensors, flat, to be averaged.

        Tensors that travel as they are follow after those. A step begun before, and not finished,
        is forgotten: nothing has changed.

        Args:
            tensors: as of ``compress``: by name, where a parameter stands for its gradient.

        Raises ValueError for a tensor or sum that is not finite (which synchronizes on CUDA), for
        another shape than before; RuntimeError where a name is pending. A worker that raises keeps
        its state, but the others may wait in the collective for it.
        """
        given = self._tensors(tensors)
        self._refuse_pending(given)
        steps: dict[str, _Step | Tensor] = {}
        for name, tensor in given.items():
            op = f"{self.codec.name} {name!r}"
            held = None if self._is_exact(tensor) else self._start(tensor, name)
            flat = flatten(tensor, op)
            out = None if held is None or held.residual is None else ops.new_like(held.residual)
            memory = None if held is None else held.residual
            total = CodecInput(op, tensor, flat, memory, out).add()
            steps[name] = (
                total.view(tensor.shape)
                if held is None
                else _Step(held, total.view(lowrank_view(held.shape)))
            )
        self._steps = steps
        return self._joined(lambda step: project(step.matrix, step.held.start), True)

    def factor(self, mean: Tensor) -> Tensor:
        """Return this worker's Q = M^T orth(P) of all matrices, flat, to be averaged.

        mean: of what all workers' ``project`` returned. Raises RuntimeError without one before.
        """
        parts = self._parts(mean, 0, True, "factor", "project")
        for name, part in parts.items():
            step = self._steps[name]
            if isinstance(step, Tensor):
                self._steps[name] = part.view(step.shape)
                continue
            left = orthonormal(part.view(len(step.matrix), -1))
            self._steps[name] = step._replace(left=left, right=factor(step.matrix, left))
        return self._joined(lambda step: step.right, False)

    def finish(self, mean: Tensor) -> dict[str, Tensor]:
        """Return the decoded mean of each tensor, float32; residuals and starts move on.

        mean: of what all workers' ``factor`` returned. Raises RuntimeError without one before.
        """
        parts = self._parts(mean, 1, False, "finish", "factor")
        decoded, held = {}, {}
        for name, step in self._steps.items():
            if isinstance(step, Tensor):
                decoded[name] = step.clone()
                continue
            assert step.left is not None and step.right is not None
            shape, residual, start = step.held
            right = parts[name].view(step.right.shape)
            decoded[name] = product(step.left, right).view(shape)
            if residual is not None:  # of this worker's own, Algorithm 2
                own = product(step.left, step.right)
                residual = torch.sub(step.matrix, own, out=own).view(shape)
            held[name] = _Held(shape, residual, next_start(start, right))
        with self._lock:
            self._held.update(held)
            self._seeds.used(self._steps)
        self._steps = {}
        return decoded

    def _joined(self, of: Callable[[_Step], Tensor | None], exact: bool) -> Tensor:
        """Return what ``of`` gives of each matrix, and then the other tensors where ``exact``."""
        parts = [of(step) for step in self._steps.values() if isinstance(step, _Step)]
        if exact:
            parts += [step for step in self._steps.values() if isinstance(step, Tensor)]
        flat = [part.reshape(-1) for part in parts if part is not None]
        return torch.cat(flat) if flat else torch.empty(0)

    def _parts(
        self, mean: Tensor, side: int, exact: bool, call: str, before: str
    ) -> dict[str, Tensor]:
        """Return the parts of a mean by name, in the order of ``_joined``."""
        matrices = {n: step for n, step in self._steps.items() if isinstance(step, _Step)}
        ready = all((step.left is not None) == (side == 1) for step in matrices.values())
        if not self._steps or not ready:
            raise RuntimeError(f"PowerSGD.{call}: must follow {before}. Call it first.")
        sizes = {
            n: step.matrix.shape[side] * step.held.start.shape[1] for n, step in matrices.items()
        }
        if exact:
            others = {n: step for n, step in self._steps.items() if isinstance(step, Tensor)}
            sizes.update({name: step.numel() for name, step in others.items()})
        if mean.dtype != torch.float32 or mean.shape != (sum(sizes.values()),):
            raise ValueError(
                f"PowerSGD.{call}: mean must be float32 of shape ({sum(sizes.values())},), as "
                f"{before} returned, got {mean.dtype} of {tuple(mean.shape)}."
            )
        return dict(zip(sizes, mean.split(list(sizes.values())), strict=True))  # type: ignore[no-untyped-call]

    # --- State. ---

    def state_dict(self) -> dict[str, Any]:
        """Return copies of all that is held, pending packets' included. Round-trips bit for bit."""
        with self._lock:
            return self._whole_state()

    def _whole_state(self) -> dict[str, Any]:
        return {
            "version": 1,
            "rank": self.codec.rank,
            "feedback": self.feedback,
            "exact_below": self.exact_below,
            "seeds": self._seeds.state_dict(),
            "held": {name: _state(held) for name, held in self._held.items()},
            "pending": {
                name: None if held is None else _state(held) for name, held in self._pending.items()
            },
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state; ValueError, and nothing changed, for one that does not fit."""
        with self._loading(state):
            self._load(state)

    def _load(self, state: dict[str, Any]) -> None:
        mine = self.state_dict()
        if set(state) != set(mine):
            raise ValueError(
                f"PowerSGD: state must have the keys {sorted(mine)}, got "
                f"{sorted(map(str, state))}. "
                "Load what state_dict returned."
            )
        for key in ("version", "rank", "feedback", "exact_below"):
            if state[key] != mine[key]:
                raise ValueError(
                    f"PowerSGD: {key} must be the state's {state[key]!r}, got {mine[key]!r}. "
                    "Construct with the same."
                )
        seeds = self._seeds.checked(state["seeds"])
        loaded: list[dict[str, Any]] = []
        for key in ("held", "pending"):
            if not isinstance(state[key], Mapping):
                raise ValueError(f"PowerSGD: {key} must be {{name: state}}. Check the file.")
            loaded.append(
                {
                    name: None if kept is None and key == "pending" else self._loaded(name, kept)
                    for name, kept in state[key].items()
                }
            )
        self._held, self._pending = loaded
        self._seeds.counts = seeds
        self._steps = {}

    def _loaded(self, name: object, kept: Any) -> _Held:
        """Return what a state holds of a name; ValueError where it does not fit."""
        try:
            shape, residual, start = (kept[key] for key in _Held._fields)
            shape = tuple(shape)
            fits = isinstance(name, str) and _is_float(
                start, (lowrank_view(shape)[1], rank_of(shape, self.codec.rank))
            )
            fits = fits and (_is_float(residual, shape) if self.feedback else residual is None)
        except (TypeError, KeyError, ValueError):
            fits = False
        if not fits:
            raise ValueError(
                f"PowerSGD: {name!r:.60} must have a shape, a residual and a start that fit it. "
                "Check the file."
            )
        return _Held(shape, None if residual is None else _copy(residual), _copy(start))


def _tensors(all_held: Iterable[_Held | None]) -> list[Tensor]:
    return [x for held in all_held if held for x in (held.residual, held.start) if x is not None]


def _state(held: _Held) -> dict[str, Any]:
    residual = None if held.residual is None else _copy(held.residual)
    return {"shape": held.shape, "residual": residual, "start": _copy(held.start)}


def _copy(tensor: Tensor) -> Tensor:
    with torch.inference_mode(False):  # later calls may be outside of it
        return tensor.detach().clone(memory_format=torch.contiguous_format)


def _is_float(tensor: Any, shape: tuple[int, ...]) -> bool:
    return (
        isinstance(tensor, Tensor)
        and tensor.dtype == torch.float32
        and tensor.layout is torch.strided
        and tuple(tensor.shape) == shape
    )
