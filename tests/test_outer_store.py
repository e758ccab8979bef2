"""The outer optimizer through a store: late, killed and restarted ranks; what is decided once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from outer_kit import EVERY, RECIPES, Net, digest, local_step, reference, same

from gcext import OuterOptimizer
from gcext.outer import _store
from gcext.outer._store import Log, StoreRounds

ROOT = Path(__file__).parents[1]
SPARSE = "sparseloco:p=0.1,every=3"


def in_threads(world: int, run: Callable[[int], None]) -> None:
    """Run a function of each rank at the same time; raise what one of them raises."""
    errors: list[BaseException] = []

    def guarded(rank: int) -> None:
        try:
            run(rank)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    if errors:
        raise errors[0]
    assert not any(thread.is_alive() for thread in threads)


def made(
    store: Any,
    rank: int,
    world: int,
    recipe: str = SPARSE,
    dtype: Any = torch.float32,
    **options: Any,
) -> tuple[Net, OuterOptimizer]:
    model = Net(dtype)
    options = {"timeout": 30.0, **options}
    return model, OuterOptimizer(model, recipe, store=store, rank=rank, world=world, **options)


def rounds(model: Net, outer: OuterOptimizer, first: int, last: int) -> None:
    """Take the local steps of rounds ``first`` to ``last`` and as many outer ones."""
    for step in range((first - 1) * EVERY, last * EVERY):
        local_step(model, outer.rank, step)
        outer.step()


def patience(outer: OuterOptimizer, seconds: float) -> None:
    """Wait so long for others from now on."""
    assert outer._rounds is not None
    outer._rounds.timeout = seconds


def wait_for(outer: OuterOptimizer, head: int) -> None:
    """Sleep until the others have decided a round."""
    assert outer._rounds is not None
    while outer._rounds.read().head < head:
        time.sleep(0.01)


def hash_store() -> Any:
    return dist.HashStore()  # type: ignore[attr-defined]


def tcp_store() -> Any:
    return dist.TCPStore("127.0.0.1", 0, None, True, wait_for_workers=False)  # type: ignore[attr-defined]


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("new_store", [hash_store, tcp_store])
def test_equals_the_reference(new_store: Callable[[], Any], recipe: str) -> None:
    world, store, models = 3, new_store(), {}

    def run(rank: int) -> None:
        model, outer = made(store, rank, world, recipe, torch.bfloat16)
        rounds(model, outer, 1, 4)
        assert outer.members == (0, 1, 2) and outer.sent_bytes > 0
        models[rank] = model

    in_threads(world, run)
    expected = reference(recipe, world, 4 * EVERY, torch.bfloat16)
    assert all(same(models[rank], expected[rank]) for rank in range(world))


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_packet_that_comes_too_late_is_taken_back(
    recipe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rank 2's comes after the decision of round 2: its residual and its progress stay."""
    world, store, models, plain = 3, hash_store(), {}, StoreRounds.post
    dtype = torch.bfloat16 if recipe == SPARSE else torch.float32

    def post(self: StoreRounds, number: int, message: bytes) -> bool:
        while (self.rank, number) == (2, 2) and self.read().head < number:
            time.sleep(0.01)
        return plain(self, number, message)

    def run(rank: int) -> None:
        model, outer = made(store, rank, world, recipe, dtype)
        rounds(model, outer, 1, 1)
        patience(outer, 30.0 if rank == 2 else 1.0)
        rounds(model, outer, 2, 2)
        patience(outer, 30.0)
        if rank < 2:
            assert outer.members == (0, 1)
            while not store.check(["late"]):
                time.sleep(0.01)
        else:
            store.set("late", "")
            assert (outer.round, outer.left_out) == (2, 1) and outer.members == (0, 1)
        rounds(model, outer, 3, 4)
        models[rank] = model

    monkeypatch.setattr(StoreRounds, "post", post)
    in_threads(world, run)

    def members(number: int) -> set[int]:
        return {0, 1} if number == 2 else {0, 1, 2}

    expected = reference(recipe, world, 4 * EVERY, dtype, members)
    assert all(same(models[rank], expected[rank]) for rank in range(world))
    assert same(models[0], models[2])


@pytest.mark.parametrize(("keep", "missed"), [(8, 4), (2, 4), (1, 1)])
def test_a_rank_that_comes_back_agrees_again(keep: int, missed: int) -> None:
    """Also where the packets of the rounds that it missed are gone: then it is given the model."""
    world, store, models, received = 3, hash_store(), {}, {}

    def run(rank: int) -> None:
        model, outer = made(store, rank, world, "diloco:every=3", keep=keep)
        rounds(model, outer, 1, 1)
        patience(outer, 30.0 if rank == 2 else 1.0)
        if rank == 2:
            for step in range(EVERY, 2 * EVERY):  # the last call is late
                local_step(model, rank, step)
                if step == 2 * EVERY - 1:
                    wait_for(outer, 1 + missed)
                outer.step()
        else:
            rounds(model, outer, 2, 1 + missed)
            assert outer.members == (0, 1)
        while outer.round < missed + 8 or rank not in outer.members:  # together again at some time
            local_step(model, rank, 7)
            if outer.step() and outer.members == (0, 1, 2) and outer.round >= missed + 4:
                break
        models[rank], received[rank] = (outer.round, digest(model.trained().values())), outer

    in_threads(world, run)
    assert models[0] == models[1] == models[2]
    fetched = missed > keep
    assert (received[0].sent_bytes > received[1].sent_bytes) == fetched


