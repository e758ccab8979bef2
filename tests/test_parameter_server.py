"""Push and pull between processes, against one process that makes the same packets."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ranks_kit import main, outputs, run_ranks
from torch import Tensor

import gcext
import gcext.parameter_server as ps
from gcext import Packet
from gcext.parameter_server._ends import plan_round

SHAPES = {"embed": (50, 8), "a": (6,), "b": (4, 3), "": (), "none": (0,), "head": (70,)}
OPTIONS = {"exact_below": 5, "seed": 3}
PLAN = {"split": 150, "merge": 16}
RECIPES = [
    "stc:p=0.2", "doublesqueeze:codec=sign", "pstc:p=0.2", "ef21:p=0.3,both=true",
    "qsgd:bits=3,bucket=16,down=natural", "dgc:p=0.01,warmup=2", "powersgd:rank=1",
]  # fmt: skip


def gradients(rank: int, step: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(10 * step + rank)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def tensors() -> dict[str, Tensor]:
    return gradients(0, 0)


class Reference:
    """All ends of a recipe in one process, message by message."""

    def __init__(self, recipe: str, servers: tuple[int, ...], workers: tuple[int, ...]) -> None:
        self.recipe, self.workers, self.number = gcext.recipe(recipe), workers, 0
        self.plan = plan_round(SHAPES, servers, **PLAN)
        up, down = self.recipe.up, self.recipe.down
        self.up = {r: up.sender(gcext.derive(3, r), 5) for r in workers}
        self.down = {r: down.sender(gcext.derive(3, r), 5) for r in servers}
        self.server = [up.receiver() for _ in self.plan]
        self.worker = [down.receiver() for _ in self.plan]
        self.bytes = 0

    def step(self, number: int) -> dict[str, Tensor]:
        self.number += 1
        flat = {name: torch.zeros(torch.Size(shape).numel()) for name, shape in SHAPES.items()}
        for sender, link in [
            *((each, self.recipe.up) for each in self.up.values()),
            *((each, self.recipe.down) for each in self.down.values()),
        ]:
            sender.codec = self.recipe.schedule.codec(link.codec, self.number)
        for index, message in enumerate(self.plan):
            packets = {}
            for rank, sender in self.up.items():
                mine = gradients(rank, number)
                parts = {
                    p.key: mine[p.name].flatten()[p.start : p.stop].view(p.shape)
                    for p in message.pieces
                }
                packets[rank] = Packet.from_bytes(sender.compress(parts).to_bytes())
            losses = dict.fromkeys(packets, 1.0)
            update = self.server[index].aggregate(packets, losses, self.number)
            keys = [p.key for p in message.pieces]
            packet = self.down[message.server].compress(dict(zip(keys, update, strict=True)))
            self.bytes += sum(each.nbytes for each in packets.values())
            self.bytes += packet.nbytes * len(packets)  # an answer goes to every worker
            for p, part in zip(
                message.pieces, self.worker[index].aggregate({0: packet}), strict=True
            ):
                flat[p.name][p.start : p.stop] = part.flatten()
        return {name: flat[name].view(shape) for name, shape in SHAPES.items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)


class Ranks:
    """One rank's view of a run."""

    def __init__(self, rank: int, world: int, servers: int) -> None:
        self.rank, self.servers = rank, tuple(range(world - servers, world))
        self.workers = tuple(range(world - servers))

    def serve(self, recipe: str, error: str = "") -> ps.Server:
        server = ps.Server(recipe, servers=self.servers, **OPTIONS)  # type: ignore[arg-type]
        if error:
            with pytest.raises(RuntimeError, match=error):
                server.serve()
        else:
            server.serve()
        return server

    def worker(self, recipe: str) -> ps.Worker:
        return ps.Worker(tensors(), recipe, servers=self.servers, **OPTIONS, **PLAN)  # type: ignore[arg-type]

    @property
    def is_server(self) -> bool:
        return self.rank in self.servers


def check_equals_one_process(at: Ranks) -> None:
    for recipe in RECIPES:
        if at.is_server:
            server = at.serve(recipe)
            counts = [server.sent_bytes, server.received_bytes]
        else:
            reference = Reference(recipe, at.servers, at.workers)
            with at.worker(recipe) as worker:
                for step in range(4):
                    worker.push(gradients(at.rank, step), loss=1.0)
                    got = worker.pull()
                    assert same(got, reference.step(step)), (recipe, step)
            counts = [worker.received_bytes, worker.sent_bytes]
        everyone: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(everyone, counts)
        down, up = (
            [sum(each[i] for r, each in enumerate(everyone) if r in ranks) for i in (0, 1)]
            for ranks in (at.servers, at.workers)
        )
        assert down == up  # what is sent is received
        if not at.is_server:
            rounds = 4 * (2 * len(worker.messages) + 2 * len(at.servers))
            heads = 40 * len(at.workers) * (rounds + len(at.servers))  # and a farewell each
            assert sum(up) == reference.bytes + heads


