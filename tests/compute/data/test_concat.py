"""Datasets end to end, against pandas and NumPy's own types."""

from __future__ import annotations

import tempfile
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stored_tables import CODE, FLOAT, NUMBER, TEXT, append, made, named, plain

from mms_sdk.compute.data import concat as module
from mms_sdk.errors import DataError, InvalidRequest
from mms_sdk.schema.dataset import SPLITS, Column, Snapshot
from mms_sdk.schema.specs import ConcatSpec
from mms_sdk.storage.datasets import Dataset
from mms_sdk.storage.edits import compact, delete_rows, rename_columns
from mms_sdk.storage.stores.local import LocalStore

SERIES = Column(name="s", kind="series", dtype="float32", shape=(None,), nullable=True)
SPLIT = Column(name="split", kind="split", dtype="uint8", labels=SPLITS)
LABEL = named(CODE, "label", kind="label", nullable=False)
DTYPES = [f"{kind}int{bits}" for kind in ("", "u") for bits in (8, 16, 32, 64)] + ["float16", "float32", "float64"]


def put_together(folder: Path, *those: Dataset, **spec) -> tuple[Dataset, Snapshot]:
    dataset = Dataset.open_or_create(LocalStore(folder / "all"), "all")
    told = ConcatSpec(datasets=tuple(each.name for each in those), **spec)
    return dataset, module.concat(dataset, [each.snapshot() for each in those], told, job="j", tell=lambda _: None)


VALUES = {
    "n": st.none() | st.integers(-(2**62), 2**62),
    "t": st.none() | st.sampled_from(["", "a", "ü"]),
    "c": st.none() | st.sampled_from(["z", "y", "x"]),
}


@settings(max_examples=30, deadline=None)
@given(
    data=st.data(),
    shapes=st.lists(
        st.tuples(st.integers(1, 5), st.sets(st.sampled_from(["n", "t", "c"]), min_size=1), st.permutations("xyz")),
        min_size=2,
        max_size=4,
    ),
)
def test_rows_are_those_of_pandas_with_columns_and_labels_by_name(data, shapes):
    columns = {"n": NUMBER, "t": TEXT, "c": CODE}
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        frames, those = [], []
        for number, (rows, names, labels) in enumerate(shapes):
            has = [
                columns[name].model_copy(update={"labels": tuple(labels)}) if name == "c" else columns[name]
                for name in sorted(names)
            ]
            values = {each.name: [data.draw(VALUES[each.name]) for _ in range(rows)] for each in has}
            those.append(made(Path(folder), f"d{number}", has, values))
            frames.append(pd.DataFrame(values, dtype=object))
        dataset, snapshot = put_together(Path(folder), *those, missing="null")
        opened = dataset.snapshot()
        opened.verify()
        expected = pd.concat(frames, ignore_index=True)
        assert [column.name for column in snapshot.columns] == list(expected.columns)
        for name in expected.columns:
            told = [None if value is None or value != value else value for value in expected[name].tolist()]
            assert plain(opened, name) == told
        assert snapshot.provenance["concat"]["datasets"] == [f"d{number}@1" for number in range(len(shapes))]


def exact(dtype: str) -> tuple[float, float, set]:
    """Ends of a type, and values near them, as Python's own numbers."""
    kind = np.dtype(dtype)
    if kind.kind == "f":
        top = 2 ** (np.finfo(kind).nmant + 1)
        return float(np.finfo(kind).max), -float(np.finfo(kind).max), {top, top - 1, float(np.finfo(kind).tiny)}
    bounds = np.iinfo(kind)
    return bounds.max, bounds.min, {bounds.max, bounds.max - 1, bounds.min}


@pytest.mark.parametrize(("one", "other"), list(product(DTYPES, DTYPES)))
def test_numbers_are_widened_only_where_every_value_stays_what_it_is(one, other):
    try:
        wider = np.dtype(module._widest("n", {"a@1": one, "b@1": other}))
    except InvalidRequest as error:
        assert "in a type that holds all of them exactly" in error.message
        lossy = {one, other} & {"int64", "uint64"}
        assert lossy
        return
    for dtype in (one, other):
        for value in exact(dtype)[2]:
            if wider.kind == "f":
                assert wider.type(value) == value
            else:
                assert np.iinfo(wider).min <= value <= np.iinfo(wider).max


def test_every_kind_of_column_is_carried_and_splits_and_classes_are_counted(tmp_path):
    columns = (named(FLOAT, "f", dtype="int16"), SERIES, LABEL, SPLIT)
    first = made(
        tmp_path, "first", columns, {"f": [1, 2], "s": [None, None], "label": ["x", "z"], "split": ["val"] * 2}
    )
    others = (SPLIT, named(FLOAT, "f", dtype="float32"), SERIES, named(LABEL, "label", labels=("z", "new")))
    rows = {"f": [0.5, 7], "s": [np.arange(3, dtype="float32"), None], "label": ["new", "z"], "split": ["train"] * 2}
    second = made(tmp_path, "second", others, rows)
    dataset, snapshot = put_together(tmp_path, first, second)
    opened = dataset.snapshot()
    assert (snapshot.column("f").dtype, plain(opened, "f")) == ("float32", [1, 2, 0.5, 7])
    assert plain(opened, "label") == ["x", "z", "new", "z"]
    assert snapshot.statistics["classes"] == {"x": 1, "z": 2, "new": 1}
    assert snapshot.splits == {"val": 2, "train": 2}
    found = opened.gather("s", np.arange(4))
    assert [None if each is None else each.tolist() for each in found] == [None, None, [0, 1, 2], None]


