"""Jobs on a real Ray of two nodes, in a network that is nothing but loopback: Ray listens wherever it can."""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
from collections.abc import Iterator

import pytest

from mms_sdk.compute.engines.ray.door import Door
from mms_sdk.compute.engines.ray.engine import RayEngine
from mms_sdk.compute.engines.ray.private import PrivateCluster, private_cluster
from mms_sdk.storage.workspace import Workspace
from mms_sdk.testing.engines import EngineConformance, until

pytest.importorskip("ray", reason="needs ray")
pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(300)]
_CLONE_NEWNET = 0x40000000


@contextlib.contextmanager
def apart() -> Iterator[None]:
    """A network of this thread's own, and of all that it starts meanwhile."""
    libc = ctypes.CDLL(None, use_errno=True)
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        if libc.unshare(_CLONE_NEWNET):
            pytest.skip(f"needs the right to make a network of its own ({os.strerror(ctypes.get_errno())})")
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        yield
    finally:
        libc.setns(before, _CLONE_NEWNET)
        os.close(before)


@pytest.fixture(scope="module")
def cluster() -> Iterator[PrivateCluster]:
    with apart(), private_cluster(nodes=1, cpus=2) as cluster, pytest.MonkeyPatch.context() as patched:
        for name, value in cluster.variables().items():
            patched.setenv(name, value)
        yield cluster


@pytest.fixture(scope="module")
def door(cluster: PrivateCluster) -> Iterator[Door]:
    door = Door(cluster.address)
    until(door.nodes, "a node", within_s=60)
    yield door
    door.close()


class TestRay(EngineConformance):
    """On a cluster whose head runs no jobs, and whose other node does."""

    @pytest.fixture
    def engine(self, workspace: Workspace, door: Door) -> RayEngine:
        return RayEngine(workspace, door)
