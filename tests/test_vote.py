"""Majority vote against counted signs."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch
from emu.backends import BACKENDS, same_bits
from emu.vote import make
from isa_kit import at_every_isa
from packet_kit import dense, single

import gcext
from gcext._native import ops
from gcext.aggregate import Vote


def plane(signs: np.ndarray) -> torch.Tensor:
    """The bits of an array that is negative or not."""
    return torch.from_numpy(np.packbits(signs < 0, bitorder="little"))


def ballots(
    rng: np.random.Generator, numel: int, planes: int, sparse: int
) -> tuple[np.ndarray, tuple[list[torch.Tensor], list[torch.Tensor], list[torch.Tensor]]]:
    """Signs by voter, 0 where it abstains, and the operator's arguments for them."""
    signs = rng.choice([-1, 1], (planes + sparse, numel))
    signs[planes:] *= rng.random((sparse, numel)) < 0.4
    places = [np.flatnonzero(row) for row in signs[planes:]]
    value = [
        torch.from_numpy((row[i] * 0.3).astype(np.float32))
        for row, i in zip(signs[planes:], places, strict=True)
    ]
    dtypes: list[type[np.int32] | type[np.int64]] = [np.int32, np.int64]
    index = [torch.from_numpy(i.astype(dtypes[n % 2])) for n, i in enumerate(places)]
    return signs, ([plane(row) for row in signs[:planes]], index, value)


@pytest.mark.parametrize("numel", [1, 7, 63, 64, 65, 8191, 8192, 8193, 50_001])
@pytest.mark.parametrize(
    "voters", [(1, 0), (2, 0), (3, 0), (20, 0), (0, 1), (0, 5), (7, 8), (1, 2), (33, 31)]
)
def test_exact_against_counted_signs(numel: int, voters: tuple[int, int]) -> None:
    rng = np.random.default_rng(numel + sum(voters))
    signs, arguments = ballots(rng, numel, *voters)
    out = ops.vote(*arguments, 0.25, numel).numpy()
    assert out.tobytes() == (np.sign(signs.sum(axis=0)) * 0.25 + 0.0).astype(np.float32).tobytes()


@pytest.mark.parametrize("m", [1, 2, 255, 256, 300])
def test_counts_do_not_overflow(m: int) -> None:
    """All against, one short of a majority, and a tie."""
    for against in {m, (m - 1) // 2, m // 2, m // 2 + 1}:
        signs = np.ones((m, 70))
        signs[:against] = -1
        out = ops.vote([plane(row) for row in signs], [], [], 1.0, 70)
        assert (out == np.sign(m - 2 * against)).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "voters", [(1, 0), (2, 0), (20, 0), (257, 0), (0, 1), (0, 5), (7, 8), (33, 31), (3, 300)]
)
def test_same_bytes(backend: str, voters: tuple[int, int]) -> None:
    """CUDA's kernel against the CPU's; more sparse packets than it keeps the places of, too."""
    draw = random.Random(sum(voters))
    for numel in (1, 31, 33, 8191, 8192, 8193, 40_001):
        _, (planes, index, value) = ballots(np.random.default_rng(numel), numel, *voters)
        if draw.random() < 0.5:  # at an odd address
            planes = [torch.cat([bits[:1], bits])[1:] for bits in planes]
        for each in value:
            each[::7] = 0.0  # abstains
        scale = draw.choice([0.25, -3.0, 0.0, -0.0, 2.0**-149])
        run = make(backend, draw.choice([1, 2, 1024]), draw.random() < 0.5)
        want = ops.vote(planes, index, value, scale, numel)
        assert same_bits(run.vote(planes, index, value, scale, numel), want)


@pytest.mark.parametrize("backend", BACKENDS)
def test_wrong_indices_stay_inside(backend: str) -> None:
    index = torch.tensor([-(2**31), -5, 700, 3, 3, 9000, 2**31 - 1] * 50, dtype=torch.int32)
    out = make(backend, 2).vote([], [index], [torch.ones(350)], 1.0, 20_000)
    assert set(out.tolist()) <= {0.0, 1.0}


@pytest.mark.cuda
def test_packets_of_a_device() -> None:
    tensors = [torch.randn(3000) for _ in range(5)]
    here = {i: gcext.codec(("sign", "stc:p=0.3")[i % 2]).encode(t) for i, t in enumerate(tensors)}
    there = {i: packet.to("cuda") for i, packet in here.items()}
    assert torch.equal(single(Vote(0.5).aggregate(there)).cpu(), single(Vote(0.5).aggregate(here)))


