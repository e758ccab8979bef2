"""The ids of clients: numbers or names, in a history and in a projection over it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import gcext
from gcext import History
from gcext.aggregate import Projection


def packet(number: int) -> gcext.Packet:
    return gcext.stc(torch.full((3,), float(number + 1)), p=1)


@pytest.mark.parametrize("kind", ["memory", "file"])
def test_clients_may_have_names(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "history" if kind == "file" else None
    first, second = {"7": packet(1), "it's": packet(2), "": packet(3)}, {7: packet(4)}
    with History(path) as history:
        history.put(1, first)
        history.put(2, second)  # another client than "7"
        state = history.state_dict()
        history.put(3, {"7": packet(5)})
        assert (history.round_of("7"), history.round_of(7), history.round_of("8")) == (3, 2, None)
        history.load_state_dict(state)
        assert history.clients_of_round(1) == ["", "7", "it's"]
        assert history.clients_of_round(2) == [7] and 7 in history and "it's" in history
        for client, sent in (first | second).items():
            assert history.packet(client) == sent
        assert len(history) == 4


@pytest.mark.parametrize("kind", ["memory", "file"])
def test_other_ids_and_what_is_no_packet_are_refused(kind: str, tmp_path: Path) -> None:
    with History(tmp_path / "history" if kind == "file" else None) as history:
        history.put(1, {1: packet(1)})
        for packets, text in (
            ({1.5: packet(2)}, r"must be a whole number or a string, got 1\.5"),
            ({None: packet(2)}, "must be a whole number or a string, got None"),
            ({1: packet(2), "1": packet(3)}, "all numbers or all strings, got int and str"),
            ({1: torch.ones(3)}, r"History: needs packets, got Tensor from client 1\. Encode"),
            ({1: b"bytes"}, "got bytes from client 1"),
            ([packet(2)], "needs a mapping of clients to packets, got list"),
        ):
            with pytest.raises(TypeError, match=text):
                history.put(2, packets)  # type: ignore[arg-type]
            assert history.packet(1) == packet(1) and (len(history), history.last_round) == (1, 1)


@pytest.mark.parametrize("kind", ["memory", "file"])
def test_a_projection_over_named_clients_is_the_same(kind: str, tmp_path: Path) -> None:
    updates: list[torch.Tensor] = []
    ids: list[list[Any]] = [list(range(4)), ["ada", "bo", "cy", "di"]]
    for names in ids:
        path = tmp_path / f"{names[0]}" if kind == "file" else None
        with History(path) as history:
            server = Projection(alpha=0, tau=2, history=history)
            for number in range(1, 5):
                drawn = [names[i] for i in range(4) if i != number % 4]
                packets = {c: packet(names.index(c) + 10 * number) for c in drawn}
                update = server.aggregate(packets, dict.fromkeys(drawn, 0.5))
            assert isinstance(update, torch.Tensor)
        updates.append(update)
    assert torch.equal(*updates)
