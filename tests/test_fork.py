"""A fork after threads were used: an error that says what to do, never a process that hangs."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

CODE = """
import os, signal, sys
import torch
import gcext

before, after = sys.argv[1:]
torch.set_num_threads(int(before))
whole = torch.ones(1 << 20)
sent = [gcext.codec("dense").encode(whole)] * 2
if before == "2":
    gcext.combine(sent)
pid = os.fork()
if pid == 0:
    signal.alarm(20)  # a child that hangs is ended
    torch.set_num_threads(int(after))
    try:
        ok = float(gcext.combine(sent)[-1]) == 2.0
    except RuntimeError as error:
        ok = "forked after threads" in str(error) and "set_num_threads(1)" in str(error)
        os._exit(3 if ok else 1)
    os._exit(0 if ok else 1)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize(
    ("before", "after", "status"),
    [("2", "2", "3"), ("2", "1", "0"), ("1", "2", "0"), ("1", "1", "0")],
)
def test_a_fork_after_threads_were_used(before: str, after: str, status: str) -> None:
    run = subprocess.run(
        [sys.executable, "-c", CODE, before, after],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert run.stdout.strip() == status, run.stderr


MESSAGES = """
import os, signal
import torch
import gcext
from gcext._packet.wire import pack

torch.set_num_threads(2)
packet = gcext.codec("natural").encode(torch.randn(300_000), seed=1)
message = pack(packet)
pid = os.fork()
if pid == 0:
    signal.alarm(20)
    same = pack(packet) == message and pack(gcext.Packet.from_bytes(message)) == message
    os._exit(0 if same else 1)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_messages_do_without_threads_after_a_fork() -> None:
    run = subprocess.run(
        [sys.executable, "-c", MESSAGES], capture_output=True, text=True, timeout=120, check=True
    )
    assert run.stdout.strip() == "0", run.stderr
