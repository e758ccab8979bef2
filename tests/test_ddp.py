"""gcext.ddp between gloo processes: the reference's bits on every rank, and all or nothing."""

from __future__ import annotations

import copy
import math
import pickle
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from ddp_kit import (
    LR,
    SEED,
    Reference,
    backward,
    batch,
    flat,
    init,
    leave,
    make_model,
    new_state,
    residuals,
    run,
    same_bits,
    same_on_all,
    step,
    train,
    wrapped,
)
from torch import nn

import gcext
from gcext.ddp import State
from gcext.distributed import Gather

REFUSED = {"pstc", "fetchsgd", "laq", "catchup", "localsgd", "diloco", "sparseloco"}
REFUSED |= {"subset"}
HUGE = torch.tensor(2e38)
SOME = ["none", "stc:p=0.05", "topk:p=0.05,feedback=true", "qsgd", "powersgd", "fp16", "ef21"]


def check_every_recipe(rank: int, world: int) -> None:
    """Either refused at construction, or what the reference does, on all ranks."""
    specs = gcext.recipes() if world == 2 else SOME
    refused = set()
    for spec in [*specs, "sparseloco:every=1", "stc:p=0.1,momentum=0.5", "sign:combine=vote"]:
        model = make_model()
        try:
            state = new_state(spec, model)
        except ValueError as error:
            assert f"ddp.State: {spec} " in str(error) and "Use " in str(error)
            refused.add(spec)
            continue
        ddp = wrapped(state, model)
        before = flat(ddp)
        train(ddp, rank, 4)
        assert same_on_all(ddp), spec
        assert not same_bits(before, flat(ddp)), spec
        kind, exact = type(state._method).__name__, True
        if kind == "LowRank":
            continue  # its reference is below
        reference = Reference(spec, world)
        for number in range(4):
            reference.step(number)
        mine, theirs = flat(ddp), flat(reference.model)
        exact = kind == "Packets"
        near = 1e-6 if spec not in ("fp16", "bf16") else 2e-3  # sums of 16 bits
        assert same_bits(mine, theirs) if exact else (mine - theirs).abs().max() < near, spec
    assert refused == REFUSED & set(specs)


def check_powersgd_is_the_reduction_of_all(rank: int, world: int) -> None:
    """Compared with gcext.PowerSGD of each rank in one process, in lockstep."""
    ddp_model = make_model()
    ddp = wrapped(new_state("powersgd:rank=2", ddp_model), ddp_model)
    reference = Reference("none", world)
    senders = [gcext.PowerSGD(2, SEED) for _ in range(world)]
    for each in senders:
        each.exact_below, each.exact_vectors_below = 1024, 65536
    for number in range(6):
        backward(ddp, rank, number)
        step(ddp)
        grads = reference.gradients(number)
        p = torch.stack([s.project(g) for s, g in zip(senders, grads, strict=True)]).mean(0)
        q = torch.stack([s.factor(p) for s in senders]).mean(0)
        updates = [s.finish(q) for s in senders]
        for name, parameter in reference.model.named_parameters():
            parameter.grad = updates[0][name]
        step(reference.model)
        assert (flat(ddp) - flat(reference.model)).abs().max() < 1e-6
    assert same_on_all(ddp)


class Many(nn.Module):
    """Many parameters of random sizes, whose gradients are given; one is empty."""

    def __init__(self) -> None:
        super().__init__()
        sizes = random.Random(3)
        shapes = [(sizes.randint(1, 40), sizes.randint(1, 200)) for _ in range(40)]
        self.all = nn.ParameterList([nn.Parameter(torch.zeros(s)) for s in [*shapes, (0, 3)]])

    def forward(self, weights: list[torch.Tensor]) -> torch.Tensor:
        return sum(((w * p).sum() for w, p in zip(weights, self.all, strict=True)), torch.zeros(()))


