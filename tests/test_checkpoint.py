"""Checkpoints: any state back bit for bit, two generations, no pickle, and errors with a path."""

from __future__ import annotations

import hashlib
import io
import math
import os
import pickle
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_states import alike

from gcext import checkpoint
from gcext.checkpoint import CheckpointError, previous

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8]
DTYPES += [torch.bool, torch.int32]


def state(number: int = 1) -> dict[str, Any]:
    shared = torch.arange(6.0).view(2, 3)
    return {
        "round": number,
        "tensors": [torch.ones(3).to(dtype) for dtype in DTYPES],
        "views": [shared, shared, shared.t(), shared[0], shared[:, 1:]],
        "empty": [torch.empty(0), torch.empty(2, 0), torch.tensor(3.5)],
        "array": np.arange(4).reshape(2, 2),
        "bytes": {3: b"\x00\xff", -1: b"", "a": bytearray(b"x")},
        "tree": {1: {"x": [1, (2, [3, None])]}, "": True, (1, 2): 0.1, None: "é\ud800"},
        "numbers": [math.nan, math.inf, -0.0, 2**80, 1e-320, np.float64(0.1), np.int64(3)],
        "keys like tags": {"d": 1, "t": 2, "x": 3, "b": 4},
    }


def names(folder: Path) -> list[str]:
    return sorted(each.name for each in folder.iterdir())


def test_round_trip(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "deep" / "a", state())
    got, given = checkpoint.load(tmp_path / "deep" / "a"), state()
    for x, y in zip(got["tensors"] + got["empty"], given["tensors"] + given["empty"], strict=True):
        assert x.dtype == y.dtype and x.shape == y.shape and torch.equal(x, y)
    assert got["views"][0] is got["views"][1]  # written once
    assert all(map(torch.equal, got["views"], given["views"]))
    assert isinstance(got["array"], np.ndarray) and (got["array"] == given["array"]).all()
    assert got["bytes"] == given["bytes"] and got["keys like tags"] == given["keys like tags"]
    assert repr(got["tree"]) == repr(given["tree"])
    assert repr(got["numbers"][:5]) == repr(given["numbers"][:5]) and got["numbers"][5:] == [0.1, 3]
    got["tensors"][0].add_(1)  # they are one's own


def test_what_cannot_be_written(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "a", 1)
    for wrong in ({1, 2}, object(), [torch], lambda: 0):
        with pytest.raises(TypeError, match="a state must be of tensors"):
            checkpoint.save(tmp_path / "a", wrong)
        assert checkpoint.load(tmp_path / "a") == 1 and len(names(tmp_path)) == 1


def test_the_previous_generation_is_kept_and_used(tmp_path: Path) -> None:
    path = tmp_path / "a"
    for number in range(4):
        checkpoint.save(path, {"round": number})
        assert names(tmp_path) == ["a", "a.previous"][: 1 + (number > 0)]
    whole = path.read_bytes()
    for damaged in (whole[:-1], whole[:60], b"", b"text" * 30, bytes(len(whole)), None):
        if damaged is None:
            path.unlink()
        else:
            path.write_bytes(damaged)
        with pytest.warns(
            RuntimeWarning, match=r"checkpoint: .*a must .* Going on from .*a\.previous"
        ):
            assert checkpoint.load(path) == {"round": 2}
    for damaged in (whole[:-1], None):  # the next one takes its place; the previous one stays
        if damaged is not None:
            path.write_bytes(damaged)
        checkpoint.save(path, {"round": 3})
        assert checkpoint.load(path) == {"round": 3}
        assert checkpoint.load(previous(path)) == {"round": 2 if damaged else 3}
    path.write_bytes(b"")
    previous(path).write_bytes(whole[:50])
    with pytest.raises(
        CheckpointError, match=r"a must .* The previous one is no help: .*a\.previous"
    ):
        checkpoint.load(path)
    previous(path).unlink()
    with pytest.raises(CheckpointError, match="Remove it to start anew, or restore a copy"):
        checkpoint.load(path)


class Harmful:
    def __reduce__(self) -> Any:
        return os.mkdir, ("harm",)


