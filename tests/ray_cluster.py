"""A Ray of a test's own, in a network that is nothing but loopback: Ray listens on every interface it finds."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import subprocess
from collections.abc import Iterator

import pytest

from mms_sdk.compute.engines.ray.door import Door
from mms_sdk.compute.engines.ray.private import PrivateCluster, private_cluster
from mms_sdk.testing.engines import until

_CLONE_NEWNET = 0x40000000


@contextlib.contextmanager
def apart() -> Iterator[None]:
    """A network of this thread's own, and of all that it starts meanwhile."""
    if shutil.which("ip") is None:
        pytest.skip("needs the program `ip`, so that Ray is not reached from outside")
    libc = ctypes.CDLL(None, use_errno=True)
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        if libc.unshare(_CLONE_NEWNET):
            why = os.strerror(ctypes.get_errno())
            pytest.skip(f"needs the right to make a network of its own, for Ray to listen in ({why})")
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        yield
    finally:
        libc.setns(before, _CLONE_NEWNET)
        os.close(before)


@contextlib.contextmanager
def ray_cluster(*, nodes: int, cpus: int) -> Iterator[tuple[PrivateCluster, Door]]:
    """A cluster whose head runs no jobs, and the door to it; the variables that name it are set meanwhile."""
    pytest.importorskip("ray", reason="needs ray")
    with apart(), private_cluster(nodes=nodes, cpus=cpus) as cluster, pytest.MonkeyPatch.context() as patched:
        for name, value in cluster.variables().items():
            patched.setenv(name, value)
        door = Door(cluster.address)
        try:
            until(lambda: len(door.nodes()) == nodes, "the nodes", within_s=60)
            yield cluster, door
        finally:
            door.close()
