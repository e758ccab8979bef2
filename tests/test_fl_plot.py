"""Pictures of runs: what is drawn, and that a method looks the same in each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gcext
from gcext.fl import _plot as module
from gcext.fl import plot

figure = pytest.importorskip("matplotlib.figure")


def run(recipe: str, seed: int = 0, rounds: int = 40, **settings: Any) -> dict[str, Any]:
    shared = {
        "data": "digits", "recipe": recipe, "clients": 10, "participation": 0.5, "split": "shards",
        "lr": 0.1, "batch": 64, "epochs": 1, "target": 0.9,
    }  # fmt: skip
    records = [
        {"round": i + 1, "accuracy": (i + seed) / 100, "up_bytes": 1000, "down_bytes": 3000}
        for i in range(rounds)
    ]
    return {"method": recipe, "seed": seed, "rounds": records, "settings": shared | settings}


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures that are saved."""
    figures: list[Any] = []
    save = figure.Figure.savefig

    def keep(self: Any, *args: Any, **how: Any) -> None:
        figures.append(self)
        save(self, *args, **how)

    monkeypatch.setattr(figure.Figure, "savefig", keep)
    return figures


def line_of(picture: Any, method: str) -> Any:
    return next(x for x in picture.axes[0].lines if x.get_label() == method)


def test_a_method_has_one_colour_in_every_picture(tmp_path: Path, drawn: list[Any]) -> None:
    plot([run("fedavg"), run("stc:p=0.1"), run("stc:p=0.01"), run("sign")], tmp_path / "a.png")
    plot([run("sign"), run("stc:p=0.01")], tmp_path / "b.png")
    first, second = drawn
    for method in ("sign", "stc:p=0.01"):
        assert line_of(first, method).get_color() == line_of(second, method).get_color()
    lines = [line_of(first, m) for m in ("fedavg", "stc:p=0.1", "stc:p=0.01", "sign")]
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == 4
    assert lines[1].get_color() == lines[2].get_color() != lines[3].get_color()


def test_all_methods_can_be_told_apart(tmp_path: Path, drawn: list[Any]) -> None:
    names = [name for name in gcext.recipes() if name != "none"]  # fedavg's other name
    plot([run(name) for name in names], tmp_path / "a.png")
    lines = [line_of(drawn[0], name) for name in names]
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == len(names) > 20


def test_the_legend_is_outside_and_the_title_says_the_setting(
    tmp_path: Path, drawn: list[Any]
) -> None:
    plot([run("stc", seed=0), run("stc", seed=1), run("pstc", lr=0.2)], tmp_path / "a.png")
    (picture,) = drawn
    (legend,) = picture.legends
    assert [text.get_text() for text in legend.get_texts()] == ["stc", "pstc"]
    bottom = min(axes.get_window_extent().y0 for axes in picture.axes)
    assert legend.get_window_extent().y1 <= bottom
    title = picture.get_suptitle()
    assert title == (
        "digits · 10 clients · 50 % a round · split shards · batch 64 · local epochs 1 · 2 seeds"
    )


def test_seeds_become_a_mean_in_a_band(tmp_path: Path, drawn: list[Any]) -> None:
    plot([run("stc", seed=0, rounds=12), run("stc", seed=4, rounds=10)], tmp_path / "a.png")
    axes = drawn[0].axes[0]
    faint, line = axes.lines[:2]
    assert faint.get_ydata().tolist() == pytest.approx([i + 2 for i in range(10)])
    assert line.get_ydata().tolist() == pytest.approx(faint.get_ydata().tolist())
    corners = axes.collections[0].get_paths()[0].vertices
    assert corners[:, 1].min() == pytest.approx(0) and corners[:, 1].max() == pytest.approx(13)
    assert drawn[0].axes[2].lines[1].get_xdata()[-1] == pytest.approx(0.04)


def test_smoothing_keeps_straight_lines_and_lowers_noise() -> None:
    straight = np.arange(100.0)
    assert module._smooth(straight) == pytest.approx(straight)
    noise = np.random.default_rng(0).standard_normal(300)
    smooth = module._smooth(noise)
    assert smooth[20:-20].std() < 0.4 * noise.std()
    assert (smooth[0], smooth[-1]) == pytest.approx((noise[0], noise[-1]))
    assert module._smooth(np.array([])).size == 0


def test_runs_without_a_round_leave_no_line(tmp_path: Path, drawn: list[Any]) -> None:
    plot([run("stc", rounds=0)], tmp_path / "a.png")
    assert not drawn[0].legends
