from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_datasets import COLUMNS, IMAGE, SOURCE, SPLIT, Content, add, content_of

from mms_sdk.errors import Conflict, Damaged, DatasetNotFound, InvalidName, InvalidRequest, SnapshotConflict
from mms_sdk.schema.dataset import Column, Sealed, Snapshot
from mms_sdk.storage.changes import Addition, ColumnNames
from mms_sdk.storage.datasets import Dataset
from mms_sdk.storage.ids import new_id
from mms_sdk.storage.stores.local import LocalStore
from mms_sdk.storage.workspace import Workspace

DRIVER = Path(__file__).with_name("commits_at_once.py")


def sealed(dataset: Dataset, content: Content) -> Sealed:
    with dataset.writer(COLUMNS) as writer:
        writer.write(content)
        return writer.close()


def copies(dataset: Dataset, part: Sealed, count: int) -> list[Sealed]:
    """Parts with the same rows under other ids."""
    made = [Sealed(id=new_id(), rows=part.rows, manifest=part.manifest) for _ in range(count)]
    for copy in made:
        shutil.copytree(dataset.store.folder / "parts" / part.id, dataset.store.folder / "parts" / copy.id)
    return made


def commit_at_once(dataset: Dataset, shares: list[list[Sealed]], scratch: Path, how: str) -> list[list[str]]:
    """Has one process for each share commit it, all starting at the same moment."""
    start = scratch / "start"
    processes = []
    for number, share in enumerate(shares):
        listed = scratch / f"parts-{number}"
        listed.write_text("\n".join(part.model_dump_json() for part in share))
        command = [sys.executable, str(DRIVER), str(dataset.store.folder), str(start), str(listed), how]
        processes.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    start.touch()
    return [process.communicate(timeout=100)[0].splitlines() for process in processes]


def test_snapshots_count_from_one_and_name_their_parent(dataset: Dataset) -> None:
    numbers = [add(dataset, content_of(2, seed=seed)) for seed in range(3)]

    records = [dataset.record(number) for number in numbers]
    assert numbers == dataset.snapshots() == [1, 2, 3]
    assert [record.parent for record in records] == [None, 1, 2]
    assert [record.rows for record in records] == [2, 4, 6]
    assert [len(record.parts) for record in records] == [1, 2, 3]


def test_splits_and_classes_add_up_over_snapshots(dataset: Dataset) -> None:
    part = sealed(dataset, content_of(6))
    first = Addition(parts=[part], columns=COLUMNS, splits={"train": 5, "val": 1}, classes={"cat": 6})
    more = Addition(
        parts=copies(dataset, part, 1), columns=COLUMNS, splits={"train": 2, "test": 4}, classes={"cat": 1, "dog": 5}
    )

    base = dataset.commit(first, base=None, rebase=False)
    found = dataset.commit(more, base=base, rebase=False)

    assert found.splits == {"train": 7, "val": 1, "test": 4}
    assert found.statistics == {"classes": {"cat": 7, "dog": 5}}
    assert dataset.record() == found


def test_a_batch_of_a_stream_is_committed_once_whoever_repeats_it(dataset: Dataset) -> None:
    first, again, other, more = copies(dataset, sealed(dataset, content_of(6)), 4)

    def commit(part: Sealed, base: Snapshot | None, once: tuple[str, int]) -> Snapshot:
        change = Addition(parts=[part], columns=COLUMNS)
        return dataset.commit(change, base=base, rebase=True, once=once)

    one = commit(first, None, ("photos", 0))
    assert commit(again, one, ("photos", 0)) == one  # repeated with the newest snapshot in hand
    assert commit(again, None, ("photos", 0)) == one  # and by one that raced and lost
    two = commit(other, one, ("sounds", 0))
    three = commit(more, two, ("photos", 7))
    assert commit(again, one, ("photos", 6)) == three  # an older batch, on a snapshot that does not know it yet

    assert three.streams == {"photos": 7, "sounds": 0}
    assert [part.id for part in three.parts] == [first.id, other.id, more.id]
    assert dataset.commit(ColumnNames(names={"label": "kind"}), base=three, rebase=True).streams == three.streams


