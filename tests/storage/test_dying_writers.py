from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import dies_at_step
import numpy as np
import pytest
from small_datasets import COLUMNS, add, content_of

from mms_sdk.schema.job import Progress
from mms_sdk.storage.datasets import Dataset
from mms_sdk.storage.retention import collect_garbage
from mms_sdk.storage.stores.local import LocalStore
from mms_sdk.storage.workspace import Workspace

DRIVER = Path(__file__).with_name("dies_at_step.py")
MORE = [(work, how) for work in ("commit", "append") for how in ("kill", "enospc", "interrupt")][1:]
OLD, ADDED = content_of(11, seed=1), content_of(7, seed=9)


def die_at_every_step(work: str, how: str, template: Path, out: Path, *, stride: int = 1) -> list[dict[str, Any]]:
    """Lets a piece of work fail at each of its steps; the last one told is the one that went through."""
    out.mkdir()
    command = [sys.executable, "-W", "ignore", str(DRIVER), work, how, str(template), str(out), str(stride)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return [json.loads(line) for line in ran.stdout.splitlines()]


def assert_old_or_new(dataset: Dataset, old: int) -> str:
    """Whether it holds the old rows or the old and the added; every byte of either is right."""
    if not dataset.snapshots():
        assert old == 0
        return "old"
    snapshot = dataset.snapshot()
    snapshot.verify()
    images = np.concatenate([OLD["image"][:old], ADDED["image"]])
    assert snapshot.rows in (old, old + 7)
    np.testing.assert_array_equal(snapshot.values("image"), images[: snapshot.rows])
    sources = [*OLD["source"][:old], *ADDED["source"]]
    assert snapshot.gather("source", np.arange(snapshot.rows)) == sources[: snapshot.rows]
    return "new" if snapshot.rows > old else "old"


@pytest.mark.parametrize(
    ("work", "how"), [("commit", "kill"), *(pytest.param(*both, marks=pytest.mark.torture) for both in MORE)]
)
def test_a_commit_that_fails_at_any_step_leaves_the_old_or_the_new_snapshot(
    memory_path: Path, work: str, how: str
) -> None:
    template = memory_path / "template"
    dataset = Dataset.create(LocalStore(template / "flowers"), "flowers")
    add(dataset, OLD)
    with dataset.writer(COLUMNS) as writer:
        writer.write(ADDED)
        (template / "part.json").write_text(writer.close().model_dump_json())

    told = die_at_every_step(work, how, template, memory_path / "out")

    states = []
    for attempt in told:
        dataset = Dataset.open(LocalStore(memory_path / "out" / f"{attempt['step']:03d}" / "flowers"), "flowers")
        states.append(assert_old_or_new(dataset, 11))
        if attempt["step"] % 4 == 0 or attempt is told[-1]:
            add(dataset, content_of(3, seed=3))
            assert dataset.snapshot().verify() > 0
            assert dataset.snapshot().rows == (21 if states[-1] == "new" else 14)
    assert states == sorted(states, reverse=True)  # old up to one step, new from there on
    assert states[0] == "old"
    assert states[-1] == "new"
    assert len(told) > {"commit": 6, "append": 40}[work]
    if how == "enospc":
        assert {attempt["error"] for attempt in told} == {"StorageFull", ""}
        assert all("Free space there" in attempt["message"] for attempt in told if attempt["error"])


@pytest.mark.torture
@pytest.mark.parametrize("how", ["kill", "enospc"])
def test_a_first_commit_that_fails_at_any_step_leaves_no_dataset_or_a_whole_one(memory_path: Path, how: str) -> None:
    (memory_path / "template").mkdir()

    told = die_at_every_step("append", how, memory_path / "template", memory_path / "out")

    for attempt in told:
        folder = memory_path / "out" / f"{attempt['step']:03d}" / "flowers"
        dataset = Dataset.open_or_create(LocalStore(folder), "flowers")
        state = assert_old_or_new(dataset, 0)
        if attempt["step"] % 4 == 0 or attempt is told[-1]:
            add(dataset, content_of(3, seed=3))
            assert dataset.snapshot().verify() > 0
            assert dataset.snapshot().rows == (10 if state == "new" else 3)


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

    told = die_at_every_step(work, how, template, memory_path / "out")

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


CLEANED = np.flatnonzero(np.concatenate([OLD["label"], ADDED["label"]]) != 0)


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("how", "stride"),
    [("kill", 23), *(pytest.param(how, 2, marks=pytest.mark.torture) for how in ("kill", "enospc", "interrupt"))],
)
def test_a_cleaning_that_fails_at_any_step_leaves_rows_and_columns_as_before_or_both_as_after(
    memory_path: Path, how: str, stride: int
) -> None:
    template = memory_path / "template"
    dataset = Dataset.create(LocalStore(template / "flowers"), "flowers")
    add(dataset, OLD)
    add(dataset, ADDED)

    told = die_at_every_step("clean", how, template, memory_path / "out", stride=stride)

    for attempt in told:
        folder = memory_path / "out" / f"{attempt['step']:03d}"
        assert_cleaned(Dataset.open(LocalStore(folder / "flowers"), "flowers"), done=attempt is told[-1])
        if attempt["step"] % 5 == 0 or attempt is told[-1]:
            dies_at_step.clean(folder)
            assert_cleaned(Dataset.open(LocalStore(folder / "flowers"), "flowers"), done=True)
    assert len(told) > 4