def test_packets_vote_by_their_signs() -> None:
    rng = np.random.default_rng(1)
    tensors = [torch.from_numpy(rng.standard_normal((30, 41))).float() for _ in range(6)]
    tensors[5] = torch.zeros(30, 41)  # abstains
    for names in (["sign"], ["stc:p=0.3"], ["sign", "stc:p=0.3", "topk:p=0.5"]):
        packets = {
            9 - i: gcext.codec(names[i % len(names)]).encode(t) for i, t in enumerate(tensors)
        }
        total = torch.stack([dense(p).sign() for p in packets.values()]).sum(0)
        out = single(Vote(scale=0.5).aggregate(packets))
        assert torch.equal(out, total.sign() * 0.5 + 0.0) and out.shape == (30, 41)
        groups = {c: gcext.Packet.group([p, p]) for c, p in packets.items()}
        assert all(torch.equal(each, out) for each in Vote(0.5).aggregate(groups))
    zero = gcext.codec("sign").encode(torch.zeros(3))
    assert not single(Vote().aggregate({0: zero, 1: zero})).any()
    for shape in ((), (0,), (2, 0)):
        one = gcext.codec("sign").encode(torch.ones(shape))
        assert torch.equal(single(Vote().aggregate({0: one})), torch.ones(shape))


def test_a_minority_cannot_move_the_vote() -> None:
    """Where the honest agree; an attacker counts once, however large its numbers."""
    rng = np.random.default_rng(2)
    honest = torch.from_numpy(rng.standard_normal(500)).float()
    packets = {i: gcext.codec("sign").encode(honest) for i in range(6)}
    for i in range(6, 11):
        packets[i] = gcext.codec("sign").encode(-1e30 * honest)
    assert torch.equal(single(Vote().aggregate(packets)), honest.sign())


def test_what_is_refused() -> None:
    one = gcext.codec("dense").encode(torch.ones(3))
    for call, message in (
        (lambda: Vote(math.nan), "scale must be finite in float32, got nan"),
        (lambda: Vote().aggregate({4: one}), "of signs or sparse, got dense from client 4"),
        (lambda: Vote().aggregate({4: gcext.Packet.group([one])}), "got dense from client 4"),
        (lambda: Vote().load_state_dict({"round": 1}), "Vote: its state is empty"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    bits = torch.zeros(2, dtype=torch.uint8)
    empty, index = torch.empty(0, dtype=torch.int32), torch.tensor([3, 3]).int()
    for arguments, message in (
        (([bits], [], [], 1.0, 17), "3 bytes, got 2"),
        (([bits.float()], [], [], 1.0, 16), "wrong dtype"),
        (([bits], [], [], 1e39, 16), "finite in float32"),
        (([], [empty], [torch.ones(4)], 1.0, 4), "without indices"),
        (([], [index], [torch.ones(2)], 1.0, 4), "rise strictly"),
    ):
        with pytest.raises(RuntimeError, match=message):
            ops.vote(*arguments)


def test_opcheck_and_compile() -> None:
    _, arguments = ballots(np.random.default_rng(3), 600, 3, 2)
    torch.library.opcheck(torch.ops.gcext.vote.default, (*arguments, 0.5, 600))
    compiled = torch.compile(
        lambda plane, index, value: ops.vote(plane, index, value, 0.5, 600) + 1,
        fullgraph=True,
        backend="aot_eager",
    )
    assert torch.equal(compiled(*arguments), ops.vote(*arguments, 0.5, 600) + 1)


SAME = """
import hashlib, numpy as np, torch, gcext
from gcext.aggregate import Vote
rng = np.random.default_rng(0)
packets = {}
for i in range(12):
    tensor = torch.from_numpy(rng.standard_normal(200_003).astype(np.float32))
    packets[i] = gcext.codec(["sign", "stc:p=0.3"][i % 2]).encode(tensor)
turned = dict(reversed(packets.items()))
for threads in range(1, 9):
    torch.set_num_threads(threads)
    out = Vote(0.1).aggregate(packets if threads % 2 else turned)
    print(hashlib.sha256(out.numpy()).hexdigest())
"""


def test_the_same_bits_at_every_instruction_set_and_number_of_threads() -> None:
    results = at_every_isa(SAME)
    digests = [digest for digests in results.values() for digest in digests]
    assert len(digests) == 8 * len(results) and len(set(digests)) == 1, results
