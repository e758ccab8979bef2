"""The state of the communication hook: a recipe's ends on this rank, by parameter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.futures import Future
from torch.nn import Module

from gcext._codecs.seeds import derive
from gcext._links.link import LowRankLink
from gcext._links.lowrank import PowerSGD
from gcext._packet.codes import Contents
from gcext._packet.packet import Packet
from gcext._recipes.recipe import Recipe
from gcext._recipes.recipe import recipe as make_recipe
from gcext._spec import plain
from gcext.aggregate import Aggregator, FetchSGD, Mean
from gcext.ddp._exchange import AllReduce, Exchange, LowRank, Method, Packets

if TYPE_CHECKING:
    from torch._C._distributed_c10d import GradBucket
    from torch.amp import GradScaler
    from torch.distributed import ProcessGroup

__all__ = ["State"]

_REDUCED = {"dense": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_VECTORS = 64  # vectors are sent exactly up to so many times exact_below


class State:
    """What ``gcext.ddp.hook`` needs of a model wrapped in DistributedDataParallel."""

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
        made = recipe if isinstance(recipe, Recipe) else make_recipe(recipe)
        self.recipe = made
        self._group = process_group
        self.exact_below = plain("ddp.State", "exact_below", int, exact_below)
        self.seed = plain("ddp.State", "seed", int, seed)
        self.round_steps = plain("ddp.State", "round_steps", int, round_steps)
        if nonfinite not in ("raise", "propagate"):
            raise ValueError(
                f"ddp.State: nonfinite must be 'raise' or 'propagate', got {nonfinite!r}."
            )
        self.nonfinite = nonfinite
        self.scaler = scaler
        self.steps = 0
        self.sent_bytes = self.received_bytes = 0
        self.step_sent_bytes = self.step_received_bytes = 0
        _refuse(made, str(recipe))
        if not (dist.is_available() and dist.is_initialized()):
            raise RuntimeError(
                "ddp.State: torch.distributed must be initialized. Call init_process_group first."
            )
        self._method = self._make_method()
        self._named = None if module is None else _names_of(module)
        self._names: dict[int, str] = {}  # by id
        self._parameters: list[Tensor] = []  # so that no id is used again
        self._open: list[_Bucket] = []

    def _make_method(self) -> Method:
        up, group = self.recipe.up, self._group
        world, rank = dist.get_world_size(group), dist.get_rank(group)
        averages = type(up.receiver()) is Mean
        dtype = _REDUCED.get(up.codec.name)
        plain_mean = averages and not (up.feedback or up.stages)
        # With two ranks a gather takes as many bytes, and sums 16-bit values in float64.
        if plain_mean and dtype and (dtype == torch.float32 or world > 2):
            return AllReduce(group, dtype, self.nonfinite == "raise")
        # PowerSGD's first Q must be the same on all ranks, other random numbers never.
        alike = isinstance(up, LowRankLink)
        sender = up.sender(self.seed if alike else derive(self.seed, rank))
        if _takes_dense(up.receiver()):
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
        views = {self._name(p): _view(p, g) for p, g in _pairs(bucket)}
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
                for bucket in opened:
                    bucket.finish()
                self._method.commit()
                self.steps += 1
            else:
                self._method.rollback()
                error = self._failure(exchanges)
                for bucket in opened:
                    bucket.flat.fill_(torch.nan)
        except Exception as wrong:  # of the backend, or a message that does not decode
            self._method.rollback()
            error = wrong
        self.step_sent_bytes = sum(each.sent_bytes for each in exchanges)
        self.step_received_bytes = sum(each.received_bytes for each in exchanges)
        self.sent_bytes += self.step_sent_bytes
        self.received_bytes += self.step_received_bytes
        for bucket in opened:
            bucket.end(error)

    def _failure(self, exchanges: Sequence[Exchange]) -> Exception | None:
        """Return what all ranks raise, once all know why; None where NaN is to go through."""
        mine = next((str(each.error) for each in exchanges if each.error), "")
        bad = any(isinstance(each.error, ValueError) for each in exchanges)
        texts: list[Any] = [None] * self._method.world
        dist.all_gather_object(texts, (mine, bad), group=self._group)
        said = [(rank, text) for rank, (text, _) in enumerate(texts) if text]
        if self.nonfinite == "propagate" and all(bad for text, bad in texts if text):
            return None
        rank, text = said[0] if said else (None, "the sum over the ranks is not finite.")
        where = "" if rank is None else f"rank {rank}: "
        return RuntimeError(f"ddp.hook: {where}{text} No rank's residuals have changed.")

    def _name(self, parameter: Tensor) -> str:
        """Return what a parameter's residual is kept by."""
        name = self._names.get(id(parameter))
        if name is None:
            if self._named is None:
                name = str(len(self._names))
            elif (name := self._named.get(id(parameter))) is None:
                raise ValueError(
                    f"ddp.hook: parameters must be of the module that State was given, got one of "
                    f"shape {tuple(parameter.shape)} that is not."
                )
            self._names[id(parameter)] = name
            self._parameters.append(parameter)
        return name


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


