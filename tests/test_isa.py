"""The instruction set is chosen once, can be forced, and is never one that the processor lacks."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

import gcext


def python(code: str, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=os.environ | env, capture_output=True, text=True)


def test_isa_can_be_forced_and_is_chosen_at_load() -> None:
    code = (
        "import os, gcext, torch; os.environ['GCEXT_ISA'] = 'nonsense';"
        "gcext.stc(torch.ones(3)); print(gcext.build_info()['isa'])"
    )
    assert python(code, GCEXT_ISA="baseline").stdout.strip() == "baseline"


@pytest.mark.parametrize("isa", ["neon", "avx1024"])
def test_an_isa_that_is_not_available_raises(isa: str) -> None:
    if isa in gcext.build_info()["isas_built"]:
        pytest.skip(f"this build has {isa}")
    run = python("import gcext", GCEXT_ISA=isa)
    assert run.returncode != 0
    assert "GCEXT_ISA: " in run.stderr
    assert f"got {isa}" in run.stderr
    assert "use one of: " in run.stderr
