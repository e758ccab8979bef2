"""Flower in deployment on this machine: a SuperLink and SuperNodes as processes, TLS between them.

    python deployment.py                          # projected STC, five rounds
    python deployment.py --rounds 3 --compare     # and Flower's FedAvg, bytes on the wire of both

Everything listens on 127.0.0.1, lives in a temporary folder, and ends with the script.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import ipaddress
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

APP = Path(__file__).parent
HOST = "127.0.0.1"


def certificates(folder: Path) -> None:
    """Write ca.crt, server.crt and server.key: an authority, and a certificate for this host."""
    now = datetime.datetime.now(datetime.timezone.utc)

    def make(name: str, issuer: x509.Name | None, signer: Any, *extra: Any) -> tuple[Any, Any]:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer or subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(minutes=5))
            .not_valid_after(now + datetime.timedelta(days=1))
        )
        for extension, critical in extra:
            builder = builder.add_extension(extension, critical)
        return key, builder.sign(signer or key, hashes.SHA256())

    root, authority = make(
        "gcext example authority", None, None, (x509.BasicConstraints(True, None), True)
    )
    names = x509.SubjectAlternativeName(
        [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address(HOST))]
    )
    key, certificate = make("localhost", authority.subject, root, (names, False))
    pem = serialization.Encoding.PEM
    (folder / "ca.crt").write_bytes(authority.public_bytes(pem))
    (folder / "server.crt").write_bytes(certificate.public_bytes(pem))
    private = key.private_bytes(
        pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "server.key").write_bytes(private)
    (folder / "server.key").chmod(0o600)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def tree(*roots: int) -> list[int]:
    """Return processes and all that they started, parents first; what has ended has no children."""
    found = list(roots)
    for pid in found:
        for file in Path(f"/proc/{pid}/task").glob("*/children"):
            with contextlib.suppress(OSError):
                found += [int(child) for child in file.read_text().split()]
    return found


def end(*roots: int) -> None:
    """End processes and all that they started; Flower gives some of these their own sessions."""
    stopped: set[int] = set()
    while new := set(tree(*roots)) - stopped:  # one that is stopped starts no other
        for pid in new:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
        stopped |= new
    for pid in stopped:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


class Proxy:
    """A TCP proxy in front of the SuperLink that counts the bytes of a SuperNode, both ways."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.up = self.down = 0
        self._listener = socket.create_server((HOST, 0))
        self.port = int(self._listener.getsockname()[1])
        self._ends: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._spawn(self._accept)

    @property
    def total(self) -> int:
        return self.up + self.down

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                node, _ = self._listener.accept()
                try:
                    link = socket.create_connection((HOST, self.target))
                except OSError:
                    node.close()
                    continue
                self._ends += [node, link]
                self._spawn(self._pipe, node, link, "up")
                self._spawn(self._pipe, link, node, "down")

    def _spawn(self, work: Any, *ends: Any) -> None:
        self._threads.append(threading.Thread(target=work, args=ends, daemon=True))
        self._threads[-1].start()

    def _pipe(self, source: socket.socket, sink: socket.socket, way: str) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                setattr(self, way, getattr(self, way) + len(data))
                sink.sendall(data)
        for each in (source, sink):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        source.close()  # each end is one thread's source

    def close(self) -> None:
        """End all connections, and wait until they are closed."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes accept
        self._threads[0].join()
        self._listener.close()
        for each in self._ends:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()


class Deployment:
    """A SuperLink and ``nodes`` SuperNodes; a context manager, whose end ends all processes."""

    def __init__(self, nodes: int = 2, folder: Path | None = None) -> None:
        self.count = nodes
        self._temporary = None if folder else tempfile.TemporaryDirectory(prefix="gcext-flower-")
        self.folder = folder or Path(self._temporary.name)  # type: ignore[union-attr]
        self.port = free_port()
        self.proxies: list[Proxy] = []
        self.nodes: dict[int, subprocess.Popen[bytes]] = {}
        self._others: list[subprocess.Popen[bytes]] = []
        path = [str(Path(sys.executable).parent), os.environ.get("PATH", "")]
        self.env = os.environ | {
            "PATH": os.pathsep.join(path),
            "FLWR_HOME": str(self.folder / "home"),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
            "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        }

    def __enter__(self) -> Deployment:
        try:
            (self.folder / "home").mkdir(parents=True)
            certificates(self.folder)
            (self.folder / "home/config.toml").write_text(
                '[superlink]\ndefault = "deployment"\n\n[superlink.deployment]\n'
                f'address = "{HOST}:{self.port}"\n'
                f'root-certificates = "{self.folder / "ca.crt"}"\n'
            )
            tls = ["--ssl-ca-certfile", "ca.crt", "--ssl-certfile", "server.crt"]
            address = ["--host", HOST, "--port", str(self.port)]
            link = ["flower-superlink", *tls, "--ssl-keyfile", "server.key", *address]
            self._others.append(self._start("superlink", link))
            self._wait()
            self.proxies = [Proxy(self.port) for _ in range(self.count)]
            for i in range(self.count):
                self.start_node(i)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        end(*[process.pid for process in self.processes if process.poll() is None])
        for process in self.processes:
            process.wait()
        for proxy in self.proxies:
            proxy.close()
        if self._temporary:
            self._temporary.cleanup()

    @property
    def processes(self) -> list[subprocess.Popen[bytes]]:
        """What was started and not replaced."""
        return [*self.nodes.values(), *self._others]

    def _start(self, name: str, command: list[str]) -> subprocess.Popen[bytes]:
        with (self.folder / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                command,
                cwd=self.folder,
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _wait(self, seconds: float = 90) -> None:
        """Wait until the SuperLink answers by TLS."""
        context = ssl.create_default_context(cafile=str(self.folder / "ca.crt"))
        limit = time.monotonic() + seconds
        while True:
            try:
                with socket.create_connection((HOST, self.port), 5) as plain:
                    context.wrap_socket(plain, server_hostname=HOST).close()
                return
            except OSError as error:
                if time.monotonic() > limit or self._others[0].poll() is not None:
                    log = (self.folder / "superlink.log").read_text()[-2000:]
                    raise RuntimeError(f"the SuperLink did not start: {error}\n{log}") from error
                time.sleep(0.3)

    def start_node(self, i: int) -> None:
        """Start a SuperNode, which holds part i of the data."""
        self.nodes[i] = self._start(
            f"node-{i}",
            [
                *("flower-supernode", "--superlink", f"{HOST}:{self.proxies[i].port}"),
                *("--root-certificates", "ca.crt", "--port", str(free_port())),
                *("--node-config", f"partition-id={i} num-partitions={self.count}"),
            ],
        )

    def kill_node(self, i: int) -> None:
        """End a SuperNode and its ClientApp at once, as a power cut would."""
        end(self.nodes[i].pid)
        self.nodes[i].wait()

    def run(self, **config: Any) -> subprocess.Popen[bytes]:
        """Start ``flwr run`` with a run config, and return its process; the log is run.log."""
        values = [f"{k.replace('_', '-')}={json.dumps(v)}" for k, v in config.items()]
        command = ["flwr", "run", str(APP), "deployment", "--stream", "-c", " ".join(values)]
        self._others.append(self._start("run", command))
        return self._others[-1]

    def train(self, timeout: float = 600, **config: Any) -> list[dict[str, Any]]:
        """Run to the end and return the report, a dict a round."""
        report = self.folder / "report.json"
        report.unlink(missing_ok=True)
        process = self.run(**config, report=str(report))
        rounds: list[dict[str, Any]] = []
        limit = time.monotonic() + timeout
        while len(rounds) <= config["rounds"]:
            if time.monotonic() > limit or (process.poll() not in (None, 0)):
                log = (self.folder / "run.log").read_text()[-3000:]
                raise RuntimeError(f"the run did not end: {len(rounds)} rounds\n{log}")
            time.sleep(0.2)
            with contextlib.suppress(OSError, json.JSONDecodeError):
                rounds = json.loads(report.read_text())
        process.wait(60)
        return rounds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--recipe", default="pstc:p=0.01,alpha=0.1,tau=1")
    parser.add_argument("--data", default="digits")
    parser.add_argument("--data-dir", default="")
    parser.add_argument("--cnn", action="store_true", help="digits with MNIST's model")
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--compare", action="store_true", help="with Flower's own FedAvg")
    given = parser.parse_args()
    config = {"rounds": given.rounds, "data": given.data, "data_dir": given.data_dir}
    config |= {"cnn": given.cnn, "lr": given.lr}
    with Deployment() as here:
        totals = []
        for recipe in [given.recipe, *([""] if given.compare else [])]:
            before = sum(proxy.total for proxy in here.proxies)
            rounds = here.train(**config, recipe=recipe)
            totals.append(sum(proxy.total for proxy in here.proxies) - before)
            for each in rounds:
                print(*(f"{k} {v:.4g}" if k == "accuracy" else f"{k} {v}" for k, v in each.items()))
            print(f"{recipe or 'FedAvg'}: {totals[-1]} bytes on the wire, TLS and all")
        if given.compare:
            print(f"FedAvg over {given.recipe}: {totals[1] / totals[0]:.1f}")


if __name__ == "__main__":
    main()
