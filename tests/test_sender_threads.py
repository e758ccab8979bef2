"""One sender from several threads: no mass is lost, and no state is torn."""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from packet_kit import dense
from torch import Tensor

import gcext
from gcext import ErrorFeedback, MomentumCorrection, PowerSGD, Sender

SENDERS: dict[str, Callable[[], Sender]] = {
    "stc": lambda: ErrorFeedback("stc:p=0.01"),
    "staged": lambda: ErrorFeedback("stc:p=0.01", stages=[MomentumCorrection(0.5)]),
    "seeds": lambda: Sender("qsgd:bits=2,bucket=64", seed=1),
    "lowrank": lambda: PowerSGD(rank=1),
}


def at_once(count: int, call: Callable[[int], Any]) -> list[Any]:
    """What ``call`` returned or raised in each of so many threads that begin together."""
    barrier = threading.Barrier(count)

    def one(number: int) -> Any:
        barrier.wait()
        try:
            return call(number)
        except Exception as error:
            return error

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(one, range(count)))


@pytest.mark.parametrize("many", [False, True])
def test_one_name_loses_no_mass(many: bool) -> None:
    """What was sent and what is held back is all that the calls that returned were given."""
    for trial in range(30):
        sender = ErrorFeedback("topk:p=0.01")
        given = [torch.full((20_000,), float(i + 1)) for i in range(2)]

        def call(i: int, given: list[Tensor] = given, sender: Sender = sender) -> gcext.Packet:
            return sender.compress({"w": given[i]} if many else given[i], *[] if many else ["w"])

        results = at_once(2, call)
        packets = [(i, each) for i, each in enumerate(results) if isinstance(each, gcext.Packet)]
        refused = [each for each in results if not isinstance(each, gcext.Packet)]
        assert packets, trial
        for error in refused:
            assert isinstance(error, RuntimeError)
            assert "one packet of a name at a time, another thread compresses 'w'" in str(error)
        total = sender.residual("w")
        for i, each in packets:
            total += dense(each.members[0] if many else each) - given[i]
        assert not total.any()
        sender.compress({"w": given[0]} if many else given[0], *[] if many else ["w"])  # free again


@pytest.mark.parametrize("kind", SENDERS)
def test_names_of_their_own_are_as_in_one_thread(kind: str) -> None:
    gradients = [[torch.randn(40, 30) for _ in range(5)] for _ in range(8)]

    def run(sender: Sender, i: int) -> list[bytes]:
        return [sender.compress(each, str(i)).to_bytes() for each in gradients[i]]

    alone, shared = SENDERS[kind](), SENDERS[kind]()
    expected = [run(alone, i) for i in range(8)]
    assert at_once(8, lambda i: run(shared, i)) == expected
    for i in range(8):
        assert run(shared, i) == run(alone, i)


def test_a_state_taken_meanwhile_is_whole() -> None:
    """All elements of a tensor are alike, so those of a residual are, in whichever state."""
    sender, stop = ErrorFeedback("sign"), threading.Event()

    def work() -> None:
        for step in range(200):
            sender.compress(torch.full((20_000,), float(step)), "w")
        stop.set()

    def watch() -> int:
        seen = 0
        while not stop.is_set():
            for held in sender.state_dict()["residuals"].values():
                assert (held == held[0]).all()
                seen += 1
        return seen

    results = at_once(2, lambda i: (work, watch)[i]())
    assert results[0] is None and isinstance(results[1], int), results


def test_a_state_is_not_loaded_meanwhile() -> None:
    class Waiting(gcext.Stage):
        def before(self, name: str, tensor: Tensor) -> Tensor:
            inside.set()
            assert go_on.wait(30)
            return tensor

    inside, go_on = threading.Event(), threading.Event()
    sender = ErrorFeedback("stc:p=0.5", stages=[Waiting()])
    state = sender.state_dict()
    thread = threading.Thread(target=sender.compress, args=(torch.ones(4), "w"))
    thread.start()
    assert inside.wait(30)
    with pytest.raises(RuntimeError, match="no thread may compress meanwhile"):
        sender.load_state_dict(state)
    go_on.set()
    thread.join()
    sender.load_state_dict(state)
    assert not sender.state_dict()["residuals"]


def test_what_a_refused_call_leaves() -> None:
    """A name that is pending stays so; one whose call raised is free."""
    sender = ErrorFeedback("stc:p=0.5")
    sender.compress(torch.ones(4), "a", commit=False)
    with pytest.raises(RuntimeError, match="'a' is pending"):
        sender.compress({"b": torch.ones(4), "a": torch.ones(4)})
    with pytest.raises(ValueError, match="finite"):
        sender.compress(torch.full((4,), torch.nan), "b")
    sender.compress(torch.ones(4), "b")
    assert sender.pending == ("a",) and not sender._busy


@pytest.mark.parametrize("kind", SENDERS)
def test_copies_and_pickles(kind: str) -> None:
    sender = SENDERS[kind]()
    sender.compress(torch.randn(40, 30), "w")
    next_one = torch.randn(40, 30)
    others = [copy.deepcopy(sender), pickle.loads(pickle.dumps(sender))]
    expected = sender.compress(next_one, "w").to_bytes()
    assert [each.compress(next_one, "w").to_bytes() for each in others] == [expected] * 2
