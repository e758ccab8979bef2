"""The fuzz targets for a minute, over the golden packets and the saved corpus: docs/testing.md.

GCEXT_FUZZ_SEED and GCEXT_FUZZ_SECONDS make it another run, and a longer one. An input that fails is
left in build/fuzz/crashes, and its seed is in the message.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import numpy_decoder as reference
import pytest
import wire_bodies as wire
from emu.build import compiler
from fuzz.run import CORPUS, build, run_all, summed
from wire_kit import INDEX, code_of, seal

SECONDS = float(os.environ.get("GCEXT_FUZZ_SECONDS", "60"))


@pytest.fixture(scope="module")
def program() -> Path:
    """The driver with sanitizers, built once."""
    if compiler() is None:
        pytest.skip("needs a C++17 compiler")
    return build("asan")


def test_no_fault_in_a_minute(program: Path) -> None:
    processes = os.cpu_count() or 1
    seed = int(os.environ.get("GCEXT_FUZZ_SEED", "1"))
    total = summed(run_all(program, SECONDS, seed, processes))
    assert total["executions"] > 100 * SECONDS, total
    # All codes that a message of any size can have are reached, and every method is accepted.
    reached = {code for code, hits in total["refused"].items() if hits > 0}
    assert reached >= set(INDEX["invalid"].values()) | {"expect"}, total
    assert all(total["accepted"][1:]), total
    assert total["operators"] > 100 < total["operators_refused"], total


def test_checksums_left_alone(program: Path) -> None:
    total = summed(run_all(program, 2, 1, os.cpu_count() or 1, "left"))
    assert total["refused"]["checksum"] > 0, total


def test_operators_on_several_threads_under_the_thread_sanitizer() -> None:
    if compiler() is None:
        pytest.skip("needs a C++17 compiler")
    done = subprocess.run([str(build("tsan")), "1"], capture_output=True, text=True)
    if "unexpected memory mapping" in done.stderr:
        pytest.skip("ThreadSanitizer cannot run with this kernel's address space")
    assert done.returncode == 0 and "alike" in done.stdout, done.stdout + done.stderr


def verdicts() -> list[tuple[str, bytes]]:
    """The messages of the saved corpus, sealed, and what the decoders answer."""
    lines = (CORPUS / "decode.txt").read_text().split("\n")
    pairs = [line.split(" ") for line in lines if line]
    return [(verdict, seal(bytes.fromhex(text) + bytes(8))) for verdict, text in pairs]


def test_both_decoders_answer_the_saved_corpus_as_before() -> None:
    for verdict, message in verdicts():
        want = None if verdict == "ok" else verdict
        assert code_of(wire.unpack, message) == want, message.hex()
        assert code_of(reference.decode, message) == want, message.hex()
        if want is None:
            assert wire.pack(wire.unpack(message)) == message
