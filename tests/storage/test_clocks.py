"""Clocks that jump by years, of this machine and of what says when files were written."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from small_datasets import COLUMNS, add, content_of

from mms_sdk.errors import Conflict, Damaged
from mms_sdk.schema.dataset import Sealed
from mms_sdk.storage.backup.copies import Copies
from mms_sdk.storage.changes import Addition
from mms_sdk.storage.datasets import Dataset
from mms_sdk.storage.edits import delete_rows
from mms_sdk.storage.retention import collect_garbage, expire
from mms_sdk.storage.snapshots import OpenSnapshot
from mms_sdk.storage.stores.base import Store
from mms_sdk.storage.stores.local import LocalStore
from mms_sdk.storage.workspace import Workspace
from mms_sdk.storage.writing import begin

YEAR_S = 365 * 24 * 3600.0
JUMPS = pytest.mark.parametrize("years", [-40, -1, 1, 40])
Jump = Callable[[float], None]


@pytest.fixture
def flowers(real_store: Store) -> Dataset:
    """Four snapshots, of which the last deletes rows."""
    dataset = Dataset.create(real_store.below("flowers"), "flowers")
    for seed in range(3):
        add(dataset, content_of(5, seed=seed))
    delete_rows(dataset, [3], of=dataset.snapshot())
    return dataset


@pytest.fixture
def jump(monkeypatch: pytest.MonkeyPatch) -> Jump:
    """Sets the clock of this machine by so many years."""
    right = time.time

    def by(years: float) -> None:
        monkeypatch.setattr(time, "time", lambda: right() + years * YEAR_S)

    return by


def assert_whole(dataset: Dataset) -> None:
    images = np.concatenate([content_of(5, seed=seed)["image"] for seed in range(3)])
    np.testing.assert_array_equal(dataset.snapshot().values("image"), np.delete(images, 3, axis=0))
    dataset.verify()


def sealed(dataset: Dataset) -> Sealed:
    with dataset.writer(COLUMNS) as writer:
        writer.write(content_of(2))
        return writer.close()


def collected(dataset: Dataset, grace_s: float) -> bool:
    """Whether anything was; not if the clocks are seen to differ."""
    try:
        found = collect_garbage(dataset, grace_s=grace_s)
    except Conflict as error:
        assert "clocks that agree within a day" in error.message
        return False
    return bool(found.folders or found.snapshots)


@JUMPS
@pytest.mark.parametrize("grace_s", [0.0, 48 * 3600.0])
def test_what_is_committed_is_never_collected(flowers: Dataset, jump: Jump, years: int, grace_s: float) -> None:
    reader = flowers.snapshot(2)
    jump(years)
    collected(flowers, grace_s)
    jump(-years)
    collected(flowers, grace_s)
    jump(0)
    collected(flowers, grace_s)
    assert_whole(flowers)
    assert len(reader.values("label")) == 10
    assert flowers.snapshots() == [1, 2, 3, 4]


@JUMPS
def test_whatever_times_a_disk_tells_what_is_committed_stays(tmp_path: Path, years: int) -> None:
    dataset = Dataset.create(LocalStore(tmp_path / "flowers"), "flowers")
    for seed in range(3):
        add(dataset, content_of(5, seed=seed))
    delete_rows(dataset, [3], of=dataset.snapshot())
    then = time.time() + years * YEAR_S
    for each in (tmp_path / "flowers").rglob("*"):
        os.utime(each, (then, then))
    for grace_s in (0.0, 48 * 3600.0):
        collected(dataset, grace_s)
    assert_whole(dataset)


@pytest.mark.slow
@JUMPS
def test_a_wrong_clock_takes_nothing_from_those_who_read_and_write_in_a_far_store(
    far_store: Store, tmp_path: Path, jump: Jump, years: int
) -> None:
    dataset = Dataset.create(far_store.below("flowers"), "flowers")
    add(dataset, content_of(5, seed=0))
    add(dataset, content_of(5, seed=1))
    delete_rows(dataset, [3], of=dataset.snapshot())
    # What this reader needs has expired, and nothing of it is on this machine.
    reader: OpenSnapshot = dataset.snapshot(2)
    waiting = sealed(dataset)
    writing = begin(dataset, None)
    with writing.writer("0") as writer:
        writer.write(content_of(3, seed=7))
    expire(dataset)
    jump(years)
    with pytest.raises(Conflict, match=r"differ|agree within a day"):
        collect_garbage(dataset)
    with pytest.raises(Conflict):
        dataset.commit(Addition(parts=[waiting], columns=COLUMNS), base=dataset.record(), rebase=False)
    with pytest.raises(Conflict):
        writing.commit()
    jump(0)
    assert collect_garbage(dataset).folders == 0
    assert len(reader.values("label")) == 10
    dataset.commit(Addition(parts=[waiting], columns=COLUMNS), base=dataset.record(), rebase=False)
    assert writing.commit().rows == 9 + 2 + 3
    dataset.verify()


def test_on_a_disk_whose_only_clock_jumps_ahead_a_writer_loses_what_nobody_committed_and_is_told(
    tmp_path: Path, jump: Jump
) -> None:
    dataset = Dataset.create(LocalStore(tmp_path / "flowers"), "flowers")
    add(dataset, content_of(5))
    waiting = sealed(dataset)
    jump(-1)
    assert not collected(dataset, 48 * 3600.0)
    jump(1)
    assert collected(dataset, 48 * 3600.0)
    with pytest.raises(Damaged, match="is gone; write it again"):
        dataset.commit(Addition(parts=[waiting], columns=COLUMNS), base=dataset.record(), rebase=False)
    jump(0)
    dataset.commit(Addition(parts=[sealed(dataset)], columns=COLUMNS), base=dataset.record(), rebase=False)
    dataset.verify()


@JUMPS
def test_a_part_is_not_committed_by_a_clock_that_disagrees_and_is_once_that_is_right(
    flowers: Dataset, jump: Jump, years: int
) -> None:
    part = sealed(flowers)
    jump(years)
    with pytest.raises(Conflict, match="hours old" if years > 0 else "sealed .* hours after now; set the clock"):
        flowers.commit(Addition(parts=[part], columns=COLUMNS), base=flowers.record(), rebase=False)
    jump(0)
    flowers.commit(Addition(parts=[part], columns=COLUMNS), base=flowers.record(), rebase=False)
    assert flowers.snapshot().rows == 16


@pytest.mark.slow
@JUMPS
def test_a_wrong_clock_lets_nothing_of_a_far_backup_go(
    far_store: Store, tmp_path: Path, jump: Jump, years: int
) -> None:
    workspace = Workspace(tmp_path / "workspace")
    add(workspace.open_or_create_dataset("flowers"), content_of(5))
    place = Copies(far_store.below("backups"))
    place.take(workspace)
    place.take(workspace)
    jump(years)
    with pytest.raises(Conflict, match="clocks that agree within a day"):
        place.prune(1)
    jump(0)
    assert len(place.records()) == 2
    assert place.verify().backups == 2
    workspace.close()