def test_the_position_behind_a_batch_is_committed_with_it_and_carried_on(dataset: Dataset) -> None:
    first, again, more, last = copies(dataset, sealed(dataset, content_of(6)), 4)

    def commit(part: Sealed, base: Snapshot | None, once: tuple[str, int], position: Any) -> Snapshot:
        change = Addition(parts=[part], columns=COLUMNS)
        return dataset.commit(change, base=base, rebase=True, once=once, position=position)

    one = commit(first, None, ("photos", 0), {"0": 17, "1": [2**64 - 1, "å", None, 0.1]})
    assert commit(again, None, ("photos", 0), {"0": 18}) == one
    two = commit(more, one, ("sounds", 0), None)  # a stream without
    assert two.positions == one.positions
    assert commit(last, two, ("photos", 1), "end").positions == {"photos": "end"}
    renamed = dataset.commit(ColumnNames(names={"label": "kind"}), base=dataset.record(), rebase=True)

    assert one.positions == dataset.record(1).positions == {"photos": {"0": 17, "1": [2**64 - 1, "å", None, 0.1]}}
    assert renamed.positions == {"photos": "end"}


@pytest.mark.parametrize("position", [b"x", {1: 2}, 2**64, {"x": object()}, "\ud800", "x" * 70_000])
def test_a_position_that_is_no_json_or_too_large_is_refused(dataset: Dataset, position: Any) -> None:
    change = Addition(parts=[sealed(dataset, content_of(6))], columns=COLUMNS)
    with pytest.raises(InvalidRequest, match="a stream's position is"):
        dataset.commit(change, base=None, rebase=False, once=("photos", 0), position=position)
    assert dataset.snapshots() == []


def test_a_dataset_name_is_used_once(dataset: Dataset) -> None:
    with pytest.raises(Conflict, match="a dataset name is used once"):
        Dataset.create(dataset.store, "flowers")
    assert Dataset.open_or_create(dataset.store, "flowers").snapshots() == []


def test_a_name_that_is_a_path_is_refused(tmp_path: Path) -> None:
    for name in ("../flowers", "a/b", "", ".hidden", "Flowers", "flowers\n", "x" * 64):
        with pytest.raises(InvalidName, match="a dataset name has 1 to 63"):
            Dataset.create(LocalStore(tmp_path / "x"), name)
    assert list(tmp_path.iterdir()) == []


def test_a_dataset_that_is_not_there_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(DatasetNotFound, match="no dataset 'flowers'"):
        Dataset.open(LocalStore(tmp_path / "flowers"), "flowers")


@pytest.mark.parametrize("body", [b"", b"garbage", b"[]", b"{}", b"3"])
def test_a_description_that_cannot_be_read_is_damage(dataset: Dataset, body: bytes) -> None:
    (dataset.store.folder / "dataset.json").write_bytes(body)

    with pytest.raises(Damaged, match=r"dataset\.json is not a dataset description; restore a new workspace"):
        Dataset.open(dataset.store, "flowers")


@pytest.mark.parametrize("body", [b"", b"garbage", b"[]", b"{}", b'{"snapshot": {}}', b"3"])
def test_a_snapshot_file_that_cannot_be_read_is_damage(dataset: Dataset, body: bytes) -> None:
    add(dataset, content_of(1))
    (dataset.store.folder / "snapshots" / "00000001.json").write_bytes(body)

    with pytest.raises(Damaged, match=r"00000001\.json is not a snapshot description; restore a new workspace"):
        dataset.record()


