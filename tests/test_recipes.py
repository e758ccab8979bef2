"""Every method: its row in the table, a federated run that learns, and one that is resumed."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from isa_kit import at_every_isa
from packet_kit import dense

import gcext
from gcext._codecs.base import CODECS
from gcext._recipes import about
from gcext.fl import Settings, load, run

# Where defaults are for larger models or more rounds: options, learning rate, rounds.
SETTINGS: dict[str, tuple[str, float, int]] = {
    "stc": ("p=0.1", 0.1, 25),
    "pstc": ("p=0.1", 0.1, 25),
    "topk": ("p=0.1,feedback=true", 0.1, 25),
    "randomk": ("p=0.2", 0.05, 40),
    "qsgd": ("bits=4,bucket=128", 0.1, 25),
    "terngrad": ("bucket=128", 0.05, 30),
    "polar": ("rate=0.5,block=256", 0.05, 30),
    "sign": ("feedback=true", 0.1, 25),
    "ef21": ("p=0.2,both=true", 0.1, 25),
    "dgc": ("p=0.05,momentum=0.5,warmup=2", 0.05, 25),
    "doublesqueeze": ("codec=sign", 0.1, 25),
    "localsgd": ("every=8,codec=topk:p=0.1,feedback=true", 0.1, 25),
    "diloco": ("every=8,momentum=0.5", 0.1, 25),
    "laq": ("bits=8,clients=4", 0.1, 25),
    "neolithic": ("rounds=3,codec=topk:p=0.1", 0.1, 25),
    "repeat": ("rounds=2,codec=topk:p=0.2", 0.1, 25),
    "sbc": ("p=0.1", 0.1, 40),
    "wangni": ("p=0.2", 0.05, 40),
    "strom": ("tau=0.003", 0.1, 30),
    "dryden": ("p=0.1", 0.1, 25),
    "ajiheafield": ("drop=0.9", 0.1, 25),
    "dorefa": ("bits=6,bucket=128", 0.1, 25),
    "resfed": ("p=0.1,bits=3,order=1", 0.1, 25),
    "fetchsgd": ("p=0.02,clear=true", 0.05, 60),
    "sketch": ("p=0.9", 0.03, 40),
    "adacomp": ("bin=50", 0.1, 30),
    "sparseloco": ("p=0.1,every=8", 0.1, 25),
    "demo": ("k=8,lr=0.003", 0.1, 40),
    "dct": ("k=64,feedback=true", 0.1, 40),
    "lowrank": ("rank=8", 0.1, 25),
    "catchup": ("p=0.1,p_down=0.2,momentum=0.5,lr=0.5,average=0.5", 0.1, 40),
    "subset": ("trained=500,p=0.2,p_down=0.3,momentum=0.5,lr=0.5,average=0.5", 0.3, 40),
    "signvote": ("lr=0.003", 0.1, 40),
}
DATA = load("digits")
NAMES = [name for name in gcext.recipes() if about(name).paper]  # other tests register more


def spec_of(name: str) -> str:
    options = SETTINGS.get(name, ("", 0.1, 25))[0]
    return f"{name}:{options}" if options else name


def settings(name: str, rounds: int) -> Settings:
    return Settings(
        data="digits",
        method=name,
        recipe=spec_of(name),
        clients=4,
        participation=1.0,
        rounds=rounds,
        lr=SETTINGS.get(name, ("", 0.1, 25))[1],
        split="iid",
    )


def outcome(result: dict[str, Any]) -> tuple[Any, ...]:
    return result["rounds"], result["model_digest"]


def test_every_method_has_its_row() -> None:
    ours = {name for name, kind in CODECS.items() if kind.__module__.startswith("gcext.")}
    assert ours <= set(NAMES)
    assert all(about(name).use for name in NAMES)
    assert set(SETTINGS) <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_it_learns(name: str) -> None:
    rounds = SETTINGS.get(name, ("", 0.1, 25))[2]
    records = run(settings(name, rounds), DATA)["rounds"]
    assert max(each["accuracy"] for each in records[-5:]) > 0.8, records[-1]
    assert all(each["up_bytes"] > 0 and each["down_bytes"] >= 0 for each in records)


@pytest.mark.parametrize("name", NAMES)
def test_a_run_is_resumed_bit_for_bit(name: str, tmp_path: Path) -> None:
    path = tmp_path / "a.checkpoint"
    run(settings(name, 3), DATA, path=path)
    again = run(settings(name, 5), DATA, path=path, resume=True)
    assert outcome(again) == outcome(run(settings(name, 5), DATA))


def grads(step: int, shape: tuple[int, ...] = (13, 23)) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(step))


@pytest.mark.parametrize("name", NAMES)
class TestSenders:
    def test_copies_go_on_alike(self, name: str) -> None:
        made = gcext.recipe(spec_of(name)).up
        first = made.sender(3)
        first.compress({"a": grads(0), "b": grads(1, (5,))})
        first.compress(grads(2), "a", commit=False)
        loaded = made.sender(3)
        loaded.load_state_dict(copy.deepcopy(first.state_dict()))
        senders = [first, copy.deepcopy(first), pickle.loads(pickle.dumps(first)), loaded]
        for each in senders:
            each.commit()  # one without a state does not hold it back
        for step in (3, 4):
            assert len({each.compress(grads(step), "a").to_bytes() for each in senders}) == 1

    def test_what_is_not_finite_changes_nothing(self, name: str) -> None:
        made = gcext.recipe(spec_of(name)).up
        one, other = made.sender(3), made.sender(3)
        for step in range(3):
            for bad in (float("nan"), float("inf")):
                spoiled = grads(9)
                spoiled[4, 5] = bad
                with pytest.raises(ValueError, match="finite"):
                    other.compress(spoiled, "a")
            packets = [each.compress(grads(step), "a").to_bytes() for each in (one, other)]
            assert packets[0] == packets[1]

    def test_every_truncated_message_is_refused(self, name: str) -> None:
        message = gcext.recipe(spec_of(name)).up.sender(3).compress(grads(0), "a").to_bytes()
        for length in range(len(message)):
            with pytest.raises(gcext.DecodeError):
                gcext.Packet.from_bytes(message[:length])

    def test_odd_and_empty_shapes(self, name: str) -> None:
        for link in (gcext.recipe(spec_of(name)).up, gcext.recipe(spec_of(name)).down):
            sender = link.sender(3)
            for shape in ((), (0,), (1,), (3, 0), (1, 7), (67,), (2, 3, 5)):
                for step in range(2):
                    packet = sender.compress(grads(step, shape), f"{shape}")
                    again = gcext.Packet.from_bytes(packet.to_bytes(), expect=shape)
                    assert again == packet and dense(again).shape == shape
                    assert torch.equal(dense(again), dense(packet))


SAME = """
import hashlib, torch
import gcext
from test_recipes import NAMES, grads, spec_of
for threads in (1, 3):
    torch.set_num_threads(threads)
    digest = hashlib.sha256()
    for name in NAMES:
        if name in ("powersgd", "lowrank"):  # torch's matrix products
            continue
        made = gcext.recipe(spec_of(name))
        for link in (made.up, made.down):
            sender = link.sender(3)
            for step in range(3):
                digest.update(sender.compress(grads(step, (130, 517)), "w").to_bytes())
    print(digest.hexdigest())
"""


def test_the_same_bytes_at_every_instruction_set_and_number_of_threads() -> None:
    results = at_every_isa(SAME)
    digests = {digest for each in results.values() for digest in each}
    assert len(digests) == 1, results


@pytest.mark.parametrize("name", NAMES)
def test_sending_ends(name: str) -> None:
    """Of empty state; of the same seed the same bytes, by either form of a call."""
    made = gcext.recipe(spec_of(name))
    tensor = torch.randn(300, generator=torch.Generator().manual_seed(1))
    for link in (made.up, made.down):
        messages = {link.sender(7).compress(tensor, "w").to_bytes() for _ in range(2)}
        assert len(messages) == 1
        packet = gcext.Packet.from_bytes(messages.pop(), expect=(300,))
        assert packet.numel == 300
        link.receiver().aggregate({0: packet}, losses={0: 1.0})
