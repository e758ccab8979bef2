"""FSDP2 across sites: two sites of two ranks, against one unsharded process, bit for bit."""

from __future__ import annotations

import hashlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ranks_kit import main, outputs, run_ranks
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

import gcext
import gcext.fsdp

SITES, SHARDS, LR = 2, 2, 0.1
RECIPES = ["stc:p=0.2", "qsgd:bits=3,bucket=16", "dgc:p=0.2,warmup=0", "ef21:p=0.3"]


class Scale(nn.Module):
    """One element: the second rank of a site holds none of it, only padding."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


def plain_model() -> nn.Sequential:
    """A model whose layers do not divide evenly between two ranks."""
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), Scale(), nn.Linear(7, 3))


def sharded(
    recipe: str | None, exact_below: int = 0, **options: Any
) -> tuple[Any, gcext.fsdp.State | None]:
    """The model, sharded in this rank's site, with the hooks of a recipe."""
    mesh = init_device_mesh("cpu", (SITES, SHARDS), mesh_dim_names=("site", "shard"))
    model: Any = plain_model()
    for layer in (0, 2, 3):
        fully_shard(model[layer], mesh=mesh["shard"], **options)
    fully_shard(model, mesh=mesh["shard"], **options)
    if recipe is None:
        return model, None
    across = mesh["site"].get_group()
    return model, gcext.fsdp.compress(model, recipe, across, seed=5, exact_below=exact_below)