def check_order(at: Ranks) -> None:
    """The first tensors are sent, and answered, first."""
    if at.is_server:
        at.serve("stc")
        return
    sent: list[tuple[int, int]] = []
    isend = dist.isend

    def spy(tensor: Tensor, dst: int, group: Any = None) -> Any:
        if tensor.dtype == torch.float64:
            sent.append((dst, int(tensor[1])))
        return isend(tensor, dst, group)

    dist.isend = spy  # type: ignore[assignment]
    with at.worker("stc") as worker:
        worker.push(gradients(at.rank, 0))
        plan = worker.messages
        assert sent[len(at.servers) :] == [(each.server, i) for i, each in enumerate(plan)]
        names = [piece.key for each in plan for piece in each.pieces]
        assert names[:3] == ["embed[0:150]", "embed[150:300]", "embed[300:400]"]
        assert names[3:] == ["a", "b", "", "none", "head"]
        worker.pull()
    dist.isend = isend


def check_commits_once_acknowledged(at: Ranks) -> None:
    if at.is_server:
        at.serve("stc:p=0.2")
        return
    with at.worker("stc:p=0.2") as worker:
        worker.push(gradients(at.rank, 0))
        assert len(worker._sender.pending) == 8
        with pytest.raises(RuntimeError, match="one round at a time"):
            worker.push(gradients(at.rank, 1))
        worker.pull()
        assert not worker._sender.pending
        before = repr(worker.state_dict())
        worker.push(gradients(at.rank, 1))
        state = worker._sender.state_dict()
        assert state["pending"] and repr(state["residuals"]) in before
        worker.pull()
        with pytest.raises(RuntimeError, match="nothing was pushed"):
            worker.pull()


def check_failures(at: Ranks) -> None:
    """A round that fails on one worker fails on all, changes nothing, and the next one is right."""
    for recipe in ("doublesqueeze:codec=topk:p=0.2", "ef21:p=0.3,both=true"):
        check_failures_of(at, recipe)


def check_failures_of(at: Ranks, recipe: str) -> None:
    if at.is_server:
        at.serve(recipe)
        return
    reference = Reference(recipe, at.servers, at.workers)
    bad = at.rank == at.workers[-1]
    with at.worker(recipe) as worker:

        def good(step: int) -> None:
            worker.push(gradients(at.rank, step))
            assert same(worker.pull(), reference.step(step))

        def fails(given: dict[str, Tensor], mine: str, others: str) -> None:
            before = worker.state_dict()
            if bad and mine:
                with pytest.raises(ValueError, match=mine):
                    worker.push(given)
            else:
                worker.push(given)
                with pytest.raises(RuntimeError, match=others):
                    worker.pull()
            after = worker.state_dict()
            assert after.pop("round") == before.pop("round") + 1
            assert repr(after) == repr(before)

        good(0)
        given = gradients(at.rank, 1)
        if bad:
            given["b"][1, 1] = torch.nan
        fails(given, r"'b'.*must be finite", rf"from worker {at.workers[-1]}: .*'b'.*finite")
        good(1)
        fails({"a": given["a"]} if bad else given, "must stay, got another", "must stay")
        good(2)
        compress = worker._sender.compress

        def other(tensors: Any, commit: bool = True) -> Packet:
            packet = compress(tensors, commit=commit)
            return packet if len(packet.members) < 2 else Packet.group([packet.members[0]])

        worker._sender.compress = other if bad else compress  # type: ignore[assignment,method-assign]
        fails(gradients(at.rank, 3), "", rf"from worker {at.workers[-1]}: .*group")
        worker._sender.compress = compress  # type: ignore[method-assign]
        good(3)


def check_losses(at: Ranks) -> None:
    if at.is_server:
        at.serve("pstc:p=0.2")
        return
    with at.worker("pstc:p=0.2") as worker:
        worker.push(gradients(at.rank, 0))
        with pytest.raises(RuntimeError, match=r"at server .*: Projection: needs a loss"):
            worker.pull()


def check_none_is_zero(at: Ranks) -> None:
    if at.is_server:
        at.serve("none")
        return
    with at.worker("none") as worker:
        given: dict[str, Tensor | None] = {**gradients(at.rank, 0), "head": None}
        worker.push({**given, "b": gradients(at.rank, 0)["b"].t().contiguous().t()})
        got = worker.pull()
        assert torch.equal(got["head"], torch.zeros(70))
        expected = sum(gradients(rank, 0)["b"] for rank in at.workers) / len(at.workers)
        torch.testing.assert_close(got["b"], expected)


def check_resumes(at: Ranks) -> None:
    """New ends that load the states go on as the old ones would have."""
    recipe = "doublesqueeze:codec=qsgd:bits=2,bucket=8"
    reference = Reference(recipe, at.servers, at.workers)
    state = None
    for first in (0, 3):
        if at.is_server:
            server = ps.Server(recipe, servers=at.servers, **OPTIONS)  # type: ignore[arg-type]
            if state:
                server.load_state_dict(state)
            server.serve()
            state = server.state_dict()
            continue
        with at.worker(recipe) as worker:
            if state:
                worker.load_state_dict(state)
            for step in range(first, first + 3):
                worker.push(gradients(at.rank, step))
                assert same(worker.pull(), reference.step(step)), step
            state = worker.state_dict()
            with pytest.raises(ValueError, match=r"Worker: rank must be the state's 9, got \d"):
                worker.load_state_dict(state | {"rank": 9})
            with pytest.raises(ValueError, match=r"Worker: workers must be the state's \[0\], got"):
                worker.load_state_dict(state | {"workers": [0]})


