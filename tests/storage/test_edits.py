from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from small_datasets import COLUMNS, IMAGE, LABEL, add, content_of

from mms_sdk.errors import ColumnNotFound, Conflict, InvalidName, InvalidRequest, SnapshotConflict, Unavailable
from mms_sdk.schema.dataset import SPLITS, Column
from mms_sdk.storage import datasets as module
from mms_sdk.storage.changes import Addition
from mms_sdk.storage.datasets import Dataset
from mms_sdk.storage.edits import compact, delete_rows, rename_columns, write_column
from mms_sdk.storage.stores.local import LocalStore

TWICE = Column(name="twice", kind="number", dtype="int32")
FIRST, SECOND = content_of(9, seed=1), content_of(5, seed=2)


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """Two parts, of nine and five rows."""
    made = Dataset.create(LocalStore(tmp_path / "flowers"), "flowers")
    add(made, FIRST)
    add(made, SECOND)
    return made


def twice(rows: Mapping[str, Any]) -> Any:
    return 2 * rows["label"]


def labels_of(dataset: Dataset, number: int | None = None) -> list[int]:
    return list(dataset.snapshot(number).values("label").tolist())


ALL_LABELS = [*FIRST["label"].tolist(), *SECOND["label"].tolist()]


# Deleting rows ------------------------------------------------------------------------------------------------------


def test_deleted_rows_are_gone_and_the_earlier_snapshot_still_has_them(dataset: Dataset) -> None:
    snapshot = delete_rows(dataset, [10, 0, 3, 3], of=dataset.snapshot())

    assert (snapshot.number, snapshot.rows, snapshot.message) == (3, 11, "3 rows deleted")
    assert labels_of(dataset) == [label for row, label in enumerate(ALL_LABELS) if row not in (0, 3, 10)]
    assert labels_of(dataset, 2) == ALL_LABELS
    split = dataset.snapshot().values("split")
    assert snapshot.splits == {name: int((split == code).sum()) for code, name in enumerate(SPLITS)}
    assert dataset.verify()[0] == 4  # two parts, and a list of deleted rows for each


def test_rows_are_deleted_by_their_numbers_in_the_snapshot_that_was_looked_at(dataset: Dataset) -> None:
    looked_at = dataset.snapshot()
    add(dataset, content_of(4, seed=3))  # somebody adds rows meanwhile

    delete_rows(dataset, [13], of=looked_at)

    assert labels_of(dataset) == [*ALL_LABELS[:13], *content_of(4, seed=3)["label"].tolist()]


def test_two_deletions_from_one_part_do_not_commute_and_from_different_ones_do(dataset: Dataset) -> None:
    looked_at = dataset.snapshot()
    delete_rows(dataset, [1], of=looked_at)

    with pytest.raises(SnapshotConflict, match="these have changed meanwhile"):
        delete_rows(dataset, [2], of=looked_at)
    delete_rows(dataset, [11], of=looked_at)

    assert labels_of(dataset) == [label for row, label in enumerate(ALL_LABELS) if row not in (1, 11)]


@pytest.mark.parametrize(("rows", "said"), [([], "at least one row"), ([14], "are 0 to 13; got 14"), ([-1], "got -1")])
def test_rows_that_are_not_there_cannot_be_deleted(dataset: Dataset, rows: list[int], said: str) -> None:
    with pytest.raises(InvalidRequest, match=said):
        delete_rows(dataset, rows, of=dataset.snapshot())
    assert dataset.snapshots() == [1, 2]


# Columns ------------------------------------------------------------------------------------------------------------


def test_a_derived_column_has_a_value_for_each_row_and_lies_in_plain_zarr(dataset: Dataset) -> None:
    snapshot = write_column(dataset, TWICE, twice, inputs=["label"], of=dataset.snapshot())

    assert dataset.snapshot().values("twice").tolist() == [2 * label for label in ALL_LABELS]
    assert snapshot.message == "column twice written"
    (layer,) = snapshot.parts[0].layers
    stored = zarr.open_group(dataset.store.folder / "parts" / layer.id / "data.zarr", mode="r")["twice"]
    np.testing.assert_array_equal(stored[:], 2 * FIRST["label"])  # type: ignore[index]
    with pytest.raises(ColumnNotFound):
        dataset.snapshot(2).column("twice")


