"""A Ray cluster of this machine's own, to try and to test: with a token, and ended by those who started it.

Ray listens on every network that it finds. On a machine that others reach, it is the token that keeps them out.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil

from mms_sdk.errors import Unavailable
from mms_sdk.settings import RAY_VARIABLE

_COOKIE = "PRIVATE_RAY"  # of what the cluster is made of; jobs do not see it
_STORE_BYTES = 80 * 2**20  # jobs hand nothing to one another through Ray
_STARTED_WITHIN_S = 180.0


@contextlib.contextmanager
def private_cluster(*, nodes: int = 1, cpus: int = 1) -> Iterator[PrivateCluster]:
    """A cluster for as long as the block lasts.

    Args:
        nodes: On which jobs run, beside the head, on which none does.
        cpus: Of each.
    """
    cluster = PrivateCluster(Path(tempfile.mkdtemp(prefix="mms-ray-")))  # a socket's path is short
    try:
        cluster.start_head()
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda _: cluster.add_node(cpus=cpus), range(nodes)))
        yield cluster
    finally:
        cluster.end()
        shutil.rmtree(cluster.folder, ignore_errors=True)


class PrivateCluster:
    """Some nodes of one machine.

    Args:
        folder: Where it keeps its token and its logs; with a short path.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.address = f"{_own_address()}:{_free_port()}"
        self._name = secrets.token_hex(8)
        self._count = 0
        self.token = folder / "token"
        with open(self.token, "x", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
            file.write(secrets.token_hex(32))

    def variables(self) -> dict[str, str]:
        """The environment in which MMS, and Ray itself, find it and may use it."""
        return {RAY_VARIABLE: self.address, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self.token)}

    def start_head(self) -> None:
        """Starts the head, anew if it was ended; no job runs on it."""
        port = self.address.rpartition(":")[2]
        folder = self.folder / "ray"
        client = _free_port()  # of a server that nobody here asks; without a number, all clusters have the same
        words = (f"--port={port}", "--num-cpus=0", f"--temp-dir={folder}", f"--ray-client-server-port={client}")
        self._start("head", "--head", "--include-dashboard=false", *words)

    def add_node(self, *, cpus: int) -> str:
        """Starts a node; returns its name."""
        self._count += 1
        name = f"node-{self._count}"
        self._start(name, f"--address={self.address}", f"--num-cpus={cpus}")
        return name

    def processes(self, name: str = "", *, title: str = "") -> list[psutil.Process]:
        """What the cluster is made of.

        Args:
            name: Of which node; of all if left out.
            title: With what their command lines begin, e.g. `ray::AttemptActor`.
        """
        found = []
        for each in psutil.process_iter():
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied, OSError):
                ours = each.environ().get(_COOKIE, "").partition("/")
                if ours[0] == self._name and name in ("", ours[2]) and " ".join(each.cmdline()).startswith(title):
                    found.append(each)
        return found

    def nodes_with(self, title: str) -> set[str]:
        """Names of the nodes that run a process whose command line begins so."""
        return {each.environ()[_COOKIE].partition("/")[2] for each in self.processes(title=title)}

    def kill(self, name: str, *, only: str = "") -> None:
        """Kills a node as when a machine loses its power.

        Args:
            name: Which; `head` for the head.
            only: The one process of it that is killed, e.g. `raylet`.
        """
        _kill([each for each in self.processes(name) if only in each.name()])

    def end(self) -> None:
        """Ends all of it."""
        while left := self.processes():
            _kill(left)

    def _start(self, name: str, *words: str) -> None:
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", *words]
        options = (
            f"--node-ip-address={self.address.rpartition(':')[0]}",
            f"--object-store-memory={_STORE_BYTES}",
            "--disable-usage-stats",
        )
        log = self.folder / f"{name}.txt"
        with log.open("ab") as told:
            started = subprocess.run(
                [*command, *options],
                env={**os.environ, **self.variables(), _COOKIE: f"{self._name}/{name}"},
                stdin=subprocess.DEVNULL,
                stdout=told,
                stderr=subprocess.STDOUT,
                check=False,
                timeout=_STARTED_WITHIN_S,
            )
        if started.returncode:
            raise Unavailable(f"a node of Ray could not be started: {log.read_text(errors='replace')[-2000:]}")


def _kill(processes: list[psutil.Process]) -> None:
    for each in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            each.kill()
    psutil.wait_procs(processes, timeout=10)


def _own_address() -> str:
    # The one by which other machines reach this one; Ray takes no other. No packet is sent.
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as found:
        try:
            found.connect(("192.0.2.1", 9))
        except OSError:
            return "127.0.0.1"
        return str(found.getsockname()[0])


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("", 0))
        return int(found.getsockname()[1])
