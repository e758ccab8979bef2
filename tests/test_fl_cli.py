"""python -m gcext fl."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result  # type: ignore[attr-defined,unused-ignore]

from gcext.__main__ import app
from gcext.fl import _cli as cli
from gcext.fl import _run as run_module
from gcext.fl import local_sgd, split

SMALL = ["--clients", "6", "--participation", "0.5", "--rounds", "3", "--threads", "2"]


def fl(*args: object, code: int = 0) -> Result:
    result = CliRunner().invoke(app, ["fl", *SMALL, *map(str, args)])
    assert result.exit_code == code, result.output
    return result


def test_three_methods_in_one_table_and_picture(tmp_path: Path) -> None:
    out, picture = tmp_path / "out.json", tmp_path / "out.png"
    methods = ["--method", "fedavg", "--method", "stc", "--method", "pstc"]
    result = fl("--data", "digits", *methods, "--json", out, "--plot", picture)
    runs = json.loads(out.read_text())
    assert [r["method"] for r in runs] == ["fedavg", "stc", "pstc"]
    assert runs[2]["settings"]["recipe"] == "pstc:p=0.1,alpha=0.1,tau=1"
    assert picture.read_bytes().startswith(b"\x89PNG")
    for name in ("fedavg", "stc", "pstc", "FedAvg / this"):
        assert name in result.stdout
    sent = [sum(r["up_bytes"] for r in run["rounds"]) for run in runs]
    assert sent[0] == pytest.approx(3 * 3 * 4 * runs[0]["numel"], rel=0.01)
    assert sent[0] > 40 * sent[1]


def test_one_run_is_a_list_of_one(tmp_path: Path) -> None:
    fl("--method", "stc:p=0.05", "--seed", 4, "--json", tmp_path / "out.json")
    (result,) = json.loads((tmp_path / "out.json").read_text())
    assert (result["method"], result["seed"], len(result["rounds"])) == ("stc:p=0.05", 4, 3)


def test_several_seeds(tmp_path: Path) -> None:
    fl("--method", "stc", "--seed", 0, "--seed", 1, "--json", tmp_path / "out.json")
    runs = json.loads((tmp_path / "out.json").read_text())
    assert [r["seed"] for r in runs] == [0, 1]
    assert runs[0]["model_digest"] != runs[1]["model_digest"]


def test_bare_names_take_their_parameters(tmp_path: Path) -> None:
    args = ["--p", 0.02, "--alpha", 0.3, "--tau", 2]
    fl("--method", "pstc", *args, "--json", tmp_path / "out.json")
    (result,) = json.loads((tmp_path / "out.json").read_text())
    assert result["settings"]["recipe"] == "pstc:p=0.02,alpha=0.3,tau=2"


def test_progress_in_a_log_is_plain_lines_on_stderr() -> None:
    result = fl("--method", "stc", "--rounds", 20)
    assert "stc seed 0: round 20/20, accuracy" in result.stderr
    assert len(result.stderr.splitlines()) == 10
    assert "round 20/20" not in result.stdout
    assert fl("--method", "stc", "--quiet").stderr == ""


def test_a_run_that_diverges_is_written(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    plot = tmp_path / "plot.png"
    methods = ["--method", "none", "--method", "stc"]
    result = fl(*methods, "--lr", 1e20, "--json", out, "--plot", plot, code=2)
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert [each.split(", seed 0: ")[0] for each in errors] == ["error: none", "error: stc"]
    assert all("Lower --lr" in each for each in errors)
    runs = json.loads(out.read_text())
    assert [(each["method"], each["diverged"]) for each in runs] == [("none", True), ("stc", True)]


def test_interrupt_and_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, out, store = tmp_path / "whole.json", tmp_path / "out.json", tmp_path / "store"
    methods = ["--method", "stc", "--method", "pstc"]
    fl(*methods, "--json", whole)
    original, calls = local_sgd, iter(range(1, 1000))

    def cut(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == 3 * 3 + 3 + 2:  # in the second run's second round
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(run_module, "local_sgd", cut)
        args = [*methods, "--threads", 1, "--checkpoint", store, "--json", out]
        stopped = fl(*args, code=130)
    last = stopped.stderr.splitlines()[-1]
    assert last.startswith("fl: interrupted after round 1 of 3; ") and "--resume" in last
    assert [r["interrupted"] for r in json.loads(out.read_text())] == [False, True]

    fl(*methods, "--checkpoint", store, "--resume", "--json", out)
    runs, expected = (json.loads(p.read_text()) for p in (out, whole))
    for got, want in zip(runs, expected, strict=True):
        assert got["rounds"] == want["rounds"] and got["model_digest"] == want["model_digest"]


def test_interrupt_without_a_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    def cut(*args: Any, **kwargs: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(run_module, "local_sgd", cut)
    last = fl("--method", "stc", code=130).stderr.splitlines()[-1]
    assert last == (
        "fl: interrupted after round 0 of 3; no checkpoint was written. "
        "Give --checkpoint DIR next time."
    )


@pytest.mark.parametrize("error, code", [(KeyboardInterrupt, 130), (ValueError("lr"), 2)])
def test_what_ends_a_later_run_leaves_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int
) -> None:
    """Ctrl-C or an error while the second run is set up: the first is in the JSON and the table."""
    calls = iter((False, True))

    def cut(*args: Any) -> Any:
        if next(calls):
            raise error
        return split(*args)

    monkeypatch.setattr(run_module, "split", cut)
    args = ["--method", "fedavg", "--method", "stc", "--json", tmp_path / "out.json"]
    result = fl(*args, code=code)
    (written,) = json.loads((tmp_path / "out.json").read_text())
    assert written["method"] == "fedavg" and len(written["rounds"]) == 3
    assert "fedavg" in result.stdout
    assert result.stderr.splitlines()[-1] == (
        "error: lr"
        if code == 2
        else "fl: interrupted after 1 of 2 runs; the table holds them. "
        "Give --checkpoint DIR next time."
    )


@pytest.mark.parametrize("error, code", [(KeyboardInterrupt, 130), (OSError("disk full"), 2)])
def test_a_picture_cut_off_leaves_table_and_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int
) -> None:
    def cut(*args: Any) -> Any:
        raise error

    monkeypatch.setattr(cli, "draw", cut)
    args = ["--checkpoint", tmp_path, "--json", tmp_path / "out.json"]
    result = fl("--method", "stc", *args, "--plot", tmp_path / "a.png", code=code)
    (written,) = json.loads((tmp_path / "out.json").read_text())
    assert len(written["rounds"]) == 3
    assert "stc" in result.stdout
    assert result.stderr.splitlines()[-1] == (
        "error: disk full"
        if code == 2
        else "fl: interrupted after 1 of 1 runs; the table holds them. "
        "Go on with the same command and --resume."
    )


def test_interrupt_before_any_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def cut(*args: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "load", cut)
    last = fl("--method", "stc", code=130).stderr.splitlines()[-1]
    assert last == "fl: interrupted before the first round; nothing was lost."


@pytest.mark.parametrize(
    "name, hidden, message",
    [
        ("a.xyz", (), ", got xyz. Correct --plot."),
        ("a.png", ("matplotlib", "matplotlib.backends.backend_agg"), "--plot needs matplotlib"),
    ],
)
def test_a_picture_is_refused_before_the_first_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, hidden: str, message: str
) -> None:
    for module in hidden:
        monkeypatch.setitem(sys.modules, module, None)
    result = fl("--method", "stc", "--plot", tmp_path / name, code=2)
    assert result.stderr.startswith("error: ") and message in result.stderr
    assert "round" not in result.stderr and list(tmp_path.iterdir()) == []


def test_resume_with_other_settings_names_them(tmp_path: Path) -> None:
    fl("--method", "stc", "--checkpoint", tmp_path)
    result = fl("--method", "stc", "--p", 0.2, "--checkpoint", tmp_path, "--resume", code=2)
    assert "recipe stc:p=0.1 there, stc:p=0.2 here" in result.stderr


def test_a_checkpoint_is_not_overwritten(tmp_path: Path) -> None:
    fl("--method", "stc", "--checkpoint", tmp_path)
    assert "never overwritten" in fl("--method", "stc", "--checkpoint", tmp_path, code=2).stderr


@pytest.mark.parametrize(
    "args, message",
    [
        (["--data", "svhn"], "data must be one of digits, mnist, fashion, cifar10, got svhn"),
        (["--data", "mnist"], "Give --data-dir DIR"),
        (["--data", "mnist", "--data-dir", "/nowhere"], "got no train-images-idx3-ubyte"),
        (["--method", "nonsense"], "nonsense"),
        (["--method", "stc", "--p", "0"], "p must be"),
        (["--participation", "2"], "participation must be in (0, 1], got 2.0"),
        (["--split", "half"], "shards, iid or dirichlet:BETA, got half"),
        (["--resume"], "Give --checkpoint DIR"),
        (["--checkpoint", "/nowhere", "--resume"], "got none in /nowhere"),
        (["--json", "/nowhere/out.json"], "writable file, got /nowhere/out.json"),
    ],
)
def test_errors(args: list[str], message: str) -> None:
    result = fl(*args, code=2)
    assert result.stderr.startswith("error: ") and message in result.stderr
    assert "Traceback" not in result.output