def test_a_replaced_column_has_new_values_and_the_earlier_snapshot_its_own(dataset: Dataset) -> None:
    replaced = LABEL.model_copy(update={"labels": ("cat", "dog", "eel", "fox")})

    write_column(
        dataset, replaced, lambda rows: (rows["label"] + 1).astype("i4"), inputs=["label"], of=dataset.snapshot()
    )

    assert labels_of(dataset) == [label + 1 for label in ALL_LABELS]
    assert labels_of(dataset, 2) == ALL_LABELS
    names = ("cat", "dog", "eel", "fox")
    told = dataset.record().statistics["classes"]
    assert {names.index(name): count for name, count in told.items()} == {
        label + 1: ALL_LABELS.count(label) for label in set(ALL_LABELS)
    }


def test_codes_without_a_label_are_refused(dataset: Dataset) -> None:
    with pytest.raises(InvalidRequest, match="codes of column 'label' are 0 to 2; got 3; add a label"):
        write_column(dataset, LABEL, lambda rows: rows["label"] * 0 + 3, inputs=["label"], of=dataset.snapshot())


def test_a_column_that_is_written_again_and_again_never_overwrites_a_file(dataset: Dataset) -> None:
    for factor in (2, 3, 4):
        write_column(
            dataset,
            TWICE,
            lambda rows, factor=factor: factor * rows["label"],  # type: ignore[misc]
            inputs=["label"],
            of=dataset.snapshot(),
        )

    for number, factor in ((3, 2), (4, 3), (5, 4)):
        told = dataset.snapshot(number).values("twice").tolist()
        assert told == [factor * label for label in ALL_LABELS]
    assert dataset.record().columns[-1].stored == "twice_3"
    assert dataset.verify()[0] == 2 + 3 * 2


def test_rows_are_added_to_columns_that_were_renamed_and_written_later(dataset: Dataset) -> None:
    write_column(dataset, TWICE, twice, inputs=["label"], of=dataset.snapshot())
    rename_columns(dataset, {"label": "species", "source": None}, of=dataset.snapshot())
    columns = dataset.record().columns
    assert [column.name for column in columns] == ["image", "species", "split", "twice"]

    more = content_of(3, seed=7)
    fresh = {"image": more["image"], "species": more["label"], "split": more["split"], "twice": 2 * more["label"]}
    with dataset.writer(columns) as writer:
        writer.write(fresh)
        part = writer.close()
    dataset.commit(Addition(parts=[part], columns=columns), base=dataset.record(), rebase=False)

    labels = [*ALL_LABELS, *more["label"].tolist()]
    assert dataset.snapshot().values("species").tolist() == labels
    assert dataset.snapshot().values("twice").tolist() == [2 * label for label in labels]


@pytest.mark.parametrize(
    ("derive", "said"),
    [
        (lambda rows: rows["label"][:-1], r"for 9 rows of flowers@2 came 8"),
        (lambda rows: rows["label"] * 0.5, r"takes int32 rows of shape \(\); got float64"),
        (lambda rows: rows["label"][:, None], r"got int32 rows of shape \(1,\)"),
    ],
)
def test_values_that_do_not_fit_are_refused_and_nothing_is_committed(dataset: Dataset, derive: Any, said: str) -> None:
    with pytest.raises(InvalidRequest, match=said):
        write_column(dataset, TWICE, derive, inputs=["label"], of=dataset.snapshot())
    assert dataset.snapshots() == [1, 2]


def test_a_column_that_was_written_for_fewer_rows_than_there_are_now_is_not_committed(dataset: Dataset) -> None:
    looked_at = dataset.snapshot()
    add(dataset, content_of(1, seed=3))

    with pytest.raises(SnapshotConflict, match="written for all rows that there are"):
        write_column(dataset, TWICE, twice, inputs=["label"], of=looked_at)


