"""Horovod's compression interface, on an engine of a few lines that makes Horovod's calls."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ranks_kit import main, outputs, run_ranks
from torch import Tensor, nn

import gcext
from gcext.horovod import Compression

LINEAR: dict[str, Callable[[], Any]] = {
    "none": lambda: Compression.none,
    "fp16": lambda: Compression.fp16,
    "bf16": lambda: Compression.bf16,
    "randomk": lambda: Compression.randomk(p=0.3, seed=4, exact_below=20),
    "sketch": lambda: Compression.sketch(p=0.6, rows=3, seed=4, exact_below=20),
}


class Engine:
    """The calls of horovod.torch.optimizer.

    It compresses in each gradient's hook and starts a reduction; in synchronize it waits for each,
    averages, decompresses, and sets the gradient.
    """

    def __init__(self, model: nn.Module, compression: Any) -> None:
        self.compression, self.handles, self.bytes = compression, {}, 0  # type: ignore[var-annotated]
        for parameter in model.parameters():
            parameter.register_post_accumulate_grad_hook(self.reduce)

    def reduce(self, parameter: Tensor) -> None:
        assert parameter.grad is not None
        tensor, ctx = self.compression.compress(parameter.grad)
        tensor = tensor.clone()  # allreduce_async_ is in place
        self.bytes += tensor.nbytes
        self.handles[parameter] = dist.all_reduce(tensor, async_op=True), tensor, ctx

    def synchronize(self) -> None:
        for parameter, (work, tensor, ctx) in self.handles.items():
            work.wait()
            parameter.grad.set_(self.compression.decompress(tensor / dist.get_world_size(), ctx))
        self.handles.clear()


def model_of() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(12, 30), nn.Tanh(), nn.Linear(30, 30), nn.Linear(30, 3))


def run_rank(rank: int, world: int) -> None:
    results = []
    for name, make in LINEAR.items():
        model, plain = model_of(), model_of()
        engine = Engine(model, make())
        generator = torch.Generator().manual_seed(rank)
        losses = []
        for _ in range(25):
            x = torch.randn(32, 12, generator=generator)
            label = (x @ torch.ones(12, 3)).cumsum(1) * 0.1
            loss = (model(x) - label).square().mean()
            loss.backward()
            engine.synchronize()
            losses.append(loss.item())
            with torch.no_grad():
                for p in model.parameters():
                    assert p.grad is not None
                    p.sub_(p.grad, alpha=0.02)
                    p.grad = None
        assert sum(losses[-5:]) < sum(losses[:5]), (name, losses)
        dense = 25 * sum(4 * p.numel() for p in plain.parameters())
        assert (engine.bytes < 0.75 * dense) == (name != "none"), (name, engine.bytes, dense)
        flat = torch.cat([p.detach().flatten() for p in model.parameters()])
        results.append(hashlib.sha256(flat.numpy().tobytes()).hexdigest())
    # The order in which a rank's gradients come plays no part.
    compression = Compression.randomk(p=0.1, seed=2, exact_below=0)
    tensors = [torch.full((500,), 1.0), torch.full((50, 10), 2.0), torch.full((70,), 3.0)]
    for _ in range(3):
        order = range(3) if rank == 0 else reversed(range(3))
        sent = {i: compression.compress(tensors[i]) for i in order}
        for i in range(3):
            tensor, ctx = sent[i]
            dist.all_reduce(tensor)
            got = compression.decompress(tensor, ctx)
            value = world * tensors[i].flatten()[0] * tensors[i].numel() / tensor.numel()
            assert set(got.unique().tolist()) == {0.0, float(value)}
            results.append(hashlib.sha256(got.numpy().tobytes()).hexdigest())
    assert len(set(results[-9:])) == 9  # other elements each step
    print(*results)


def test_an_engine_that_sums_between_processes(tmp_path: Path) -> None:
    first, second = outputs(run_ranks(__file__, 2, tmp_path / "store"))
    assert first == second and len(first.split()) == len(LINEAR) + 9


@pytest.mark.parametrize("name", LINEAR)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_sum_of_compressed_is_the_compressed_sum(name: str, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    for shape in [(400,), (16, 30), (7,), (), (0,)]:
        a, b = (
            torch.randint(-8, 9, shape, generator=generator).to(dtype).t().contiguous().t()
            for _ in range(2)
        )
        one, two, both = LINEAR[name](), LINEAR[name](), LINEAR[name]()
        (x, ctx), (y, _), (z, _) = one.compress(a), two.compress(b), both.compress(a + b)
        assert torch.equal(x + y, z)
        estimate = one.decompress(x + y, ctx)
        assert estimate.shape == a.shape and estimate.dtype == a.dtype
        if name not in ("randomk", "sketch") or a.numel() < 20:
            assert torch.equal(estimate, a + b)  # small integers are exact in all of them


def test_the_estimates_are_unbiased_over_the_steps() -> None:
    x = torch.randn(200, generator=torch.Generator().manual_seed(0))
    for name in ("randomk", "sketch"):
        compression, total = LINEAR[name](), torch.zeros(200)
        for _ in range(2000):
            total += compression.decompress(*compression.compress(x))
        assert (total / 2000 - x).abs().max() < 0.25, name  # of a standard deviation of .05


def test_large_elements_are_found_in_a_sketch() -> None:
    x = torch.randn(5000) * 0.01
    x[[7, 300]] = torch.tensor([5.0, -9.0])
    compression = Compression.sketch(p=0.1)
    sent, ctx = compression.compress(x.bfloat16().view(50, 100))
    assert sent.numel() == 500 and sent.dtype == torch.float32
    got = compression.decompress(sent, ctx).flatten()
    assert got.dtype == torch.bfloat16
    assert got[[7, 300]].tolist() == pytest.approx([5.0, -9.0], abs=0.2)


def test_not_finite_reaches_all_ranks_instead_of_stopping_one() -> None:
    x = torch.ones(2000)
    x[3] = torch.inf
    compression = Compression.sketch(p=0.5)
    sent, ctx = compression.compress(x)
    assert sent.isnan().all()
    assert compression.decompress(sent + 1, ctx).isnan().all()
    assert Compression.fp16.compress(x)[0][3].isinf()


def test_a_state_goes_on_with_new_elements() -> None:
    x = torch.arange(3000.0)
    first = Compression.randomk(seed=6)
    for _ in range(3):
        first.decompress(*first.compress(x))
    again = Compression.randomk(seed=6)
    mine = first.compress(x)
    assert not torch.equal(again.compress(x)[0], mine[0])
    first.decompress(*mine)
    again = Compression.randomk(seed=6)
    again.load_state_dict(first.state_dict())
    assert torch.equal(again.compress(x)[0], first.compress(x)[0])
    with pytest.raises(ValueError, match="must be of seed 7"):
        Compression.randomk(seed=7).load_state_dict(first.state_dict())


def test_what_no_sum_fits_is_refused_by_name() -> None:
    names = set(gcext.recipes()) - {"none", "fp16", "bf16", "randomk", "sketch"}
    assert "stc" in names
    for name in names:
        with pytest.raises(ValueError, match=rf"{name} must not be summed.*gcext\.ddp\.hook.*serv"):
            getattr(Compression, name)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        Compression.nothing  # noqa: B018
    with pytest.raises(ValueError, match="p must be in"):
        Compression.randomk(p=0.0)
    with pytest.raises(ValueError, match="dtype must be one of"):
        Compression.randomk.compress(torch.arange(5000))


if __name__ == "__main__":
    main(run_rank)
