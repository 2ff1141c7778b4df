"""Tables become datasets: every value as it was, or a row that says why it did not come in."""

from __future__ import annotations

import contextlib
import csv
import datetime as dt
import gzip
import json
import sqlite3
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mms_sdk.compute.data.ingest import ingest
from mms_sdk.errors import DataError, InvalidRequest, NothingToIngest
from mms_sdk.schema.cleaning import Convert, DropConstant, DropDuplicates, DropOddSizes, Impute, KeepWhere
from mms_sdk.schema.sources import CSV, JSONL, SQL, Arrow, Parquet
from mms_sdk.schema.specs import IngestSpec, Split
from mms_sdk.storage.datasets import Dataset
from mms_sdk.storage.stores.local import LocalStore

ALL = Split(train=1, val=0, test=0)


@pytest.fixture
def bring(tmp_path):
    """Ingests a source into one dataset; returns the snapshot and the report."""
    folder = tmp_path / "job"
    folder.mkdir()

    def bring(source, *clean, split=ALL, name="rows"):
        dataset = Dataset.open_or_create(LocalStore(tmp_path / name), name)
        spec = IngestSpec(source=source, clean=clean, split=split)
        _, report = ingest(dataset, spec, job="j", folder=folder, tell=lambda _: None)
        return dataset.snapshot(), report

    bring.rejects = lambda: [json.loads(line) for line in (folder / "rejects.jsonl").read_text().splitlines()]
    return bring


def _own(snapshot) -> list[str]:
    return [each.name for each in snapshot.record.columns if each.name not in ("row_id", "row_source", "split")]


def _values(snapshot, name: str) -> list:
    """Values of a column as plain Python, with None for what is missing."""
    column = snapshot.column(name)
    values = snapshot.gather(name, np.arange(snapshot.rows))
    if column.kind == "text":
        return [None if value is None else value.decode() for value in values]
    if column.varies:
        return [value if value is None or isinstance(value, bytes) else value.tolist() for value in values]
    missing = np.ma.getmaskarray(values).reshape(len(values), -1).any(axis=1)
    listed = [None if gone else value for gone, value in zip(missing, values.tolist(), strict=True)]
    return [None if value is None else column.labels[value] for value in listed] if column.labels else listed


def _write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_bytes(text.encode(encoding))
    return path


