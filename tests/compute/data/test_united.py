"""Several sources come in together, and again: nothing is taken for another source's, nothing twice."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from make_pictures import noise, write, write_classes

from mms_sdk.compute.data.ingest import ingest
from mms_sdk.compute.data.sources.rows import ROW, SOURCE, Table
from mms_sdk.compute.data.sources.united import united
from mms_sdk.errors import DataError, InvalidRequest, NothingToIngest
from mms_sdk.schema.cleaning import DropDuplicates, DropUnreadable
from mms_sdk.schema.sources import CSV, JSONL, SQL, TFDS, AsTable, ImageFolder, Union
from mms_sdk.schema.specs import IngestSpec, Split
from mms_sdk.storage.datasets import Dataset
from mms_sdk.storage.stores.local import LocalStore

ALL = Split(train=1, val=0, test=0)


@pytest.fixture
def bring(tmp_path):
    folder = tmp_path / "job"
    folder.mkdir()

    def bring(source, *clean):
        dataset = Dataset.open_or_create(LocalStore(tmp_path / "all"), "all")
        spec = IngestSpec(source=source, clean=clean, split=ALL)
        _, report = ingest(dataset, spec, job="j", folder=folder, tell=lambda _: None)
        return dataset.snapshot(), report

    bring.rejects = lambda: [json.loads(line) for line in (folder / "rejects.jsonl").read_text().splitlines()]
    return bring


def sources_of(snapshot) -> list[str]:
    return [name.decode() for name in snapshot.gather("source", np.arange(snapshot.rows))]


def test_folders_come_in_one_after_another_and_again_only_with_what_is_new(tmp_path, bring):
    write_classes(tmp_path / "spring", {"cat": 2, "dog": 1}, seed=1)
    write_classes(tmp_path / "autumn", {"cat": 2, "eel": 1}, seed=2)
    write(tmp_path / "autumn" / "eel" / "broken.png", b"no picture")
    both = Union([ImageFolder(tmp_path / "spring"), ImageFolder(tmp_path / "autumn")])
    snapshot, report = bring(both, DropUnreadable())
    assert sources_of(snapshot) == [
        *("spring/cat/000.png", "spring/cat/001.png", "spring/dog/000.png"),
        *("autumn/cat/000.png", "autumn/cat/001.png", "autumn/eel/000.png"),
    ]
    assert snapshot.record.statistics["classes"] == {"cat": 4, "dog": 1, "eel": 1}
    assert [reject["source"] for reject in bring.rejects()] == ["autumn/eel/broken.png"]
    write(tmp_path / "spring" / "dog" / "new.png", noise(6, 5, seed=99))
    snapshot, report = bring(both, DropUnreadable())
    assert (report.already_present, report.kept, sources_of(snapshot)[-1]) == (6, 1, "spring/dog/new.png")


def test_the_same_picture_in_two_sources_is_two_rows_unless_duplicates_are_dropped(tmp_path, bring):
    for folder in ("a", "b"):
        write_classes(tmp_path / folder, {"cat": 3})
    both = Union([ImageFolder(tmp_path / "a"), ImageFolder(tmp_path / "b")])
    _, report = bring(both, DropDuplicates())
    assert (report.kept, report.steps[0].dropped) == (3, 3)
    assert report.steps[0].examples[0].reason == "the same bytes as a/cat/000.png"


def test_tables_of_several_forms_come_in_by_column(tmp_path, bring):
    (tmp_path / "a.csv").write_text("n,t\n1,x\n2,y\n3\n")
    (tmp_path / "b.jsonl").write_text('{"n": 2.5, "more": true}\n')
    both = Union([CSV(tmp_path / "a.csv"), JSONL(tmp_path / "b.jsonl")], names=("first", "second"))
    snapshot, report = bring(both)
    assert snapshot.values("n").tolist() == [1.0, 2.0, 2.5]
    assert snapshot.gather("t", np.arange(3)) == [b"x", b"y", None]
    assert snapshot.values("more").tolist() == [None, None, True]
    assert snapshot.column("row_source").labels == ("first/a.csv", "second/b.jsonl")
    assert bring.rejects()[0]["source"] == "first/a.csv, row 3"
    snapshot, report = bring(both)
    assert (snapshot.rows, report.already_present, report.kept) == (3, 3, 0)


def test_two_queries_keep_their_rows_apart(tmp_path, bring):
    import sqlite3

    with sqlite3.connect(tmp_path / "shop.db") as connection:
        connection.execute("create table a (n int)")
        connection.executemany("insert into a values (?)", [(1,), (2,)])
    connection.close()
    one, other = (SQL(f"sqlite:///{tmp_path / 'shop.db'}", f"select n * {by} as n from a") for by in (1, 10))
    snapshot, _ = bring(Union([one, other], names=("ones", "tens")))
    assert snapshot.values("n").tolist() == [1, 2, 10, 20]
    assert snapshot.column("row_source").labels == ("ones/query", "tens/query")


def test_whole_numbers_that_would_be_altered_end_the_ingest(tmp_path, bring):
    (tmp_path / "a.jsonl").write_text(f'{{"n": {2**53 + 1}}}\n')
    (tmp_path / "b.jsonl").write_text('{"n": 0.5}\n')
    with pytest.raises(DataError, match=r"come in without loss; .*in a\.jsonl"):
        bring(Union([JSONL(tmp_path / "a.jsonl"), JSONL(tmp_path / "b.jsonl")]))


def test_sources_that_do_not_go_together_are_refused(tmp_path, bring):
    (tmp_path / "a.csv").write_text("n\n1\n")
    (tmp_path / "b.csv").write_text("n\nx\n")
    write_classes(tmp_path / "photos", {"cat": 2})
    table, texts, photos = CSV(tmp_path / "a.csv"), CSV(tmp_path / "b.csv"), ImageFolder(tmp_path / "photos")
    with pytest.raises(InvalidRequest, match=r"got both: \['a\.csv', 'photos'\]"):
        bring(Union([table, photos]))
    with pytest.raises(DataError, match="one type in all sources"):
        bring(Union([table, texts]))
    with pytest.raises(InvalidRequest, match=r"are taken alike; a\.csv has"):
        bring(Union([table, texts.model_copy(update={"label": "n"})]))
    with pytest.raises(InvalidRequest, match="are taken alike"):
        bring(Union([photos, photos.model_copy(update={"color": "gray"})], names=("a", "b")))


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (None, r"has a name of its own; got \['x', 'x'\]; say them with names="),
        (("a",), "has a name of its own"),
        (("a", "a"), "has a name of its own"),
        (("a", ""), "names"),
    ],
)
def test_names_keep_sources_apart(names, said):
    with pytest.raises(InvalidRequest, match=said):
        Union([ImageFolder(Path("one/x")), ImageFolder(Path("two/x"))], names=names)


@pytest.mark.parametrize("name", ["a/b", "a\nb", "/"])
def test_a_name_with_a_slash_or_that_cannot_be_printed_is_refused(name):
    with pytest.raises(ValueError, match="printable and has no slash"):
        Union([CSV("a.csv"), CSV("b.csv")], names=("a", name))


def test_names_that_are_derived_have_no_slash():
    assert Union([TFDS("a/mnist/3.0.1"), CSV("b.csv")]).named == ("mnist-3.0.1", "b.csv")


def test_a_table_without_a_row_that_can_be_read_comes_in_as_none():
    def table(*rows):
        columns = {"n": list(rows), SOURCE: ["x"] * len(rows), ROW: list(range(len(rows)))}

        def read():
            return iter([pa.RecordBatch.from_pydict(columns)] if rows else [])

        return Table(taken=AsTable(), schema=pa.schema({"n": pa.int64()}), rows=len(rows), rejects=[], read=read)

    assert united(["a", "b"], [table(1, 2), table()]).rows == 2
    with pytest.raises(NothingToIngest, match="none that can be read"):
        united(["a", "b"], [table(), table()])
