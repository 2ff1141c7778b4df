from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from dying_rows import ADDED, OLD
from small_datasets import COLUMNS, add, content_of

from mms_sdk.schema.job import Progress
from mms_sdk.storage.datasets import Dataset
from mms_sdk.storage.stores.local import LocalStore
from mms_sdk.storage.workspace import Workspace
from torture import die_at_steps, times

MORE = [(work, how) for work in ("commit", "append") for how in ("kill", "enospc", "interrupt")][1:]


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

    told = die_at_steps(work, how, template, memory_path / "out", stride=1 if work == "commit" else times(3, full=1))

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
    assert told[-1]["step"] > {"commit": 6, "append": 40}[work]
    if how == "enospc":
        assert {attempt["error"] for attempt in told} == {"StorageFull", ""}
        assert all("Free space there" in attempt["message"] for attempt in told if attempt["error"])


@pytest.mark.torture
@pytest.mark.parametrize("how", ["kill", "enospc"])
def test_a_first_commit_that_fails_at_any_step_leaves_no_dataset_or_a_whole_one(memory_path: Path, how: str) -> None:
    (memory_path / "template").mkdir()

    told = die_at_steps("append", how, memory_path / "template", memory_path / "out", stride=times(3, full=1))

    for attempt in told:
        folder = memory_path / "out" / f"{attempt['step']:03d}" / "flowers"
        dataset = Dataset.open_or_create(LocalStore(folder), "flowers")
        state = assert_old_or_new(dataset, 0)
        if attempt["step"] % 4 == 0 or attempt is told[-1]:
            add(dataset, content_of(3, seed=3))
            assert dataset.snapshot().verify() > 0
            assert dataset.snapshot().rows == (10 if state == "new" else 3)


@pytest.mark.torture
@pytest.mark.parametrize("how", ["kill", "enospc", "interrupt"])
def test_making_a_workspace_can_be_tried_again_after_failing_at_any_step(memory_path: Path, how: str) -> None:
    (memory_path / "template").mkdir()

    told = die_at_steps("workspace", how, memory_path / "template", memory_path / "out", stride=1)

    assert len(told) > 8
    for attempt in told:
        workspace = Workspace(memory_path / "out" / f"{attempt['step']:03d}" / "workspace")
        job = workspace.catalog.jobs.start("ingest", "flowers", {})
        workspace.catalog.jobs.progress(job.id, Progress(done=1))
        assert workspace.catalog.jobs.get(job.id).progress.done == 1
        workspace.close()
