"""The state of the communication hook: a recipe's ends on this rank, by parameter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.futures import Future
from torch.nn import Module

from gcext._codecs.seeds import derive
from gcext._links.link import LowRankLink
from gcext._links.lowrank import PowerSGD
from gcext._recipes.recipe import Recipe
from gcext._recipes.recipe import recipe as make_recipe
from gcext._spec import plain
from gcext.ddp._checkpoint import pack, read, unpack
from gcext.ddp._exchange import Exchange, Method, NonFiniteError
from gcext.ddp._fit import gradients, refuse
from gcext.ddp._names import Names
from gcext.ddp._packets import Packets
from gcext.ddp._reduce import AllReduce, LowRank
from gcext.distributed import check_alike, gather_objects, place

if TYPE_CHECKING:
    from torch._C._distributed_c10d import GradBucket
    from torch.amp import GradScaler
    from torch.distributed import ProcessGroup

__all__ = ["State"]

_VECTORS = 64  # vectors are sent exactly up to so many times exact_below


class State:
    """A recipe's ends on this rank, for ``gcext.ddp.hook``: one for each model in DDP.

    Residuals and all else are kept by parameter, never by bucket: DDP makes its buckets anew after
    the first step. All parameters of a bucket are encoded in one call, and its packet is under way
    while the backward pass goes on. Every rank gets the packets of all ranks and adds them up in
    rank order, so all have the same bits. A step counts on all ranks or on none.

    Recipes that only average, in 32 or (of more than two ranks) 16 bits, and ``powersgd``, use
    all-reduces. The way down of a recipe is not used. Matrices of fewer than ``exact_below``
    elements travel as float32, and so do vectors (biases, norms) of fewer than 64 times that;
    by methods that vote, everything goes by the codec.

    Args:
        recipe: or its spec. Refused are those that need losses, many local steps or a server.
        process_group: DDP's; None: all ranks.
        module: names the residuals by its parameters' names, without ``module.``; None: by the
            order in which the first step has the parameters, the same in every start.
        exact_below: see above; 0: everything goes by the codec.
        seed: the same on all ranks; of stochastic codecs each rank's own is derived from it.
        nonfinite: where a rank's gradient is not finite, "raise" a RuntimeError on all ranks that
            names the rank and the parameter; or "propagate": on all ranks all gradients become
            NaN, of recipes that only average those elements that are not finite on a rank, and a
            GradScaler skips the step. Either way no residual changes.
        scaler: divide gradients by its scale before they meet the residual, and multiply after;
            needed with a GradScaler whose scale changes.
        round_steps: steps of the schedule's round, for a warm-up of p in epochs.

    Attributes:
        steps: that counted.
        sent_bytes: that this rank gave to collectives so far, lengths and padding included: of
            gathers its messages, of all-reduces the tensor.
        received_bytes: so far: of gathers the messages of all other ranks, of all-reduces what a
            ring moves each way, ``2 (W - 1)/W`` of the tensor. With a ring, what the link carries.
        step_sent_bytes: of the last step.
        step_received_bytes: of the last step.

    Raises ValueError for an option or a recipe that does not fit, RuntimeError where
    torch.distributed is not initialized.

    >>> import gcext, torch
    >>> import torch.distributed as dist
    >>> dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    >>> model = torch.nn.Linear(100, 100)
    >>> ddp = torch.nn.parallel.DistributedDataParallel(model)
    >>> state = gcext.ddp.State("stc:p=0.01", module=ddp)
    >>> ddp.register_comm_hook(state, gcext.ddp.hook)
    >>> ddp(torch.ones(8, 100)).sum().backward()
    >>> int(model.weight.grad.count_nonzero()), int(model.bias.grad.count_nonzero())
    (100, 100)
    >>> del ddp  # before its process group, whose threads torch could not end otherwise
    >>> dist.destroy_process_group()
    """

    def __init__(
        self,
        recipe: Recipe | str,
        process_group: ProcessGroup | None = None,
        *,
        module: Module | None = None,
        exact_below: int = 1024,
        seed: int = 0,
        nonfinite: str = "raise",
        scaler: GradScaler | None = None,
        round_steps: int = 1,
    ) -> None:
        made = make_recipe(recipe)
        self.recipe = made
        self._group = process_group
        self.exact_below = plain("ddp.State", "exact_below", int, exact_below)
        self.seed = plain("ddp.State", "seed", int, seed)
        self.round_steps = plain("ddp.State", "round_steps", int, round_steps)
        for key, number, least in (
            ("exact_below", self.exact_below, 0),
            ("round_steps", self.round_steps, 1),
        ):
            if number < least:
                raise ValueError(f"ddp.State: {key} must be at least {least}, got {number}.")
        if module is not None and not isinstance(module, Module):
            raise TypeError(
                f"ddp.State: module must be a torch.nn.Module, got {type(module).__name__}."
            )
        if nonfinite not in ("raise", "propagate"):
            raise ValueError(
                f"ddp.State: nonfinite must be 'raise' or 'propagate', got {nonfinite!r}."
            )
        self.nonfinite = nonfinite
        self.scaler = scaler
        self.steps = 0
        self.sent_bytes = self.received_bytes = 0
        self.step_sent_bytes = self.step_received_bytes = 0
        refuse(made, str(recipe))
        self._rank, world = place("ddp.State", process_group)
        self._method = self._make_method(world)
        self._names = Names(module)
        self._open: list[_Bucket] = []
        self._agreed = False
        self._broken: Exception | None = None

    def __repr__(self) -> str:
        made = f"{type(self._method).__name__} of {self.recipe.up!r}"
        return f"ddp.State({made}, {self.steps} steps, {len(self._names)} parameters)"

    @property
    def encode_seconds(self) -> float:
        """Time spent so far on encoding, in the thread of the backward pass."""
        return self._method.seconds["encode"]

    @property
    def decode_seconds(self) -> float:
        """Time spent so far on decoding and averaging, most of it beside the backward pass."""
        return self._method.seconds["decode"]

    def _make_method(self, world: int) -> Method:
        up, group = self.recipe.up, self._group
        if dtype := up.reduced(world):
            return AllReduce(group, dtype, self.nonfinite == "raise")
        # PowerSGD's first Q must be the same on all ranks, other random numbers never.
        alike = isinstance(up, LowRankLink)
        sender = up.sender(self.seed if alike else derive(self.seed, self._rank))
        if up.takes_dense:
            sender.exact_below = self.exact_below
            sender.exact_vectors_below = _VECTORS * self.exact_below
        if isinstance(sender, PowerSGD):
            return LowRank(group, sender)
        return Packets(group, self.recipe, sender)

    # --- Steps. ---

    def run(self, bucket: GradBucket) -> Future[Tensor]:
        """Begin to average a bucket; after the step's last one, wait for all."""
        if isinstance(bucket, tuple):
            raise RuntimeError(
                "ddp.hook: needs the buckets of DDP's own reducer, got a gradient of its Python "
                'one. Set torch._dynamo.config.optimize_ddp = "ddp_optimizer".'
            )
        if bucket.index() != len(self._open):
            raise RuntimeError(
                f"ddp.hook: buckets must come in order, got number {bucket.index()} after "
                f"{len(self._open)} others. Use one State for each model; where a backward pass "
                "ended early, call abort()."
            )
        flat = bucket.buffer()
        if flat.layout is not torch.strided:
            raise RuntimeError(
                f"ddp.hook: gradients must be dense, got {flat.layout}. Construct the embedding "
                "with sparse=False."
            )
        if self._broken is not None:
            raise RuntimeError(
                "ddp.hook: an earlier step failed on this rank, and may have counted on others. "
                "Start all ranks from a checkpoint."
            ) from self._broken
        if not self._agreed:
            self._agree()
        views = {self._names.of(p): g for p, g in gradients(bucket)}
        if not self._open:
            self._method.begin_step(self.steps // self.round_steps + 1)
        scale = 1.0 if self.scaler is None else self.scaler.get_scale()
        outs = views
        if scale != 1 and not isinstance(self._method, AllReduce):
            outs = {name: view.float() / scale for name, view in views.items()}
        opened = _Bucket(flat, views, outs, scale, self._method.begin(outs, flat))
        self._open.append(opened)
        if bucket.is_last():
            self._finish()
        return opened.future

    def abort(self) -> None:
        """Forget a step that has begun and cannot end; all ranks must do so."""
        for each in self._open:
            each.exchange.settle()
        self._method.rollback()
        self._open = []

    def _finish(self) -> None:
        """End the step: second collectives in the order of buckets, then all or nothing."""
        opened, self._open = self._open, []
        exchanges = [each.exchange for each in opened]
        error: Exception | None = None
        try:
            good = [each.advance() for each in exchanges]
            if all(good):
                good = [each.confirm() for each in exchanges]
            if all(good):
                for bucket in opened:
                    bucket.finish()
                self._method.commit()
                self.steps += 1
            else:
                self._method.rollback()
                error = self._failure(exchanges)
                for bucket in opened:
                    bucket.flat.fill_(torch.nan)
        except Exception as wrong:
            # Of the backend, or of this rank alone, such as no memory to decode: the others may
            # have counted the step, so this rank must not go on.
            for each in exchanges:
                each.settle()
            self._method.rollback()
            error = self._broken = wrong
        self.step_sent_bytes = sum(each.sent_bytes for each in exchanges)
        self.step_received_bytes = sum(each.received_bytes for each in exchanges)
        self.sent_bytes += self.step_sent_bytes
        self.received_bytes += self.step_received_bytes
        for bucket in opened:
            bucket.end(error)

    def _failure(self, exchanges: Sequence[Exchange]) -> Exception | None:
        """Return what all ranks raise, once all know why; None where NaN is to go through."""
        errors = [each.error for each in exchanges if each.error]
        finite = any(not isinstance(each, NonFiniteError) for each in errors)
        everyone = gather_objects((str(errors[0]) if errors else "", finite), self._group)
        if self.nonfinite == "propagate" and not any(finite for _, finite in everyone):
            return None
        text = "the sum over the ranks is not finite."
        for rank, (theirs, _) in reversed([*enumerate(everyone)]):
            text = f"rank {rank}: {theirs}" if theirs else text
        return RuntimeError(f"ddp.hook: {text} No rank's residuals have changed.")

    def _agree(self) -> None:
        """Raise on all ranks where their states do not go together, before the first step."""
        # PowerSGD's first Q comes of the seed and the names.
        mine = {
            "nonfinite": self.nonfinite,
            "steps": self.steps,
            "seed": self.seed,
            "round_steps": self.round_steps,
            "scaler": self.scaler is not None,
            "module": self._names.of_module,
        }
        check_alike("ddp.hook", self._options() | mine, self._group)
        self._agreed = True

    # --- Checkpoints. ---

    def state_dict(self) -> dict[str, Any]:
        """Return this rank's residuals and all else that later steps depend on.

        ``world_size``, and under ``rank0`` or the like the rest as bytes: the keys of all ranks
        differ, so that torch.distributed.checkpoint keeps each rank's own. Raises RuntimeError
        within a step.
        """
        if self._open:
            raise RuntimeError(
                "ddp.State.state_dict: must be called between steps, got a step under way."
            )
        held = {
            **self._options(),
            "steps": self.steps,
            "names": self._names.state(),
            "method": self._method.state_dict(),
        }
        return pack(held, self._method.world, self._rank)

    def _options(self) -> dict[str, Any]:
        """Return what a checkpoint must agree with."""
        return {"recipe": repr(self.recipe), "exact_below": self.exact_below}

    def load_state_dict(self, state: Mapping[str, Any], redistribute: bool = False) -> None:
        """Go on from what ``state_dict`` returned; before the first step of this object.

        Args:
            state: of this rank; or of all ranks, ``{**state0, **state1, ...}``.
            redistribute: allow another world size: then every rank needs the states of all old
                ranks and gets the mean of their residuals, whose mean over the ranks stays.

        Raises ValueError, and nothing is changed, for a state that does not fit: of another world
        size, recipe or ``exact_below``, or one that cannot be redistributed.
        """
        world, rank = self._method.world, self._rank
        all_held = unpack(state, world, rank, redistribute, self._options())
        held = all_held[0]
        self._names.check(held["names"])
        method = [each["method"] for each in all_held]
        self._method.load_state_dict(
            method[0] if state["world_size"] == world else self._method.merged(method)
        )
        self._names.load(held["names"])
        self.steps, self._agreed = held["steps"], False

    def load_checkpoint(
        self, checkpoint_id: str | PathLike[str], key: str = "ddp", redistribute: bool = False
    ) -> None:
        """Load from a folder that ``torch.distributed.checkpoint.save({key: state, ...})`` wrote.

        As ``torch.distributed.checkpoint.load({key: state})``, but a checkpoint of another world
        size is an error that names both, or is redistributed as ``load_state_dict`` does. All ranks
        must call.
        """
        rank = self._rank
        state = read(checkpoint_id, key, self._method.world, rank, self._group)
        self.load_state_dict(state, redistribute)

    def __getstate__(self) -> dict[str, Any]:
        """Return a pickle without process group and module: names go by the order of buckets."""
        if self.scaler is not None:
            raise TypeError("ddp.State: must have no scaler to be pickled. Use state_dict.")
        options = {
            "recipe": self.recipe,
            "exact_below": self.exact_below,
            "seed": self.seed,
            "nonfinite": self.nonfinite,
            "round_steps": self.round_steps,
        }
        return {"options": options, "state": self.state_dict()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state["options"])  # type: ignore[misc]
        self.load_state_dict(state["state"])


class _Bucket:
    """A bucket between the hook and the end of the step."""

    def __init__(
        self,
        flat: Tensor,
        views: Mapping[str, Tensor],
        outs: Mapping[str, Tensor],
        scale: float,
        exchange: Exchange,
    ) -> None:
        self.flat, self.views, self.outs, self.scale = flat, views, outs, scale
        self.exchange = exchange
        self._ended: Future[Exception | None] = Future()
        self.future: Future[Tensor] = self._ended.then(self._result)

    def finish(self) -> None:
        """Have the mean in the bucket's buffer."""
        self.exchange.finish()
        if self.outs is not self.views:
            for name, view in self.views.items():
                view.copy_(self.outs[name] * self.scale)

    def end(self, error: Exception | None) -> None:
        """Complete the future. An error set through ``then`` is one that DDP can go on after."""
        self._ended.set_result(error)

    def _result(self, ended: Future[Exception | None]) -> Tensor:
        error = ended.value()
        if error is not None:
            raise error
        return self.flat