def assert_cleaned(dataset: Dataset, *, done: bool) -> None:
    """Whether rows and columns are those before cleaning, or both are those after it."""
    snapshot = dataset.snapshot()
    dataset.verify()
    sources = [*OLD["source"], *ADDED["source"]]
    column = snapshot.column("source")
    if snapshot.record.number == 2:
        assert not done
        assert snapshot.rows == 18
        assert snapshot.gather("source", np.arange(18)) == sources
        return
    assert (snapshot.rows, column.kind) == (len(CLEANED), "category")
    found = [(column.labels or ())[code] for code in snapshot.values("source")]
    assert found == [sources[row].decode() for row in CLEANED]


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("how", "stride"),
    [("kill", 31), *(pytest.param(how, 2, marks=pytest.mark.torture) for how in ("kill", "enospc", "interrupt"))],
)
def test_a_join_that_fails_at_any_step_makes_nothing_or_all_of_it(memory_path: Path, how: str, stride: int) -> None:
    template = memory_path / "template"
    add(Dataset.create(LocalStore(template / "flowers"), "flowers"), OLD)
    dies_at_step.join(template)

    told = die_at_every_step("join", how, template, memory_path / "out", stride=stride)

    for attempt in told:
        dataset = Dataset.open(LocalStore(memory_path / "out" / f"{attempt['step']:03d}" / "joined"), "joined")
        dataset.verify()
        assert dataset.snapshots() in ([[1, 2]] if attempt is told[-1] else [[1], [1, 2]])
        np.testing.assert_array_equal(dataset.snapshot().values("image_2"), OLD["image"])
        collect_garbage(dataset, grace_s=0)
        used = {part.id for number in dataset.snapshots() for part in dataset.record(number).parts}
        assert {path.name for path in (dataset.store.folder / "parts").iterdir()} == used  # type: ignore[attr-defined]


@pytest.mark.torture
@pytest.mark.parametrize("how", ["kill", "enospc", "interrupt"])
def test_making_a_workspace_can_be_tried_again_after_failing_at_any_step(memory_path: Path, how: str) -> None:
    (memory_path / "template").mkdir()

    told = die_at_every_step("workspace", how, memory_path / "template", memory_path / "out")

    assert len(told) > 10
    for attempt in told:
        workspace = Workspace(memory_path / "out" / f"{attempt['step']:03d}" / "workspace")
        job = workspace.catalog.jobs.start("ingest", "flowers", {})
        workspace.catalog.jobs.progress(job.id, Progress(done=1))
        assert workspace.catalog.jobs.get(job.id).progress.done == 1
        workspace.close()
