"""Runs a script at every instruction set that this build and this processor have."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import gcext


def at_every_isa(script: str) -> dict[str, list[str]]:
    """The words that the script printed, for each instruction set; one that failed fails the test.

    A process each, since the set is chosen at load. The script may import the tests' own modules.
    """
    here = Path(__file__).parent
    path = os.pathsep.join([str(here), str(Path(gcext.__file__).parents[1])])
    printed = {}
    for isa in gcext.build_info()["isas_built"]:
        run = subprocess.run(
            [sys.executable, "-c", script],
            env=os.environ | {"GCEXT_ISA": isa, "PYTHONPATH": path},
            capture_output=True,
            text=True,
        )
        if "must be one that this processor and build have" in run.stderr:
            continue
        assert run.returncode == 0, run.stderr
        printed[isa] = run.stdout.split()
    assert {"baseline", gcext.build_info()["isa"]} <= set(printed)
    return printed
