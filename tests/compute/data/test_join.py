"""Joins against pandas on the same rows, whether columns are kept whole or read chunk by chunk."""

from __future__ import annotations

import tempfile
import tracemalloc
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from make_datasets import ingested
from make_pictures import write_classes
from stored_tables import CODE, FLOAT, NUMBER, TEXT, append, made, named, plain

from mms_sdk.compute.data import join as module
from mms_sdk.errors import ColumnNotFound, DataError, InvalidRequest
from mms_sdk.schema.dataset import SPLITS, Column, Snapshot
from mms_sdk.schema.specs import JoinReport, JoinSpec
from mms_sdk.storage import snapshots
from mms_sdk.storage.datasets import Dataset
from mms_sdk.storage.edits import delete_rows
from mms_sdk.storage.stores.local import LocalStore

KEY = named(NUMBER, "key")
WORD = named(TEXT, "word")
LEFT = (KEY, WORD, named(FLOAT, "f"))
RIGHT = (named(NUMBER, "id"), named(TEXT, "name"), named(CODE, "city"), named(NUMBER, "age"))
KEYS = st.none() | st.integers(0, 6)


@pytest.fixture(params=[2**20, 0], ids=["kept whole", "chunk by chunk"])
def _read(request, monkeypatch):
    monkeypatch.setattr(snapshots, "_KEPT_ROWS", request.param)


def joined(folder: Path, left: Dataset, right: Dataset, **spec) -> tuple[Dataset, Snapshot, JoinReport]:
    dataset = Dataset.open_or_create(LocalStore(folder / "made"), "made")
    told = {"left": left.name, "right": right.name, **spec}
    snapshot, report = module.join(
        dataset, left.snapshot(), right.snapshot(), JoinSpec(**told), job="j", tell=lambda _: None
    )
    return dataset, snapshot, report


@pytest.mark.usefixtures("_read")
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    left=st.lists(st.tuples(KEYS, st.sampled_from([None, "", "ü"])), min_size=1, max_size=12),
    right=st.lists(KEYS, min_size=1, max_size=8),
    how=st.sampled_from(["inner", "left"]),
    data=st.data(),
)
def test_rows_are_those_of_pandas(left, right, how, data):
    values = {
        "id": right,
        "name": [data.draw(st.sampled_from([None, "a", "b"])) for _ in right],
        "city": [data.draw(st.sampled_from([None, "x", "y"])) for _ in right],
        "age": list(range(len(right))),
    }
    frame = pd.DataFrame({"key": [key for key, _ in left], "word": [word for _, word in left]}, dtype=object)
    frame["f"] = np.arange(len(left), dtype=float)
    others = pd.DataFrame(values, dtype=object).dropna(subset="id").drop_duplicates("id")
    expected = frame.merge(others, left_on="key", right_on="id", how=how)
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        half = len(right) // 2
        parts = [{name: column[cut] for name, column in values.items()} for cut in (slice(half), slice(half, None))]
        one = made(Path(folder), "one", LEFT, {name: frame[name].tolist() for name in frame})
        other = made(Path(folder), "other", RIGHT, *parts)
        asked = {"on": {"key": "id"}, "how": how, "many": "first"}
        if not len(expected):
            with pytest.raises(DataError, match="a join has at least one row"):
                joined(Path(folder), one, other, **asked)
            return
        dataset, snapshot, report = joined(Path(folder), one, other, **asked)
        opened = dataset.snapshot()
        opened.verify()
        assert [column.name for column in snapshot.columns] == ["key", "word", "f", "name", "city", "age"]
        for name in ("key", "word", "f", "name", "city", "age"):
            told = [None if value is None or value != value else value for value in expected[name].tolist()]
            assert plain(opened, name) == told, name
        matched = sum(key in set(others["id"]) for key, _ in left)
        assert report == JoinReport(rows=len(expected), matched=matched, unmatched=len(left) - matched)


@pytest.fixture
def orders(tmp_path: Path) -> Dataset:
    part = {"key": [3, 1, None, 9], "word": ["c", "a", None, "z"], "f": [0.0, 1.0, 2.0, 3.0]}
    return made(tmp_path, "orders", LEFT, part)


@pytest.fixture
def customers(tmp_path: Path) -> Dataset:
    part = {"id": [1, 2, 3], "name": ["A", "B", "C"], "city": ["x", None, "y"], "age": [10, 20, None]}
    return made(tmp_path, "customers", RIGHT, part)