def digested(payload: bytes, magic: bytes = checkpoint.MAGIC) -> bytes:
    return magic + hashlib.blake2b(payload, digest_size=checkpoint.DIGEST).digest() + payload


def test_rightly_digested_but_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What raised UnpicklingError, EOFError and KeyError; and nothing in a file is run."""
    import safetensors.torch

    monkeypatch.chdir(tmp_path)
    old = io.BytesIO()
    torch.save({"round": 1}, old)

    def tree(text: bytes, **tensors: torch.Tensor) -> bytes:
        held = {"state": torch.frombuffer(bytearray(text), dtype=torch.uint8)}
        return bytes(safetensors.torch.save(held | {"bytes": torch.zeros(2).byte()} | tensors))

    whole = checkpoint._pack(state())
    payloads = [b"", b"\x80", pickle.dumps(Harmful()), old.getvalue(), whole[:-1], whole[:200]]
    payloads += [tree(text) for text in (b"{", b"\xff", b'{"x":0}', b'{"x":1,"b":2}', b'{"q":1}')]
    payloads += [tree(text) for text in (b'{"d":[[{"d":[]},1]]}', b'{"b":["a",1]}', b"[" * 9999)]
    payloads += [bytes(safetensors.torch.save({"weights": torch.ones(3)}))]
    for payload in payloads:
        (tmp_path / "a").write_bytes(digested(payload))
        with pytest.raises(CheckpointError, match="a must hold what save wrote"):
            checkpoint.load(tmp_path / "a")
    (tmp_path / "a").write_bytes(digested(old.getvalue(), b"gcextfl\x01"))
    with pytest.raises(
        CheckpointError, match="of version 2, got one of version 1, which the gcext"
    ):
        checkpoint.load(tmp_path / "a")
    assert not (tmp_path / "harm").exists()


def test_every_way_a_save_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the path and says what to do; both generations are as they were."""
    path = tmp_path / "a"
    for number in range(2):
        checkpoint.save(path, {"round": number})
    before = {each.name: each.read_bytes() for each in tmp_path.iterdir()}
    text = r"\[Errno 28\] checkpoint: .*a must be written, got No space left on device\. Free space"
    for owner, call in ((Path, "open"), (os, "fsync"), (Path, "replace")):

        def full(*_: Any, **__: Any) -> None:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch, pytest.raises(OSError, match=text):
            patch.setattr(owner, call, full)
            checkpoint.save(path, state())
        assert {each.name: each.read_bytes() for each in tmp_path.iterdir()} == before
    with pytest.raises(
        OSError, match=r"checkpoint: .*b must be written, got (File exists|Not a directory)"
    ):
        checkpoint.save(path / "b", 1)
    with monkeypatch.context() as patch:  # a file system without links
        patch.delattr(os, "link")
        patch.setattr(os, "link", full, raising=False)
        checkpoint.save(path, {"round": 2})
    assert checkpoint.load(path) == {"round": 2} and checkpoint.load(previous(path)) == {"round": 1}


def test_a_full_disk(tmp_path: Path) -> None:
    """A real one: the largest file that the process may write."""
    script = """
import resource, signal, sys, torch
from gcext import checkpoint
path = sys.argv[1]
for number in range(2):
    checkpoint.save(path, {"round": number})
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
try:
    checkpoint.save(path, torch.ones(5000))
except OSError as error:
    print(error)
"""
    path = tmp_path / "a"
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True)
    assert f"checkpoint: {path} must be written, got File too large" in done.stdout, done.stderr
    assert checkpoint.load(path) == {"round": 1}
    assert names(tmp_path) == ["a", "a.previous"]
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 5000


def test_what_a_crash_leaves_is_cleared(tmp_path: Path) -> None:
    path = tmp_path / "a"
    checkpoint.save(path, 1)
    for name in ("a.new", "a.old"):
        (tmp_path / name).write_bytes(b"part of one")
    checkpoint.save(path, 2)
    assert names(tmp_path) == ["a", "a.previous"]
    assert checkpoint.load(path) == 2 and checkpoint.load(previous(path)) == 1


def test_alike() -> None:
    assert alike([torch.ones(2)], [torch.ones(2)]) and not alike([torch.ones(2)], [torch.zeros(2)])
