"""Jobs of this machine in a workspace of their own, and a disk that gets full."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from mms_sdk.compute.engines.local import LocalEngine
from mms_sdk.storage.workspace import Workspace
from mms_sdk.testing.engines import Jobs


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    """An empty one."""
    workspace = Workspace(tmp_path / "workspace")
    yield workspace
    workspace.close()


@pytest.fixture
def jobs(workspace: Workspace) -> Iterator[Jobs]:
    """Jobs of the engine `local`; what is left of them is ended."""
    jobs = Jobs(workspace, LocalEngine(workspace))
    yield jobs
    jobs.end_all()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 4 MiB."""
    if shutil.which("mount") is None:
        pytest.skip("needs the program `mount`, to have a disk that gets full")
    folder = tmp_path / "disk"
    folder.mkdir()
    told = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if told.returncode:
        pytest.skip(f"needs the right to mount a tmpfs, to have a disk that gets full ({told.stderr.strip()})")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)
