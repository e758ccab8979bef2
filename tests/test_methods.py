"""The table of methods, advice on one's own gradients, and the commands that print them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import gcext
from gcext.__main__ import app
from gcext.fl import load
from gcext.fl._compare import split_methods, validation
from gcext.fl._run import run, train_client
from gcext.fl._settings import Settings

runner = CliRunner()


def call(*words: object) -> str:
    result = runner.invoke(app, [str(word) for word in words])
    assert result.exit_code == 0, result.output + result.stderr
    return result.output


def test_the_table_of_methods(tmp_path: Path) -> None:
    path = tmp_path / "methods.json"
    printed = call("methods", "--json", path)
    rows = {row["name"]: row for row in json.loads(path.read_text())}
    assert set(rows) == {row.name for row in gcext.methods()}
    for name, row in rows.items():
        assert name in printed and row["bits"] > 0 and row["paper"] and row["use"]
    assert 32 <= rows["none"]["bits"] < 32.01 and rows["none"]["state"] == "none"
    assert rows["sign"]["bits"] < 1.001 and rows["sign"]["direction"] == "up"
    assert rows["stc"]["state"] == "residual" and rows["stc"]["direction"] == "both"
    assert rows["dgc"]["state"] == "velocity, residual"
    assert rows["qsgd"]["unbiased"] and not rows["stc"]["unbiased"]


def test_codecs_are_as_unbiased_as_the_table_says() -> None:
    rows = {row.name: row.unbiased for row in gcext.methods()}
    for name in set(gcext.codecs()) & set(rows) - {"sketch", "polar"}:
        assert gcext.codec(name).unbiased == rows[name], name
    assert not gcext.codec("sketch").unbiased  # over hash seeds, and these do not change
    assert gcext.codec("polar").unbiased and not gcext.codec("polar:rotate=false").unbiased
    assert not gcext.codec("polar:select=topk,p=0.1").unbiased
    assert not gcext.codec("terngrad:clip=2.5").unbiased


def test_advice_is_what_the_codecs_do() -> None:
    model = torch.nn.Linear(300, 40)
    model(torch.randn(8, 300)).square().sum().backward()
    grads = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    rows = {row.spec.partition(":")[0]: row for row in gcext.advise(model, repeat=1)}
    assert len(rows) >= 8 and all(row.milliseconds > 0 for row in rows.values())
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), grads, strict=True))  # type: ignore[arg-type]
    dense = rows["dense"]
    assert dense.error == 0 and dense.cosine == pytest.approx(1) and dense.megabits == 0
    whole = torch.cat([g.flatten() for g in grads]).double()
    kept = torch.cat([gcext.codec("topk").encode(g).to_dense().flatten() for g in grads]).double()  # type: ignore[union-attr]
    assert rows["topk"].error == pytest.approx(float((whole - kept).norm() / whole.norm()))
    assert rows["topk"].cosine == pytest.approx(float(kept.norm() / whole.norm()))
    group = gcext.Packet.group([gcext.codec("topk").encode(g) for g in grads])
    assert rows["topk"].nbytes == group.nbytes
    assert rows["topk"].ratio == pytest.approx(4 * whole.numel() / group.nbytes)


def test_advise_reads_what_torch_saved(tmp_path: Path) -> None:
    path, rows = tmp_path / "grads.pt", tmp_path / "rows.json"
    torch.save({"a": torch.randn(500), "b": [torch.randn(3, 4)], "step": torch.tensor(3)}, path)
    printed = call("advise", path, "--codec", "sign", "--codec", "topk:p=0.1", "--json", rows)
    assert "topk:p=0.1" in printed
    assert [row["spec"] for row in json.loads(rows.read_text())] == ["sign", "topk:p=0.1"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "FILE must exist"),
        (b"no file of torch", "must hold tensors that torch.save wrote"),
        ({"a": "text"}, "needs a tensor of floats"),
        (torch.zeros(5), "an element that is not 0"),
        (torch.tensor([1.0, float("nan")]), "finite"),
    ],
)
def test_advise_refuses(content: object, message: str, tmp_path: Path) -> None:
    path = tmp_path / "grads.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    result = runner.invoke(app, ["advise", str(path)])
    assert result.exit_code == 2 and message in result.stderr.replace("\n", " ")


def test_compare(tmp_path: Path) -> None:
    out, plot = tmp_path / "runs.json", tmp_path / "runs.png"
    short = ("--rounds", 2, "--clients", 4, "--quiet", "--split", "iid")
    methods = "stc:p=0.1,sign,topk:p=0.1,feedback=true"
    printed = call(
        *("compare", "--methods", methods, "--seeds", 2, "--lr", "0.05,0.1", "--search-rounds", 1),
        *(*short, "--json", out, "--plot", plot),
    )
    runs = json.loads(out.read_text())
    assert [(run["method"], run["seed"]) for run in runs] == [
        (name, seed) for name in split_methods(methods) for seed in (0, 1)
    ]
    assert all(run["encode_seconds"] > 0 and run["decode_seconds"] > 0 for run in runs)
    assert all(run["settings"]["lr"] in (0.05, 0.1) for run in runs)
    assert plot.stat().st_size > 10_000 and "topk:p=0.1,feedback=true" in printed


def test_compare_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, made = tmp_path / "runs.json", []
    words = ["compare", "--rounds", 2, "--clients", 4, "--quiet", "--split", "iid", "--json", out]
    words += ["--search-rounds", 1, "--lr", "0.05,0.1"]
    call(*words, "--methods", "sign,stc:p=0.1")
    before = json.loads(out.read_text())

    def counted(settings: Settings, *args: Any, **options: Any) -> dict[str, Any]:
        made.append((settings.method, settings.rounds, settings.seed))
        return run(settings, *args, **options)

    monkeypatch.setattr("gcext.fl._compare.run", counted)
    printed = call(*words, "--methods", "sign,none", "--seeds", 2, "--resume")
    assert made == [("sign", 2, 1), ("none", 1, 0), ("none", 1, 0), ("none", 2, 0), ("none", 2, 1)]
    after = json.loads(out.read_text())
    assert after[:2] == before and len(after) == 5
    assert "none" in printed and "stc" not in printed
    # Another search, or a run of other settings, is not the one that was made.
    call(*words[:-1], "0.05,0.2", "--methods", "sign", "--resume")
    call(*words, "--methods", "sign", "--batch", 32, "--resume")
    assert len(made) == 11
    # What comes after an error has not lost the runs before it.
    monkeypatch.setattr("gcext.fl._compare.run", lambda *_, **__: [][0])
    result = runner.invoke(
        app, [str(word) for word in [*words, "--methods", "none,qsgd", "--resume"]]
    )
    assert isinstance(result.exception, IndexError) and "none" in result.output
    assert len(json.loads(out.read_text())) == 7


def test_compare_keeps_runs_that_diverge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, plot = tmp_path / "runs.json", tmp_path / "runs.png"

    def spoiled(*args: Any, **options: Any) -> tuple[torch.Tensor, float]:
        update, loss = train_client(*args, **options)
        settings, _, number = args[4:7]
        at = {("none", 1): 2, ("sign", 0): 1, ("sign", 1): 2}.get((settings.method, settings.seed))
        return update, math.nan if number == at else loss

    monkeypatch.setattr("gcext.fl._run.train_client", spoiled)
    words = ["compare", "--rounds", 3, "--clients", 4, "--quiet", "--split", "iid", "--seeds", 2]
    words += ["--methods", "none,sign,stc", "--json", out]
    printed = call(*words, "--plot", plot)
    rows = {line.split()[1]: line for line in printed.splitlines() if "%" in line}
    assert "1 of 2 diverged" in rows["none"] and "diverged" not in rows["stc"]
    assert " -, 2 of 2 diverged" in rows["sign"] and plot.stat().st_size > 10_000
    runs = json.loads(out.read_text())
    assert [len(run["rounds"]) for run in runs] == [3, 1, 0, 1, 3, 3]
    assert [run["diverged"] for run in runs] == [False, True, True, True, False, False]
    monkeypatch.setattr("gcext.fl._compare.run", lambda *_, **__: [][0])  # none is made again
    assert call(*words, "--resume") == printed


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--methods", "nothing"), "must be one of"),
        (("--methods", "sign", "--data", "faces"), "data must be one of"),
        (("--methods", "sign", "--lr", "high"), "lr must be numbers"),
        (("--methods", "sign", "--plot", "a.nothing"), "suffix must be one of"),
        (("--methods", "sign", "--resume"), "Give --json"),
        (("--methods", "sign", "--resume", "--json", __file__), "a file that --json wrote"),
    ],
)
def test_compare_refuses(words: tuple[str, ...], message: str) -> None:
    result = runner.invoke(app, ["compare", *words])
    assert result.exit_code == 2 and message in result.stderr.replace("\n", " ")


def test_held_out_data_is_none_of_the_training_part() -> None:
    data = load("digits")
    held = validation(data)
    assert len(held.train) + len(held.test) == len(data.train)
    assert len(held.test) == -(-len(data.train) // 10)
    digests = [{x.numpy().tobytes() for x in part.images} for part in (held.train, held.test)]
    assert len(digests[0] & digests[1]) < 5  # digits has a few images twice