def test_without_anyone_to_give_it_the_model_it_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_store, "_PATIENCE", 2)
    store = hash_store()
    model, outer = made(store, 0, 2, timeout=0.1, keep=1)
    late, behind = made(store, 1, 2, timeout=0.1, keep=1)
    rounds(model, outer, 1, 3)
    for step in range(EVERY - 1):
        local_step(late, 1, step)
        behind.step()
    before = digest(late.parameters())
    with pytest.raises(RuntimeError, match="at most 1 rounds behind, got round 0 of 3, "):
        behind.step()
    assert digest(late.parameters()) == before and not behind._sender.pending
    assert not store.check(["gcext/outer/run/want/1"])


def test_the_store_does_not_grow() -> None:
    store = hash_store()
    counts = []
    models = [made(store, rank, 2, timeout=0.05, keep=2) for rank in range(2)]
    for number in range(1, 12):
        rounds(*models[0], number, number)
        counts.append(store.num_keys())
    assert max(counts[4:]) == counts[-1] < 12
    late = StoreRounds(store, "run", 1, 2, 0.05, 2)
    assert late.post(3, b"of a round whose packets are deleted") and not late.decide(3)
    late.discard(3)
    assert store.num_keys() == counts[-1]


def test_large_packets_travel_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_store, "_CHUNK", 100)
    store, models = tcp_store(), {}

    def run(rank: int) -> None:
        model, outer = made(store, rank, 2, "diloco:every=3", keep=1)
        rounds(model, outer, 1, 3)
        models[rank] = model

    in_threads(2, run)
    assert same(models[0], models[1]) and same(models[0], reference("diloco:every=3", 2, 9)[0])
    packets = 2 * (1 + -(-4 * 240 // 100))
    assert packets <= store.num_keys() <= packets + 8


def test_a_call_that_is_interrupted_goes_on_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """The packet is in the store and counts; what was changed since is sent in the next."""
    store, models, plain = hash_store(), {}, StoreRounds.decide

    def decide(self: StoreRounds, number: int) -> bool:
        if self.rank == 0 and number == 2 and not store.check(["interrupted"]):
            store.set("interrupted", "")
            raise KeyboardInterrupt
        return plain(self, number)

    def run(rank: int) -> None:
        model, outer = made(store, rank, 2, "localsgd:every=3")
        rounds(model, outer, 1, 1)
        with pytest.raises(KeyboardInterrupt) if rank == 0 else torch.no_grad():
            rounds(model, outer, 2, 2)
        if rank == 0:
            assert (outer.round, outer.local_steps) == (1, EVERY - 1)
            with pytest.raises(RuntimeError, match=r"round 2 must be decided .* Call step again"):
                outer.state_dict()
            with torch.no_grad():
                model.weight.add_(1.0)  # after the packet was made
            assert outer.step() and outer.round == 2
        outer.state_dict()
        models[rank] = model

    monkeypatch.setattr(StoreRounds, "decide", decide)
    in_threads(2, run)
    expected = reference("localsgd:every=3", 2, 2 * EVERY)[1]
    assert same(models[1], expected)
    torch.testing.assert_close(models[0].weight, expected.weight + 1.0)


def test_nan_leaves_a_rank_out_until_it_is_reset() -> None:
    store, models = hash_store(), {}

    def run(rank: int) -> None:
        model, outer = made(store, rank, 3)
        rounds(model, outer, 1, 1)
        patience(outer, 1.0)
        if rank == 1:
            with torch.no_grad():
                model.strided[0, 0] = torch.inf
            with pytest.raises(ValueError, match=r"'strided'.*OuterOptimizer\.reset"):
                rounds(model, outer, 2, 2)
            wait_for(outer, 2)
            outer.reset()
            assert outer.step()
        else:
            rounds(model, outer, 2, 3)
        assert outer.round == 3 and outer.members == (0, 1, 2)
        models[rank] = model

    in_threads(3, run)
    assert same(models[0], models[1]) and same(models[0], models[2])


def test_resume_with_a_new_store() -> None:
    """All ranks from one checkpoint; one of them had been behind, and is given the model."""
    old, new, models = hash_store(), hash_store(), {}
    ranks = [made(old, rank, 3, timeout=1.0) for rank in range(3)]
    in_threads(2, lambda rank: rounds(*ranks[rank], 1, 2))
    states = [outer.state_dict() for _, outer in ranks]
    assert [state[f"rank{r}"]["round"] for r, state in enumerate(states)] == [2, 2, 0]
    again = [made(new, rank, 3, timeout=1.0) for rank in range(3)]
    for rank, (model, outer) in enumerate(again):
        outer.load_state_dict(states[rank])
        model.load_state_dict(ranks[rank][0].state_dict())

    def run(rank: int) -> None:
        model, outer = again[rank]
        while outer.members != (0, 1, 2):
            local_step(model, rank, 5)
            outer.step()
        models[rank] = outer.round, digest(model.trained().values())

    in_threads(3, run)
    assert models[0] == models[1] == models[2] and models[0][0] > 2


def test_an_earlier_process_of_the_rank_has_sent_already() -> None:
    """Its packet counts, the new process's does not: every rank reads the same one."""
    store = hash_store()
    model, outer = made(store, 0, 2)
    killed, gone = made(store, 1, 2)
    for step in range(EVERY):
        local_step(killed, 1, step)
    packet = gone._compress(gone._progress())
    assert gone._rounds is not None and gone._rounds.post(1, packet.to_bytes())
    fresh, restarted = made(store, 1, 2)

    def run(rank: int) -> None:
        while rank == 0 and restarted._posted is None:
            time.sleep(0.01)
        rounds(*[(model, outer), (fresh, restarted)][rank], 1, 1)

    in_threads(2, run)
    assert restarted.left_out == 1 and outer.members == (0, 1) == restarted.members
    assert same(model, reference(SPARSE, 2, EVERY)[0])


@pytest.mark.parametrize(
    ("last", "here", "waited", "decided"),
    [
        ((0, 1, 2, 3), (0, 3), 1.5, True),
        ((0, 1, 2, 3), (3,), 1.5, False),
        ((0, 1, 2, 3), (3,), 10.5, True),
        ((0,), (3,), 1.5, False),
        ((0,), (0,), 1.5, True),
        ((), (0, 3), 1.5, True),
        ((0, 1, 2, 3), (0, 1, 2), 0.5, False),
        ((0, 1, 2, 3), (0, 1, 2, 3), 0.0, True),
    ],
)
def test_when_a_round_is_decided(
    last: tuple[int, ...],
    here: tuple[int, ...],
    waited: float,
    decided: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = hash_store()
    them = {rank: StoreRounds(store, "run", rank, 4, 1.0, 8) for rank in here}
    log = Log(7, (last,) if last else (), (0,) * 4)
    them[here[0]].store.set("log", json.dumps(log))
    for each in them.values():
        each.post(8, b"packet")

    class UndecidedError(Exception):
        pass

    def sleep(seconds: float) -> None:
        raise UndecidedError

    times = iter([0.0, waited])
    monkeypatch.setattr(time, "monotonic", lambda: next(times, waited))
    monkeypatch.setattr(time, "sleep", sleep)
    if not decided:
        with pytest.raises(UndecidedError):
            them[here[0]].decide(8)
        return
    assert them[here[0]].decide(8)
    assert them[here[-1]].read().of(8) == here


def test_two_ranks_make_one_decision() -> None:
    """Whoever comes second gets the first's, and does not overwrite it."""
    store = hash_store()
    a, b = (StoreRounds(store, "run", rank, 3, 0.0, 8) for rank in range(2))
    a.read(0)
    b.read(0)
    a.post(1, b"a")
    b.post(1, b"b")
    assert a._swap(Log(1, ((0, 1),), (1, 1, 0)))
    assert not b._swap(Log(1, ((1,),), (0, 1, 0)))
    assert b.decide(1) and b.read().of(1) == (0, 1)


def peer(rank: int, port: int, folder: str) -> None:
    """Train as one of three ranks; the last one is killed in the middle of round 2."""
    torch.set_num_threads(1)
    store = dist.TCPStore("127.0.0.1", port)  # type: ignore[attr-defined]
    model, outer = made(store, rank, 3, timeout=2.0)
    store.add("ready", 1)
    while store.add("ready", 0) < 3:
        time.sleep(0.01)
    for step in range(4 * EVERY):
        local_step(model, rank, step)
        if rank == 2 and step == 2 * EVERY - 2:
            os._exit(9)
        outer.step()
    (Path(folder) / str(rank)).write_text(digest(model.trained().values()))
    assert outer.members == (0, 1) and outer.round == 4


def test_a_killed_rank_is_left_out(tmp_path: Path) -> None:
    store = tcp_store()
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    command = [sys.executable, __file__, str(store.port), str(tmp_path)]
    ranks = [
        subprocess.Popen(
            [*command, str(rank)],
            env={**os.environ, "PYTHONPATH": path},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(3)
    ]
    try:
        ended = [rank.communicate(timeout=100) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0, 0, 9], ended

    def members(number: int) -> set[int]:
        return {0, 1} if number > 1 else {0, 1, 2}

    expected = reference(SPARSE, 3, 4 * EVERY, members=members)[0].trained().values()
    assert {(tmp_path / name).read_text() for name in "01"} == {digest(expected)}


if __name__ == "__main__":
    peer(int(sys.argv[3]), int(sys.argv[1]), sys.argv[2])