# CSV ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("texts", "kind", "values"),
    [
        (["1", "-2", "+3", "NA", ""], "int64", [1, -2, 3, None, None]),
        (["1", "2.5", "-.5", "1e3", "nan"], "float64", [1.0, 2.5, -0.5, 1000.0, None]),
        (["true", "False", "NA"], "bool", [True, False, None]),
        (["007", "12"], "text", ["007", "12"]),
        (["12345678901234567890", "1"], "text", ["12345678901234567890", "1"]),
        (["0.1234567890123456789", "1234567890123456.5"], "text", ["0.1234567890123456789", "1234567890123456.5"]),
        (["NA", "a"], "text", ["NA", "a"]),
        (["1", "x"], "text", ["1", "x"]),
        (["1,5", "2,5"], "text", ["1,5", "2,5"]),
        (["2024-02-31", "2024-02-01"], "text", ["2024-02-31", "2024-02-01"]),
        (["2024-02-01", ""], "time", [dt.datetime(2024, 2, 1), None]),
        (
            ["2024-02-01T12:30:00", "2024-02-01"],
            "time",
            [dt.datetime(2024, 2, 1, 12, 30), dt.datetime(2024, 2, 1)],
        ),
        (["2024-02-01T12:30:00+02:00"], "time", [dt.datetime(2024, 2, 1, 10, 30)]),
    ],
)
def test_a_type_is_chosen_only_if_it_spells_every_value(tmp_path, bring, texts, kind, values):
    with (tmp_path / "x.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["x", "n"], *([text, at] for at, text in enumerate(texts))])
    snapshot, _ = bring(CSV(tmp_path / "x.csv"))
    column = snapshot.column("x")
    if kind == "time":
        assert (column.kind, column.unit) == ("timestamp", "us")
        epoch = dt.datetime(1970, 1, 1)
        values = [None if value is None else (value - epoch) // dt.timedelta(microseconds=1) for value in values]
    else:
        assert column.kind if kind == "text" else column.dtype == kind
    assert _values(snapshot, "x") == values


_TEXTS = st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=8)
_CELLS = st.one_of(_TEXTS, st.integers().map(str), st.floats().map(str), st.booleans().map(str), st.dates().map(str))


@given(rows=st.lists(st.tuples(_CELLS, _CELLS), min_size=1, max_size=8))
@settings(max_examples=150)
def test_whatever_the_type_each_value_says_what_the_file_says(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("csv")
    with (folder / "x.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, quoting=csv.QUOTE_ALL).writerows(
            [["a", "b", "n"], *((*row, at) for at, row in enumerate(rows))]
        )
    dataset = Dataset.create(LocalStore(folder / "rows"), "rows")
    ingest(dataset, IngestSpec(source=CSV(folder / "x.csv"), split=ALL), job="j", folder=folder, tell=lambda _: None)
    snapshot = dataset.snapshot()
    for at, name in enumerate(("a", "b")):
        if name not in _own(snapshot):
            assert all(row[at] in ("NA", "nan", "NaN", "null", "NULL", "None", "N/A", "n/a", "#N/A") for row in rows)
            continue
        for text, value in zip([row[at] for row in rows], _values(snapshot, name), strict=True):
            assert _same(text, value, snapshot.column(name)), (text, value)


def _same(text: str, value, column) -> bool:
    if column.kind == "text":
        return text == value
    if value is None:
        return text in ("nan", "NaN", "NA", "null", "None", "NULL", "N/A", "n/a", "#N/A")
    if column.kind == "timestamp":
        return dt.datetime.fromisoformat(text) == dt.datetime(1970, 1, 1) + dt.timedelta(microseconds=value)
    if column.dtype == "bool":
        return text.lower() == str(value).lower()
    return float(text) == value and (column.dtype != "int64" or int(text) == value)


def test_quotes_delimiters_and_line_ends_within_values_are_kept(tmp_path, bring):
    rows = [["a,b", 'say "x"', "two\nlines"], ["", " padded ", "é\t"]]
    with (tmp_path / "x.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, quoting=csv.QUOTE_ALL).writerows([["a", "b", "c"], *rows])
    snapshot, _ = bring(CSV(tmp_path / "x.csv"))
    assert [list(row) for row in zip(*(_values(snapshot, name) for name in "abc"), strict=True)] == rows


def test_tabs_and_another_encoding_and_delimiter_are_read(tmp_path, bring):
    _write(tmp_path / "a.tsv", "city\tn\nKöln\t1\n", "latin-1")
    _write(tmp_path / "b.csv", "city;n\nKöln;1\n")
    for name, source in [
        ("a", CSV(tmp_path / "a.tsv", encoding="latin-1")),
        ("b", CSV(tmp_path / "b.csv", delimiter=";")),
    ]:
        snapshot, _ = bring(source, name=name)
        assert _values(snapshot, "city") == ["Köln"]


def test_a_row_that_cannot_be_read_is_left_out_with_its_number(tmp_path, bring):
    (tmp_path / "x.csv").write_bytes(b"a,b\n1,ok\n2\n3,a,b\n4,\xff\n5,ok\n")
    snapshot, report = bring(CSV(tmp_path / "x.csv"))
    assert _values(snapshot, "a") == [1, 5]
    assert [(each["source"], each["reason"]) for each in bring.rejects()] == [
        ("x.csv, row 2", "it has 1 values, the header has 2"),
        ("x.csv, row 3", "it has 3 values, the header has 2"),
        ("x.csv, row 4", "it is not UTF-8; name its encoding="),
    ]
    assert (report.found, report.kept) == (5, 2)


def test_rows_keep_their_numbers_behind_rows_that_were_left_out(tmp_path, bring):
    (tmp_path / "x.csv").write_bytes(b"a,b\n1,x\n2\n1,x\n")
    bring(CSV(tmp_path / "x.csv"), DropDuplicates())
    assert bring.rejects()[-1] == {"source": "x.csv, row 3", "reason": "the same values as x.csv, row 1"}


@pytest.mark.parametrize("content", [b"", b"\n\n", b"a,b\n", b"a,a\n1,2\n", b"\xff\xfe\x00"])
def test_a_file_without_rows_makes_no_dataset(tmp_path, bring, content):
    (tmp_path / "x.csv").write_bytes(content)
    with pytest.raises(NothingToIngest):
        bring(CSV(tmp_path / "x.csv"))
    assert not Dataset.open(LocalStore(tmp_path / "rows"), "rows").snapshots()


def test_files_with_other_columns_are_put_together_by_name(tmp_path, bring):
    _write(tmp_path / "1.csv", "a,b\n1,x\n")
    _write(tmp_path / "2.csv", "b,a,c\ny,2.5,new\n")
    snapshot, _ = bring(CSV(str(tmp_path / "*.csv")))
    assert [_values(snapshot, name) for name in "abc"] == [[1.0, 2.5], ["x", "y"], [None, "new"]]


def test_a_file_that_changes_between_two_readings_ends_the_ingest(tmp_path, bring, monkeypatch):
    from mms_sdk.compute.data import ingest_table

    path = _write(tmp_path / "x.csv", "a\n1\n2\n")
    plan = ingest_table._plan

    def changed(*args):
        path.write_text("a\n1\n3\n4\n")
        return plan(*args)

    monkeypatch.setattr(ingest_table, "_plan", changed)
    with pytest.raises(DataError, match=r"x\.csv changed; run it again"):
        bring(CSV(path))
    assert not Dataset.open(LocalStore(tmp_path / "rows"), "rows").snapshots()


def test_names_that_no_column_can_have_are_changed_and_kept_as_titles(tmp_path, bring):
    _write(tmp_path / "x.csv", "Sepal Length (cm),2020,sepal_length_cm,split,ünï\n1,2,3,4,5\n")
    snapshot, _ = bring(CSV(tmp_path / "x.csv"))
    titles = {each.name: each.title for each in snapshot.record.columns}
    assert titles["sepal_length_cm"] == "Sepal Length (cm)"
    assert titles["c_2020"] == "2020"
    assert titles["sepal_length_cm_2"] == "sepal_length_cm"
    assert titles["split_2"] == "split"
    assert _values(snapshot, "sepal_length_cm_2") == [3]


# Other files ----------------------------------------------------------------------------------------------------

_ARROW = pa.table(
    {
        "whole": pa.array([1, None, 3], pa.int16()),
        "real": pa.array([1.5, 2.5, None], pa.float32()),
        "truth": pa.array([True, False, None]),
        "text": ["a", None, "ü"],
        "bytes": [b"\x00", b"", None],
        "when": pa.array([1, 2, None], pa.timestamp("ms", "UTC")),
        "day": pa.array([dt.date(1970, 1, 2), None, dt.date(2024, 2, 29)]),
        "color": pa.array(["red", "blue", None]).dictionary_encode(),
        "fixed": pa.array([[1, 2], [3, 4], [5, 6]], pa.list_(pa.int32())),
        "ragged": pa.array([[1.0], None, []], pa.list_(pa.float64())),
    }
)


@pytest.mark.parametrize("kind", [Parquet, Arrow])
def test_every_type_of_a_file_with_types_comes_back(tmp_path, bring, kind):
    path = tmp_path / "rows"
    (pq.write_table if kind is Parquet else pyarrow.feather.write_feather)(_ARROW, path)
    snapshot, _ = bring(kind(path), name="dataset")
    assert {name: _values(snapshot, name) for name in _own(snapshot)} == {
        "whole": [1, None, 3],
        "real": [1.5, 2.5, None],
        "truth": [True, False, None],
        "text": ["a", None, "ü"],
        "bytes": [b"\x00", b"", None],
        "when": [1, 2, None],
        "day": [86400, None, 1709164800],
        "color": ["red", "blue", None],
        "fixed": [[1, 2], [3, 4], [5, 6]],
        "ragged": [[1.0], None, []],
    }
    told = {each.name: (each.kind, each.dtype, each.shape, each.unit) for each in snapshot.record.columns}
    assert told["whole"] == ("number", "int16", (), None)
    assert told["real"][1] == "float32"
    assert told["when"] == ("timestamp", "int64", (), "ms")
    assert told["fixed"] == ("embedding", "int32", (2,), None)
    assert told["ragged"] == ("series", "float64", (None,), None)
    assert snapshot.column("color").labels == ("blue", "red")


def test_what_no_column_can_hold_is_refused_by_name(tmp_path, bring):
    pq.write_table(pa.table({"ok": [1], "nested": [{"a": 1}]}), tmp_path / "x.parquet")
    with pytest.raises(DataError, match=r"'nested' has struct.*leave it out with columns="):
        bring(Parquet(tmp_path / "x.parquet"))
    snapshot, _ = bring(Parquet(tmp_path / "x.parquet", columns=("ok",)))
    assert _own(snapshot) == ["ok"]


def test_a_damaged_file_is_left_out_and_named(tmp_path, bring):
    pq.write_table(pa.table({"a": [1, 2]}), tmp_path / "1.parquet")
    (tmp_path / "2.parquet").write_bytes((tmp_path / "1.parquet").read_bytes()[:-9])
    (tmp_path / "notes.txt").write_text("not a table")
    snapshot, report = bring(Parquet(tmp_path))
    assert snapshot.rows == 2
    assert [each["source"] for each in bring.rejects()] == ["2.parquet"]
    assert "2.parquet" in report.notes[0]


def test_a_parquet_file_in_which_bytes_of_a_text_changed_is_refused(tmp_path, bring):
    path = tmp_path / "x.parquet"
    texts = ["before", "harm me", "after"]
    pq.write_table(pa.table({"t": texts}), path, compression="none", use_dictionary=False, write_statistics=False)
    bring(Parquet(path), name="whole")
    data = path.read_bytes()
    assert data.count(b"harm me") == 1
    path.write_bytes(data.replace(b"harm me", b"harm\xffme"))
    assert pq.read_table(path).num_rows == 3  # which Arrow by itself does not look at

    with pytest.raises(DataError, match=r"values lie within their file; x\.parquet: .*write it again"):
        bring(Parquet(path), name="damaged")


def test_json_lines_are_put_together_by_field(tmp_path, bring):
    lines = ['{"a": 1, "t": "x"}', "", "not json", "[1]", '{"a": 2.5, "b": [1, 2]}', '{"b": [3, 4], "t": null}']
    _write(tmp_path / "x.jsonl", "\n".join(lines))
    snapshot, _ = bring(JSONL(tmp_path / "x.jsonl"))
    assert _values(snapshot, "a") == [1.0, 2.5, None]
    assert _values(snapshot, "t") == ["x", None, None]
    assert _values(snapshot, "b") == [None, [1, 2], [3, 4]]
    assert [each["source"] for each in bring.rejects()] == ["x.jsonl, line 3", "x.jsonl, line 4"]


def test_a_field_of_two_types_is_refused(tmp_path, bring):
    _write(tmp_path / "x.jsonl", '{"a": 1}\n{"a": "x"}\n')
    with pytest.raises(NothingToIngest, match="a field has one type in all rows"):
        bring(JSONL(tmp_path / "x.jsonl"))


def test_rows_of_a_query_come_in(tmp_path, bring):
    with sqlite3.connect(tmp_path / "x.db") as database:
        database.execute("create table t (a integer, b real, c text, d blob)")
        rows = [(at, at / 2 if at % 3 else None, f"row {at}", bytes([at % 256])) for at in range(70_000)]
        database.executemany("insert into t values (?, ?, ?, ?)", rows)
    database.close()
    source = SQL(f"sqlite:///{tmp_path}/x.db", "select * from t where a >= 10 order by a")
    snapshot, _ = bring(source)
    assert list(zip(*(_values(snapshot, name) for name in "abcd"), strict=True)) == rows[10:]


@pytest.mark.parametrize(
    ("url", "query", "error"),
    [
        ("sqlite:///{}/x.db", "select * from nowhere", "no such table"),
        ("nosuch://x", "select 1", "nosuch"),
    ],
)
def test_a_query_that_fails_says_why(tmp_path, bring, url, query, error):
    _database(tmp_path / "x.db")
    with pytest.raises(InvalidRequest, match=error):
        bring(SQL(url.format(tmp_path), query))


def test_a_query_without_rows_makes_no_dataset(tmp_path, bring):
    _database(tmp_path / "x.db")
    with pytest.raises(NothingToIngest, match="the query gives none"):
        bring(SQL(f"sqlite:///{tmp_path}/x.db", "select 1 as a where 1 = 2"))


def _database(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        database.execute("create table t (a integer)")
        database.executemany("insert into t values (?)", [(at,) for at in range(20)])


def test_a_database_that_is_asked_is_neither_made_nor_changed(tmp_path, bring):
    _database(tmp_path / "it's 100%.db")
    before = (tmp_path / "it's 100%.db").read_bytes()
    for name in ("sqlite:///{}/nosuch.db", "sqlite:///file:{}/nosuch.db?uri=true"):
        with pytest.raises(InvalidRequest, match=r"is none; check the path|unable to open database file"):
            bring(SQL(name.format(tmp_path), "select 1 as a"))
    there = f"sqlite:///{tmp_path}/it's 100%25.db"
    with pytest.raises(InvalidRequest, match="attempt to write a readonly database"):
        bring(SQL(there, "delete from t"))
    snapshot, _ = bring(SQL(there, "select a from t order by a"))
    assert _values(snapshot, "a") == list(range(20))
    assert (tmp_path / "it's 100%.db").read_bytes() == before
    assert [path.name for path in tmp_path.glob("*.db")] == ["it's 100%.db"]


@pytest.mark.parametrize(
    ("name", "content", "source", "said"),
    [
        ("x.csv", b"PAR1\0\xff", CSV, "it is Parquet by its first bytes; read it with mms.Parquet"),
        ("x.jsonl", b"PAR1\0\xff", JSONL, "it is Parquet by its first bytes; read it with mms.Parquet"),
        ("x.csv", gzip.compress(b"a\n1\n", mtime=0), CSV, "it is compressed with gzip by its first bytes; unpack it"),
        ("x.csv", b"PK\x03\x04\xff", CSV, "a zip archive or a spreadsheet by its first bytes; unpack it, or save"),
        ("x.csv", b'{"a": 1}\n{"a": 2}\n', CSV, "its lines are JSON; read it with mms.JSONL"),
        ("x.parquet", b"ARROW1\0\0", Parquet, "it is Arrow by its first bytes; read it with mms.Arrow"),
        ("x.csv", b"SQLite format 3\0", CSV, "it is an SQLite database by its first bytes; read it with mms.SQL"),
    ],
)
def test_a_file_of_another_kind_is_named_with_what_reads_it(tmp_path, bring, name, content, source, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(NothingToIngest, match=said) as told:
        bring(source(tmp_path / name))
    assert told.value.message.isprintable()


def test_compressed_csv_that_is_named_so_comes_in(tmp_path, bring):
    (tmp_path / "x.csv.gz").write_bytes(gzip.compress(b"a\n" + b"".join(b"%d\n" % at for at in range(20))))
    snapshot, _ = bring(CSV(tmp_path / "x.csv.gz"))
    assert _values(snapshot, "a") == list(range(20))


@pytest.mark.parametrize(
    "query", ["password=hunter2", "sslPassword=hunter2", "passfile=/x", "odbc_connect=UID%3Da%3BPWD%3Dhunter2"]
)
def test_a_password_in_the_query_of_a_url_is_refused(query: str) -> None:
    with pytest.raises(InvalidRequest, match="password_env=") as refused:
        SQL(f"postgresql://user@host/name?sslmode=require&{query}", "SELECT 1")
    assert "hunter2" not in refused.value.message


def test_an_offset_that_points_outside_is_refused(tmp_path, bring):
    offsets = pa.py_buffer(np.array([0, 2, 2**30, 6], np.int32))
    array = pa.Array.from_buffers(pa.string(), 3, [None, offsets, pa.py_buffer(b"abcdef")])
    with (
        pa.OSFile(str(tmp_path / "x.arrow"), "wb") as out,
        pa.ipc.new_file(out, pa.schema({"t": pa.string()})) as writer,
    ):
        writer.write_table(pa.table({"t": array}))

    with pytest.raises(DataError, match=r"values lie within their file; x\.arrow"):
        bring(Arrow(tmp_path / "x.arrow"))


def test_a_password_is_never_part_of_a_source():
    with pytest.raises(InvalidRequest, match="password_env=") as refused:
        SQL("postgresql://me:secret@host/db", "select 1")
    assert "secret" not in str(refused.value)


# What becomes of the dataset ------------------------------------------------------------------------------------


def test_of_a_file_that_grew_only_the_new_rows_come_in(tmp_path, bring):
    path = _write(tmp_path / "x.csv", "a,b\n1,x\n1,x\n2,y\n")
    first, _ = bring(CSV(path))
    _write(path, "a,b\n1,x\n1,x\n2,y\n1,x\n3,z\n")
    second, report = bring(CSV(path))
    assert _values(first, "a") == [1, 1, 2]
    assert _values(second, "a") == [1, 1, 2, 1, 3]
    assert (report.found, report.already_present, report.kept) == (5, 3, 2)


def test_the_same_rows_in_another_file_are_other_rows(tmp_path, bring):
    bring(CSV(_write(tmp_path / "1.csv", "a\n1\n2\n")))
    snapshot, _ = bring(CSV(_write(tmp_path / "2.csv", "a\n1\n2\n")))
    assert _values(snapshot, "a") == [1, 2, 1, 2]
    assert _values(snapshot, "row_source") == ["1.csv", "1.csv", "2.csv", "2.csv"]


def test_a_label_is_counted_split_by_and_grows(tmp_path, bring):
    rows = "".join(f"{at},{'cat' if at % 2 else 'dog'}\n" for at in range(20))
    path = _write(tmp_path / "x.csv", "n,Species\n" + rows)
    split = Split(train=0.5, val=0.25, test=0.25)
    first, _ = bring(CSV(path, label="Species"), split=split)
    assert first.column("label").labels == ("cat", "dog")
    assert first.record.statistics["classes"] == {"cat": 10, "dog": 10}
    assert first.record.splits == {"train": 10, "val": 6, "test": 4} or sum(first.record.splits.values()) == 20
    _write(path, "n,Species\n" + rows + "".join(f"{at},ant\n" for at in range(20, 28)) + "99,\n")
    second, _ = bring(CSV(path, label="Species"), split=split)
    assert second.column("label").labels == ("cat", "dog", "ant")
    np.testing.assert_array_equal(second.values("label")[:20], first.values("label"))
    np.testing.assert_array_equal(second.values("split")[:20], first.values("split"))
    assert _values(second, "label")[20:] == ["ant"] * 8
    assert bring.rejects() == [{"source": "x.csv, row 29", "reason": "no value in 'label'"}]


@pytest.mark.parametrize(
    ("content", "error"),
    [
        ("a,b\n1,\n", "every row of column 'b' of rows@1 has a value"),
        ("a\n1\n", "'b'.* are not in the source"),
        ("a,b,c\n1,x,new\n", "rows@1 has no 'c'; choose columns"),
        ("a,b\n1.5,x\n", "holds number int64 .*; new rows have number float64"),
        ("a,b\nword,x\n", "holds number int64 .*; new rows have text uint8"),
    ],
)
def test_rows_that_do_not_fit_the_dataset_are_refused(tmp_path, bring, content, error):
    bring(CSV(_write(tmp_path / "1.csv", "a,b\n1,x\n")))
    with pytest.raises(DataError, match=error):
        bring(CSV(_write(tmp_path / "2.csv", content)))
    assert Dataset.open(LocalStore(tmp_path / "rows"), "rows").snapshots() == [1]


def test_whole_numbers_fit_a_column_of_floats(tmp_path, bring):
    bring(CSV(_write(tmp_path / "1.csv", "a\n1.5\n")))
    snapshot, _ = bring(CSV(_write(tmp_path / "2.csv", "a\n2\n")))
    assert _values(snapshot, "a") == [1.5, 2.0]


def test_columns_that_were_constant_stay_away(tmp_path, bring):
    first, report = bring(CSV(_write(tmp_path / "1.csv", "a,b\n1,x\n2,x\n")), DropConstant())
    second, _ = bring(CSV(_write(tmp_path / "2.csv", "a,b\n1,y\n2,z\n")), DropConstant())
    assert _own(first) == _own(second) == ["a"]
    assert report.steps[0].note == "columns dropped: b"


def test_steps_for_pictures_are_refused(tmp_path, bring):
    with pytest.raises(InvalidRequest, match="drop-odd-sizes is for files of a folder"):
        bring(CSV(_write(tmp_path / "1.csv", "a\n1\n")), DropOddSizes())


def test_unknown_columns_are_refused_with_those_there_are(tmp_path, bring):
    path = _write(tmp_path / "1.csv", "a,b\n1,2\n")
    for source in (CSV(path, label="x"), CSV(path, columns=("x",)), CSV(path, categories=("x",))):
        with pytest.raises(InvalidRequest, match=r"columns are \['a', 'b'\]; got 'x'"):
            bring(source)


def test_more_rows_than_a_batch_come_in_whole_and_cleaned_alike(tmp_path, bring):
    random = np.random.default_rng(0)
    values = random.integers(0, 50_000, 40_000)
    real = np.where(random.random(40_000) < 0.1, np.nan, random.random(40_000))
    table = pa.table({"a": values, "b": pa.array(real, from_pandas=True)})
    pq.write_table(table, tmp_path / "x.parquet")
    snapshot, report = bring(Parquet(tmp_path / "x.parquet"), Impute(column="b"), DropDuplicates())
    expected = np.where(np.isnan(real), np.nanmean(real), real)
    _, first = np.unique(np.stack([values, np.nan_to_num(real, nan=-1)]), axis=1, return_index=True)
    np.testing.assert_array_equal(snapshot.values("a"), values[np.sort(first)])
    np.testing.assert_allclose(snapshot.values("b"), expected[np.sort(first)], rtol=1e-12)
    assert report.steps[1].dropped == 40_000 - len(first)


# Duplicates and types ---------------------------------------------------------------------------------------------


def test_of_rows_with_one_key_the_first_or_the_last_comes_in(tmp_path, bring):
    path = tmp_path / "rows.csv"
    path.write_text("customer,n\na,1\nb,2\na,3\n,4\n,5\n")
    snapshot, report = bring(CSV(path), DropDuplicates(by="customer"), name="first")
    assert _values(snapshot, "n") == [1, 2, 4]
    assert report.steps[0].examples[0].reason == "the same customer as rows.csv, row 1"
    snapshot, _ = bring(CSV(path), DropDuplicates(by="customer", keep="last"), name="last")
    assert _values(snapshot, "n") == [2, 3, 5]


@pytest.mark.parametrize("keep", ["first", "last"])
def test_rows_whose_key_the_dataset_has_do_not_come_in_and_those_it_has_are_passed_over(tmp_path, bring, keep):
    step = DropDuplicates(by=("customer", "day"), keep=keep)
    path = tmp_path / "rows.csv"
    path.write_text("customer,day,n\na,1,10\nb,1,20\n")
    bring(CSV(path), step)
    path.write_text("customer,day,n\na,1,10\nb,1,20\na,1,30\nc,1,40\nc,1,50\na,1,10\n")
    snapshot, report = bring(CSV(path), step)
    assert _values(snapshot, "n") == [10, 20, 40 if keep == "first" else 50]
    assert (report.already_present, report.kept, report.dropped) == (2, 1, 3)
    other = tmp_path / "other.csv"
    other.write_text("customer,day,n\nb,1,60\nb,2,70\n")
    snapshot, report = bring(CSV(other), step)
    assert _values(snapshot, "n")[-1] == 70
    assert bring.rejects() == [{"source": "other.csv, row 1", "reason": "the dataset has the same customer and day"}]


def test_the_same_values_in_another_file_do_not_come_in_where_duplicates_are_dropped(tmp_path, bring):
    for name in ("a", "b"):
        (tmp_path / f"{name}.csv").write_text("n\n1\n2\n" + ("3\n" if name == "b" else ""))
    bring(CSV(tmp_path / "a.csv"), DropDuplicates())
    snapshot, report = bring(CSV(tmp_path / "b.csv"), DropDuplicates())
    assert _values(snapshot, "n") == [1, 2, 3]
    assert (report.steps[0].dropped, report.steps[0].examples[0].reason) == (2, "the dataset has the same values")


def test_keys_are_compared_as_they_are_stored(tmp_path, bring):
    (tmp_path / "a.csv").write_text("n\n0.5\n2\n")
    (tmp_path / "b.csv").write_text("n\n2\n3\n")  # whole numbers in this file
    bring(CSV(tmp_path / "a.csv"))
    snapshot, _ = bring(CSV(tmp_path / "b.csv"), DropDuplicates(by="n"))
    assert _values(snapshot, "n") == [0.5, 2, 3]


def test_keys_of_another_type_than_the_dataset_has_end_the_ingest(tmp_path, bring):
    (tmp_path / "a.csv").write_text("n\n1\n")
    (tmp_path / "b.csv").write_text("n\nx\n")
    bring(CSV(tmp_path / "a.csv"))
    with pytest.raises(DataError, match=r"keys are compared as the dataset holds them, int64; new rows have string"):
        bring(CSV(tmp_path / "b.csv"), DropDuplicates(by="n"))


def test_columns_are_converted_and_what_would_be_lost_goes_with_its_reason(tmp_path, bring):
    path = tmp_path / "rows.csv"
    path.write_text("age,when,kind\n1,31.12.2024,7\n300,31.12.2024,8\n2,31.02.2024,7\n,01.01.2025,8\n")
    steps = (Convert("age", "uint8"), Convert("when", "timestamp", format="%d.%m.%Y"), Convert("kind", "category"))
    snapshot, _ = bring(CSV(path), *steps, KeepWhere("kind in ('7', '8')"))
    assert snapshot.column("age").dtype == "uint8"
    assert _values(snapshot, "age") == [1, None]
    assert _values(snapshot, "kind") == ["7", "8"]
    assert snapshot.column("kind").kind == "category"
    assert snapshot.values("when").tolist() == [1735603200000000, 1735689600000000]
    assert sorted((each["source"], each["reason"]) for each in bring.rejects()) == [
        ("rows.csv, row 2", "age is 300, which is no uint8"),
        ("rows.csv, row 3", "when is '31.02.2024', which is no timestamp of '%d.%m.%Y'"),
    ]


def test_a_category_is_converted_to_numbers_and_a_class_is_not(tmp_path, bring):
    path = tmp_path / "rows.csv"
    path.write_text("c,y\n1,a\n2,b\nx,a\n1,b\n")
    source = CSV(path, categories="c", label="y")
    snapshot, report = bring(source, Convert("c", "float32", errors="missing"))
    assert (snapshot.column("c").kind, _values(snapshot, "c")) == ("number", [1, 2, None, 1])
    assert report.steps[0].note == "c: 1 × no float32, missing"
    with pytest.raises(InvalidRequest, match="counted and split by stay as they are"):
        bring(source, Convert("label", "int8"))


def test_where_too_few_rows_are_left_it_is_said_why(tmp_path, bring):
    (tmp_path / "latin.csv").write_bytes("name\nOslo\nMünchen\nKöln\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"there are 1 in all; .*2 × left out, e\.g\. .*it is not UTF-8; name its enc"):
        bring(CSV(tmp_path / "latin.csv"), split=Split())
    with pytest.raises(InvalidRequest, match=r"one of text that Python knows, e\.g\. latin-1; got 'latin-l'"):
        CSV(tmp_path / "latin.csv", encoding="latin-l")
