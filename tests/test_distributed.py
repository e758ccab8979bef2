"""Packets between processes: gloo, two and three ranks, and the errors that no rank waits for."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

import gcext
from gcext import Packet
from gcext.distributed import Capacity, Gather, all_gather

ROOT = Path(__file__).parents[1]
SPECS = ["stc:p=0.3", "qsgd:bits=3,bucket=16", "sign", "dense"]


def sent(rank: int, shape: tuple[int, ...] = (40, 5)) -> Packet:
    """What a rank sends; every rank can make every other's."""
    generator = torch.Generator().manual_seed(rank)
    return gcext.codec(SPECS[rank]).encode(torch.randn(shape, generator=generator), seed=rank)


def grouped(rank: int) -> Packet:
    """A group of a rank, with an empty member."""
    return Packet.group([sent(rank, (3, 2)), sent(rank, (0,)), sent(rank, ())])


def check_unequal_lengths(rank: int, world: int) -> None:
    packets = [sent(each) for each in range(world)]
    assert len({packet.nbytes for packet in packets}) == world
    got = all_gather(packets[rank])
    assert [bytes(packet) for packet in got] == [bytes(packet) for packet in packets]
    assert [packet.method for packet in got] == [packet.method for packet in packets]
    mean = gcext.aggregate.mean(got)
    assert isinstance(mean, torch.Tensor)
    print(hashlib.sha256(mean.numpy().tobytes()).hexdigest())  # compared between the ranks


def check_empty_packets(rank: int, world: int) -> None:
    assert [packet.numel for packet in all_gather(sent(rank, (0,)))] == [0] * world
    nothing = gcext.stc(torch.zeros(7) if rank else torch.arange(7.0), p=1)
    assert [packet.k for packet in all_gather(nothing)] == [6, *[0] * (world - 1)]


def check_groups(rank: int, world: int) -> None:
    got = all_gather(grouped(rank))
    assert got == [grouped(each) for each in range(world)]
    assert got[0].shape == ((3, 2), (0,), ())


def check_another_shape(rank: int, world: int) -> None:
    """Every rank raises, and names the first rank whose packet is not as its own."""
    shape, odd = (5,), world - 1
    with pytest.raises(gcext.DecodeError) as caught:
        all_gather(sent(rank, (6,) if rank == odd else shape))
    wrong = 0 if rank == odd else odd
    assert f"from rank {wrong}: " in str(caught.value)
    assert (caught.value.code, caught.value.field) == ("expect", "dims")
    with pytest.raises(gcext.DecodeError, match=f"from rank {wrong}: .*group"):
        all_gather(grouped(rank) if rank == odd else sent(rank))


def check_expect(rank: int, world: int) -> None:
    assert len(all_gather(sent(rank), expect=torch.empty(40, 5))) == world
    with pytest.raises(gcext.DecodeError, match=r"from rank 0: .* must be \(200,\)"):
        all_gather(sent(rank), expect=(200,))


def check_a_rank_without_a_packet(rank: int, world: int) -> None:
    wrong = Packet("ternary", (3,), torch.float32)  # has no contents: to_bytes raises
    for bad, error in ((None, TypeError), (wrong, ValueError)):
        if rank == 1:
            with pytest.raises(error):
                all_gather(bad)
        else:
            with pytest.raises(RuntimeError, match=r"every rank must have a packet.* rank 1"):
                all_gather(sent(rank))
    check_unequal_lengths(rank, world)  # nothing is left over of those


def check_a_group_of_processes(rank: int, world: int) -> None:
    members = [0, world - 1]
    group = dist.new_group(members)
    if rank in members:
        assert all_gather(sent(rank), group) == [sent(each) for each in members]
    else:
        with pytest.raises(RuntimeError, match="must be in the group"):
            all_gather(sent(rank), group)