def check_other_options(at: Ranks) -> None:
    for options, what in (
        ({"seed": at.rank}, "must be the same on all ranks"),
        ({"servers": (0, 1, 2, 3)[: dist.get_world_size()]}, "must be some of the ranks"),
    ):
        given: Any = {"servers": at.servers, **options}
        with pytest.raises(ValueError, match=what):
            if at.is_server:
                ps.Server("stc", **given)
            else:
                ps.Worker(tensors(), "stc", **given)
    odd = {**tensors(), "more": torch.ones(at.rank + 1)}
    with pytest.raises(ValueError, match="shape of 'more' must be the same"):
        if at.is_server:
            ps.Server("stc", servers=at.servers)
        else:
            ps.Worker(odd, "stc", servers=at.servers)
    with pytest.raises(ValueError, match="one broadcast answers all workers"):
        ps.Server("catchup", servers=at.servers)


def check_a_worker_that_cannot_decode(at: Ranks) -> None:
    """The round counts for the others; that worker is closed, and their next round fails."""
    if at.is_server:
        at.serve("stc", "worker 0 raised MemoryError: none left")
        return
    worker = at.worker("stc")
    worker.push(gradients(at.rank, 0))
    worker.pull()
    before = repr(worker._sender.state_dict())
    worker.push(gradients(at.rank, 1))
    if at.rank == 0:

        def aggregate(*_: Any) -> Any:
            raise MemoryError("none left")

        worker._receivers[1].aggregate = aggregate  # type: ignore
        with pytest.raises(MemoryError, match="none left"):
            worker.pull()
        assert repr(worker._sender.state_dict()) == before
        with pytest.raises(RuntimeError, match="the connection is closed"):
            worker.push(gradients(at.rank, 2))
        return
    worker.pull()
    worker.push(gradients(at.rank, 2))
    with pytest.raises(RuntimeError, match="worker 0 raised MemoryError: none left"):
        worker.pull()
    worker.close()


def check_a_worker_that_raises(at: Ranks) -> None:
    if at.is_server:
        at.serve("stc", "worker 0 raised KeyError: 'data'")
        return
    with suppress(KeyError), at.worker("stc") as worker:
        worker.push(gradients(at.rank, 0))
        worker.pull()
        if at.rank == 0:
            raise KeyError("data")
        worker.push(gradients(at.rank, 1))
        with pytest.raises(RuntimeError, match=r"worker 0 raised KeyError: 'data'"):
            worker.pull()


def check_a_worker_that_is_killed(at: Ranks) -> None:
    """Last: the group is of no use then."""
    if at.is_server:
        at.serve("stc", "worker 0 is gone")
        return
    worker = at.worker("stc")
    worker.push(gradients(at.rank, 0))
    worker.pull()
    if at.rank == 0:
        os._exit(0)
    worker.push(gradients(at.rank, 1))
    with pytest.raises(RuntimeError, match=r"worker 0 is gone"):
        worker.pull()
    worker.close()


CHECKS: list[Callable[[Ranks], None]] = [
    check_equals_one_process, check_order, check_commits_once_acknowledged, check_failures,
    check_losses, check_none_is_zero, check_resumes, check_other_options,
    check_a_worker_that_cannot_decode, check_a_worker_that_raises, check_a_worker_that_is_killed,
]  # fmt: skip


def run_rank(rank: int, world: int, servers: str) -> None:
    at = Ranks(rank, world, int(servers))
    for check in CHECKS:
        check(at)
    os._exit(0)


@pytest.mark.parametrize(("world", "servers"), [(3, 1), (4, 2)])
def test_push_and_pull(world: int, servers: int, tmp_path: Path) -> None:
    outputs(run_ranks(__file__, world, tmp_path / "store", str(servers)))


def test_the_plan_splits_and_merges() -> None:
    shapes = {"a": (3,), "b": (2,), "big": (10, 2), "c": (4,), "d": (1,), "e": ()}
    plan = plan_round(shapes, (7, 8), split=8, merge=4)
    keys = [[piece.key for piece in message.pieces] for message in plan]
    assert keys == [["a", "b"], ["big[0:8]"], ["big[8:16]"], ["big[16:20]"], ["c"], ["d", "e"]]
    assert [message.server for message in plan] == [7, 8, 7, 8, 8, 7]
    assert plan[1].shapes == ((8,),) and plan[5].shapes == ((1,), ())
    assert sum(p.stop - p.start for message in plan for p in message.pieces) == 31


if __name__ == "__main__":
    main(run_rank)
