"""A Ray cluster of this machine's own, to try and to test: with a token, and ended by those who started it.

Ray listens on every network that it finds. On a machine that others reach, it is the token that keeps them out.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
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

from mms_sdk.compute.engines.machine import cores_here
from mms_sdk.errors import Conflict, MissingExtra, NotFound, Unavailable
from mms_sdk.settings import RAY_VARIABLE

HOME = Path.home() / ".mms-ray"
"""Where the cluster lies that `mms engine up` starts."""
_COOKIE = "PRIVATE_RAY"  # of what the cluster is made of; jobs do not see it
_TOLD = "cluster.json"
_STORE_BYTES = 80 * 2**20  # jobs hand nothing to one another through Ray
_TRIES = 3  # Ray gives itself 30 s, whatever else the machine does
_STARTED_WITHIN_S = 180.0


def start_cluster(folder: Path, *, nodes: int = 1, cpus: int | None = None) -> PrivateCluster:
    """Starts a cluster, which stays until it is ended.

    Args:
        folder: Where it keeps its token and its logs; with a short path.
        nodes: On which jobs run, beside the head, on which none does.
        cpus: Of each; its share of the machine's if left out.

    Raises:
        MissingExtra: Ray is not installed.
        Conflict: There is one.
        Unavailable: It could not be started.
    """
    if importlib.util.find_spec("ray") is None:
        raise MissingExtra("ray", extra="ray")
    cluster = PrivateCluster(folder)
    if cluster.processes():
        raise Conflict(f"a folder has one cluster; that of {folder} runs; end it first: mms engine down")
    try:
        cluster.start_head()
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda _: cluster.add_node(cpus=cpus or max(1, cores_here() // nodes)), range(nodes)))
    except BaseException:
        cluster.end()
        raise
    return cluster


def end_cluster(folder: Path) -> None:
    """Ends the cluster of a folder, with all that runs on it, and removes it.

    Raises:
        NotFound: There is none.
    """
    if not (folder / _TOLD).exists():
        raise NotFound(f"no cluster was started in {folder}; start one: mms engine up ray")
    PrivateCluster(folder).end()
    shutil.rmtree(folder)


@contextlib.contextmanager
def private_cluster(*, nodes: int = 1, cpus: int = 1) -> Iterator[PrivateCluster]:
    """A cluster for as long as the block lasts; see `start_cluster`."""
    folder = Path(tempfile.mkdtemp(prefix="mms-ray-"))  # a socket's path is short
    try:
        cluster = start_cluster(folder, nodes=nodes, cpus=cpus)
        try:
            yield cluster
        finally:
            cluster.end()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class PrivateCluster:
    """Some nodes of one machine.

    Args:
        folder: Of which; one that has none yet gets a new one.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.token = folder / "token"
        self._count = 0
        self._orphans: list[psutil.Process] = []
        known = folder / _TOLD
        if not known.exists():
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            _write(self.token, secrets.token_hex(32))
            _write(known, json.dumps({"name": secrets.token_hex(8), "address": f"{_own_address()}:{_free_port()}"}))
        told = json.loads(known.read_bytes())
        self._name: str = told["name"]
        self.address: str = told["address"]

    def variables(self) -> dict[str, str]:
        """The environment in which MMS finds it, and may use it, as Ray's own programs may."""
        return {RAY_VARIABLE: self.address, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self.token)}

    def start_head(self) -> None:
        """Starts the head, anew if it was ended; no job runs on it."""
        port = self.address.rpartition(":")[2]
        client = _free_port()  # of a server that nobody here asks; without a number, all clusters have the same
        words = (f"--port={port}", "--num-cpus=0", f"--temp-dir={self.folder}", f"--ray-client-server-port={client}")
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
        found = [each for node, some in self._nodes().items() if name in ("", node) for each in some]
        return [each for each in found if _title(each).startswith(title)]

    def nodes_with(self, title: str) -> set[str]:
        """Names of the nodes that run a process whose command line begins so."""
        return {name for name, found in self._nodes().items() if any(_title(each).startswith(title) for each in found)}

    def kill(self, name: str, *, only: str = "") -> None:
        """Kills a node as when a machine loses its power.

        Args:
            name: Which; `head` for the head.
            only: The one process of it that is killed, e.g. `raylet`.
        """
        found = self.processes(name)
        self._orphans += found  # what is below a raylet that was killed may stay, and is found by nothing then
        _kill([each for each in found if only in ("", each.name())])

    def _nodes(self) -> dict[str, set[psutil.Process]]:
        # By a variable that all inherit, and by descent: Ray's titles are written over the variables of some.
        found: dict[str, set[psutil.Process]] = {}
        for each in psutil.process_iter():
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied, OSError):
                cluster, _, name = each.environ().get(_COOKIE, "").partition("/")
                if cluster == self._name:
                    found.setdefault(name, set()).update([each, *each.children(recursive=True)])
        return found

    def end(self) -> None:
        """Ends all of it."""
        while left := self.processes():
            _kill(left)
        _kill(self._orphans)

    def _start(self, name: str, *words: str) -> None:
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", *words]
        options = (
            f"--node-ip-address={self.address.rpartition(':')[0]}",
            f"--object-store-memory={_STORE_BYTES}",
            "--disable-usage-stats",
        )
        log = self.folder / f"{name}.txt"
        for _ in range(_TRIES):
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
            if not started.returncode:
                return
            self.kill(name)
        raise Unavailable(f"a node of Ray could not be started: {log.read_text(errors='replace')[-2000:]}")


def _write(path: Path, text: str) -> None:
    with open(path, "w", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
        file.write(text)


def _title(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.NoSuchProcess):
        return " ".join(process.cmdline())
    return ""


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
