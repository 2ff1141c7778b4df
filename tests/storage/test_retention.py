from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest
from small_datasets import COLUMNS, add, content_of

from mms_sdk.errors import Conflict, Damaged, InvalidName, InvalidRequest, SnapshotNotFound
from mms_sdk.storage.changes import Addition
from mms_sdk.storage.datasets import Dataset
from mms_sdk.storage.edits import compact, delete_rows
from mms_sdk.storage.retention import GRACE_S, Collected, collect_garbage, expire, resolve_tag, tag, tags, untag
from mms_sdk.storage.stores.local import LocalStore


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """Four snapshots: three additions, put together."""
    made = Dataset.create(LocalStore(tmp_path / "flowers"), "flowers")
    for seed in range(3):
        add(made, content_of(5, seed=seed))
    compact(made, of=made.snapshot())
    return made


def folders(dataset: Dataset) -> set[str]:
    return {path.name for path in (dataset.store.folder / "parts").iterdir()}


def aged(path: Path, *, hours: float) -> None:
    """As if nobody had touched it for so long."""
    then = time.time() - hours * 3600
    for each in (path, *path.rglob("*")):
        os.utime(each, (then, then))


# Tags ---------------------------------------------------------------------------------------------------------------


def test_a_tag_names_a_snapshot_until_it_is_taken_away(dataset: Dataset) -> None:
    assert tag(dataset, "paper") == 4
    assert tag(dataset, "first", 1) == 1
    add(dataset, content_of(1))

    assert tags(dataset) == {"first": 1, "paper": 4}
    assert resolve_tag(dataset, "paper") == 4
    untag(dataset, "paper")
    assert tags(dataset) == {"first": 1}
    with pytest.raises(SnapshotNotFound, match=r"no tag 'paper'; it has \['first'\]"):
        resolve_tag(dataset, "paper")


def test_a_tag_does_not_move(dataset: Dataset) -> None:
    tag(dataset, "paper", 1)
    with pytest.raises(Conflict, match="'paper' names snapshot 1"):
        tag(dataset, "paper", 2)
    assert tags(dataset) == {"paper": 1}


def test_what_cannot_be_a_tag_is_refused(dataset: Dataset) -> None:
    for name in ("", "../x", "A b"):
        with pytest.raises(InvalidName):
            tag(dataset, name)
    with pytest.raises(InvalidName, match="a tag is not a number"):
        tag(dataset, "7")
    with pytest.raises(InvalidName, match="begins with a letter"):
        tag(dataset, "7th")
    with pytest.raises(SnapshotNotFound):
        tag(dataset, "x", 9)
    assert tags(dataset) == {}


def test_a_tag_that_cannot_be_read_is_damage(dataset: Dataset) -> None:
    tag(dataset, "paper")
    (dataset.store.folder / "tags" / "paper.json").write_text("{}")
    with pytest.raises(Damaged, match=r"paper\.json is not a tag"):
        tags(dataset)


# Expiry and garbage -------------------------------------------------------------------------------------------------


def test_old_snapshots_expire_but_for_the_newest_and_the_tagged(dataset: Dataset) -> None:
    tag(dataset, "first", 1)

    assert expire(dataset, keep=2) == [2]

    assert dataset.snapshots() == [1, 3, 4]
    with pytest.raises(SnapshotNotFound, match="no snapshot 2; it has 1, 3 to 4"):
        dataset.record(2)
    assert add(dataset, content_of(1)) == 5


def test_the_newest_snapshot_never_expires(dataset: Dataset) -> None:
    with pytest.raises(InvalidRequest, match="keep=0"):
        expire(dataset, keep=0)
    expire(dataset)
    assert dataset.snapshots() == [4]
    assert dataset.snapshot().rows == 15


def test_what_an_expired_snapshot_held_stays_for_its_readers_until_the_grace_is_over(dataset: Dataset) -> None:
    reader = dataset.snapshot(3)
    expire(dataset)
    aged(dataset.store.folder / "parts", hours=100)

    assert collect_garbage(dataset) == Collected(folders=0, bytes=0, snapshots=0, drafts=0)
    np.testing.assert_array_equal(
        reader.values("image"), np.concatenate([content_of(5, seed=seed)["image"] for seed in range(3)])
    )

    aged(dataset.store.folder / "expired", hours=GRACE_S / 3600 + 1)
    collected = collect_garbage(dataset)
    assert (collected.folders, collected.snapshots) == (3, 3)
    assert collected.bytes > 3 * 5 * 144
    assert folders(dataset) == {dataset.record().parts[0].id}
    dataset.verify()


def test_what_is_being_written_or_waits_for_its_commit_is_not_garbage(dataset: Dataset) -> None:
    writing = dataset.writer(COLUMNS)
    with dataset.writer(COLUMNS) as writer:
        writer.write(content_of(2))
        waiting = writer.close()

    assert collect_garbage(dataset).folders == 0
    aged(dataset.store.folder / "parts" / waiting.id, hours=47)
    assert collect_garbage(dataset).folders == 0
    with pytest.raises(Conflict, match=r"47\.0 hours old"):
        dataset.commit(Addition(parts=[waiting], columns=COLUMNS), base=dataset.record(), rebase=False)
    aged(dataset.store.folder / "parts" / waiting.id, hours=49)
    assert collect_garbage(dataset).folders == 1
    with pytest.raises(Damaged, match="is gone; write it again"):
        dataset.commit(Addition(parts=[waiting], columns=COLUMNS), base=dataset.record(), rebase=False)

    writing.write(content_of(2))
    part = writing.close()
    dataset.commit(Addition(parts=[part], columns=COLUMNS), base=dataset.record(), rebase=False)
    assert dataset.snapshot().rows == 17


def test_what_killed_writers_left_behind_is_removed(dataset: Dataset) -> None:
    (dataset.store.folder / "snapshots" / ".00000009.json.4711.0123456789ab").write_text("{}")
    (dataset.store.folder / "parts" / ".01M85.gone").mkdir()
    (dataset.store.folder / "snapshots" / "notes.txt").write_text("somebody's own")

    assert collect_garbage(dataset, grace_s=0).drafts == 1

    assert {path.name for path in (dataset.store.folder / "snapshots").iterdir()} == {
        *(f"{number:08d}.json" for number in range(1, 5)),
        "notes.txt",
    }


def test_nothing_is_removed_while_a_snapshot_cannot_be_read(dataset: Dataset) -> None:
    before = folders(dataset)
    delete_rows(dataset, [1], of=dataset.snapshot())
    (dataset.store.folder / "snapshots" / "00000002.json").write_text("garbage")

    with pytest.raises(Damaged, match=r"00000002\.json"):
        collect_garbage(dataset, grace_s=0)

    assert before < folders(dataset)
