from __future__ import annotations

from pathlib import Path

import dies_at_step
import numpy as np
import pytest
from dying_rows import ADDED, OLD
from small_datasets import add

from mms_sdk.storage.datasets import Dataset
from mms_sdk.storage.stores.local import LocalStore
from torture import die_at_steps, times

EDITS = ("delete", "column", "put together", "tidy")
FAILURES = [(work, how) for work in EDITS for how in ("kill", "enospc", "interrupt")]


@pytest.mark.parametrize(
    ("work", "how"), [FAILURES[0], *(pytest.param(*both, marks=pytest.mark.torture) for both in FAILURES[1:])]
)
def test_an_edit_that_fails_at_any_step_leaves_the_old_or_the_new_and_can_be_done_again(
    memory_path: Path, work: str, how: str
) -> None:
    template = memory_path / "template"
    dataset = Dataset.create(LocalStore(template / "flowers"), "flowers")
    add(dataset, OLD)
    add(dataset, ADDED)
    if work in ("put together", "tidy"):
        dies_at_step.delete(template)
    if work == "tidy":
        dies_at_step.put_together(template)

    told = die_at_steps(work, how, template, memory_path / "out", stride=times(3, full=1))

    for attempt in told:
        folder = memory_path / "out" / f"{attempt['step']:03d}"
        assert_edited(Dataset.open(LocalStore(folder / "flowers"), "flowers"), work, done=attempt is told[-1])
        if attempt["step"] % 5 == 0 or attempt is told[-1]:
            if work != "delete" or Dataset.open(LocalStore(folder / "flowers"), "flowers").record().rows == 18:
                dies_at_step.WORK[work](folder)
            assert_edited(Dataset.open(LocalStore(folder / "flowers"), "flowers"), work, done=True)
    assert len(told) > 4


def assert_edited(dataset: Dataset, work: str, *, done: bool) -> None:
    """Whether the newest snapshot is as before the work or as after it, in every byte of every column."""
    labels = np.concatenate([OLD["label"], ADDED["label"]])
    sources = [*OLD["source"], *ADDED["source"]]
    kept = np.setdiff1d(np.arange(18), [1, 4, 12])
    snapshot = dataset.snapshot()
    dataset.verify()
    if work == "delete":
        assert snapshot.rows in ((15,) if done else (15, 18))
    elif work == "column":
        assert snapshot.rows == 18
        names = {column.name for column in snapshot.record.columns}
        assert ("twice" in names) >= done
        if "twice" in names:
            np.testing.assert_array_equal(snapshot.values("twice"), 2 * labels)
    else:
        assert snapshot.rows == 15
        assert not done or len(snapshot.record.parts) == 1
    rows = kept if snapshot.rows == 15 else np.arange(18)
    np.testing.assert_array_equal(snapshot.values("label"), labels[rows])
    assert snapshot.gather("source", np.arange(snapshot.rows)) == [sources[row] for row in rows]
    if work == "tidy" and done:
        assert dataset.snapshots() == [snapshot.record.number]
        folders = {path.name for path in (dataset.store.folder / "parts").iterdir()}
        assert folders == {each.id for part in snapshot.record.parts for each in part.folders}
