"""An S3 server of our own: Ceph's gateway over a store in memory, every daemon on loopback; thrown away at the end."""

from __future__ import annotations

import base64
import json
import secrets
import shutil
import socket
import struct
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

PROGRAMS = ("ceph-mon", "ceph-osd", "radosgw", "radosgw-admin", "monmaptool", "ceph")
MISSING = "needs Ceph's S3 gateway; to have it: apt-get install --no-install-recommends radosgw ceph-mon ceph-osd"
_CONFIGURATION = """
[global]
fsid = {fsid}
mon host = [v2:127.0.0.1:{mon_port}/0]
public addr = 127.0.0.1
cluster addr = 127.0.0.1
ms bind ipv6 = false
run dir = {folder}
admin socket = {folder}/$name.asok
log file = {folder}/$name.log
mon data = {folder}/mon
mon allow pool size one = true
mon warn on pool no redundancy = false
mon max pg per osd = 1000
keyring = {folder}/keyring
auth allow insecure global id reclaim = false
osd data = {folder}/osd
osd objectstore = memstore
memstore device bytes = 4294967296
osd memory target = 939524096
osd crush chooseleaf type = 0
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 4
osd pool default pgp num = 4
osd pool default pg autoscale mode = off
osd class load list = *
osd class default list = *
rgw frontends = beast endpoint=127.0.0.1:{port} tcp_nodelay=1
rgw thread pool size = 64
rgw enable usage log = false
rgw data = {folder}/rgw
"""
_DAEMONS = ("mon.", "osd.0", "client.admin", "client.rgw.a")


def missing() -> list[str]:
    """Those of Ceph's programs that are not there."""
    return [name for name in PROGRAMS if shutil.which(name) is None]


@dataclass
class CephServer:
    """A gateway with one user."""

    folder: Path
    port: int
    access_key: str = field(default_factory=lambda: secrets.token_hex(10))
    secret_key: str = field(default_factory=lambda: secrets.token_hex(20))
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        self._tell("monmaptool", "--create", "--addv", "a", f"[v2:127.0.0.1:{_port(self.folder)}]", self._path("map"))
        self._tell("ceph-mon", "--mkfs", "-i", "a", "--monmap", self._path("map"), "--keyring", self._path("keyring"))
        self._run("ceph-mon", "-f", "-i", "a")
        disk = str(uuid.uuid4())
        self._tell("ceph", "osd", "new", disk)
        self._tell("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", disk)
        self._run("ceph-osd", "-f", "-i", "0")
        self._run("radosgw", "-f", "-n", "client.rgw.a")
        self._wait()
        keys = ("--access-key", self.access_key, "--secret-key", self.secret_key)
        self._tell("radosgw-admin", "user", "create", "--uid=mms", "--display-name=mms", *keys)

    def stop(self) -> None:
        """Ends its processes at once: nothing of what they hold is kept."""
        for process in reversed(self.processes):
            process.kill()
            process.wait(30)
        self.processes.clear()

    def _path(self, name: str) -> str:
        return str(self.folder / name)

    def _tell(self, program: str, *words: str) -> None:
        configured = () if program == "monmaptool" else ("-c", self._path("ceph.conf"))
        done = subprocess.run([program, *configured, *words], capture_output=True, text=True, timeout=120, check=False)
        if done.returncode:
            raise RuntimeError(f"{program} {' '.join(words)}: {done.stderr}")

    def _run(self, program: str, *words: str) -> None:
        command = [program, "-c", self._path("ceph.conf"), *words]
        with (self.folder / f"{program}.out").open("ab") as log:
            self.processes.append(subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True))

    def _wait(self) -> None:
        until = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(self.endpoint, timeout=5).close()
                return
            except (urllib.error.URLError, OSError):
                if any(process.poll() is not None for process in self.processes) or time.monotonic() > until:
                    told = "\n".join(path.read_text()[-2000:] for path in self.folder.glob("*.out"))
                    raise RuntimeError(f"Ceph's gateway does not answer\n{told}") from None
                time.sleep(0.1)


@contextmanager
def running() -> Iterator[CephServer]:
    """A server that runs until the block ends."""
    # A socket's path may have about a hundred characters, fewer than pytest's folders.
    with tempfile.TemporaryDirectory(prefix="mms-ceph-") as name:
        server = CephServer(Path(name), _free_port())
        ports = {"mon_port": _free_port(), "port": server.port}
        for part in ("mon", "osd", "rgw"):
            (server.folder / part).mkdir()
        (server.folder / "ports.json").write_text(json.dumps(ports))
        written = _CONFIGURATION.format(fsid=uuid.uuid4(), folder=name, **ports)
        (server.folder / "ceph.conf").write_text(written)
        (server.folder / "keyring").write_text("".join(_entry(name) for name in _DAEMONS))
        try:
            server.start()
            yield server
        finally:
            server.stop()


def _entry(name: str) -> str:
    # A key is a type, when it was made, its length, and the secret itself.
    key = struct.pack("<HIIH", 1, int(time.time()), 0, 16) + secrets.token_bytes(16)
    caps = "".join(f'\tcaps {service} = "allow *"\n' for service in ("mon", "osd", "mgr"))
    return f"[{name}]\n\tkey = {base64.b64encode(key).decode()}\n{caps}"


def _port(folder: Path) -> int:
    return int(json.loads((folder / "ports.json").read_text())["mon_port"])


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
