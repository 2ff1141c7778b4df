"""What a dataset holds is cleaned in one commit; against pandas on the same rows."""

from __future__ import annotations

import json
import tempfile
import tracemalloc
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from make_datasets import ingested
from make_pictures import noise, saved, write, write_classes
from stored_tables import CODE, FLOAT, NUMBER, TEXT, append, made, named, plain

from mms_sdk.compute.data import clean_stored
from mms_sdk.errors import ColumnNotFound, DataError, InvalidRequest, SnapshotConflict
from mms_sdk.schema.cleaning import (
    CleaningReport,
    Clip,
    Convert,
    DropConstant,
    DropDuplicates,
    DropMissing,
    DropNearDuplicates,
    DropOddSizes,
    DropOutOfRange,
    DropUnreadable,
    Impute,
    KeepWhere,
)
from mms_sdk.schema.dataset import SPLITS, Column, Snapshot
from mms_sdk.schema.specs import CleanSpec
from mms_sdk.storage.datasets import Dataset
from mms_sdk.storage.edits import compact, delete_rows, rename_columns, write_column
from mms_sdk.storage.stores.local import LocalStore

COLUMNS = (NUMBER, FLOAT, TEXT, CODE)
NUMBERS = (NUMBER, FLOAT)
ROWS = st.fixed_dictionaries(
    {
        "n": st.none() | st.integers(-5, 300),
        "f": st.sampled_from([0.0, 0.5, 2.0, 300.5]),
        "t": st.sampled_from([None, "", "a", "ü", "7"]),
        "c": st.sampled_from([None, "x", "y", "z"]),
    }
)


def clean(dataset: Dataset, *steps) -> tuple[Snapshot, CleaningReport]:
    with tempfile.TemporaryDirectory() as folder:
        spec = CleanSpec(clean=steps)
        return clean_stored.clean(dataset, spec, job="j", folder=Path(folder), tell=lambda _: None)


def part_of(rows) -> dict[str, list]:
    return {name: [row[name] for row in rows] for name in ("n", "f", "t", "c")}


@settings(max_examples=25, deadline=None)
@given(first=st.lists(ROWS, min_size=1, max_size=9), second=st.lists(ROWS, min_size=1, max_size=9), data=st.data())
def test_rows_go_and_values_change_as_in_pandas(first, second, data):
    gone = data.draw(st.sets(st.integers(0, len(first) + len(second) - 1), max_size=3), label="deleted before")
    if len(gone) == len(first) + len(second):
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        dataset = made(Path(folder), "rows", COLUMNS, part_of(first), part_of(second))
        if gone:
            delete_rows(dataset, sorted(gone), of=dataset.snapshot())
        before = dataset.record()
        frame = pd.DataFrame(part_of([*first, *second]), dtype=object).drop(index=sorted(gone))
        snapshot, report = clean(
            dataset,
            DropDuplicates(by=("t", "c"), keep="last"),
            DropOutOfRange(column="f", max=300),
            Impute(column="n", by="value", value=250),
            Clip(column="n", min=0, max=280),
            Convert(column="n", to="uint8"),
            DropMissing(columns=("c",)),
            Convert(column="t", to="category"),
        )
        frame = frame.drop_duplicates(["t", "c"], keep="last")
        frame = frame[frame["f"] <= 300]
        frame["n"] = frame["n"].where(frame["n"].notna(), 250).astype(int).clip(0, 280)
        frame = frame[(frame["n"] <= 255) & frame["c"].notna()]
        opened = dataset.snapshot()
        opened.verify()
        assert snapshot.number == before.number + 1
        for name in ("n", "f", "t", "c"):
            expected = [None if value is None or value != value else value for value in frame[name].tolist()]
            assert plain(opened, name) == expected
        assert (report.found, report.kept) == (before.rows, len(frame))
        assert report.dropped == before.rows - len(frame)
        earlier = dataset.snapshot(before.number)
        assert plain(earlier, "n") == [row["n"] for at, row in enumerate([*first, *second]) if at not in gone]
        compact(dataset, of=dataset.snapshot())
        assert plain(dataset.snapshot(), "n") == frame["n"].tolist()