def check_random_sizes_in_many_buckets(rank: int, world: int) -> None:
    """Messages that overflow what was foreseen, on some ranks, in some buckets, in any step."""
    begun = []
    begin = Gather._begin

    def counted(self: Gather, parts: Sequence[bytes], size: int) -> Any:
        begun.append(size)
        return begin(self, parts, size)

    def weights(of: int, number: int) -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(100 * number + of)
        scale = 10.0 ** torch.randint(-3, 2, (41,), generator=generator)
        return [
            torch.randn(p.shape, generator=generator) * s
            for p, s in zip(model.all, scale, strict=True)
        ]

    Gather._begin = counted  # type: ignore[method-assign]
    try:
        model = Many()
        state = new_state("strom:tau=0.05", model, exact_below=20)
        ddp = wrapped(state, model, bucket_cap_mb=0.005)
        reference = Reference("strom:tau=0.05", world, Many())
        for sender in reference.senders:
            sender.exact_below, sender.exact_vectors_below = 20, 1280
        for number in range(12):
            if rank == number % world:
                time.sleep(random.Random(number).uniform(0, 0.02))
            ddp(weights(rank, number)).backward()
            step(ddp)
            names = [name for name, _ in model.named_parameters()]
            grads = [dict(zip(names, weights(r, number), strict=True)) for r in range(world)]
            update = reference.average(grads)
            for name, parameter in reference.model.named_parameters():
                parameter.grad = update[name]
            step(reference.model)
            assert same_bits(flat(ddp), flat(reference.model)), number
    finally:
        Gather._begin = begin  # type: ignore[method-assign]
    buckets = len(state._method.capacities)  # type: ignore[attr-defined]
    assert buckets > 20 and len(begun) > 11 * buckets + buckets // 2  # a few rests
    assert same_on_all(ddp)
    assert sum(begun) == state.sent_bytes
    assert state.received_bytes == (world - 1) * state.sent_bytes


def check_nan_raises_on_all(rank: int, world: int) -> None:
    for spec in ("stc:p=0.05", "none", "powersgd", "ef21", "dgc", "qsgd"):
        model = make_model()
        state = new_state(spec, model)
        ddp = wrapped(state, model)
        train(ddp, rank, 2)
        before, weights = residuals(state), flat(ddp)
        seconds = time.monotonic()
        with pytest.raises(RuntimeError) as caught:
            spoiled(ddp, rank, 2, rank == world - 1)
        assert time.monotonic() - seconds < 20
        text = str(caught.value)
        assert f"rank {world - 1}: " in text and "'2.weight'" in text and "nan" in text, text
        assert residuals(state) == before and state.steps == 2
        ddp.zero_grad()
        train(ddp, rank, 2, first=2)  # goes on as if that step had not been
        other = make_model()
        again = wrapped(new_state(spec, other), other)
        train(again, rank, 4)
        assert same_bits(flat(ddp), flat(again)) and same_on_all(ddp), spec
        assert not same_bits(flat(ddp), weights)


def check_a_sum_that_overflows(rank: int, world: int) -> None:
    """Finite on each rank, and not in the sum; of powersgd the second sum, after a good first."""
    for spec in ("none", "powersgd"):
        model = make_model()
        state = new_state(spec, model)
        ddp = wrapped(state, model)
        train(ddp, rank, 2)
        before = residuals(state)
        handle = ddp.module[2].weight.register_hook(
            lambda g: torch.zeros_like(g).index_put_((torch.tensor(3), torch.tensor(5)), HUGE)
        )
        with pytest.raises(RuntimeError, match="the sum over the ranks is not finite"):
            backward(ddp, rank, 2)
        handle.remove()
        assert residuals(state) == before and state.steps == 2
        ddp.zero_grad()
        train(ddp, rank, 2, first=2)
        other = make_model()
        again = wrapped(new_state(spec, other), other)
        train(again, rank, 4)
        assert same_bits(flat(ddp), flat(again)) and same_on_all(ddp), spec


