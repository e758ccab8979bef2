"""Packets between sites, from an all-reduce hook on every FSDP2 module."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from gcext import distributed
from gcext._codecs.seeds import derive
from gcext._links.feedback import ErrorFeedback
from gcext._packet.packet import Packet
from gcext._packet.state import loading
from gcext._recipes import Recipe, fit
from gcext._recipes import recipe as make_recipe

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["State", "compress"]

_SETTERS = (
    "set_all_reduce_hook",
    "set_gradient_divide_factor",
    "set_force_sum_reduction_for_comms",
)


def compress(
    model: nn.Module,
    recipe: Recipe | str,
    across: ProcessGroup,
    *,
    seed: int = 0,
    exact_below: int = 1024,
    stream: Any = None,
) -> State:
    """Compress the gradients that a model's FSDP2 modules exchange between sites.

    Every FSDP module gets an all-reduce hook: after torch's reduce-scatter in the site each rank
    encodes its shard of the module's gradient, all-gathers the packets of that shard's other
    holders, and writes their mean, summed in rank order. The gradient is then the mean over all
    ranks of all sites. For that torch's own scaling is turned off
    (``set_gradient_divide_factor(1.0)``, ``set_force_sum_reduction_for_comms(True)``); leave both
    as they are.

    Args:
        model: ``fully_shard`` was called on it or on its modules, with a mesh of one site's ranks.
        recipe: its up link is used, at both ends; the down link is not. A shard is flat.
        across: the ranks that hold the same shard as this one, one of each site. All call.
        seed: of stochastic codecs, the same on all ranks, which derive their own.
        exact_below: modules whose shard has fewer elements travel as float32.
        stream: of CUDA, for the hooks; None: torch's own.

    Returns:
        the state to checkpoint; it lives as long as the model.

    Raises:
        ValueError: the model has no FSDP module; a module has several parameter groups or a mesh
            that replicates (HSDP); the ranks' models, recipes or seeds differ; or the recipe
            needs what a hook has not (shapes, losses, local steps, a warm-up).
        RuntimeError: torch lacks what the hook needs, or this process is not in ``across``.

    >>> import gcext.fsdp, torch
    >>> import torch.distributed as dist
    >>> from torch.distributed.fsdp import fully_shard
    >>> dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    >>> mesh = torch.distributed.device_mesh.init_device_mesh(
    ...     "cpu", (1, 1), mesh_dim_names=("site", "shard"))
    >>> model = fully_shard(torch.nn.Linear(4, 1, bias=False), mesh=mesh["shard"])
    >>> state = gcext.fsdp.compress(
    ...     model, "topk:p=0.25,feedback=true", mesh["site"].get_group(), exact_below=0)
    >>> model(torch.tensor([[1.0, 2.0, 3.0, 4.0]])).sum().backward()
    >>> model.weight.grad.to_local()
    tensor([[0., 0., 0., 4.]])
    >>> state.residual("")
    tensor([1., 2., 3., 0.])
    >>> dist.destroy_process_group()
    """
    distributed.place("fsdp.compress: across", across)
    made = make_recipe(recipe)
    fit.refuse("fsdp.compress", made, recipe, _UNMET)
    groups = _param_groups(model)
    _check_alike(groups, (repr(made), exact_below, seed), across)
    state = State(made, groups, across, seed, exact_below)
    for name, (module, group) in groups.items():
        given = {} if stream is None else {"stream": stream}
        module.set_all_reduce_hook(partial(state._hook, name, group), **given)
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)
        module.register_forward_pre_hook(state._before_forward)
    return state


class State:
    """What ``compress`` keeps: residuals of the shards, seeds, counts of bytes.

    Attributes:
        names: of the FSDP modules in the model, "" being the model itself.
        sent_bytes: length of this rank's messages so far; each goes to every other site.
        received_bytes: length of the other sites' messages so far.
    """

    def __init__(
        self,
        recipe: Recipe,
        groups: dict[str, tuple[Any, Any]],
        across: ProcessGroup,
        seed: int,
        exact_below: int,
    ) -> None:
        self.names = tuple(groups)
        self.sent_bytes = self.received_bytes = 0
        self._groups = {name: group for name, (_, group) in groups.items()}
        self._across = across
        self._rank = dist.get_rank()
        own = derive(seed, self._rank) if recipe.up.codec.stochastic else None
        self._sender = recipe.up.sender(own, exact_below)
        self._receivers = {name: recipe.up.receiver() for name in groups}
        self._counts = dict.fromkeys(groups, 0)
        self._snapshots: dict[str, Any] = {}  # receiver and count, from before what is pending
        self._partial: dict[str, Tensor] = {}

    def __repr__(self) -> str:
        sites, shards = self._mesh
        return f"State({self._sender!r}, {len(self.names)} modules, {sites} sites of {shards})"

    @property
    def _mesh(self) -> tuple[int, int]:
        """The number of sites, and of the ranks of one."""
        group = next(iter(self._groups.values()))
        return dist.get_world_size(self._across), group.mesh_info.shard_mesh_size

    def residual(self, name: str) -> Tensor:
        """Return a copy of a module's residual: float32, flat, of its shard's padded size.

        The parameters' shards follow one another, each padded with zeros to the size that all
        ranks of the site have.
        """
        if not isinstance(self._sender, ErrorFeedback):
            raise KeyError(f"fsdp.State: {name!r} has no residual. The recipe keeps none.")
        return self._sender.residual(name)

    def rollback(self) -> None:
        """Forget what a backward pass sent that did not end, and what was accumulated for the next.

        An error in a hook does so itself, and so does the next forward pass of an FSDP module.
        """
        self._sender.rollback()
        for name, (snapshot, count) in self._snapshots.items():
            self._receivers[name].restore(snapshot)
            self._counts[name] = count
        self._snapshots.clear()
        self._partial.clear()

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _before_forward(self, module: nn.Module, args: Any) -> None:
        """Forget a backward pass that did not end: one that did has nothing pending.

        Within a backward pass, where activations are computed again, it is under way.
        """
        if self._sender.pending and torch._C._current_graph_task_id() == -1:
            self.rollback()

    def _commit(self) -> None:
        self._sender.commit()
        self._snapshots.clear()

    def _hook(self, name: str, group: Any, tensor: Tensor) -> None:
        """Replace the sum of a site's gradients by the mean over all ranks of all sites."""
        if not tensor.numel():
            return
        if (held := self._partial.pop(name, None)) is not None:
            tensor.add_(held)
        if not group.all_reduce_grads:  # torch would call the hook all the same
            self._partial[name] = tensor.clone()
            tensor.zero_()
            return
        shards = group.mesh_info.shard_process_group
        packet, error = None, None
        try:
            packet = self._encode(name, group, tensor)
        except Exception as raised:
            error = raised
        try:
            if distributed.any_failed(error is not None, tensor, shards):
                packet = None
            packets = self._gather(name, packet)
            receiver = self._receivers[name]
            self._snapshots[name] = receiver.snapshot(), self._counts[name]
            mean = receiver.aggregate(dict(enumerate(packets)))
            assert isinstance(mean, Tensor)  # a list is of groups
            tensor.copy_(mean)
        except BaseException as raised:
            self.rollback()
            if error is not None:
                raise error from None
            if packet is None:
                raise RuntimeError(
                    f"fsdp: every rank must have a packet of {name!r}, got none from another rank "
                    "of this site. See the error on that rank."
                ) from None
            raise raised
        self._counts[name] += 1
        try:  # the other ranks have it: it counts, unless a later module of this pass fails
            torch.autograd.Variable._execution_engine.queue_callback(self._commit)
        except RuntimeError:  # called outside of a backward pass
            self._commit()

    def _gather(self, name: str, packet: Packet | None) -> list[Packet]:
        """Return the packets of all sites, which must be of the same module and step."""
        # Sites that run other modules would send them in another order.
        number = self._counts[name] * len(self.names) + self.names.index(name)
        packets = distributed.all_gather(packet, self._across, number=number)
        sizes = [each.nbytes for each in packets]
        own = dist.get_rank(self._across)
        self.sent_bytes += sizes[own]
        self.received_bytes += sum(sizes) - sizes[own]
        return packets

    def _encode(self, name: str, group: Any, tensor: Tensor) -> Packet:
        if name in self._sender.pending:  # once more in one backward pass
            self._sender.commit(name)
        size = _numel(group)
        if tensor.numel() != size:
            raise ValueError(
                f"fsdp: the shard of {name!r} must have {size} elements, got {tensor.numel()}: a "
                "parameter got no gradient. Call set_reduce_scatter_unused_params(True) on the "
                "model (torch 2.13), or set its requires_grad to False."
            )
        given = tensor.float() / group.mesh_info.shard_mesh_size
        packet = self._sender.compress(given, name, commit=False)
        packet.to_bytes()  # raises what is deferred
        return packet

    def state_dict(self) -> dict[str, Any]:
        """Return this rank's state under a key with its rank, for torch.distributed.checkpoint.

        Residuals are tensors, those of modules that sent nothing so far zeros, so that the state of
        a new process can be loaded into. Call it after a backward pass, on all ranks.

        Raises RuntimeError in the middle of one.
        """
        if self._sender.pending:
            raise RuntimeError(
                f"fsdp.State: needs a backward pass that has ended, got {self._sender!r}. "
                "Call rollback if it failed."
            )
        if self._partial:
            raise RuntimeError(
                f"fsdp.State: needs gradients that have been exchanged, got some of "
                f"{sorted(self._partial)} that set_requires_all_reduce(False) holds back. Save "
                "after the backward pass that exchanges them."
            )
        sizes = {name: _numel(group) for name, group in self._groups.items()}
        sender = self._sender.state_dict()
        residuals = sender.pop("residuals", {})
        if isinstance(self._sender, ErrorFeedback):
            for name, size in sizes.items():
                if name not in residuals and size >= self._sender.exact_below:
                    device = self._groups[name].device
                    residuals[name] = torch.zeros(size, device=device)
        rest = {
            "version": 1,
            "mesh": self._mesh,
            "sizes": sizes,
            "counts": dict(self._counts),
            "sender": sender,
            "receivers": {name: each.state_dict() for name, each in self._receivers.items()},
        }
        return {f"rank{self._rank}": {"residuals": residuals, "rest": (rest,)}}  # a tuple: one leaf

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from where ``state_dict`` was called; on an error nothing has changed.

        Raises ValueError, which names both sizes, where the number of sites or of a site's ranks is
        not the state's: residuals are of shards, and belong to ranks.
        """
        key = f"rank{self._rank}"
        if not isinstance(state, dict) or key not in state:
            got = sorted(state) if isinstance(state, dict) else type(state).__name__
            raise ValueError(
                f"fsdp.State: state must hold {key!r}, got {got}. Load this rank's own."
            )
        with loading("fsdp.State", state):
            self._load(state[key])

    def _load(self, state: dict[str, Any]) -> None:
        (rest,) = state["rest"]
        mine = {name: _numel(group) for name, group in self._groups.items()}
        fits: tuple[tuple[str, Any, Any], ...] = (
            ("version", 1, rest["version"]),
            ("sites and ranks of a site", self._mesh, tuple(rest["mesh"])),
            ("the shards' sizes", mine, rest["sizes"]),
        )
        for what, got, must in fits:
            if got != must:
                raise ValueError(
                    f"fsdp.State: {what} must be the state's {must}, got {got}. Resume on the same "
                    "mesh, or begin with new residuals: what was held back is then lost."
                )
        sender, counts = dict(rest["sender"]), dict(rest["counts"])
        if isinstance(self._sender, ErrorFeedback):
            sender["residuals"] = dict(state["residuals"])
        before = {name: each.snapshot() for name, each in self._receivers.items()}
        try:
            for name, each in self._receivers.items():
                each.load_state_dict(rest["receivers"][name])
            self._sender.load_state_dict(sender)
        except BaseException:
            for name, each in self._receivers.items():
                each.restore(before[name])
            raise
        self._counts = counts
        self._snapshots.clear()
        self._partial.clear()


def _param_groups(model: nn.Module) -> dict[str, tuple[Any, Any]]:
    """Return each FSDP module with its parameter group, by name; those without one are left out."""
    found: dict[str, tuple[Any, Any]] = {}
    seen: list[Any] = []
    for name, module in model.named_modules():
        if not hasattr(module, "_get_fsdp_state"):
            continue
        missing = [each for each in _SETTERS if not hasattr(module, each)]
        state = module._get_fsdp_state()
        groups = getattr(state, "_fsdp_param_groups", None)  # torch 2.10: one, of this name:
        if groups is None:
            groups = [state._fsdp_param_group] if getattr(state, "_fsdp_param_group", 0) else []
            missing += [] if hasattr(state, "_fsdp_param_group") else ["_fsdp_param_group"]
        if missing:
            raise RuntimeError(
                f"fsdp.compress: FSDP2 of torch {torch.__version__} has no {', '.join(missing)}; "
                "gcext knows torch 2.10 to 2.13."
            )
        if not groups or any(state is each for each in seen):  # several modules may share one
            continue
        seen.append(state)
        if len(groups) > 1:
            raise ValueError(
                f"fsdp.compress: {name!r} must have one parameter group, got {len(groups)}, which "
                "torch gives no hook. Call fully_shard on their modules one by one."
            )
        if groups[0]._is_hsdp or not hasattr(groups[0].mesh_info, "shard_mesh_size"):
            raise ValueError(
                f"fsdp.compress: {name!r} must be sharded over a 1-d mesh of one site's ranks, got "
                "one that replicates (HSDP), where torch averages uncompressed. Pass "
                'fully_shard(mesh=mesh["shard"]) and across=mesh["site"].get_group().'
            )
        found[name] = module, groups[0]
    if not found:
        raise ValueError(
            "fsdp.compress: the model must have FSDP2 modules with parameters, got none. "
            "Call torch.distributed.fsdp.fully_shard first."
        )
    return found


def _numel(group: Any) -> int:
    """Return the elements of a parameter group's flat gradient shard, padding included."""
    params = [each for each in group.fsdp_params if each.sharded_param.requires_grad]
    return sum(each._sharded_param_data.numel() for each in params)


