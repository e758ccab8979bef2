"""What the build says of itself, and what a user is told when something is missing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import gcext


def test_build_info() -> None:
    info = gcext.build_info()
    assert info["gcext"] == gcext.__version__
    assert info["torch"] == torch.__version__
    assert info["isa"] in info["isas_built"]
    assert info["threads"] == torch.get_num_threads()
    assert info["cuda"] == (info["why_no_cuda"] == "")
    assert info["cuda"] or len(info["why_no_cuda"]) > 10


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


def test_cuda_tensors_say_why_not(monkeypatch: pytest.MonkeyPatch) -> None:
    if gcext.build_info()["cuda"]:
        pytest.skip("CUDA is on here")
    from gcext._native.library import require_device

    class Elsewhere:
        device = torch.device("cuda")

    with pytest.raises(RuntimeError, match="CUDA kernels are off: "):
        require_device(Elsewhere(), "stc")  # type: ignore[arg-type]


def test_command_line() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "gcext", "info"], capture_output=True, text=True, check=True
    )
    assert gcext.__version__ in run.stdout
    missing = subprocess.run([sys.executable, "-m", "gcext", "inspect", "x"], capture_output=True)
    assert missing.returncode == 2
