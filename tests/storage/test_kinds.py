"""Columns of every layout: what goes in comes out, through MMS, zarr and xarray, after edits and compaction too."""

from __future__ import annotations

import os
import warnings
from itertools import product

import numpy as np
import pytest
import xarray
import zarr
from hypothesis import given
from hypothesis import strategies as st
from small_datasets import add

from mms_sdk.errors import InvalidRequest
from mms_sdk.schema.dataset import Column
from mms_sdk.storage import edits, parts
from mms_sdk.storage.changes import Addition
from mms_sdk.storage.datasets import Dataset
from mms_sdk.storage.parts import GROUP
from mms_sdk.storage.reader import Memory, Reader
from mms_sdk.storage.stores.local import LocalStore

SAMPLES = Column(name="sound", kind="audio", dtype="int16", shape=(None, 2), rate_hz=8000)
SERIES = Column(name="series", kind="series", dtype="float32", shape=(None,), nullable=True)
AGE = Column(name="age", kind="number", dtype="int64", nullable=True)
WIDE = Column(name="wide", kind="embedding", dtype="float32", shape=(32,), nullable=True)
NOTE = Column(name="note", kind="text", dtype="uint8", shape=None, nullable=True)
COLUMNS = (SAMPLES, SERIES, AGE, WIDE, NOTE)
PROFILES = ("raw", "blosc", "zstd")


def _rows(count: int, seed: int) -> dict:
    random = np.random.default_rng(seed)
    missing = random.random((4, count)) < 0.3
    return {
        "sound": [random.integers(-9, 9, (random.integers(0, 50), 2)).astype(np.int16) for _ in range(count)],
        "series": [None if gone else random.random(random.integers(0, 9), np.float32) for gone in missing[0]],
        "age": np.ma.MaskedArray(random.integers(0, 99, count), missing[1]),
        "wide": np.ma.MaskedArray(random.random((count, 32), np.float32), np.repeat(missing[2][:, None], 32, 1)),
        "note": [None if gone else bytes(random.bytes(random.integers(0, 9))) for gone in missing[3]],
    }


def _write(dataset: Dataset, batches: list[dict], profile: str = "raw") -> None:
    columns = tuple(column.model_copy(update={"profile": profile}) for column in COLUMNS)
    with dataset.writer(columns) as writer:
        for batch in batches:
            writer.write(batch)
        sealed = writer.close()
    base = dataset.record() if dataset.snapshots() else None
    dataset.commit(Addition(parts=[sealed], columns=columns), base=base, rebase=True)


def _assert_same(found: dict, expected: dict, rows: np.ndarray) -> None:
    for name, values in expected.items():
        if isinstance(values, np.ndarray):
            np.testing.assert_array_equal(np.ma.getmaskarray(found[name]), np.ma.getmaskarray(values)[rows])
            np.testing.assert_array_equal(np.ma.filled(found[name], 0), np.ma.filled(values, 0)[rows])
            assert found[name].dtype == values.dtype
        else:
            for one, other in zip(found[name], [values[row] for row in rows], strict=True):
                assert type(one) is type(other)
                np.testing.assert_array_equal(one, other)


def _all(snapshot, rows) -> dict:
    return {column.name: snapshot.gather(column.name, rows) for column in snapshot.record.columns}


def _joined(first: dict, second: dict) -> dict:
    return {
        name: np.ma.concatenate([values, second[name]]) if isinstance(values, np.ndarray) else values + second[name]
        for name, values in first.items()
    }


@pytest.fixture
def dataset(tmp_path) -> Dataset:
    return Dataset.create(LocalStore(tmp_path / "kinds"), "kinds")


@pytest.mark.parametrize("profile", PROFILES)
def test_every_layout_gives_back_what_was_written(dataset, profile):
    first, second = _rows(30, 0), _rows(20, 1)
    _write(dataset, [first, second], profile)
    _write(dataset, [_rows(10, 2)], profile)
    rows = np.random.default_rng(3).permutation(60)
    _assert_same(_all(dataset.snapshot(), rows), _joined(_joined(first, second), _rows(10, 2)), rows)


@pytest.mark.parametrize("profile", PROFILES)
def test_every_layout_survives_deletion_and_compaction(dataset, profile):
    written = _joined(_rows(30, 0), _rows(30, 1))
    _write(dataset, [_rows(30, 0)], profile)
    _write(dataset, [_rows(30, 1)], profile)
    edits.delete_rows(dataset, [3, 40], of=dataset.snapshot())
    (compacted,) = edits.compact(dataset, of=dataset.snapshot())
    kept = np.delete(np.arange(60), [3, 40])
    assert len(compacted.parts) == 1
    _assert_same(_all(dataset.snapshot(), np.arange(58)), written, kept)


def test_a_nullable_column_can_be_derived_past_deleted_rows(dataset):
    rows = _rows(30, 0)
    _write(dataset, [rows])
    edits.delete_rows(dataset, [0, 7], of=dataset.snapshot())
    column = Column(name="old", kind="number", dtype="int64", nullable=True)
    edits.write_column(dataset, column, lambda batch: batch["age"] + 1, inputs=["age"], of=dataset.snapshot())
    expected = np.delete(np.ma.filled(rows["age"] + 1, -1), [0, 7])
    np.testing.assert_array_equal(np.ma.filled(dataset.snapshot().values("old"), -1), expected)


