"""A part of the model is trained: which elements, that the others stay, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import gcext
import gcext.ddp
from gcext._recipes.recipe import Recipe, Schedule
from gcext.fl import Data, Federation, initial, load
from gcext.fl._client import local_sgd
from gcext.fl._models import build, shapes
from gcext.fl._settings import Settings, Stream, generator
from gcext.fl._trained import Trained
from gcext.fl._workers import Workers

MOST = 100
SPEC = f"subset:trained={MOST},p=0.5,p_down=0.5"


@pytest.fixture(scope="module")
def data() -> Data:
    return load("digits")


def settings(recipe: str, **other: Any) -> Settings:
    return Settings("digits", "m", recipe, clients=6, participation=0.5, rounds=9, **other)


def pieces(flat: torch.Tensor) -> list[torch.Tensor]:
    sizes = [torch.Size(shape).numel() for shape in shapes("digits")]
    return list(flat.split(sizes))


class TestTrained:
    def test_at_most_so_many_of_each_tensor(self) -> None:
        mask = Trained("digits", 3, MOST).mask
        assert mask is not None
        for part in pieces(mask):
            assert set(part.unique().tolist()) <= {0.0, 1.0}
            assert int(part.sum()) == min(part.numel(), MOST)

    def test_the_part_and_the_whole(self) -> None:
        trained, start = Trained("digits", 3, MOST), initial("digits", 3)
        assert torch.equal(trained.whole(trained.start), start)
        changed = trained.start + 1
        whole = trained.whole(changed)
        assert torch.equal(trained.part(whole), changed)
        assert trained.mask is not None
        assert torch.equal((whole != start).float(), trained.mask)
        assert torch.equal(start, initial("digits", 3))  # untouched

    def test_the_seed_draws_them(self) -> None:
        masks = [Trained("digits", seed, MOST).mask for seed in (3, 3, 4)]
        assert masks[0] is not None and masks[1] is not None and masks[2] is not None
        assert torch.equal(masks[0], masks[1])
        assert not torch.equal(masks[0], masks[2])

    def test_all_of_them_by_default(self) -> None:
        trained, start = Trained("digits", 3), initial("digits", 3)
        assert trained.mask is None
        assert torch.equal(trained.start, start)
        assert trained.part(start) is start and trained.whole(start) is start


def test_only_the_part_is_sent_and_changes(data: Data) -> None:
    with Workers(data, 1) as workers:
        federation = Federation(settings(SPEC), data, workers)
        for _ in range(3):
            federation.step()
    part = sum(min(p.numel(), MOST) for p in pieces(initial("digits", 0)))
    assert federation.numel == part
    trained = federation.trained
    moved = trained.whole(federation.server.weights) - initial("digits", 0)
    assert trained.mask is not None
    assert not moved[trained.mask == 0].any()
    assert all(piece.any() for piece in pieces(moved))  # of every tensor something is trained


def test_any_recipe_may_train_a_part(data: Data) -> None:
    """Broadcasts are of the part as well: densely, its floats and a header."""
    links = gcext.recipe("fedavg")
    made = Recipe(links.up, links.down, Schedule(trained=MOST))
    gcext.register_recipe("fedavg_of_a_part", lambda: made)
    with Workers(data, 1) as workers:
        federation = Federation(settings("fedavg_of_a_part"), data, workers)
        for _ in range(4):
            record = federation.step()
    sent = 4 * federation.numel
    assert 3 * sent < record["up_bytes"] < 3 * (sent + 100)
    assert 0 < record["down_bytes"] < 3 * (sent + 200)


def test_local_sgd_keeps_what_is_masked(data: Data) -> None:
    """One step moves the others as if all were trained; what is masked does not move at all."""
    start, mask = initial("digits", 0), Trained("digits", 0, MOST).mask
    index = torch.arange(20)
    inputs, labels = data.inputs(data.train, index), data.train.labels[index]

    def update(mask: torch.Tensor | None) -> torch.Tensor:
        rng = generator(0, Stream.BATCH)
        return local_sgd(
            build("digits"), start, inputs, labels, lr=0.1, batch=20, epochs=1, rng=rng, mask=mask
        )[0]

    assert mask is not None
    kept, all_of_it = update(mask), update(None)
    assert not kept[mask == 0].any()
    assert torch.equal(kept[mask != 0], all_of_it[mask != 0])


def test_what_is_refused() -> None:
    link = gcext.recipe("stc").up
    with pytest.raises(ValueError, match="trained must be at least 0, got -1"):
        Schedule(trained=-1)
    with pytest.raises(ValueError, match="by_tensor and trained=5"):
        Recipe(link, link, Schedule(trained=5), by_tensor=True)
    with pytest.raises(ValueError, match="trains 100 elements of each tensor"):
        gcext.ddp.State(SPEC)