@pytest.mark.parametrize(
    ("names", "error", "said"),
    [
        ({"price": "cost"}, ColumnNotFound, "no column 'price'"),
        ({"label": "image"}, InvalidRequest, "a name of its own"),
        ({column.name: None for column in COLUMNS}, InvalidRequest, "at least one column"),
        ({"label": "No Name"}, InvalidName, "begins with a letter; got 'No Name'"),
    ],
)
def test_names_that_cannot_be_are_refused(dataset: Dataset, names: Any, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        rename_columns(dataset, names, of=dataset.snapshot())
    assert dataset.snapshots() == [1, 2]


def test_two_columns_that_were_written_at_once_never_share_an_array(dataset: Dataset) -> None:
    looked_at = dataset.snapshot()
    write_column(dataset, TWICE, twice, inputs=["label"], of=looked_at)
    rename_columns(dataset, {"twice": "double"}, of=dataset.snapshot())

    with pytest.raises(SnapshotConflict, match="somebody else wrote a column 'twice' meanwhile"):
        write_column(dataset, TWICE, lambda rows: 0 * rows["label"], inputs=["label"], of=looked_at)
    assert dataset.snapshot().values("double").tolist() == [2 * label for label in ALL_LABELS]


@pytest.mark.parametrize("names", [{"label": None}, {"label": "species"}, {"label": "species", "source": "label"}])
def test_a_column_that_was_renamed_or_dropped_meanwhile_is_not_brought_back(dataset: Dataset, names: Any) -> None:
    looked_at = dataset.snapshot()
    rename_columns(dataset, names, of=looked_at)
    with pytest.raises(SnapshotConflict, match="since they were renamed, dropped or written meanwhile"):
        write_column(dataset, LABEL, lambda rows: rows["label"], inputs=["label"], of=looked_at)


def test_a_name_that_another_column_got_meanwhile_is_not_taken_from_it(dataset: Dataset) -> None:
    looked_at = dataset.snapshot()
    rename_columns(dataset, {"split": "twice"}, of=looked_at)
    with pytest.raises(SnapshotConflict, match=r"of \['twice'\] there were \[\], and \['twice'\] since"):
        write_column(dataset, TWICE, twice, inputs=["label"], of=looked_at)
    assert dataset.record().column("twice").kind == "split"


def test_a_column_that_was_dropped_comes_back_with_the_new_values_only(dataset: Dataset) -> None:
    rename_columns(dataset, {"label": None}, of=dataset.snapshot())
    write_column(dataset, TWICE.model_copy(update={"name": "label"}), _ones, inputs=["split"], of=dataset.snapshot())

    assert dataset.snapshot().values("label").tolist() == [1] * 14
    assert labels_of(dataset, 2) == ALL_LABELS


def test_counts_go_with_the_column_that_was_counted(dataset: Dataset) -> None:
    write_column(dataset, LABEL, lambda rows: rows["label"], inputs=["label"], of=dataset.snapshot())
    assert sum(dataset.record().statistics["classes"].values()) == sum(dataset.record().splits.values()) == 14

    rename_columns(dataset, {"label": "species", "split": None}, of=dataset.snapshot())
    assert (dataset.record().statistics, dataset.record().splits) == ({}, {})


def _ones(rows: Mapping[str, Any]) -> Any:
    return np.ones(len(rows["split"]), np.int32)


def test_counts_stay_right_where_labels_are_corrected_and_rows_deleted_at_once(dataset: Dataset) -> None:
    looked_at = dataset.snapshot()
    delete_rows(dataset, [0], of=looked_at)
    with pytest.raises(SnapshotConflict):
        write_column(dataset, LABEL, lambda rows: rows["label"] * 0, inputs=["label"], of=looked_at)

    looked_at = dataset.snapshot()
    write_column(dataset, LABEL, lambda rows: rows["label"] * 0, inputs=["label"], of=looked_at)
    with pytest.raises(SnapshotConflict):
        delete_rows(dataset, [1], of=looked_at)

    delete_rows(dataset, [1], of=dataset.snapshot())
    assert dataset.record().statistics["classes"] == {"cat": 12}


# Putting together ---------------------------------------------------------------------------------------------------


def test_parts_that_are_put_together_hold_the_same_rows_in_fewer_files(dataset: Dataset) -> None:
    write_column(dataset, TWICE, twice, inputs=["label"], of=dataset.snapshot())
    delete_rows(dataset, [2, 9], of=dataset.snapshot())
    before = dataset.snapshot()

    (snapshot,) = compact(dataset, of=before)

    after = dataset.snapshot()
    (part,) = snapshot.parts
    assert (part.rows, part.layers, part.deleted) == (12, (), None)
    assert [(run.rows, run.snapshot) for run in part.since] == [(8, 1), (4, 2)]
    for column in before.record.columns:
        rows = np.arange(12)
        np.testing.assert_array_equal(after.gather(column.name, rows), before.gather(column.name, rows))
    assert after.rows_since(1).tolist() == [8, 9, 10, 11]
    assert after.record.splits == before.record.splits
    assert compact(dataset, of=after) == []


def test_rows_that_were_added_while_parts_were_put_together_stay(dataset: Dataset) -> None:
    looked_at = dataset.snapshot()
    add(dataset, content_of(2, seed=3))

    compact(dataset, of=looked_at)

    assert labels_of(dataset) == [*ALL_LABELS, *content_of(2, seed=3)["label"].tolist()]
    assert len(dataset.record().parts) == 2


def test_rows_that_were_deleted_while_parts_were_put_together_do_not_come_back(dataset: Dataset) -> None:
    looked_at = dataset.snapshot()
    delete_rows(dataset, [0], of=looked_at)

    with pytest.raises(SnapshotConflict, match="these have changed meanwhile"):
        compact(dataset, of=looked_at)

    assert labels_of(dataset) == ALL_LABELS[1:]


def test_parts_grow_to_the_rows_that_were_asked_for_and_no_further(dataset: Dataset) -> None:
    for seed in range(3, 9):
        add(dataset, content_of(4, seed=seed))

    done = compact(dataset, of=dataset.snapshot(), max_part_rows=10)

    assert [part.rows for part in dataset.record().parts] == [9, 9, 8, 8, 4]
    assert len(done) == 3


# Committing ---------------------------------------------------------------------------------------------------------


def test_what_was_sealed_long_ago_is_not_committed_because_it_may_be_collected(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    with dataset.writer((IMAGE, *COLUMNS[1:])) as writer:
        writer.write(FIRST)
        part = writer.close()
    monkeypatch.setattr(module, "COMMIT_WITHIN_S", -1.0)

    with pytest.raises(Conflict, match="is committed within"):
        dataset.commit(Addition(parts=[part], columns=COLUMNS), base=dataset.record(), rebase=True)
    assert dataset.snapshots() == [1, 2]


# What is refused ----------------------------------------------------------------------------------------------------


def no_folder_is_unused(dataset: Dataset) -> bool:
    records = [dataset.record(number) for number in dataset.snapshots()]
    used = {folder.id for record in records for part in record.parts for folder in part.folders}
    return set(dataset.store.names("parts")) == used


@pytest.mark.parametrize(
    "edit",
    [
        lambda dataset, of: delete_rows(dataset, [1, 10], of=of),
        lambda dataset, of: write_column(dataset, TWICE, twice, inputs=["label"], of=of),
        lambda dataset, of: compact(dataset, of=of),
    ],
    ids=["delete_rows", "write_column", "compact"],
)
def test_an_edit_that_is_refused_takes_the_folders_it_wrote_with_it(dataset: Dataset, edit: Any) -> None:
    of = dataset.snapshot()
    delete_rows(dataset, [1, 12], of=of)  # somebody else's

    with pytest.raises(SnapshotConflict):
        edit(dataset, of)

    assert no_folder_is_unused(dataset)
    dataset.verify()


def test_a_column_that_fails_on_the_way_leaves_nothing(dataset: Dataset) -> None:
    def fails_in_the_second_part(rows: Mapping[str, Any]) -> Any:
        if len(rows["label"]) == len(SECOND["label"]):
            raise ZeroDivisionError
        return twice(rows)

    with pytest.raises(ZeroDivisionError):
        write_column(dataset, TWICE, fails_in_the_second_part, inputs=["label"], of=dataset.snapshot())

    assert no_folder_is_unused(dataset)


@pytest.mark.parametrize("error", [KeyboardInterrupt, Unavailable])
def test_folders_that_are_or_may_be_committed_stay_whatever_error_comes_after_it(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    commit = Dataset.commit

    def then_ended(self: Dataset, *what: Any, **how: Any) -> None:
        if error is KeyboardInterrupt:
            commit(self, *what, **how)
        raise error("gone")

    before = set(dataset.store.names("parts"))
    monkeypatch.setattr(Dataset, "commit", then_ended)
    with pytest.raises(error):
        delete_rows(dataset, [1, 10], of=dataset.snapshot())

    assert len(set(dataset.store.names("parts")) - before) == 2
    assert no_folder_is_unused(dataset) == (error is KeyboardInterrupt)
    dataset.verify()