@settings(max_examples=25, deadline=None)
@given(rows=st.lists(ROWS, min_size=1, max_size=20), keep=st.sampled_from(["first", "last"]))
def test_of_rows_with_one_key_the_first_or_the_last_stays(rows, keep):
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        dataset = (
            made(Path(folder), "rows", COLUMNS, part_of(rows[:5]), part_of(rows[5:]))
            if rows[5:]
            else made(Path(folder), "rows", COLUMNS, part_of(rows))
        )
        frame = pd.DataFrame(part_of(rows), dtype=object)
        clean(dataset, DropDuplicates(by=("n",), keep=keep))
        assert plain(dataset.snapshot(), "f") == frame.drop_duplicates("n", keep=keep)["f"].tolist()
        clean(dataset, DropDuplicates(keep=keep))
        left = frame.drop_duplicates("n", keep=keep).drop_duplicates(keep=keep)
        assert plain(dataset.snapshot(), "f") == left["f"].tolist()


@pytest.fixture
def rows(tmp_path: Path) -> Dataset:
    """Two parts of three rows, with split and label."""
    label = named(CODE, "label", kind="label", nullable=False)
    split = Column(name="split", kind="split", dtype="uint8", labels=SPLITS)
    columns = (*NUMBERS, label, split)
    part = {"n": [1, None, 3], "f": [0.5, 0.25, 9.0], "label": ["x", "y", "x"], "split": ["train", "train", "val"]}
    return made(tmp_path, "rows", columns, part, part)


def test_the_report_and_every_row_that_went_are_kept(rows: Dataset, tmp_path: Path):
    spec = CleanSpec(
        clean=(DropMissing(), KeepWhere("f < 1 or split == 'train'"), Convert("f", "int8")), message="tidy"
    )
    snapshot, report = clean_stored.clean(rows, spec, job="7", folder=tmp_path, tell=lambda _: None)

    lines = [json.loads(line) for line in (tmp_path / "rejects.jsonl").read_text().splitlines()]
    assert sorted((line["source"], line["reason"]) for line in lines) == [
        ("rows@2, row 0", "f is 0.5, which is no int8"),
        ("rows@2, row 1", "no value in 'n'"),
        ("rows@2, row 2", "not f < 1 or split == 'train'"),
        ("rows@2, row 3", "f is 0.5, which is no int8"),
        ("rows@2, row 4", "no value in 'n'"),
        ("rows@2, row 5", "not f < 1 or split == 'train'"),
    ]
    assert (snapshot.message, snapshot.rows, snapshot.provenance["job"]) == ("tidy", 0, "7")
    assert snapshot.provenance["clean"]["of"] == "rows@2"
    assert CleaningReport.model_validate(snapshot.provenance["cleaning"]) == report
    with pytest.raises(DataError, match="rows@3 has none"):
        clean(rows, DropMissing())


def test_counts_of_splits_and_classes_follow(tmp_path: Path):
    photos = tmp_path / "photos"
    write_classes(photos, {"cat": 6, "dog": 6})
    dataset, before, _ = ingested(tmp_path, photos)
    clean(dataset, KeepWhere("label == 'dog' or split == 'train'"))
    opened = dataset.snapshot()
    codes, splits = opened.values("label"), opened.values("split")
    assert opened.record.statistics["classes"] == {"cat": int((codes == 0).sum()), "dog": 6}
    assert opened.record.splits == {name: int((splits == code).sum()) for code, name in enumerate(SPLITS)}
    assert opened.rows < before.rows


def test_a_value_that_would_be_altered_goes_missing_where_that_is_asked_for(rows: Dataset):
    _, report = clean(rows, Convert("f", "int16", errors="missing"))
    assert plain(rows.snapshot(), "f") == [None, None, 9] * 2
    assert rows.snapshot().column("f").nullable
    assert report.steps[0].note == "f: 4 × no int16, missing"