def test_what_it_is_made_of_is_kept_and_joining_again_makes_a_snapshot(tmp_path, orders, customers):
    dataset, first, _ = joined(tmp_path, orders, customers, on={"key": "id"})
    append(orders, LEFT, {"key": [2], "word": ["b"], "f": [4.0]})
    _, second, _ = joined(tmp_path, orders, customers, on={"key": "id"})
    assert (first.provenance["join"]["left"], second.provenance["join"]["left"]) == ("orders@1", "orders@2")
    assert second.provenance["join"]["right"] == "customers@1"
    assert second.provenance["joined"] == {"rows": 3, "matched": 3, "unmatched": 2}
    assert (second.number, plain(dataset.snapshot(1), "name"), plain(dataset.snapshot(), "name")) == (
        2,
        ["C", "A"],
        ["C", "A", "B"],
    )


def test_rows_that_were_deleted_have_no_part_in_it(tmp_path, orders, customers):
    delete_rows(orders, [0], of=orders.snapshot())
    delete_rows(customers, [0], of=customers.snapshot())
    dataset, _, _ = joined(tmp_path, orders, customers, on={"key": "id"}, how="left")
    assert plain(dataset.snapshot(), "key") == [1, None, 9]
    assert plain(dataset.snapshot(), "name") == [None, None, None]


def test_a_key_of_several_columns_and_of_texts_is_compared_whole(tmp_path):
    columns = (NUMBER, named(CODE, "c"), TEXT)
    left = made(tmp_path, "left", columns, {"n": [1, 1, 2, None], "c": ["x", "y", "x", "x"], "t": ["p", "q", "r", "s"]})
    words = (NUMBER, named(TEXT, "c"), named(TEXT, "u"))
    right = made(tmp_path, "right", words, {"n": [1, 2, None], "c": ["y", "x", "x"], "u": ["1y", "2x", "no"]})
    dataset, _, _ = joined(tmp_path, left, right, on={"n": "n", "c": "c"}, how="left")
    assert plain(dataset.snapshot(), "u") == [None, "1y", "2x", None]


def test_pictures_come_along(tmp_path):
    photos = tmp_path / "photos"
    write_classes(photos, {"cat": 4, "dog": 4})
    pictures, _, _ = ingested(tmp_path, photos)
    names = [name.decode() for name in pictures.snapshot().gather("source", np.arange(8))]
    split = Column(name="split", kind="split", dtype="uint8", labels=SPLITS)
    rows = {"word": [names[5], "none", names[0]], "f": [1.0, 2.0, 3.0], "split": ["train", "val", "test"]}
    seen = made(tmp_path, "seen", (WORD, named(FLOAT, "f"), split), rows)
    dataset, snapshot, _ = joined(tmp_path, seen, pictures, on={"word": "source"})
    opened = dataset.snapshot()
    np.testing.assert_array_equal(opened.gather("image", [0, 1]), pictures.snapshot().gather("image", [5, 0]))
    assert snapshot.splits == {"train": 1, "test": 1}
    assert snapshot.statistics["classes"] == {"cat": 1, "dog": 1}
    with pytest.raises(InvalidRequest, match="every row has a label; 1 rows of seen@1 would have none"):
        joined(tmp_path, seen, pictures, on={"word": "source"}, how="left")
    _, left, _ = joined(tmp_path, seen, pictures, on={"word": "source"}, how="left", columns=("image",))
    image = dataset.snapshot().gather("image", np.arange(3))
    assert left.column("image").nullable
    assert np.ma.getmaskarray(image).reshape(3, -1).all(axis=1).tolist() == [False, True, False]


def test_names_that_clash_are_refused_or_changed(tmp_path, orders):
    part = {"key": [1, 3], "word": ["A", "C"], "f": [10.0, 30.0]}
    others = made(tmp_path, "others", LEFT, part)
    with pytest.raises(InvalidRequest, match=r"'word' of others@1 would be there twice; .*rename=.*suffix="):
        joined(tmp_path, orders, others, on={"key": "key"})
    _, snapshot, _ = joined(tmp_path, orders, others, on={"key": "key"}, rename={"f": "g"}, suffix="_2")
    assert [column.name for column in snapshot.columns] == ["key", "word", "f", "word_2", "g"]
    with pytest.raises(InvalidRequest, match="'f' of others@1 would be there twice"):
        joined(tmp_path, orders, others, on={"key": "key"}, columns=("word",), rename={"word": "f"})