def test_a_format_of_a_newer_mms_asks_for_an_upgrade(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    import mms_sdk.storage.datasets as module

    add(dataset, content_of(1))
    monkeypatch.setattr(module, "FORMAT_VERSION", 2)

    with pytest.raises(Damaged, match="has format version 1; this MMS reads 2; upgrade mms-sdk"):
        Dataset.open(dataset.store, "flowers")
    with pytest.raises(Damaged, match="has format version 1; this MMS reads 2; upgrade mms-sdk"):
        dataset.record()


def test_what_others_leave_in_the_snapshots_folder_is_no_snapshot(dataset: Dataset) -> None:
    add(dataset, content_of(1))
    for name in (".00000002.json.4711.0123456789ab", "00000002.json~", "2.json", "notes.txt"):
        (dataset.store.folder / "snapshots" / name).write_text("{}")

    assert dataset.snapshots() == [1]


def test_a_commit_on_an_old_snapshot_is_refused_unless_it_may_be_put_on_top(dataset: Dataset) -> None:
    add(dataset, content_of(2))
    base = dataset.record()
    add(dataset, content_of(3, seed=1))
    part = sealed(dataset, content_of(4, seed=2))
    addition = Addition(parts=[part], columns=COLUMNS)

    with pytest.raises(
        SnapshotConflict, match="snapshot 2 of 'flowers' was committed by somebody else meanwhile; read"
    ):
        dataset.commit(addition, base=base, rebase=False)
    assert dataset.snapshots() == [1, 2]

    assert dataset.commit(addition, base=base, rebase=True).number == 3
    images = [content_of(rows, seed=seed)["image"] for rows, seed in ((2, 0), (3, 1), (4, 2))]
    np.testing.assert_array_equal(dataset.snapshot().values("image"), np.concatenate(images))


def test_a_commit_whose_columns_are_others_is_not_put_on_top(dataset: Dataset) -> None:
    add(dataset, content_of(2))
    base = dataset.record()
    add(dataset, content_of(2, seed=1))
    fewer = Column(name="label", kind="label", dtype="int32", labels=("cat", "dog"))

    with pytest.raises(SnapshotConflict):
        dataset.commit(Addition(parts=(), columns=(IMAGE, fewer, SOURCE, SPLIT)), base=base, rebase=True)


def test_a_part_is_committed_once(dataset: Dataset) -> None:
    addition = Addition(parts=[sealed(dataset, content_of(2))], columns=COLUMNS)
    base = dataset.commit(addition, base=None, rebase=False)

    with pytest.raises(InvalidRequest, match="a part is committed once"):
        dataset.commit(addition, base=base, rebase=False)


def test_a_part_that_is_not_whole_is_not_committed_and_damage_for_whoever_opens_the_snapshot(dataset: Dataset) -> None:
    part, other = sealed(dataset, content_of(2)), sealed(dataset, content_of(3))
    (dataset.store.folder / "parts" / other.id / "MANIFEST.json").unlink()
    with pytest.raises(Damaged, match="is gone; write it again"):
        dataset.commit(Addition(parts=[other], columns=COLUMNS), base=None, rebase=False)
    dataset.commit(Addition(parts=[part], columns=COLUMNS), base=None, rebase=False)
    (dataset.store.folder / "parts" / part.id / "MANIFEST.json").unlink()

    with pytest.raises(Damaged, match="is incomplete"):
        dataset.snapshot()


def test_readers_keep_their_snapshot_while_others_commit(dataset: Dataset) -> None:
    content = content_of(40)
    add(dataset, content)
    snapshot = dataset.snapshot()
    stop = threading.Event()
    wrong: list[int] = []

    def read() -> None:
        rng = np.random.default_rng(threading.get_ident() % 2**32)
        while not stop.is_set():
            rows = rng.integers(0, 40, 8)
            if not np.array_equal(snapshot.gather("image", rows), content["image"][rows]):
                wrong.append(1)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for seed in range(5):
        add(dataset, content_of(5, seed=seed + 1))
    stop.set()
    for reader in readers:
        reader.join()

    assert wrong == []
    assert snapshot.rows == 40
    assert snapshot.ref == "flowers@1"
    assert dataset.snapshot().rows == 65


@pytest.mark.slow
def test_four_processes_that_commit_50_times_each_lose_no_commit(dataset: Dataset, tmp_path: Path) -> None:
    add(dataset, content_of(1))
    parts = copies(dataset, dataset.record().parts[0], 200)
    shares = [parts[start::4] for start in range(4)]

    told = commit_at_once(dataset, shares, tmp_path, "rebase")

    numbers = [int(number) for lines in told for number in lines]
    assert sorted(numbers) == list(range(2, 202))
    assert dataset.snapshots() == list(range(1, 202))
    newest = dataset.record()
    assert {part.id for part in newest.parts[1:]} == {part.id for part in parts}
    assert newest.statistics["classes"] == {"cat": 200}
    assert newest.splits["train"] == 200 + dataset.record(1).splits.get("train", 0)
    for number in range(2, 202):  # every snapshot is the one before with one part more
        assert dataset.record(number).parts == newest.parts[:number]
    position = {part.id: number for number, part in enumerate(newest.parts, 1)}
    for share, lines in zip(shares, told, strict=True):  # what each was told is where its part is
        assert [position[part.id] for part in share] == [int(line) for line in lines]
    assert dataset.snapshot().verify() > 0


@pytest.mark.slow
def test_of_processes_that_commit_on_the_same_snapshot_one_wins_and_the_others_are_told(
    dataset: Dataset, tmp_path: Path
) -> None:
    add(dataset, content_of(1))
    parts = copies(dataset, dataset.record().parts[0], 4)

    told = commit_at_once(dataset, [[part] for part in parts], tmp_path, "alone")

    assert sorted(lines[0] for lines in told) == ["2", "SnapshotConflict", "SnapshotConflict", "SnapshotConflict"]
    winner = parts[[lines[0] for lines in told].index("2")]
    assert [part.id for part in dataset.record().parts[1:]] == [winner.id]


def test_all_that_a_snapshot_names_is_on_disk_before_it_appears(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a loss of power at the moment of the commit would leave, by what was synced after it was last changed."""
    synced: dict[int, tuple[int, int]] = {}
    late: list[Path] = []
    fsync, link = os.fsync, os.link

    def seen_fsync(handle: int) -> None:
        fsync(handle)
        told = os.fstat(handle)
        synced[told.st_ino] = told.st_size, told.st_mtime_ns

    def seen_link(source: Path, name: Path) -> None:
        if Path(name).parent.name == "snapshots":
            for path in (workspace.root / "datasets", *(workspace.root / "datasets").rglob("*")):
                told = path.stat()
                if path == Path(name).parent:  # nobody misses the draft that was made there, if the power goes now
                    continue
                if synced.get(told.st_ino) != (told.st_size, told.st_mtime_ns):
                    late.append(path)
        link(source, name)

    monkeypatch.setattr(os, "fsync", seen_fsync)
    monkeypatch.setattr(os, "link", seen_link)
    monkeypatch.setattr(Path, "unlink", lambda *_, **__: None)  # a draft that is removed changes its folder once more

    workspace = Workspace(tmp_path / "workspace")
    dataset = workspace.open_or_create_dataset("flowers")
    add(dataset, content_of(3))
    add(dataset, content_of(3, seed=1))

    assert late == []
    snapshots = (dataset.store.folder / "snapshots").stat()
    assert synced[snapshots.st_ino] == (snapshots.st_size, snapshots.st_mtime_ns)


def test_a_snapshot_file_says_in_plain_json_what_it_holds(dataset: Dataset) -> None:
    add(dataset, content_of(4))

    told = json.loads((dataset.store.folder / "snapshots" / "00000001.json").read_text())["snapshot"]

    assert told["dataset"] == "flowers"
    assert [part["rows"] for part in told["parts"]] == [4]
    assert [column["name"] for column in told["columns"]] == ["image", "label", "source", "split"]
    assert told["columns"][1]["labels"] == ["cat", "dog", "eel"]


def test_a_batch_with_a_negative_number_is_refused(tmp_path: Path) -> None:
    dataset = Dataset.create(LocalStore(tmp_path / "flowers"), "flowers")
    with pytest.raises(InvalidRequest, match="numbered from 0; got -1 of 'q'"):
        dataset.commit(Addition(parts=[], columns=[]), base=None, rebase=True, once=("q", -1))