def test_columns_with_one_value_go_but_never_those_that_rows_are_counted_by(tmp_path: Path):
    label = named(CODE, "label", kind="label", nullable=False)
    part = {"n": [7, 7], "f": [1.0, 2.0], "label": ["x", "x"]}
    dataset = made(tmp_path, "rows", (*NUMBERS, label), part, part)
    _, report = clean(dataset, DropConstant())
    assert [column.name for column in dataset.record().columns] == ["f", "label"]
    assert report.steps[0].note == "columns dropped: n"
    alone = made(tmp_path, "alone", NUMBERS, {"n": [7, 7], "f": [1.0, 1.0]})
    with pytest.raises(DataError, match="a dataset has at least one column"):
        clean(alone, DropConstant())
    wide = Column(name="wide", kind="embedding", dtype="uint8", shape=(2,))
    beside = made(tmp_path, "beside", (NUMBER, wide), {"n": [7, 7], "wide": np.zeros((2, 2), "uint8")})
    clean(beside, DropConstant())
    assert [column.name for column in beside.record().columns] == ["wide"]


@pytest.mark.parametrize(
    ("step", "error", "said"),
    [
        (Impute("label", by="most-frequent"), InvalidRequest, "counted and split by stay"),
        (Convert("split", "text"), InvalidRequest, "counted and split by stay"),
        (Clip("x", min=0), ColumnNotFound, r"has no column 'x'"),
        (DropDuplicates(by=("n", "x")), ColumnNotFound, "has no column 'x'"),
        (KeepWhere("x > 1"), InvalidRequest, "names columns that are there"),
        (KeepWhere("n >"), InvalidRequest, "a condition reads like"),
        (Clip("label", min=0), InvalidRequest, "counted and split by stay"),
        (DropUnreadable(), InvalidRequest, "is for image and encoded-image"),
        (DropOddSizes(), InvalidRequest, "leave it out"),
        (DropNearDuplicates(), InvalidRequest, "leave it out"),
        (DropNearDuplicates("f"), InvalidRequest, "found among texts"),
    ],
)
def test_steps_that_do_not_suit_the_dataset_change_nothing(rows: Dataset, step, error, said):
    with pytest.raises(error, match=said):
        clean(rows, step)
    assert rows.snapshots() == [1, 2]


def test_a_snapshot_records_that_somebody_looked_even_if_nothing_was_wrong(rows: Dataset):
    snapshot, report = clean(rows, DropOutOfRange("n", min=0))
    assert (snapshot.number, snapshot.rows, report.dropped) == (3, 6, 0)
    assert snapshot.parts == rows.record(2).parts


# Beside others ----------------------------------------------------------------------------------------------------


def more(dataset: Dataset) -> None:
    columns = dataset.record().columns
    values = {"n": [None, 5], "f": [1.0, 2.0], "label": ["y", "y"], "split": ["test", "train"]}
    append(dataset, columns, {column.name: values[column.name] for column in columns})


def test_rows_that_are_added_meanwhile_stay_where_only_rows_go(rows: Dataset, monkeypatch):
    commit = Dataset.commit

    def after_another(self, change, **how):
        monkeypatch.setattr(Dataset, "commit", commit)
        more(self)
        return commit(self, change, **how)

    monkeypatch.setattr(Dataset, "commit", after_another)
    clean(rows, DropMissing())
    assert plain(rows.snapshot(), "n") == [1, 3, 1, 3, None, 5]


def test_rows_that_are_added_meanwhile_are_cleaned_too_where_values_change(rows: Dataset, monkeypatch):
    commit = Dataset.commit

    def after_another(self, change, **how):
        monkeypatch.setattr(Dataset, "commit", commit)
        more(self)
        return commit(self, change, **how)

    monkeypatch.setattr(Dataset, "commit", after_another)
    clean(rows, Impute("n", by="value", value=0), Clip("f", max=1))
    assert plain(rows.snapshot(), "n") == [1, 0, 3, 1, 0, 3, 0, 5]
    assert plain(rows.snapshot(), "f") == [0.5, 0.25, 1.0, 0.5, 0.25, 1.0, 1.0, 1.0]
    assert rows.snapshots() == [1, 2, 3, 4]


