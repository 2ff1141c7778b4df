from __future__ import annotations

import contextlib
import errno
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from small_datasets import add, content_of

from mms_sdk.errors import Damaged, DatasetNotFound, InvalidRequest, ModelNotFound, NotWritable, StorageFull
from mms_sdk.settings import default_catalog, default_datasets, default_workspace
from mms_sdk.storage import manifest
from mms_sdk.storage.workspace import Workspace


def stage(workspace: Workspace, content: bytes = b"weights") -> str:
    staged, folder = workspace.stage()
    (folder / "weights").write_bytes(content)
    manifest.seal(folder)
    return staged


def fill(disk: Path) -> Path:
    """Takes all the room that is left."""
    filler = disk / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass
    return filler


def test_a_workspace_is_the_same_when_it_is_opened_again(tmp_path: Path) -> None:
    first = Workspace(tmp_path / "a" / "workspace")
    add(first.open_or_create_dataset("flowers"), content_of(3))
    first.close()

    second = Workspace(tmp_path / "a" / "workspace")

    assert second.dataset_names() == ["flowers"]
    assert second.dataset("flowers").snapshot().rows == 3
    second.close()


def test_an_empty_folder_becomes_a_workspace(tmp_path: Path) -> None:
    assert Workspace(tmp_path).dataset_names() == []
    assert (tmp_path / "workspace.json").is_file()


def test_a_file_is_no_workspace_and_stays_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("mine")

    with pytest.raises(InvalidRequest, match=r"a workspace is a folder; .*notes\.txt is a file; name another"):
        Workspace(path)
    with pytest.raises(NotWritable, match=r"notes\.txt.* use another workspace folder"):
        Workspace(path / "below")
    assert path.read_text() == "mine"


def test_a_folder_with_other_things_in_it_is_refused_and_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_text("mine")

    with pytest.raises(InvalidRequest, match=r"made in an empty or absent folder; .* holds 'photo\.jpg'; name another"):
        Workspace(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["photo.jpg"]


@pytest.mark.parametrize("body", [b"", b"garbage", b"[]", b"{}"])
def test_a_description_that_cannot_be_read_is_damage(tmp_path: Path, body: bytes) -> None:
    (tmp_path / "workspace.json").write_bytes(body)

    with pytest.raises(Damaged, match=r"workspace\.json is not a workspace description; restore a new workspace"):
        Workspace(tmp_path)


def test_a_workspace_of_a_newer_mms_asks_for_an_upgrade(tmp_path: Path) -> None:
    (tmp_path / "workspace.json").write_bytes(b'{"format_version": 2}')

    with pytest.raises(Damaged, match="has version 2; this MMS reads 1; upgrade mms-sdk"):
        Workspace(tmp_path)


def test_a_place_that_may_not_be_written_is_told_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "mkdir", refuse)

    with pytest.raises(NotWritable, match=r"workspace cannot be written: Permission denied; give this user write"):
        Workspace(tmp_path / "workspace")


def test_a_read_only_place_is_told_as_such_and_what_is_in_it_is_readable(small_disk: Callable[[int], Path]) -> None:
    disk = small_disk(4096)
    workspace = Workspace(disk / "workspace")
    add(workspace.open_or_create_dataset("flowers"), content_of(3))
    workspace.close()
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)

    workspace = Workspace(disk / "workspace")

    assert workspace.dataset("flowers").snapshot().verify() > 0
    with pytest.raises(NotWritable, match=r"catalog\.sqlite cannot be written: Read-only file system; give this user"):
        _ = workspace.catalog
    with pytest.raises(NotWritable, match="Read-only file system"):
        workspace.open_or_create_dataset("more")
    with pytest.raises(NotWritable, match="Read-only file system"):
        add(workspace.dataset("flowers"), content_of(3))
    with pytest.raises(NotWritable, match="Read-only file system"):
        Workspace(disk / "other")
    assert workspace.dataset("flowers").snapshots() == [1]


def test_a_full_disk_is_told_as_such_and_what_was_committed_stays(small_disk: Callable[[int], Path]) -> None:
    disk = small_disk(2048)
    workspace = Workspace(disk / "workspace")
    dataset = workspace.open_or_create_dataset("flowers")
    add(dataset, content_of(3))
    job = workspace.catalog.jobs.start("ingest", "flowers", {})

    with pytest.raises(StorageFull, match=r"no space left while writing .*Free space there"):
        add(dataset, content_of(20_000))  # 2.9 MB
    filler = fill(disk)
    with pytest.raises(StorageFull):
        add(dataset, content_of(3))
    with pytest.raises(StorageFull, match=r"catalog\.sqlite"):
        workspace.catalog.jobs.start("ingest", "flowers", {"source": "x" * 500_000})

    assert dataset.snapshots() == [1]
    assert dataset.snapshot().verify() > 0
    assert len(list((dataset.store.folder / "parts").iterdir())) == 1
    filler.unlink()
    assert workspace.catalog.jobs.finish(job.id, "failed")
    add(dataset, content_of(3, seed=1))
    assert dataset.snapshot().rows == 6
    workspace.close()