def check_gathers_under_way(rank: int, world: int) -> None:
    """Several at once; a short capacity takes a second collective, and a rank may have failed."""
    packets = [sent(each) for each in range(world)]
    longest = max(packet.nbytes for packet in packets)
    capacities = [0, 16, longest - 1, longest, 4 * longest]
    gathers = [Gather(packets[rank], capacity=each) for each in capacities]
    called: list[int] = []
    waits = [each.then(lambda: called.append(rank)) for each in gathers]
    failing = Gather(MemoryError("none left") if rank == 1 else packets[rank], capacity=64)
    for gather, capacity, wait in zip(gathers, capacities, waits, strict=True):
        wait()
        gather.rest()
        assert gather.fits == (longest <= capacity) and gather.failed == []
        assert gather.lengths == [packet.nbytes for packet in packets]
        assert gather.wait() == packets
        assert gather.sent_bytes == 16 + max(capacity, longest)
        assert gather.received_bytes == gather.sent_bytes * (world - 1)
    assert called == [rank] * len(gathers)
    assert failing.failed == [1]
    with pytest.raises(MemoryError if rank == 1 else RuntimeError, match=r"none left|from rank 1"):
        failing.wait()


def check_ranks_in_another_round(rank: int, world: int) -> None:
    """A rank that resumed from another checkpoint is an error on all, before anything counts."""
    for first in (0, 2**63 - world, -(2**63)):
        numbers = rf"got \[{first}, {first + 1}"
        with pytest.raises(RuntimeError, match=f"number must be the same on all ranks, {numbers}"):
            all_gather(sent(rank), number=first + rank)
        assert len(all_gather(sent(rank), number=first)) == world


CHECKS = [
    check_gathers_under_way, check_ranks_in_another_round,
    check_unequal_lengths, check_empty_packets, check_groups, check_another_shape, check_expect,
    check_a_rank_without_a_packet, check_a_group_of_processes,
]  # fmt: skip


def run_rank(rank: int, world: int, store: str) -> None:
    timeout = timedelta(seconds=60)
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=world, timeout=timeout
    )
    for check in CHECKS:
        check(rank, world)
    dist.destroy_process_group()


@pytest.mark.parametrize("world", [2, 3])
def test_gathers_between_processes(world: int, tmp_path: Path) -> None:
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    env = {**os.environ, "PYTHONPATH": path, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, str(world), str(tmp_path / "store")]
    ranks = [
        subprocess.Popen(
            [*command, str(rank)],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]
    try:
        ended = [rank.communicate(timeout=120) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    for rank, (_, error) in zip(ranks, ended, strict=True):
        assert rank.returncode == 0, error
    digests = {out for out, _ in ended}
    assert len(digests) == 1 and len(digests.pop().split()) == 2


@pytest.fixture
def alone() -> Iterator[None]:
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())  # type: ignore[attr-defined]
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("alone")
def test_one_process_gets_its_own_packet_decoded() -> None:
    packet = sent(0)
    (got,) = all_gather(packet)
    assert got == packet and got is not packet
    with pytest.raises(TypeError, match="all_gather: needs a packet, got Tensor"):
        all_gather(torch.zeros(3))  # type: ignore[arg-type]


def test_capacity_follows_the_longest_messages() -> None:
    capacity = Capacity()
    for longest in (6000, *[100] * 31):
        capacity.observe([7, longest])
        assert capacity.nbytes == 6144
    capacity.observe([90])
    assert capacity.nbytes == 128


@pytest.mark.usefixtures("alone")
def test_the_default_device_plays_no_part() -> None:
    packet = sent(0)
    with torch.device("meta"):
        assert all_gather(packet) == [packet]


def test_needs_an_initialized_process_group() -> None:
    with pytest.raises(RuntimeError, match=r"must be initialized\. Call init_process_group"):
        all_gather(sent(0))


if __name__ == "__main__":
    run_rank(int(sys.argv[3]), int(sys.argv[1]), sys.argv[2])
