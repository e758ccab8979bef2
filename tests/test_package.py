"""What the build reports about itself, and the errors raised where something is missing."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import inspect
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import gcext
from gcext.__main__ import app

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"


def declared_version() -> str:
    found = re.search(r'^version = "(.+)"$', PYPROJECT.read_text(), re.MULTILINE)
    assert found is not None
    return found[1]


def test_build_info() -> None:
    info = gcext.build_info()
    assert info["gcext"] == gcext.__version__ == declared_version()
    assert info["torch"] == torch.__version__
    declared = importlib.metadata.version("torch")  # that of some builds lacks the part after +
    assert info["torch"].partition("+")[0] == declared.partition("+")[0]
    assert "baseline" in info["isas_built"] and info["isa"] in info["isas_built"]
    for threads in (1, 2):
        torch.set_num_threads(threads)
        assert gcext.build_info()["threads"] == threads


def test_cuda_is_on_where_built_and_available() -> None:
    info = gcext.build_info()
    built = (Path(gcext.__file__).parent / "_cuda.so").exists()
    assert info["cuda"] == (built and torch.cuda.is_available())
    assert bool(info["why_no_cuda"]) != info["cuda"]


def test_what_dir_lists_can_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    listed = dir(gcext)
    assert {"ddp", "fsdp", "horovod", "OuterOptimizer", "stc"} <= set(listed)
    for name, package in (("flower", "flwr"), ("nvflare", "nvflare")):
        assert (name in listed) == (importlib.util.find_spec(package) is not None)
    # inspect.getmembers raises what getattr raises.
    assert {name for name, _ in inspect.getmembers(gcext)} == set(listed)
    for name in ("flower", "nvflare"):  # what was imported before is there
        monkeypatch.delitem(vars(gcext), name, raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert {"flower", "nvflare"}.isdisjoint(dir(gcext))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    assert {"flower", "nvflare"} <= set(dir(gcext))


def test_wire_needs_no_torch() -> None:
    code = (
        "import sys, importlib.util, glob\n"
        "path = next(p for p in glob.glob(sys.argv[1] + '/_wire*.so'))\n"
        "spec = importlib.util.spec_from_file_location('_wire', path)\n"
        "wire = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(wire)\n"
        "assert wire.isa() and 'torch' not in sys.modules\n"
    )
    folder = str(Path(gcext.__file__).parent)
    subprocess.run([sys.executable, "-c", code, folder], check=True)


def test_cuda_tensors_raise_the_reason() -> None:
    if gcext.build_info()["cuda"]:
        pytest.skip("CUDA is on here")
    from gcext._native.library import require_device

    class OnCuda:
        device = torch.device("cuda")

    with pytest.raises(RuntimeError, match="CUDA kernels are off: "):
        require_device(OnCuda(), "stc")  # type: ignore[arg-type]


def test_command_line() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "gcext", "info"], capture_output=True, text=True, check=True
    )
    assert declared_version() in run.stdout


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("absent.gcx", "error: inspect: FILE must exist, got absent.gcx."),
        (".", "error: inspect: FILE must be a readable file, got .: Is a directory."),
    ],
)
def test_inspect_of_what_cannot_be_read(
    file: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["inspect", file])
    assert (done.exit_code, done.stderr) == (2, message + "\n")


def test_bench_is_a_command_of_gcext(tmp_path: Path) -> None:
    rows = tmp_path / "rows.json"
    sizes = ["--n", "1K", "--m", "0.003K", "--rounds", "1"]
    options = [*sizes, "--no-compile", "--no-peak", "--json", str(rows)]
    done = CliRunner().invoke(app, ["bench", "combine", *options])
    assert done.exit_code == 0, done.output
    written = json.loads(rows.read_text())
    assert {row["name"] for row in written} == {"combine"} and written[0]["n"] == 1000
    done = CliRunner().invoke(app, ["bench", "combine", "--m", "three"])
    assert done.exit_code == 2
    assert "bench: m must be a whole number, got 'three'" in done.stderr