@pytest.mark.parametrize("kib", [0, *range(4, 44, 4)])
def test_a_disk_too_small_for_a_workspace_is_told_as_such_and_it_can_be_made_once_there_is_room(
    small_disk: Callable[[int], Path], kib: int
) -> None:
    disk = small_disk(kib or 4)
    if not kib:
        fill(disk)

    with pytest.raises(StorageFull, match="Free space there"):
        _ = Workspace(disk / "workspace").catalog

    subprocess.run(["mount", "-o", "remount,size=4m", str(disk)], check=True)
    workspace = Workspace(disk / "workspace")
    assert workspace.catalog.jobs.list() == []
    workspace.close()


def test_a_dataset_nobody_committed_to_is_not_listed(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    workspace.open_or_create_dataset("empty")
    add(workspace.open_or_create_dataset("flowers"), content_of(1))
    (tmp_path / "datasets" / "stray").mkdir()

    assert workspace.dataset_names() == ["flowers"]
    for name in ("empty", "stray", "absent"):
        with pytest.raises(DatasetNotFound, match=rf"no dataset '{name}' in .*; there are \['flowers'\]"):
            workspace.dataset(name)


@pytest.mark.parametrize("name", ["../other", "a/b", "..", ".", "", "A", "a\n"])
def test_a_name_is_never_a_path(tmp_path: Path, name: str) -> None:
    workspace = Workspace(tmp_path)

    with pytest.raises(InvalidRequest, match="a dataset name has"):
        workspace.dataset(name)
    with pytest.raises(InvalidRequest, match="a dataset name has"):
        workspace.open_or_create_dataset(name)


def test_an_artefact_is_moved_in_whole_and_verified_whenever_it_is_used(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    staged = stage(workspace)

    artifact, folder, digest = workspace.keep_artifact(staged)

    assert workspace.artifact(artifact, digest=digest, what="flowers@1") == folder
    assert not (tmp_path / "staging" / staged).exists()
    (folder / "weights").write_bytes(b"weightz")
    with pytest.raises(Damaged, match="flowers@1 is damaged"):
        workspace.artifact(artifact, digest=digest, what="flowers@1")


def test_an_artefact_that_is_not_what_was_staged_never_gets_in(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    staged = stage(workspace)
    (workspace.staged(staged) / "weights").write_bytes(b"weightz")

    with pytest.raises(Damaged, match="staged artefact"):
        workspace.keep_artifact(staged)

    assert not (tmp_path / "artifacts").exists() or list((tmp_path / "artifacts").iterdir()) == []


def test_another_artefact_under_a_registered_name_is_damage(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    one, folder, digest = workspace.keep_artifact(stage(workspace, b"one"))
    _, other, _ = workspace.keep_artifact(stage(workspace, b"two"))
    folder.rename(tmp_path / "aside")
    other.rename(folder)

    with pytest.raises(Damaged, match=r"MANIFEST\.json has digest"):
        workspace.artifact(one, digest=digest, what="flowers@1")


@pytest.mark.parametrize("staged", ["../../etc", "..", "", "/", "01J" * 8 + "01", "a" * 26])
def test_only_what_was_staged_can_be_registered(tmp_path: Path, staged: str) -> None:
    workspace = Workspace(tmp_path)
    stage(workspace)

    with pytest.raises(ModelNotFound, match="nothing is staged as"):
        workspace.staged(staged)
    with pytest.raises(ModelNotFound, match="nothing is staged as"):
        workspace.keep_artifact(staged)


def test_another_process_opens_the_same_workspace_by_its_variables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Workspace(tmp_path / "plain")
    assert plain.variables() == {"MMS_WORKSPACE": str(tmp_path / "plain")}
    apart = Workspace(tmp_path / "apart", datasets=str(tmp_path / "elsewhere"))
    for name, value in apart.variables().items():
        monkeypatch.setenv(name, value)
    again = Workspace(default_workspace(), catalog=default_catalog(), datasets=default_datasets())
    assert (again.id, again.datasets.url) == (apart.id, apart.datasets.url)