@pytest.mark.parametrize("new", [None, "z"])
def test_a_column_that_is_dropped_or_renamed_meanwhile_does_not_come_back(rows: Dataset, monkeypatch, new):
    commit = Dataset.commit

    def after_another(self, change, **how):
        monkeypatch.setattr(Dataset, "commit", commit)
        rename_columns(self, {"f": new}, of=self.snapshot())
        return commit(self, change, **how)

    monkeypatch.setattr(Dataset, "commit", after_another)
    with pytest.raises(ColumnNotFound, match="'f'"):
        clean(rows, Clip("f", max=1))
    assert rows.record().column("f") is None
    assert (rows.snapshots(), rows.record().column("z") is not None) == ([1, 2, 3], new == "z")


def test_rows_go_by_the_values_that_a_column_has_by_then(rows: Dataset, monkeypatch):
    commit = Dataset.commit

    def numbered(batch):
        return np.ma.masked_equal(np.arange(len(batch["n"])), -1)

    def after_another(self, change, **how):
        monkeypatch.setattr(Dataset, "commit", commit)
        of = self.snapshot()
        write_column(self, of.column("n"), numbered, inputs=["n"], of=of)
        return commit(self, change, **how)

    monkeypatch.setattr(Dataset, "commit", after_another)
    clean(rows, KeepWhere("n < 2"))
    assert plain(rows.snapshot(), "n") == [0, 1, 0, 1]  # it numbers each part


def test_a_dataset_that_changes_time_after_time_is_given_up(rows: Dataset, monkeypatch):
    commit = Dataset.commit

    def always_after_another(self, change, **how):
        monkeypatch.setattr(Dataset, "commit", commit)
        more(self)
        try:
            return commit(self, change, **how)
        finally:
            monkeypatch.setattr(Dataset, "commit", always_after_another)

    monkeypatch.setattr(Dataset, "commit", always_after_another)
    with pytest.raises(SnapshotConflict, match="have changed meanwhile"):
        clean(rows, Impute("n", by="value", value=0), KeepWhere("f > 0.3"))
    named = {sealed.id for part in rows.record().parts for sealed in part.folders}
    assert set(rows.store.names("parts")) == named  # nothing of the attempts stays


def test_folders_of_a_commit_that_was_made_stay_though_an_error_came_after_it(rows: Dataset, monkeypatch):
    commit = Dataset.commit

    def then_ended(self, change, **how):
        commit(self, change, **how)
        raise KeyboardInterrupt

    monkeypatch.setattr(Dataset, "commit", then_ended)
    with pytest.raises(KeyboardInterrupt):
        clean(rows, Impute("n", by="value", value=0), KeepWhere("f > 0.3"))
    assert rows.snapshots() == [1, 2, 3]
    rows.verify()


# Pictures ---------------------------------------------------------------------------------------------------------


def test_pictures_are_cleaned_by_their_bytes_looks_and_sizes(tmp_path: Path):
    photos = tmp_path / "photos"
    for number in range(20):
        write(photos / "cat" / f"{number:02}.png", noise(40, 30, seed=number))
    write(photos / "cat" / "twice.png", noise(40, 30, seed=3))
    write(photos / "dog" / "near.jpg", saved(noise(40, 30, seed=5), "JPEG", quality=95))
    write(photos / "dog" / "odd.png", noise(9, 9, seed=77))
    write(photos / "dog" / "other.png", noise(40, 30, seed=78))
    dataset, _, _ = ingested(tmp_path, photos, split={"train": 1, "val": 0, "test": 0})
    _, report = clean(dataset, DropUnreadable(), DropDuplicates(), DropNearDuplicates(), DropOddSizes(min_share=0.9))
    assert [(step.step, step.dropped) for step in report.steps] == [
        ("drop-unreadable", 0),
        ("drop-duplicates", 1),
        ("drop-near-duplicates", 1),
        ("drop-odd-sizes", 1),
    ]
    assert report.steps[1].examples[0].source.startswith("cat/twice.png, row ")
    assert "it looks like cat/05.png, row " in report.steps[2].examples[0].reason
    assert report.steps[3].examples[0].reason == "it has 9×9 pixels, 21 of 22 have 30×40"
    opened = dataset.snapshot()
    names = {name.decode() for name in opened.gather("source", np.arange(opened.rows))}
    assert names == {*(f"cat/{number:02}.png" for number in range(20)), "dog/other.png"}


