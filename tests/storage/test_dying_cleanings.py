from __future__ import annotations

from pathlib import Path

import dies_at_step
import numpy as np
import pytest
from dying_rows import ADDED, OLD
from small_datasets import add

from mms_sdk.storage.datasets import Dataset
from mms_sdk.storage.retention import collect_garbage
from mms_sdk.storage.stores.local import LocalStore
from torture import die_at_steps, times

OFTEN = [pytest.param(how, times(6, full=2), marks=pytest.mark.torture) for how in ("kill", "enospc", "interrupt")]
CLEANED = np.flatnonzero(np.concatenate([OLD["label"], ADDED["label"]]) != 0)


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("how", "stride"), [("kill", 23), *OFTEN])
def test_a_cleaning_that_fails_at_any_step_leaves_rows_and_columns_as_before_or_both_as_after(
    memory_path: Path, how: str, stride: int
) -> None:
    template = memory_path / "template"
    dataset = Dataset.create(LocalStore(template / "flowers"), "flowers")
    add(dataset, OLD)
    add(dataset, ADDED)

    told = die_at_steps("clean", how, template, memory_path / "out", stride=stride)

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
@pytest.mark.parametrize(("how", "stride"), [("kill", 31), *OFTEN])
def test_a_join_that_fails_at_any_step_makes_nothing_or_all_of_it(memory_path: Path, how: str, stride: int) -> None:
    template = memory_path / "template"
    add(Dataset.create(LocalStore(template / "flowers"), "flowers"), OLD)
    dies_at_step.join(template)

    told = die_at_steps("join", how, template, memory_path / "out", stride=stride)

    for attempt in told:
        dataset = Dataset.open(LocalStore(memory_path / "out" / f"{attempt['step']:03d}" / "joined"), "joined")
        dataset.verify()
        assert dataset.snapshots() in ([[1, 2]] if attempt is told[-1] else [[1], [1, 2]])
        np.testing.assert_array_equal(dataset.snapshot().values("image_2"), OLD["image"])
        collect_garbage(dataset, grace_s=0)
        used = {part.id for number in dataset.snapshots() for part in dataset.record(number).parts}
        assert {path.name for path in (dataset.store.folder / "parts").iterdir()} == used  # type: ignore[attr-defined]
