"""A disk that gets full."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


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
