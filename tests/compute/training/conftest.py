"""A dataset that is trained on and never written to again, a fresh one, and a disk that gets full."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from small_pictures import SmallData, make_data


@pytest.fixture(scope="session")
def pets(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SmallData]:
    """70 train, 21 val and 19 test rows of three classes. Shared: jobs of other tests are in its workspace too."""
    data = make_data(tmp_path_factory.mktemp("pets") / "workspace")
    yield data
    data.workspace.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[Path, int], None]]:
    """A function that mounts a real file system of so many KiB on a folder."""
    mounted: list[Path] = []

    def mount(folder: Path, kib: int) -> None:
        if shutil.which("mount") is None:
            pytest.skip("needs the program `mount`, to have a disk that gets full")
        folder.mkdir(parents=True, exist_ok=True)
        command = ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(folder)]
        told = subprocess.run(command, capture_output=True, text=True)
        if told.returncode:
            pytest.skip(f"needs the right to mount a tmpfs, to have a disk that gets full ({told.stderr.strip()})")
        mounted.append(folder)

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)