@pytest.mark.parametrize(
    ("profile", "rung"), [("raw", "mmap"), ("raw", "ram"), *product(("blosc", "zstd"), ("window", "ram"))]
)
def test_a_reader_gives_each_row_once_and_masks_what_is_missing(dataset, profile, rung):
    rows = _rows(30, 0)
    _write(dataset, [rows], profile)
    names = [column.name for column in COLUMNS]
    reader = Reader(dataset.snapshot(), columns=names, batch_size=10, seed=0, memory=Memory(rung=rung, window_bytes=1))
    seen = []
    for batch in reader.epoch():
        _assert_same(batch.columns, rows, batch.rows)
        seen += batch.rows.tolist()
    assert sorted(seen) == list(range(30))


@pytest.mark.parametrize("profile", PROFILES)
def test_other_readers_see_the_items_and_where_each_row_begins(dataset, profile):
    rows = _rows(30, 0)
    _write(dataset, [rows], profile)
    folder = dataset.store.folder / "parts" / dataset.record().parts[0].id / GROUP
    group = zarr.open_group(folder, mode="r")
    bounds = group["sound_offsets"][:]
    np.testing.assert_array_equal(group["sound_data"][:], np.concatenate(rows["sound"]))
    np.testing.assert_array_equal(np.diff(bounds), [len(row) for row in rows["sound"]])
    np.testing.assert_array_equal(group["age_valid"][:], ~np.ma.getmaskarray(rows["age"]))
    assert group["sound_data"].attrs["rate_hz"] == 8000
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # consolidated metadata: xarray asks for what we do not write
        opened = xarray.open_zarr(folder, consolidated=False)
    assert set(opened.variables) == {name for column in COLUMNS for name in column.arrays}


def test_a_missing_value_is_refused_where_every_row_has_one(dataset):
    column = Column(name="age", kind="number", dtype="int64")
    with (
        dataset.writer((column,)) as writer,
        pytest.raises(InvalidRequest, match="1 of 2 have none; drop or impute"),
    ):
        writer.write({"age": np.ma.MaskedArray([1, 2], [False, True])})


@pytest.mark.parametrize(
    ("row", "seen"),
    [
        (np.zeros((3, 2), np.int32), "int32"),
        (np.zeros((3, 3), np.int16), r"\(3, 3\)"),
        (np.zeros(3, np.int16), "shape"),
    ],
)
def test_a_row_of_another_dtype_or_shape_is_refused(dataset, row, seen):
    with dataset.writer((SAMPLES,)) as writer, pytest.raises(InvalidRequest, match=seen):
        writer.write({"sound": [row]})


def test_two_columns_never_share_a_zarr_array(dataset):
    text = Column(name="note", kind="text", dtype="uint8", shape=None)
    clash = Column(name="note_data", kind="number", dtype="int32")
    with pytest.raises(InvalidRequest, match="note_data"):
        dataset.writer((text, clash))


def test_a_derived_column_goes_round_the_arrays_of_others(dataset):
    _write(dataset, [_rows(5, 0)])
    column = Column(name="age_valid", kind="number", dtype="int32")
    edits.write_column(
        dataset, column, lambda batch: np.arange(5, dtype=np.int32), inputs=["age"], of=dataset.snapshot()
    )
    opened = dataset.snapshot()
    np.testing.assert_array_equal(opened.values("age_valid"), np.arange(5))
    _assert_same({"age": opened.values("age")}, {"age": _rows(5, 0)["age"]}, np.arange(5))


@pytest.mark.parametrize(
    "fields",
    [
        {"dtype": "int16", "shape": None},
        {"dtype": "int16", "shape": (None, None)},
        {"dtype": "int16", "shape": (2, None)},
        {"dtype": "int16", "shape": (-1,)},
        {"dtype": "int16", "shape": (None, 0)},
        {"dtype": "object", "shape": ()},
    ],
)
def test_a_column_that_cannot_be_laid_out_is_refused(fields):
    with pytest.raises(InvalidRequest, match="Column does not fit"):
        Column(name="x", kind="series", **fields)


@given(lengths=st.lists(st.one_of(st.none(), st.integers(0, 4)), max_size=20))
def test_missing_and_empty_rows_stay_apart(tmp_path_factory, lengths):
    dataset = Dataset.create(LocalStore(tmp_path_factory.mktemp("rows") / "kinds"), "kinds")
    values = [None if length is None else np.arange(length, dtype=np.float32) for length in lengths]
    with dataset.writer((SERIES,)) as writer:
        writer.write({"series": values})
        sealed = writer.close()
    dataset.commit(Addition(parts=[sealed], columns=(SERIES,)), base=None, rebase=True)
    found = dataset.snapshot().gather("series", np.arange(len(values)))
    assert [None if value is None else len(value) for value in found] == lengths


def test_reading_many_chunks_of_varying_rows_takes_few_handles(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "CHUNK_BYTES", 64)
    texts = [bytes([number % 256]) * 64 for number in range(1200)]
    add(dataset, {"text": texts}, columns=(Column(name="text", kind="text", dtype="uint8", shape=None),))
    before = len(os.listdir("/proc/self/fd"))
    opened = dataset.snapshot()
    order = np.random.default_rng(0).permutation(1200)
    assert opened.gather("text", order) == [texts[row] for row in order]
    assert len(os.listdir("/proc/self/fd")) - before <= 260