@pytest.mark.parametrize(
    ("spec", "error", "said"),
    [
        ({"on": {"key": "name"}}, InvalidRequest, "'key' of orders@1 holds whole numbers, 'name' of customers@1 texts"),
        ({"on": {"f": "id"}}, InvalidRequest, "holds floats, 'id' of customers@1 whole numbers; convert one"),
        ({"on": {"nothing": "id"}}, ColumnNotFound, "orders@1 has no column 'nothing'"),
        ({"on": {"key": "nothing"}}, ColumnNotFound, "customers@1 has no column 'nothing'"),
        ({"on": {"key": "id"}, "columns": ("x",)}, ColumnNotFound, "has no column 'x'"),
        ({"on": {"key": "id"}, "rename": {"x": "y"}}, ColumnNotFound, "has no column 'x'"),
        ({"on": {"key": "age"}}, DataError, "no row of orders@1 has a key that customers@1 has"),
    ],
)
def test_what_cannot_be_joined_is_refused_with_the_way_out(tmp_path, orders, customers, spec, error, said):
    with pytest.raises(error, match=said):
        joined(tmp_path, orders, customers, **spec)
    assert Dataset.open_or_create(LocalStore(tmp_path / "made"), "made").snapshots() == []


def test_a_key_that_several_rows_have_is_refused_with_examples(tmp_path, orders, customers):
    append(customers, RIGHT, {"id": [3, 1, 3, None, None], "name": list("DEFGH"), "city": ["x"] * 5, "age": [1] * 5})
    with pytest.raises(InvalidRequest, match=r"customers@2 has several rows with id=3; id=1; drop all but one"):
        joined(tmp_path, orders, customers, on={"key": "id"})
    dataset, _, _ = joined(tmp_path, orders, customers, on={"key": "id"}, many="first")
    assert plain(dataset.snapshot(), "name") == ["C", "A"]


def test_a_dataset_that_holds_rows_of_its_own_is_never_replaced(tmp_path, orders, customers):
    spec = JoinSpec(left="orders", right="customers", on={"key": "id"})
    with pytest.raises(
        InvalidRequest,
        match="'orders' holds rows that came in otherwise, or by a snapshot that expired; choose another name",
    ):
        module.join(orders, orders.snapshot(), customers.snapshot(), spec, job="j", tell=lambda _: None)
    assert orders.snapshots() == [1]


def test_a_join_that_others_overtake_is_done_again(tmp_path, orders, customers, monkeypatch):
    dataset, _, _ = joined(tmp_path, orders, customers, on={"key": "id"})
    commit = Dataset.commit

    def after_another(self, change, **how):
        monkeypatch.setattr(Dataset, "commit", commit)
        joined(tmp_path, orders, customers, on={"key": "id"}, how="left")
        return commit(self, change, **how)

    monkeypatch.setattr(Dataset, "commit", after_another)
    joined(tmp_path, orders, customers, on={"key": "id"})
    assert [dataset.snapshot(number).rows for number in dataset.snapshots()] == [2, 4, 2]
    parts = {path.name for path in (dataset.store.folder / "parts").iterdir()}
    assert parts == {part.id for number in dataset.snapshots() for part in dataset.record(number).parts}


def test_datasets_larger_than_the_memory_that_is_used_are_joined(tmp_path, monkeypatch):
    monkeypatch.setattr(snapshots, "_KEPT_ROWS", 0)
    monkeypatch.setattr(snapshots, "_TABLE_BYTES", 2**20)
    wide = Column(name="wide", kind="embedding", dtype="float64", shape=(4,))  # a table, chunk by chunk
    rows, part = 400_000, 100_000
    left = Dataset.create(LocalStore(tmp_path / "left"), "left")
    right = Dataset.create(LocalStore(tmp_path / "right"), "right")
    numbers = np.ma.MaskedArray(np.arange(rows), np.zeros(rows, bool))
    large = [named(wide, f"wide_{number}") for number in range(4)]
    for start in range(0, rows, part):
        some = numbers[start : start + part]
        values = np.repeat(some.data.astype(float)[:, None], 4, axis=1)
        append(right, (KEY, *large), {"key": some, **{column.name: values for column in large}})
    asked = numbers[: rows // 20] * 20
    append(left, (KEY,), {"key": asked})
    size = right.snapshot().bytes
    tracemalloc.start()
    dataset, _, _ = joined(tmp_path, left, right, on={"key": "key"})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_array_equal(dataset.snapshot().values("wide_3")[:, 0], asked.data.astype(float))
    assert size > 50 * 2**20
    assert peak < 40 * 2**20