def spoiled(ddp: Any, rank: int, number: int, bad: bool) -> None:
    """A backward pass with NaN in one gradient."""
    handle = ddp.module[2].weight.register_hook(
        lambda g: g.index_fill(0, torch.tensor([3]), math.nan) if bad else None
    )
    try:
        backward(ddp, rank, number)
    finally:
        handle.remove()


def check_nan_goes_through(rank: int, world: int) -> None:
    """With nonfinite="propagate" every rank's GradScaler skips the same step."""
    for spec in ("stc:p=0.05", "powersgd", "none", "fp16", "dgc"):
        model = make_model()
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=1000)
        state = new_state(spec, model, nonfinite="propagate", scaler=scaler)
        ddp = wrapped(state, model)
        optimizer = torch.optim.SGD(ddp.parameters(), LR)
        for number in range(5):
            before, weights = residuals(state), flat(ddp)
            bad = number == 2
            handle = ddp.module[2].weight.register_hook(
                lambda g, bad=bad: g * math.inf if bad and rank == 0 else None
            )
            x, label = batch(rank, number)
            scaler.scale(nn.functional.cross_entropy(ddp(x), label)).backward()
            handle.remove()
            if bad and spec != "none" and spec != "fp16":
                assert all(p.grad.isnan().all() for p in ddp.parameters())
                assert residuals(state) == before
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            assert same_bits(flat(ddp), weights) == bad, (spec, number)
        assert scaler.get_scale() == 512 and same_on_all(ddp), spec
    model = make_model()  # what is no matter of the numbers is an error all the same
    state = new_state("stc:p=0.05", model, nonfinite="propagate")
    ddp = wrapped(state, model)
    train(ddp, rank, 1)
    if rank == 0:
        state._method.sender.compress({"2.weight": torch.ones(48, 64)}, commit=False)  # type: ignore[attr-defined]
    with pytest.raises(RuntimeError, match=r"rank 0: .*'2.weight' is pending"):
        backward(ddp, rank, 1)


def check_the_scale_is_not_in_the_residual(rank: int, world: int) -> None:
    """Powers of two change nothing, whenever they change."""
    finals = []
    for scales in ([1.0] * 6, [1024.0, 2048.0, 2048.0, 8.0, 16.0, 1.0]):
        model = make_model()
        scaler = torch.amp.GradScaler("cpu")
        state = new_state("stc:p=0.05", model, scaler=scaler)
        ddp = wrapped(state, model)
        for number, scale in enumerate(scales):
            scaler.get_scale = lambda scale=scale: scale  # type: ignore[method-assign,misc]
            backward(ddp, rank, number, scale)
            for parameter in ddp.parameters():
                parameter.grad /= scale
            step(ddp)
        finals.append(flat(ddp))
    assert same_bits(*finals)


def check_options_of_ddp(rank: int, world: int) -> None:
    """Each gives the bits of the plain run."""
    reference = Reference("stc:p=0.05", world)
    for number in range(4):
        reference.step(number)
    options: list[dict[str, Any]] = [
        {"gradient_as_bucket_view": True},
        {"static_graph": True},
        {"static_graph": True, "gradient_as_bucket_view": True},
        {"bucket_cap_mb": 25},
        {"find_unused_parameters": True},
    ]
    for each in options:
        model = make_model()
        ddp = wrapped(new_state("stc:p=0.05", model), model, **each)
        train(ddp, rank, 4)
        assert same_bits(flat(ddp), flat(reference.model)), each