def _refuse(recipe: Recipe, spec: str) -> None:
    """Raise ValueError for a recipe that a hook cannot do."""
    schedule, receiver = recipe.schedule, recipe.up.receiver()
    problem = ""
    if receiver.uses_losses:
        problem = (
            "needs a loss of every rank, which DDP does not hand over. Use stc, or gcext.fl for "
            "projection"
        )
    elif schedule.local_steps > 1 or schedule.local_epochs > 1:
        problem = "takes many local steps, and DDP averages each. Use gcext.OuterOptimizer"
    elif schedule.average:
        problem = "averages models at a server, and DDP has none. Use a recipe without it"
    elif _has(receiver, FetchSGD):
        problem = (
            "finds elements in one sketch of the whole model, and DDP hands over parameters. Use "
            "stc or topk:feedback=true, whose residuals every rank can keep"
        )
    elif isinstance(recipe.up, LowRankLink) and type(receiver) is not Mean:
        problem = f"all-reduces factors, which {receiver!r} cannot combine. Use combine=mean"
    if problem:
        raise ValueError(f"ddp.State: {spec} {problem}.")


def _has(receiver: Aggregator, kind: type[Aggregator]) -> bool:
    inner = getattr(receiver, "inner", None)
    return isinstance(receiver, kind) or (isinstance(inner, Aggregator) and _has(inner, kind))


def _takes_dense(receiver: Aggregator) -> bool:
    """Return whether tensors may be sent exactly; a vote takes signs only."""
    packet = Packet("dense", (1,), torch.float32, Contents(None, torch.zeros(1)))
    try:
        receiver.check(0, packet)
    except ValueError:
        return False
    return True


def _names_of(module: Module) -> dict[int, str]:
    """Return the parameters' names by id, without what wrappers put before them."""
    names = {}
    for name, parameter in module.named_parameters():
        parts = [part for part in name.split(".") if part != "_orig_mod"]
        names[id(parameter)] = ".".join(parts)
    if names and all(name.startswith("module.") for name in names.values()):
        names = {key: name.removeprefix("module.") for key, name in names.items()}
    return names


def _pairs(bucket: GradBucket) -> list[tuple[Tensor, Tensor]]:
    return list(zip(bucket.parameters(), bucket.gradients(), strict=True))


def _view(parameter: Tensor, gradient: Tensor) -> Tensor:
    """Return a gradient with its parameter's strides, where DDP lays it out by them."""
    if parameter.is_contiguous() or not _is_dense(parameter):
        return gradient
    return gradient.as_strided(parameter.shape, parameter.stride())


def _is_dense(tensor: Tensor) -> bool:
    """Return whether a tensor's elements fill one block of memory, once each."""
    count = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1 and stride != count:
            return False
        count *= size
    return True
