"""Network namespaces joined by links of a given rate, one for each rank.

Every rank is a process in a namespace of its own, with one end of a veth pair; the other ends are
ports of a bridge in the parent's namespace, a switch. A token bucket at both ends limits what a
rank sends and what it receives to the same rate. Its bucket holds one packet, so that a short
message takes its time too. The namespaces end with the processes.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

__all__ = ["address", "attach", "enter", "isolated"]

MARK = "GCEXT_BENCH_NAMESPACE"
BURST = 1600  # bytes; a packet of Ethernet, the least that tbf passes
QUEUE_SECONDS = 0.1  # what may wait in front of a link, as in a router


def enter(arguments: Sequence[str]) -> None:
    """Start this program again in a network namespace of its own, unless it is in one."""
    if os.environ.get(MARK):
        return
    for tool in ("unshare", "nsenter", "ip", "tc"):
        if shutil.which(tool) is None:
            raise ValueError(
                f"bench: link needs {tool}, found none. Install util-linux and iproute2."
            )
    unshare = ["unshare", "--net", *([] if os.geteuid() == 0 else ["--map-root-user"])]
    if subprocess.run([*unshare, "true"], capture_output=True).returncode:
        raise ValueError(
            "bench: link needs a network namespace, which the system refused. "
            "Run it as root, or allow user namespaces."
        )
    os.environ[MARK] = "1"
    os.execvp(unshare[0], [*unshare, sys.executable, "-m", str(__package__), *arguments])


def isolated(command: Sequence[str]) -> list[str]:
    """Return a command that runs another one in a namespace of its own, as the same process."""
    return ["unshare", "--net", *command]


def address(rank: int) -> str:
    """Return the address of a rank."""
    return f"10.77.0.{rank + 1}"


def attach(rank: int, pid: int, rate: int, name: str) -> None:
    """Join the namespace of a process to a switch, by a link of ``rate`` bit/s; 0: no limit."""
    port, inside = f"{name}p{rank}", ["nsenter", "--net", "-t", str(pid), "--"]
    _wait_for_namespace(pid)
    # The system may take a while to remove those of an earlier run, whose namespaces have ended.
    for device in (port, *((name,) if rank == 0 else ())):
        subprocess.run(["ip", "link", "del", device], capture_output=True)
    if rank == 0:
        _run(["ip", "link", "add", name, "type", "bridge"])
        _run(["ip", "link", "set", name, "up"])
    _run(["ip", "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", str(pid)])
    _run(["ip", "link", "set", port, "master", name, "up"])
    _run([*inside, "ip", "link", "set", "lo", "up"])
    _run([*inside, "ip", "addr", "add", f"{address(rank)}/24", "dev", "eth0"])
    _run([*inside, "ip", "link", "set", "eth0", "up"])
    # A longer burst would pass at the speed of memory; at high rates a timer's granularity asks
    # for 50 us of it.
    burst, limit = max(BURST, rate // 8 // 20_000), max(64_000, int(rate / 8 * QUEUE_SECONDS))
    bucket = ["rate", f"{rate}bit", "burst", str(burst), "limit", str(limit)]
    for prefix, device in (([], port), (inside, "eth0")) if rate else ():
        _run([*prefix, "tc", "qdisc", "replace", "dev", device, "root", "tbf", *bucket])


def _wait_for_namespace(pid: int) -> None:
    """Wait until a process that was just started has left this namespace."""
    mine = Path("/proc/self/ns/net").readlink()
    for _ in range(500):
        if Path(f"/proc/{pid}/ns/net").readlink() != mine:
            return
        time.sleep(0.01)
    raise ValueError("bench: link: a rank must be in a namespace of its own within 5 s.")


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        text = " ".join(command)
        raise ValueError(f"bench: {text} must succeed, got {done.stderr.strip()}.")