_UNMET = {
    "the tensors' shapes": "a shard is flat. Use stc, or sign:feedback=true",
    "local steps": "every step is sent. Use gcext.OuterOptimizer",
    "a server's average of models": "there is no server. Use a recipe without it",
    "a warm-up by rounds": "a hook counts none. Set warmup=0",
    "the steps of the model": "a hook gets gradients only. Use qsgd, or gcext.fl for laq",
    "the ranks' losses": "a hook gets none. Use stc",
}


def _check_alike(groups: dict[str, tuple[Any, Any]], options: Any, across: ProcessGroup) -> None:
    """Raise ValueError, on all ranks of all sites, where one has something else than another."""
    first = next(iter(groups.values()))[1].mesh_info
    shards = first.shard_process_group
    sizes = {name: _numel(group) for name, (_, group) in groups.items()}
    alike = {"the shards' sizes": sizes, "recipe, exact_below and seed": options}
    place = {"the rank in the site": dist.get_rank(shards), "a site's ranks": shards.size()}
    problem = distributed.difference(alike, shards)
    problem = distributed.difference(alike | place, across) or problem
    for process_group in (across, shards):  # so that no rank waits for one that has raised
        everyone = distributed.gather_objects(problem, process_group)
        problem = next(filter(None, everyone), "")
    if problem:
        raise ValueError(f"fsdp.compress: {problem}")