def test_stored_bytes_that_do_not_decode_go_with_the_reason(tmp_path: Path):
    image = Column(name="image", kind="encoded-image", dtype="uint8", shape=None, color="rgb")
    dataset = Dataset.create(LocalStore(tmp_path / "p"), "p")
    append(dataset, (image,), {"image": [saved(noise(4, 4)), b"", b"no picture", saved(noise(4, 4))[:60]]})
    _, report = clean(dataset, DropUnreadable())
    assert (report.kept, report.steps[0].dropped) == (1, 3)
    assert report.steps[0].examples[0].source == "p@1, row 1"


@pytest.mark.parametrize("encoded", [True, False])
def test_rows_without_a_picture_are_neither_unreadable_nor_like_another_until_missing_ones_are_dropped(
    tmp_path: Path, encoded: bool
):
    one, other = noise(40, 30, seed=1), noise(40, 30, seed=2)
    image = Column(name="image", kind="image", dtype="uint8", shape=(40, 30, 3), color="rgb", nullable=True)
    pictures = np.ma.MaskedArray(np.stack([one, one, other, one]), False)
    pictures[1] = pictures[3] = np.ma.masked
    if encoded:
        image = image.model_copy(update={"kind": "encoded-image", "shape": None})
        pictures = [saved(one), None, saved(other), None]
    dataset = made(tmp_path, "p", (image, NUMBER), {"image": pictures, "n": [1, 2, 3, 4]})
    _, report = clean(dataset, DropUnreadable(), DropNearDuplicates(), DropOddSizes())
    assert report.kept == 4
    clean(dataset, DropMissing())
    assert plain(dataset.snapshot(), "n") == [1, 3]


def test_a_text_that_is_no_text_is_an_error_and_not_another_text(tmp_path: Path):
    dataset = made(tmp_path, "rows", (TEXT,), {"t": ["a", b"\xff", None]})
    with pytest.raises(DataError, match="values of column 't' are not what it says they are"):
        clean(dataset, DropDuplicates(by="t"))
    assert dataset.snapshots() == [1]


# Memory -----------------------------------------------------------------------------------------------------------


def test_a_dataset_larger_than_the_memory_that_is_used_is_cleaned(tmp_path: Path):
    wide = Column(name="wide", kind="embedding", dtype="float64", shape=(2048,))  # 16 KiB a row
    columns = (NUMBER, wide, TEXT)
    dataset = Dataset.create(LocalStore(tmp_path / "rows"), "rows")
    for part in range(8):
        numbers = list(range(500 * part, 500 * part + 500))
        values = np.repeat(np.array(numbers, float)[:, None], 2048, axis=1)
        append(dataset, columns, {"n": numbers, "wide": values, "t": ["x" * 16384] * 500})
    size = dataset.snapshot().bytes
    steps = (KeepWhere("n < 3000"), Convert("n", "float32"), Clip("n", max=100), Impute("t", by="value", value="y"))
    default = pa.default_memory_pool()
    pool = pa.proxy_memory_pool(default)
    pa.set_memory_pool(pool)
    tracemalloc.start()
    try:
        clean(dataset, DropDuplicates(), *steps)
        peak = tracemalloc.get_traced_memory()[1] + pool.max_memory()
    finally:
        tracemalloc.stop()
        pa.set_memory_pool(default)
    assert size > 120 * 2**20
    assert peak < 60 * 2**20
    assert dataset.record().rows == 3000
