"""The CUDA kernels of rotate give the CPU's bytes: emulated, and on a GPU if there is one."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from emu.backends import BACKENDS, same_bits
from emu.deferred import DeferredCodec, OnDevice
from emu.rotate import make
from torch.utils._python_dispatch import TorchDispatchMode

import gcext
from gcext._codecs.input import CodecInput
from gcext._native import polar as ops


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("level", [6, 7, 8, 9, 10, 12, 13, 14, 16, 17])
def test_same_bytes(backend: str, level: int) -> None:
    size = 1 << level
    draw = random.Random(size)
    for _ in range(12 if level < 12 else 2):
        least = 1 << draw.randint(6, level)
        whole = draw.choice([0, 1, 2, 130 if level < 10 else 1])
        n = whole * size + draw.choice([0, 1, size // 2, size - 1])
        torch.manual_seed(draw.randrange(2**31))
        values = torch.randn(n) * 10.0 ** draw.randint(-42, 37)
        values[::7] = draw.choice([0.0, -0.0])
        args = (size, least, draw.randrange(-(2**63), 2**63))
        run = make(backend, draw.choice([1, 2, 1024]), draw.random() < 0.3)
        rotated, norm = ops.rotate(values, *args)
        for got, want in zip(run.rotate(values, *args), (rotated, norm), strict=True):
            assert same_bits(got, want)
        symbols = torch.randint(0, 256, (rotated.numel() // 8,), dtype=torch.uint8)
        if draw.random() < 0.8:  # of what agrees
            symbols = ops.polar_pack((rotated < 0).to(torch.uint8))
        bad = torch.tensor([draw.choice([-1, -1, 3])])
        status = draw.choice([0, 0, 2])
        info, expected = (torch.tensor([0, status, 0, 0]) for _ in range(2))
        scale = ops.rotate_scale(rotated, symbols, norm, bad, expected, size)
        assert same_bits(run.rotate_scale(rotated, symbols, norm, bad, info, size), scale)
        assert torch.equal(info, expected) or n == 0
        wanted = ops.rotate_fit(values, symbols, scale, *args)
        for got, want in zip(run.rotate_fit(values, symbols, scale, *args), wanted, strict=True):
            assert same_bits(got, want)
        back = run.rotate_back(symbols, scale, n, *args)
        assert same_bits(back, ops.rotate_back(symbols, scale, n, *args))


# Of the operators of gcext that an encode calls, by cuda/*.cu; select's are emulated.
LAUNCHES = {
    "random_support": 0,
    "rotate": 1,
    "polar_encode": 2,
    "rotate_scale": 1,
    "rotate_fit": 1,
    "combine_add_": 1,
}
SELECT = 3
# Operators of torch that allocate or view.
NO_KERNEL = {"empty", "empty_like", "new_empty", "view", "slice", "select", "as_strided", "detach"}
NO_KERNEL |= {"alias", "reshape", "_reshape_alias", "unsqueeze", "squeeze", "_unsafe_view"}


class Launches(TorchDispatchMode):
    """Counts the kernels that the same calls launch on CUDA."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        space, name = func._schema.name.split("::")
        if space == "gcext":
            self.names += [name] * LAUNCHES[name]
        elif name not in NO_KERNEL:
            self.names.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("feedback", [False, True])
@pytest.mark.parametrize(("select", "most"), [("", 15), ("select=randomk,p=0.5", 17)])
def test_launches_of_an_encode_at_any_size(select: str, most: int, feedback: bool) -> None:
    seen = set()
    for n in (1000, 70_000, 200_000):
        x = torch.randn(n)
        codec = DeferredCodec(gcext.codec(f"polar:rate=0.5,block=256,{select}".rstrip(",")))
        codec.encode(x, seed=0)  # designs the code
        total = x.clone()
        info = torch.zeros(4, dtype=torch.int64).as_subclass(OnDevice)
        launches = Launches()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(CodecInput, "add_deferred", lambda _, made=(total, info): made)
            with launches:
                if feedback:
                    codec.advance(x, torch.zeros(n), total, seed=1)
                else:
                    codec.encode(x, seed=1)
        seen.add(len(launches.names))
        assert len(launches.names) + SELECT <= most, launches.names
    assert len(seen) == 1