def test_what_does_not_hold_the_same_is_refused_with_the_way_out(tmp_path):
    one = made(tmp_path, "one", (NUMBER, FLOAT), {"n": [1], "f": [1.0]})
    other = made(tmp_path, "other", (NUMBER,), {"n": [2]})
    with pytest.raises(InvalidRequest, match=r"'f' is not in other@1; .*missing='null'"):
        put_together(tmp_path, one, other)
    counted = made(tmp_path, "counted", (NUMBER, LABEL), {"n": [1], "label": ["x"]})
    with pytest.raises(InvalidRequest, match=r"'label' is not in other@1; drop or rename it$"):
        put_together(tmp_path, counted, other, missing="null")
    text = made(tmp_path, "text", (named(TEXT, "n"),), {"n": ["x"]})
    with pytest.raises(InvalidRequest, match=r"'n' is number int64 .* in other@1 and text uint8 .* in text@1"):
        put_together(tmp_path, other, text)
    time = Column(name="n", kind="timestamp", dtype="int64", unit="s")
    seconds = made(tmp_path, "seconds", (time,), {"n": [1]})
    days = made(tmp_path, "millis", (named(time, "n", unit="ms"),), {"n": [1]})
    with pytest.raises(InvalidRequest, match=r"unit s in seconds@1 .*unit ms in millis@1; convert one"):
        put_together(tmp_path, seconds, days)
    wide = made(tmp_path, "wide", (named(FLOAT, "n"),), {"n": [1.5]})
    with pytest.raises(InvalidRequest, match=r"int64 in other@1, float64 in wide@1; convert one"):
        put_together(tmp_path, other, wide)
    assert Dataset.open_or_create(LocalStore(tmp_path / "all"), "all").snapshots() == []


def test_a_code_without_a_label_is_refused_and_not_taken_for_another(tmp_path):
    one = made(tmp_path, "one", (CODE,), {"c": ["x", 5]})
    other = made(tmp_path, "other", (named(CODE, "c", labels=("q",)),), {"c": ["q"]})
    with pytest.raises(DataError, match="codes of column 'c' are 0 to 2; got 5"):
        put_together(tmp_path, other, one)


def test_it_is_made_again_as_a_new_snapshot_and_earlier_ones_stay(tmp_path):
    one = made(tmp_path, "one", (NUMBER,), {"n": [1]})
    other = made(tmp_path, "other", (NUMBER,), {"n": [2]})
    put_together(tmp_path, one, other)
    append(other, (NUMBER,), {"n": [3]})
    dataset, snapshot = put_together(tmp_path, one, other, one)
    assert (snapshot.number, snapshot.message) == (2, "one@1, other@2, one@1 end to end")
    assert (plain(dataset.snapshot(1), "n"), plain(dataset.snapshot(), "n")) == ([1, 2], [1, 2, 3, 1])


def test_it_is_made_again_whatever_was_done_to_its_rows_but_not_once_others_came(tmp_path):
    one = made(tmp_path, "one", (NUMBER, FLOAT), {"n": [1, 2], "f": [1.0, 2.0]})
    dataset, _ = put_together(tmp_path, one, one)
    delete_rows(dataset, [0], of=dataset.snapshot())
    rename_columns(dataset, {"f": None}, of=dataset.snapshot())
    compact(dataset, of=dataset.snapshot())
    put_together(tmp_path, one, one)
    assert plain(dataset.snapshot(), "n") == [1, 2, 1, 2]

    append(dataset, dataset.record().columns, {"n": [3], "f": [3.0]})
    compact(dataset, of=dataset.snapshot())
    with pytest.raises(InvalidRequest, match="holds rows that came in otherwise"):
        put_together(tmp_path, one, one)


@pytest.mark.parametrize(("dtype", "wider"), [("uint8", "int16"), ("int32", "int32")])
def test_codes_get_a_type_that_holds_the_labels_of_all(tmp_path, dtype, wider):
    those = [
        made(
            tmp_path,
            name,
            (named(CODE, "c", dtype=dtype, labels=tuple(f"{name}{code}" for code in range(200)), nullable=False),),
            {"c": [f"{name}{code}" for code in range(200)]},
        )
        for name in ("a", "b")
    ]
    dataset, snapshot = put_together(tmp_path, *those)
    assert snapshot.column("c").dtype == wider
    assert plain(dataset.snapshot(), "c") == [f"{name}{code}" for name in ("a", "b") for code in range(200)]
