"""Rows are counted by what they are, and one that has no label counts as none."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from small_datasets import LABEL

from mms_sdk.storage.counts import by_label
from mms_sdk.storage.datasets import Dataset
from mms_sdk.storage.edits import delete_rows, write_column
from mms_sdk.storage.stores.local import LocalStore
from mms_sdk.storage.writing import begin

MAYBE = LABEL.model_copy(update={"nullable": True})
CODES = np.ma.MaskedArray(np.array([0, 1, 0, 1, 1, 0], np.int32), [False, False, True, True, False, True])


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """Six rows by a writer with a key: a cat, two dogs and three without a label."""
    made = Dataset.create(LocalStore(tmp_path / "pets"), "pets")
    writing = begin(made, (MAYBE,))
    with writing.writer("0") as writer:
        writer.write({"label": CODES})
    writing.commit()
    return made


def counted(dataset: Dataset) -> Counter[str]:
    return Counter((MAYBE.labels or ())[code] for code in dataset.snapshot().values("label").compressed())


def classes(dataset: Dataset) -> dict[str, int]:
    return {name: rows for name, rows in dataset.record().statistics["classes"].items() if rows}


def test_masked_codes_count_as_no_label_whatever_lies_behind_the_mask() -> None:
    assert by_label(MAYBE, CODES) == {"cat": 1, "dog": 2}
    assert by_label(MAYBE, np.ma.MaskedArray([99, 2], [True, False])) == {"eel": 1}
    assert by_label(MAYBE, np.ma.MaskedArray([0, 0], True)) == {}


def test_rows_without_a_label_are_counted_in_no_class_when_they_come(dataset: Dataset) -> None:
    assert classes(dataset) == counted(dataset) == {"cat": 1, "dog": 2}


def test_rows_without_a_label_are_taken_from_no_class_when_they_go(dataset: Dataset) -> None:
    delete_rows(dataset, [1, 2, 3, 5], of=dataset.snapshot())
    assert classes(dataset) == counted(dataset) == {"cat": 1, "dog": 1}


def test_a_label_that_is_written_with_gaps_counts_what_it_says(dataset: Dataset) -> None:
    write_column(dataset, MAYBE, lambda rows: rows["label"][::-1], inputs=["label"], of=dataset.snapshot())
    assert classes(dataset) == counted(dataset) == {"cat": 1, "dog": 2}