def check_accumulation(rank: int, world: int) -> None:
    """Nothing travels within no_sync; then the sum of the gradients does."""
    model = make_model()
    state = new_state("stc:p=0.05", model)
    ddp = wrapped(state, model)
    reference = Reference("stc:p=0.05", world)
    for number in range(3):
        sent = state.sent_bytes
        with ddp.no_sync():
            backward(ddp, rank, 2 * number)
        assert state.sent_bytes == sent
        backward(ddp, rank, 2 * number + 1)
        assert state.sent_bytes == sent + state.step_sent_bytes > sent
        step(ddp)
        one, two = reference.gradients(2 * number), reference.gradients(2 * number + 1)
        for a, b in zip(one, two, strict=True):
            for name in a:
                a[name] += b[name]
        update = reference.average(one)
        for name, parameter in reference.model.named_parameters():
            parameter.grad = update[name]
        step(reference.model)
        assert same_bits(flat(ddp), flat(reference.model))


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.parts = nn.ModuleList([nn.Linear(24, 64, bias=False) for _ in range(3)])

    def forward(self, x: torch.Tensor, use: int) -> torch.Tensor:
        return (self.parts[0](x) * self.parts[use](x)).square().mean()


def check_unused_parameters(rank: int, world: int) -> None:
    """The residual of a parameter waits while it is unused; where no rank uses it, so does it."""
    for spec in ("topk:p=0.05,feedback=true", "dgc", "ef21", "powersgd", "none"):
        model = Branches()
        state = new_state(spec, model)
        ddp = wrapped(state, model, find_unused_parameters=True)
        sender = getattr(state._method, "sender", None)
        keeps = spec in ("topk:p=0.05,feedback=true", "dgc")
        for number in range(8):
            weight = model.parts[2].get_parameter("weight").detach().clone()
            held = keeps and number > 3 and sender.residual("parts.2.weight")  # type: ignore[union-attr]
            alike = number % 2 == 0
            use = 1 if alike else 1 + (number // 2 + rank) % 2
            ddp(batch(rank, number)[0], use).backward()
            assert (model.parts[2].weight.grad is None) == alike, (spec, number)
            step(ddp)
            assert same_bits(weight, model.parts[2].get_parameter("weight").detach()) == alike
            if keeps and number > 3:
                after = sender.residual("parts.2.weight")  # type: ignore[union-attr]
                assert same_bits(held, after) == (alike or use == 1)  # type: ignore[arg-type]
        assert same_on_all(ddp), spec


def check_two_models(rank: int, world: int) -> None:
    """Each with a state of its own, in one backward pass; one state for both is refused."""
    models = [make_model(), make_model()]
    ddps = [wrapped(new_state("stc:p=0.05", m), m) for m in models]
    reference = Reference("stc:p=0.05", world)
    for number in range(3):
        x, label = batch(rank, number)
        loss = sum(nn.functional.cross_entropy(ddp(x), label) for ddp in ddps)
        loss.backward()  # type: ignore[union-attr]
        reference.step(number)
        for ddp in ddps:
            step(ddp)
            assert same_bits(flat(ddp), flat(reference.model))


def check_odd_parameters(rank: int, world: int) -> None:
    """bfloat16, channels last, empty, 0-d."""

    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            conv = nn.Conv2d(8, 16, 3)
            self.conv = conv.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            self.short = nn.Parameter(torch.randn(30, 40).bfloat16())
            self.empty = nn.Parameter(torch.empty(0, 4))
            self.one = nn.Parameter(torch.tensor(2.0))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.conv(x).square().mean() * self.one + self.empty.sum()
            return y + (self.short.float() * x[0, 0, :5, :1].mean()).square().sum()

    def image(of: int, number: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(50 * number + of)
        return torch.randn(2, 8, 6, 6, generator=generator)

    for spec in ("dct:feedback=true", "stc:p=0.1", "none", "powersgd", "onebit"):
        model = Odd()
        ddp = wrapped(new_state(spec, model, exact_below=10), model)
        reference = Reference(spec, world, Odd()) if spec not in ("none", "powersgd") else None
        for number in range(3):
            ddp(image(rank, number)).backward()
            assert model.short.grad is not None and model.short.grad.dtype == torch.bfloat16
            step(ddp)
            if reference is None:
                continue
            grads = []
            for of, sender in enumerate(reference.senders):
                sender.exact_below, sender.exact_vectors_below = 10, 640
                reference.model.zero_grad()
                reference.model(image(of, number)).backward()
                named = reference.model.named_parameters()
                grads.append({n: p.grad for n, p in named if p.grad is not None})
            update = reference.average(grads)
            for name, parameter in reference.model.named_parameters():
                parameter.grad = update[name].to(parameter.dtype)
            step(reference.model)
            assert same_bits(flat(ddp), flat(reference.model)), (spec, number)
        assert same_on_all(ddp), spec


def check_vectors_travel_exactly(rank: int, world: int) -> None:
    model = make_model()
    ddp = wrapped(new_state("sign", model), model)
    grads = Reference("none", world).gradients(0)
    backward(ddp, rank, 0)
    for name, parameter in model.named_parameters():
        mean = torch.stack([g[name].double() for g in grads]).mean(0).float()
        equal = torch.allclose(mean, parameter.grad, rtol=1e-6, atol=1e-9)  # type: ignore[arg-type]
        assert equal == (parameter.dim() == 1 or parameter.numel() < 1024), name


def check_states_must_agree(rank: int, world: int) -> None:
    model = make_model()
    state = State("stc:p=0.05" if rank else "stc:p=0.1")
    with pytest.raises(ValueError, match=r"recipe must be the same on all ranks, got .*rank 1"):
        backward(wrapped(state, model), rank, 0)


def check_uneven_inputs(rank: int, world: int) -> None:
    """With DDP's join a rank without data sends zeros, and so its residual."""
    model = make_model()
    state = new_state("stc:p=0.05", model)
    ddp = wrapped(state, model)
    with ddp.join():
        for number in range(3 + rank):
            backward(ddp, rank, number)
            step(ddp)
    assert same_on_all(ddp)


def check_pickle_and_order(rank: int, world: int) -> None:
    """Without a module names go by the order of the first buckets, as in a new process."""
    finals = []
    for how in ("through", "pickle", "deepcopy", "named"):
        model = make_model()
        state = State("dgc", module=model if how == "named" else None, seed=SEED)
        ddp = wrapped(state, model)
        train(ddp, rank, 3)
        if how != "through":
            copied = copy.deepcopy(state) if how == "deepcopy" else None
            state = copied or pickle.loads(pickle.dumps(state))
            after = make_model()
            after.load_state_dict(model.state_dict())
            ddp = wrapped(state, after)
        train(ddp, rank, 3, first=3)
        finals.append(flat(ddp))
    assert all(same_bits(finals[0], each) for each in finals)


def check_compiled(rank: int, world: int) -> None:
    if world != 2:
        return
    model = make_model()
    ddp = wrapped(new_state("stc:p=0.05", model), model)
    compiled: Any = torch.compile(ddp, backend="eager")
    for number in range(3):
        backward(compiled, rank, number)
        step(ddp)
    reference = Reference("stc:p=0.05", world)
    for number in range(3):
        reference.step(number)
    assert same_bits(flat(ddp), flat(reference.model))


CHECKS = [
    check_every_recipe, check_powersgd_is_the_reduction_of_all,
    check_random_sizes_in_many_buckets, check_nan_raises_on_all, check_nan_goes_through,
    check_a_sum_that_overflows,
    check_the_scale_is_not_in_the_residual, check_options_of_ddp, check_accumulation,
    check_unused_parameters, check_two_models, check_odd_parameters,
    check_vectors_travel_exactly, check_states_must_agree, check_uneven_inputs,
    check_pickle_and_order, check_compiled,
]  # fmt: skip


@pytest.mark.parametrize("world", [2, 3, 4])
def test_between_processes(world: int, tmp_path: Path) -> None:
    run(__file__, world, tmp_path / "store")


def run_rank(world: int, rank: int, store: str, only: str = "") -> None:
    init(rank, world, store)
    for check in CHECKS:
        if only in check.__name__:
            begun = time.monotonic()
            check(rank, world)
            print(check.__name__, round(time.monotonic() - begun, 1), flush=True)
    leave()


if __name__ == "__main__":
    run_rank(int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
