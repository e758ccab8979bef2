"""Every method: its row in the table, a federated run that learns, and one that is resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

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
