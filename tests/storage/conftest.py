"""A dataset, chunks small enough to have many of, and disks that get full."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from s3_buckets import make_bucket

from mms_sdk.storage import parts
from mms_sdk.storage.datasets import Dataset
from mms_sdk.storage.stores.base import Store
from mms_sdk.storage.stores.local import LocalStore
from mms_sdk.storage.stores.opening import store_at


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """An empty dataset."""
    return Dataset.create(LocalStore(tmp_path / "flowers"), "flowers")


@pytest.fixture(params=["local", "moto", pytest.param("ceph", marks=pytest.mark.slow)])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """An empty store: a folder, an imitation of S3, and S3 for real."""
    return LocalStore(tmp_path / "store") if request.param == "local" else _in_bucket(request, tmp_path)


@pytest.fixture(params=["local", pytest.param("ceph", marks=pytest.mark.slow)])
def real_store(request: pytest.FixtureRequest, memory_path: Path, tmp_path: Path) -> Store:
    """Of these, what is no imitation; the folder is in memory."""
    return LocalStore(memory_path / "store") if request.param == "local" else _in_bucket(request, tmp_path)


@pytest.fixture(params=["moto", pytest.param("ceph", marks=pytest.mark.slow)])
def far_store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """Of these, one that is not a folder."""
    return _in_bucket(request, tmp_path)


def _in_bucket(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    server = request.getfixturevalue(request.param)
    url = make_bucket(server if request.param == "moto" else server.endpoint)
    return store_at(url, copies=tmp_path / "copies")


@pytest.fixture
def many_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards of 5 pictures and chunks of 64 bytes, so that a few rows fill several."""
    monkeypatch.setattr(parts, "SHARD_BYTES", 5 * (8 * 6 * 3 + parts.CRC_BYTES))
    monkeypatch.setattr(parts, "CHUNK_BYTES", 64)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """A function that makes a real file system of so many KiB and returns its folder."""
    mounted: list[Path] = []

    def make(kib: int) -> Path:
        if shutil.which("mount") is None:
            pytest.skip("needs the program `mount`, to have a disk that gets full")
        folder = tmp_path / f"disk-{len(mounted)}"
        folder.mkdir()
        told = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(folder)], capture_output=True, text=True
        )
        if told.returncode:
            pytest.skip(f"needs the right to mount a tmpfs, to have a disk that gets full ({told.stderr.strip()})")
        mounted.append(folder)
        return folder

    yield make
    for folder in mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)