def batch(rank: int, step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(100 * step + rank)
    x = torch.randn(16, 5, generator=generator)
    return x, (x @ torch.ones(5, 3)).relu()


def loss_of(model: nn.Module, rank: int, step: int) -> Tensor:
    x, y = batch(rank, step)
    return (model(x) - y).square().mean()


def descend(model: nn.Module) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            assert parameter.grad is not None
            parameter.sub_(parameter.grad, alpha=LR)
            parameter.grad = None


def full(model: Any) -> dict[str, Tensor]:
    """The whole parameters, on every rank of the site."""
    return {name: p.full_tensor().detach().clone() for name, p in model.named_parameters()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a) and set(a) == set(b)


def digest(tensors: dict[str, Tensor]) -> str:
    return hashlib.sha256(b"".join(t.numpy().tobytes() for t in tensors.values())).hexdigest()


def padded(gradient: Tensor, shard: int) -> Tensor:
    """A rank's part of a gradient, as FSDP lays it out."""
    rows = -(-gradient.shape[0] // SHARDS)
    whole = gradient.new_zeros(rows * SHARDS, *gradient.shape[1:])
    whole[: gradient.shape[0]] = gradient
    return whole[shard * rows : (shard + 1) * rows].reshape(-1)


class Reference:
    """What the ranks must do, in one process: senders and receivers of every shard."""

    def __init__(self, recipe: str) -> None:
        self.model, made = plain_model(), gcext.recipe(recipe)
        ranks = range(SITES * SHARDS)
        self.senders = [made.up.sender(gcext.derive(5, rank)) for rank in ranks]
        names = ("0", "2", "3")
        self.receivers = [{n: made.up.receiver() for n in names} for _ in range(SHARDS)]

    def step(self, number: int) -> None:
        gradients = []
        for rank in range(SITES * SHARDS):
            self.model.zero_grad()
            loss_of(self.model, rank, number).backward()
            gradients.append({n: p.grad.clone() for n, p in self.model.named_parameters()})  # type: ignore[union-attr]
        for layer in ("3", "2", "0"):
            params = dict(self.model.get_submodule(layer).named_parameters())
            shards = []
            for shard in range(SHARDS):
                packets = {}
                for site in range(SITES):
                    flats = [
                        torch.cat([padded(gradients[r][f"{layer}.{n}"], shard) for n in params])
                        for r in (SHARDS * site, SHARDS * site + 1)
                    ]
                    sender = self.senders[SHARDS * site + shard]
                    packet = sender.compress((flats[0] + flats[1]) / SHARDS, layer)
                    packets[site] = gcext.Packet.from_bytes(packet.to_bytes())
                mean = self.receivers[shard][layer].aggregate(packets)
                assert isinstance(mean, Tensor)
                shards.append(mean)
            at = 0
            for p in params.values():
                size = padded(p.detach(), 0).numel()
                rows = torch.cat([each[at : at + size] for each in shards])
                p.grad = rows.view(-1, *p.shape[1:])[: p.shape[0]].clone()
                at += size
        descend(self.model)


def check_equals_one_process(rank: int) -> None:
    for recipe in RECIPES:
        model, state = sharded(recipe)
        reference, losses = Reference(recipe), []
        for step in range(12):
            loss = loss_of(model, rank, step)
            loss.backward()
            descend(model)
            reference.step(step)
            losses.append(loss.item())
            assert same(full(model), dict(reference.model.named_parameters())), (recipe, step)
        assert sum(losses[-3:]) < 0.9 * sum(losses[:3]), (recipe, losses)
        assert state is not None and state.names == ("0", "2", "3")
        assert state.sent_bytes > 0 and state.received_bytes > 0
        if "stc" in recipe:
            assert torch.equal(state.residual("3"), reference.senders[rank].residual("3"))  # type: ignore[attr-defined]
            assert state.residual("2").numel() == 1


def check_the_mean_over_all_ranks(rank: int) -> None:
    """Dense: the gradient of the whole batch, however torch scales; also accumulated."""
    reference = plain_model()
    for each in range(4):
        for step in (0, 1):
            (loss_of(reference, each, step) / 4).backward()
    for way in ("at once", "no sync", "no all-reduce"):
        model, state = sharded("none")
        model.set_requires_gradient_sync(way != "no sync")
        model.set_requires_all_reduce(way != "no all-reduce")
        loss_of(model, rank, 0).backward()
        if way != "at once":
            assert state is not None and state.sent_bytes == 0
        model.set_requires_gradient_sync(True)
        model.set_requires_all_reduce(True)
        loss_of(model, rank, 1).backward()
        for mine, p in zip(model.parameters(), reference.parameters(), strict=True):
            torch.testing.assert_close(mine.grad.full_tensor(), p.grad)


def check_bfloat16(rank: int) -> None:
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.bfloat16)
    model, _ = sharded("stc:p=0.3", mp_policy=policy)
    for step in range(3):
        loss_of(model, rank, step).backward()
        descend(model)
    mine = digest(full(model))
    everyone: list[str] = [""] * 4
    dist.all_gather_object(everyone, mine)
    assert set(everyone) == {mine}


def check_small_shards_are_exact(rank: int) -> None:
    _, state = sharded("stc:p=0.3", exact_below=10)
    assert state is not None
    (mine,) = state.state_dict().values()
    assert set(mine["residuals"]) == {"0", "3"}


def poison(model: Any, *factors: float) -> Callable[[], None]:
    """Multiply the gradient of layer 0's outputs in every backward pass; return what ends that."""
    by = torch.tensor(factors)

    def hook(module: Any, given: Any, out: Tensor) -> None:
        out.register_hook(lambda gradient: gradient * by)

    removable = model[0].register_forward_hook(hook)
    return lambda: removable.remove()


def check_not_finite_on_one_rank(rank: int) -> None:
    """Every rank raises, also those whose shard is finite; all residuals are as they were."""
    model, state = sharded("stc:p=0.2")
    reference = Reference("stc:p=0.2")
    assert state is not None
    for step in range(2):
        loss_of(model, rank, step).backward()
        descend(model)
        reference.step(step)
    before = state.state_dict()
    # On rank 2 alone, and there of the last output alone, whose gradient is in rank 3's shard.
    end = poison(model, *[1.0] * 6, float("inf") if rank == 2 else 1.0)
    with pytest.raises((ValueError, RuntimeError)) as caught:
        loss_of(model, rank, 2).backward()
    text = str(caught.value)
    if rank in (1, 3):
        assert ("must be finite" in text) == (rank == 3), text
    assert "See the error on that rank" in text or rank == 3
    after = state.state_dict()
    assert repr(after) == repr(before)  # small: all elements are printed
    if hasattr(model, "reset_iter_state"):  # torch 2.13
        model.reset_iter_state()
        model.zero_grad()
        end()
        loss_of(model, rank, 2).backward()
        descend(model)
        reference.step(2)
        assert same(full(model), dict(reference.model.named_parameters()))


def check_a_backward_pass_that_fails(rank: int) -> None:
    """Elsewhere than in a hook, on all ranks: what it sent does not count."""
    model, state = sharded("stc:p=0.2")
    assert state is not None
    for number in range(2):
        loss_of(model, rank, number).backward()
        descend(model)
    before = repr(state.state_dict())
    x, y = batch(rank, 2)
    x.requires_grad_()
    x.register_hook(lambda _: 1 / 0)  # the last gradient of the pass
    with pytest.raises(ZeroDivisionError):
        (model(x) - y).square().mean().backward()
    with pytest.raises(RuntimeError, match="a backward pass that has ended"):
        state.state_dict()
    if not hasattr(model, "reset_iter_state"):  # torch before 2.13
        return
    model.reset_iter_state()
    model.zero_grad()
    loss = loss_of(model, rank, 2)
    assert repr(state.state_dict()) == before
    loss.backward()
    descend(model)
    reference = Reference("stc:p=0.2")
    for number in range(3):
        reference.step(number)
    assert same(full(model), dict(reference.model.named_parameters()))


def check_a_checkpoint_amid_accumulation(rank: int) -> None:
    """What is held back for a later exchange is in no checkpoint, so there is none then."""
    model, state = sharded("stc:p=0.2")
    assert state is not None
    model.set_requires_all_reduce(False)
    loss_of(model, rank, 0).backward()
    with pytest.raises(RuntimeError, match=r"got some of \['0', '2', '3'\]"):
        state.state_dict()
    model.set_requires_all_reduce(True)
    loss_of(model, rank, 1).backward()
    state.state_dict()


def check_modules_out_of_step(rank: int) -> None:
    """Two modules of one shape; each site uses another one. Packets are not mistaken."""
    mesh = init_device_mesh("cpu", (SITES, SHARDS), mesh_dim_names=("site", "shard"))
    model: Any = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))
    for layer in model:
        fully_shard(layer, mesh=mesh["shard"])
    gcext.fsdp.compress(model, "stc:p=0.2", mesh["site"].get_group())
    numbers = r"number must be the same on all ranks, got \[0, 1\]"
    with pytest.raises(RuntimeError, match=numbers):
        model[rank // 2](torch.ones(1, 4)).sum().backward()


def check_a_parameter_without_gradient(rank: int) -> None:
    model, _ = sharded("stc:p=0.2")
    loss_of(model, rank, 0).backward()
    model[3].bias.requires_grad_(False)  # a warning would come too late
    model[3].bias.grad = None
    with pytest.raises(ValueError, match=r"'3' must stay"):
        loss_of(model, rank, 0).backward()


def check_refusals(rank: int) -> None:
    mesh = init_device_mesh("cpu", (SITES, SHARDS), mesh_dim_names=("site", "shard"))
    across = mesh["site"].get_group()
    with pytest.raises(ValueError, match=r"must have FSDP2 modules.*fully_shard first"):
        gcext.fsdp.compress(plain_model(), "stc", across)
    hybrid: Any = fully_shard(plain_model(), mesh=mesh)
    with pytest.raises(ValueError, match=r"'' must be sharded over a 1-d mesh.*HSDP.*across="):
        gcext.fsdp.compress(hybrid, "stc", across)
    model: Any = fully_shard(plain_model(), mesh=mesh["shard"])
    for recipe, message in (
        ("efsign", "a shard is flat"),
        ("powersgd", "a shard is flat"),
        ("sparseloco", "gcext.OuterOptimizer"),
        ("dgc", "Set warmup=0"),
        ("pstc", "needs the ranks' losses"),
        ("laq", "needs the steps of the model"),
        ("signvote", "exact_below must be 0, got 1024"),
    ):
        with pytest.raises(ValueError, match=message):
            gcext.fsdp.compress(model, recipe, across)
    with pytest.raises(ValueError, match=r"recipe, exact_below and seed must be the same on all"):
        gcext.fsdp.compress(model, "stc", across, seed=rank // 2)
    with pytest.raises(ValueError, match=r"recipe, exact_below and seed must be the same on all"):
        gcext.fsdp.compress(model, "stc", across, seed=int(rank == 3))  # the other site's too
    with pytest.raises(ValueError, match=r"the rank in the site must be the same"):
        gcext.fsdp.compress(model, "stc", dist.group.WORLD)  # type: ignore[arg-type]
    elsewhere = dist.new_group([0, 1])
    if rank > 1:
        with pytest.raises(RuntimeError, match="across: this process must be in the group"):
            gcext.fsdp.compress(model, "stc", elsewhere)


def check_the_mesh_changed(rank: int) -> None:
    _, state = sharded("stc:p=0.2")
    assert state is not None
    before = state.state_dict()
    inner = before[f"rank{rank}"]
    (rest,) = inner["rest"]
    other = {f"rank{rank}": inner | {"rest": (rest | {"mesh": (4, 1)},)}}
    with pytest.raises(ValueError, match=r"must be the state's \(4, 1\), got \(2, 2\)"):
        state.load_state_dict(other)
    with pytest.raises(ValueError, match=rf"must hold 'rank{rank}', got \['rank9'\]"):
        state.load_state_dict({"rank9": inner})
    assert repr(state.state_dict()) == repr(before)


class Recording(gcext.fsdp.ReduceScatter):
    """Keeps the sizes that were reduced: the modules' order is another one in torch 2.10."""

    def __call__(self, output_tensor: Tensor, *rest: Any, **named: Any) -> None:
        self.sizes = [*getattr(self, "sizes", []), output_tensor.numel()]
        super().__call__(output_tensor, *rest, **named)


def check_reduce_scatter(rank: int) -> None:
    """Each part is its own rank's gradient and the decoded packet of the site's other rank."""
    site, shard = divmod(rank, SHARDS)
    for spec in ("qsgd:bits=3,bucket=16", "natural", "polar:rate=0.5"):
        model, _ = sharded(None)
        comm = Recording(spec, seed=9)
        for module in model.modules():
            if hasattr(module, "set_custom_reduce_scatter"):
                module.set_custom_reduce_scatter(comm)
        for step in range(2):
            loss_of(model, rank, step).backward()
            gradients = []
            reference = plain_model()
            with torch.no_grad():
                for p, value in zip(reference.parameters(), full(model).values(), strict=True):
                    p.copy_(value)
            for each in (SHARDS * site, SHARDS * site + 1):
                reference.zero_grad()
                loss_of(reference, each, step).backward()
                gradients.append([p.grad.clone() for p in reference[3].parameters()])  # type: ignore[union-attr]
            mine = [torch.cat([padded(g, shard) for g in each]) for each in gradients]
            other, count = 1 - shard, 3 * step + comm.sizes[3 * step :].index(mine[0].numel())
            seed = gcext.derive(gcext.derive(9, SHARDS * site + other), str(shard), count)
            packet = gcext.codec(spec).encode(mine[other], seed=seed)
            exact = gcext.codec("dense").encode(mine[shard])
            ordered = [exact, packet] if shard == 0 else [packet, exact]
            expected = gcext.aggregate.mean(ordered)
            assert isinstance(expected, Tensor)
            at = 0
            for p in model[3].parameters():
                local = p.grad.to_local().reshape(-1)
                assert torch.equal(local, expected[at : at + local.numel()]), (spec, step)
                at += padded(p.grad.full_tensor(), shard).numel()
            model.zero_grad()
        assert comm.sent_bytes > 0
        again = gcext.fsdp.ReduceScatter(spec, seed=9)
        again.load_state_dict(comm.state_dict())
        assert again.state_dict() == comm.state_dict()
        poison(model, *[float("nan") if rank == 1 else 1.0] * 7)
        with pytest.raises(ValueError if rank == 1 else RuntimeError):
            # The ranks of the other site have no error of their own: they are on their own mesh.
            if site == 1:
                raise RuntimeError
            loss_of(model, rank, 5).backward()


def train(rank: int, folder: str) -> None:
    """Train to the end, with a checkpoint on the way; or, where there is one, from there."""
    model, state = sharded("doublesqueeze:codec=qsgd:bits=2,bucket=16")
    assert state is not None
    first = 0
    if Path(folder).exists():
        saved = {"model": model.state_dict(), "compression": state}
        load(saved, checkpoint_id=folder)
        model.load_state_dict(saved["model"])
        first = 3
    for step in range(first, 7):
        if step == 3 and not first:
            save({"model": model.state_dict(), "compression": state}, checkpoint_id=folder)
        loss_of(model, rank, step).backward()
        descend(model)
    print(digest(full(model)), digest({"": state.residual("0")}), flush=True)


CHECKS = [
    check_equals_one_process, check_the_mean_over_all_ranks, check_bfloat16,
    check_small_shards_are_exact, check_not_finite_on_one_rank, check_refusals,
    check_the_mesh_changed, check_reduce_scatter, check_a_parameter_without_gradient,
    check_a_backward_pass_that_fails, check_a_checkpoint_amid_accumulation,
    check_modules_out_of_step,
]  # fmt: skip


def run_rank(rank: int, world: int, what: str, folder: str) -> None:
    assert world == SITES * SHARDS
    if what == "checks":
        for check in CHECKS:
            check(rank)
            dist.barrier()
        train(rank, folder)
        dist.barrier()
        os.kill(os.getpid(), signal.SIGKILL)
    train(rank, folder)
    model, state = sharded("stc:p=0.2")
    assert state is not None
    dist.barrier()
    if rank == 3:
        os._exit(0)
    started = time.monotonic()
    with pytest.raises(RuntimeError):
        for step in range(3):
            loss_of(model, rank, step).backward()
    assert time.monotonic() - started < 30
    os._exit(0)  # the process group cannot be destroyed without the other


def test_two_sites_of_two_ranks(tmp_path: Path) -> None:
    """All checks; then kill all ranks, and resume from the checkpoint with new ones."""
    folder = str(tmp_path / "checkpoint")
    ended = run_ranks(__file__, 4, tmp_path / "first", "checks", folder)
    first = outputs(ended, -signal.SIGKILL)
    assert len({out.split()[0] for out in first}) == 1  # the parameters; residuals differ
    assert outputs(run_ranks(__file__, 4, tmp_path / "second", "resume", folder)) == first


@pytest.fixture
def alone() -> Iterator[None]:
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())  # type: ignore[attr-defined]
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("alone")
def test_biased_codecs_are_refused_for_the_reduce_scatter() -> None:
    for spec in ("stc:p=0.1", "sign", "fp16", "polar:rotate=false", "terngrad:clip=2.5", "sketch"):
        with pytest.raises(ValueError, match=r"needs an unbiased codec, got .*fsdp\.compress"):
            gcext.fsdp.ReduceScatter(spec)
    for recipe in ("qsgd:feedback=true", "doublesqueeze:codec=qsgd,feedback=true"):
        with pytest.raises(ValueError, match="needs a codec without a residual"):
            gcext.fsdp.ReduceScatter(recipe)
    comm = gcext.fsdp.ReduceScatter("qsgd")
    with pytest.raises(ValueError, match=r"op must be SUM or AVG.*set_force_sum_reduction"):
        comm(torch.zeros(4), torch.zeros(4), dist.group.WORLD, dist.ReduceOp.MAX)  # type: ignore[arg-type]


@pytest.mark.usefixtures("alone")
def test_a_torch_without_the_names_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    mesh = init_device_mesh("cpu", (1,))
    model: Any = fully_shard(nn.Linear(2, 2), mesh=mesh)
    monkeypatch.delattr("torch.distributed.fsdp.FSDPModule.set_force_sum_reduction_for_comms")
    with pytest.raises(RuntimeError, match=r"has no set_force_sum_reduction_for_comms"):
        gcext.fsdp.compress(model, "stc", dist.group.WORLD)  # type: ignore[arg-type]


@pytest.mark.usefixtures("alone")
def test_several_parameter_groups_are_refused() -> None:
    mesh = init_device_mesh("cpu", (1,))
    model: Any = fully_shard(nn.Linear(2, 2), mesh=mesh)
    state = model._get_fsdp_state()
    if not hasattr(state, "_fsdp_param_groups"):
        pytest.skip("torch before 2.11 has one group a module")
    state._fsdp_param_groups *= 2
    with pytest.raises(ValueError, match=r"must have one parameter group, got 2"):
        gcext.fsdp.compress(model, "stc", dist.group.WORLD)  # type: ignore[arg-type]


if __name__ == "__main__":
    main(run_rank)
