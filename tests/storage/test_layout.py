"""How a snapshot lies: what its manifests say, beside what is on the disk and what compacting does."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from small_datasets import COLUMNS, add, content_of

from mms_sdk.errors import Damaged
from mms_sdk.schema.dataset import Column, Part, Run
from mms_sdk.storage import edits
from mms_sdk.storage.datasets import Dataset
from mms_sdk.storage.layout import layout
from mms_sdk.storage.stores.base import Store

NUMBER = Column(name="number", kind="number", dtype="int64")


def _on_disk(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _arrays_on_disk(dataset: Dataset, column: Column) -> int:
    parts = Path(dataset.store.url) / "parts"
    return sum(_on_disk(path) for array in column.arrays for path in parts.glob(f"*/data.zarr/{array}"))


def _numbered(dataset: Dataset) -> None:
    edits.write_column(
        dataset, NUMBER, lambda rows: np.arange(len(rows["label"])), inputs=["label"], of=dataset.snapshot()
    )


def test_bytes_are_those_on_the_disk_of_all_and_of_each_column(dataset: Dataset) -> None:
    for seed in range(3):
        add(dataset, content_of(20, seed=seed))
    _numbered(dataset)
    found = layout(dataset, dataset.snapshot())

    assert found.bytes == _on_disk(Path(dataset.store.url) / "parts") == dataset.snapshot().bytes
    assert found.columns == {column.name: _arrays_on_disk(dataset, column) for column in (*COLUMNS, NUMBER)}
    assert (found.parts, found.layers, found.deleted, found.freed_bytes, found.other_folders) == (3, 3, 0, 0, 0)


def test_a_far_dataset_has_the_layout_of_a_near_one(dataset: Dataset, far_store: Store) -> None:
    far = Dataset.create(far_store, "flowers")
    for each in (dataset, far):
        add(each, content_of(20))
        edits.delete_rows(each, [3], of=each.snapshot())
    assert layout(far, far.snapshot()) == layout(dataset, dataset.snapshot())


def test_what_compacting_would_do_is_what_it_does(dataset: Dataset) -> None:
    for seed in range(12):
        add(dataset, content_of(5, seed=seed))
    edits.delete_rows(dataset, [0, 1, 17], of=dataset.snapshot())
    _numbered(dataset)
    before = layout(dataset, dataset.snapshot())
    edits.compact(dataset, of=dataset.snapshot())
    after = layout(dataset, dataset.snapshot())

    assert (before.parts, before.parts_compacted, before.small_parts) == (12, after.parts, 12)
    assert (before.deleted, after.deleted) == (3, 0)
    assert (before.fragmented, after.fragmented) == (True, False)
    assert (after.layers, after.freed_bytes, after.parts_compacted, after.small_parts) == (0, 0, 1, 0)
    # The twelve parts, a layer each, and the lists of deleted rows of two.
    assert after.other_folders == 12 + 12 + 2


def test_deleted_rows_and_columns_that_are_gone_are_what_compacting_frees(dataset: Dataset) -> None:
    add(dataset, content_of(64))
    whole = layout(dataset, dataset.snapshot())
    edits.delete_rows(dataset, range(16), of=dataset.snapshot())
    edits.rename_columns(dataset, {"image": None}, of=dataset.snapshot())
    found = layout(dataset, dataset.snapshot())

    kept = sum(size for name, size in whole.columns.items() if name != "image")
    assert found.freed_bytes == whole.columns["image"] + kept * 16 // 64
    assert "image" not in found.columns
    edits.compact(dataset, of=dataset.snapshot())
    assert layout(dataset, dataset.snapshot()).bytes < found.bytes - whole.columns["image"]


def test_a_column_of_the_name_of_the_list_of_deleted_rows_is_not_taken_for_it(dataset: Dataset) -> None:
    row = Column(name="row", kind="number", dtype="int64")
    add(dataset, {"row": np.arange(9)}, columns=(row,))
    before = layout(dataset, dataset.snapshot()).columns
    edits.delete_rows(dataset, [3], of=dataset.snapshot())
    assert layout(dataset, dataset.snapshot()).columns == before


def test_groups_of_many_parts_are_those_of_adding_up_again_and_again() -> None:
    rng = np.random.default_rng(0)
    parts = [
        Part(id=f"{at:026}", rows=rows, manifest="0" * 64, since=(Run(rows=rows, snapshot=1),))
        for at, rows in enumerate(rng.integers(0, 60, 5_000).tolist())
    ]
    expected: list[list[Part]] = [[]]
    for part in parts:
        if expected[-1] and sum(each.rows for each in expected[-1]) + part.rows > 100:
            expected.append([])
        expected[-1].append(part)
    assert list(edits.groups(parts, 100)) == [group for group in expected if len(group) > 1]


def test_an_empty_snapshot_has_a_layout(dataset: Dataset) -> None:
    add(dataset, content_of(4))
    edits.delete_rows(dataset, range(4), of=dataset.snapshot())
    found = layout(dataset, dataset.snapshot())
    assert (found.parts, found.deleted) == (1, 4)
    assert dataset.snapshot().rows == 0


def test_a_manifest_that_goes_while_it_is_looked_at_is_damage(dataset: Dataset) -> None:
    add(dataset, content_of(4))
    opened = dataset.snapshot()
    shutil.rmtree(next((Path(dataset.store.url) / "parts").iterdir()))
    with pytest.raises(Damaged, match=r"is incomplete: .* has no MANIFEST.json"):
        layout(dataset, opened)


def test_an_open_snapshot_shows_its_columns(dataset: Dataset) -> None:
    add(dataset, content_of(4))
    opened = dataset.snapshot()
    assert repr(opened) == "<snapshot flowers@1: 4 rows, 1 part>"
    shown = opened._repr_html_()
    for told in ("flowers@1: 4 rows, 1 part", "image", "uint8 8×6×3", "source", "text"):
        assert told in shown


def test_lengths_and_missing_values_are_told_without_reading_values(dataset: Dataset) -> None:
    series = Column(name="signal", kind="series", dtype="float32", shape=(None, 2), nullable=True)
    rng = np.random.default_rng(0)
    given = [None if n % 5 == 0 else rng.random((n, 2), np.float32) for n in range(20)]
    for half in (given[:10], given[10:]):
        add(dataset, {"signal": half}, columns=(series,), rebase=True)
    edits.delete_rows(dataset, [1, 12], of=dataset.snapshot())
    left = [value for at, value in enumerate(given) if at not in (1, 12)]
    opened, rows = dataset.snapshot(), np.array([17, 0, 9, 3, 3])

    assert opened.lengths("signal", rows).tolist() == [0 if left[row] is None else len(left[row]) for row in rows]
    assert opened.has_value("signal", rows).tolist() == [left[row] is not None for row in rows]
    opened.gather("signal", rows)
    opened.release("signal")
    for row, value in zip(rows, opened.gather("signal", rows), strict=True):
        np.testing.assert_array_equal(value, left[row])
