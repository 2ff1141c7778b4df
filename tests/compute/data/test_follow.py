"""Following a stream: every record in one snapshot or among the rejects, whatever happens in between."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from functools import partial

import numpy as np
import pytest
from small_streams import NUMBER, Listed, numbers

from mms_sdk.compute.data import follow as following
from mms_sdk.compute.data.follow import Batches, Following, Landing, follow
from mms_sdk.compute.data.ingest import ingest
from mms_sdk.compute.data.streams import Record, as_stream
from mms_sdk.errors import Conflict, InvalidRequest, SnapshotConflict, StorageFull
from mms_sdk.schema.cleaning import Clip, DropConstant, DropDuplicates, DropMissing, DropOutOfRange, Impute, KeepWhere
from mms_sdk.schema.dataset import Column
from mms_sdk.schema.sources import JSONL
from mms_sdk.schema.specs import IngestSpec, Split
from mms_sdk.storage import edits, parts
from mms_sdk.storage.changes import Addition
from mms_sdk.storage.datasets import Dataset
from mms_sdk.storage.stores.local import LocalStore

FIVE = Batches(rows=5, seconds=60)


@pytest.fixture
def dataset(tmp_path):
    return Dataset.create(LocalStore(tmp_path / "rows"), "rows")


@pytest.fixture
def begin(dataset, tmp_path):
    """Follows a stream as a job would; with the job's name."""

    def begin(stream, *, job="one", stop=None, columns=(NUMBER,), **asked):
        folder = tmp_path / job
        folder.mkdir(exist_ok=True)
        asked = Following(columns=columns, **{"batches": FIVE, **asked})
        stop = stop or threading.Event()
        return follow(dataset, stream, asked, job=job, folder=folder, tell=lambda _: None, stop=stop)

    begin.rejects = lambda job="one": [
        json.loads(line) for line in (tmp_path / job / "rejects.jsonl").read_text().splitlines()
    ]
    return begin


def _numbers(dataset) -> list[int]:
    snapshot = dataset.snapshot()
    snapshot.verify()
    return snapshot.values("number").tolist()


def _parts(dataset) -> set[str]:
    return set(dataset.store.names("parts"))


def test_each_batch_is_a_snapshot_with_the_position_behind_it(dataset, begin) -> None:
    followed = asyncio.run(begin(Listed(numbers(12)), message="from afar"))

    assert (followed.snapshots, followed.rows, followed.rejected) == (3, 12, 0)
    records = [dataset.record(number) for number in dataset.snapshots()]
    assert [record.rows for record in records] == [5, 10, 12]
    assert [record.positions for record in records] == [{"list": {"next": end}} for end in (5, 10, 12)]
    assert [record.streams for record in records] == [{"list": batch} for batch in (0, 1, 2)]
    assert {record.message for record in records} == {"from afar"}
    assert _numbers(dataset) == list(range(12))
    snapshot = dataset.snapshot()
    assert snapshot.column("row_source").labels == ("list",)
    assert set(snapshot.values("row_source").tolist()) == {0}
    assert snapshot.record.splits == {
        name: rows for name, rows in _counted(snapshot.values("split"), ("train", "val", "test")).items() if rows
    }
    assert snapshot.record.split_rule["by"] == "content"


def _counted(codes, names) -> dict[str, int]:
    return {name: int(np.count_nonzero(codes == code)) for code, name in enumerate(names)}


def test_it_goes_on_behind_the_last_position_whatever_was_committed_meanwhile(dataset, begin) -> None:
    asyncio.run(begin(Listed(numbers(7), name="a")))
    asyncio.run(begin(Listed(numbers(3, begin=100), name="b")))
    edits.compact(dataset, of=dataset.snapshot())
    edits.delete_rows(dataset, [0], of=dataset.snapshot())

    stream = Listed(numbers(9), name="a")
    asyncio.run(begin(stream, job="two"))

    assert stream.given == [7, 8]
    assert _numbers(dataset) == [*range(1, 7), 100, 101, 102, 7, 8]
    assert dataset.record().positions == {"a": {"next": 9}, "b": {"next": 3}}
    assert dataset.snapshot().column("row_source").labels == ("a", "b")
    assert dataset.snapshot().values("row_source").tolist() == [0] * 6 + [1] * 3 + [0] * 2


def test_rows_of_a_stream_are_not_placed_by_a_column_and_nothing_is_read(dataset, begin) -> None:
    stream = Listed(numbers(3))

    with pytest.raises(InvalidRequest, match=r"rows of a stream are placed by class or content; use mms\.Split"):
        asyncio.run(begin(stream, split=Split(by="time", column="number")))

    assert not dataset.snapshots()


def test_nothing_new_makes_no_snapshot(dataset, begin) -> None:
    asyncio.run(begin(Listed([])))
    assert dataset.snapshots() == []
    asyncio.run(begin(Listed(numbers(3))))
    assert asyncio.run(begin(Listed(numbers(3)))).snapshots == 0
    assert dataset.snapshots() == [1]


def test_a_batch_is_due_by_rows_bytes_or_seconds() -> None:
    batches = Batches(rows=10, bytes=100, seconds=5)
    assert not batches.due(rows=9, size=99, age_s=4.9)
    assert batches.due(rows=10, size=0, age_s=0)
    assert batches.due(rows=1, size=100, age_s=0)
    assert batches.due(rows=1, size=1, age_s=5)
    assert not batches.due(rows=0, size=0, age_s=100)
    for wrong in (
        {"rows": 0},
        {"bytes": -1},
        {"seconds": float("nan")},
        {"rows": "5"},
        {"bytes": 2**31},
        {"seconds": None},
    ):
        with pytest.raises(InvalidRequest, match="of a batch is a number from"):
            Batches(**wrong)


def test_a_stream_that_waits_is_committed_after_the_seconds_and_ends_when_told(dataset, begin) -> None:
    stop = threading.Event()

    async def watch():
        running = asyncio.create_task(begin(Listed(numbers(3), end="waits"), stop=stop, batches=Batches(seconds=0.2)))
        while not dataset.snapshots():
            await asyncio.sleep(0.02)
        assert not running.done()
        stop.set()
        return await running

    assert asyncio.run(watch()).rows == 3
    assert _numbers(dataset) == [0, 1, 2]


def test_what_was_read_is_committed_when_the_stream_fails(dataset, begin) -> None:
    with pytest.raises(OSError, match="the source is gone"):
        asyncio.run(begin(Listed(numbers(8), end="fails")))
    assert _numbers(dataset) == list(range(8))


def test_what_was_read_is_committed_when_it_is_cancelled(dataset, begin) -> None:
    async def cancel():
        running = asyncio.create_task(begin(Listed(numbers(8), end="waits")))
        while not dataset.snapshots():
            await asyncio.sleep(0.01)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

    asyncio.run(cancel())
    assert _numbers(dataset) == list(range(8))


@pytest.mark.parametrize("how", ["stop", "cancel"])
def test_nothing_that_was_read_of_an_iterator_is_lost_when_it_is_ended_meanwhile(dataset, begin, how) -> None:
    given, stop = [], threading.Event()

    async def plain():
        for number in range(10**6):
            given.append(number)
            yield {"number": number}
            if number % 3 == 0:
                await asyncio.sleep(0)

    async def end():
        running = asyncio.create_task(begin(as_stream(plain()), stop=stop))
        while len(dataset.snapshots()) < 3:
            await asyncio.sleep(0.001)
        if how == "stop":
            stop.set()
        else:
            running.cancel()
        await asyncio.wait([running])

    asyncio.run(end())
    assert _numbers(dataset) == given


def test_what_records_gives_is_an_async_generator(begin) -> None:
    class Awaited(Listed):
        def records(self, after):
            return iter([])

    with pytest.raises(InvalidRequest, match=r"records\(after\) is an async generator; got list_iterator"):
        asyncio.run(begin(Awaited(numbers(3))))


def test_no_more_is_read_than_one_batch_ahead_of_what_is_written(dataset, begin, monkeypatch) -> None:
    stream, land, ahead = Listed(numbers(60)), Landing.land, []

    def slowly(self, batch):
        time.sleep(0.02)
        done = land(self, batch)
        ahead.append(len(stream.given) - dataset.record().rows)
        return done

    monkeypatch.setattr(Landing, "land", slowly)
    asyncio.run(begin(stream))
    assert len(ahead) == 12
    assert max(ahead) == 5


def test_a_record_that_does_not_fit_goes_to_the_rejects_and_the_others_come_in(dataset, begin) -> None:
    text = Column(name="text", kind="text", dtype="uint8", shape=None, nullable=True)
    items = [
        {"number": 0, "text": "a", "beside": object()},
        {"number": "1"},
        {"text": "no number"},
        {"number": None},
        "no mapping",
        {"number": 5, "text": "x" * 2000},
        {"number": 6, "text": None},
    ]
    followed = asyncio.run(begin(Listed(items), columns=(NUMBER, text), batches=Batches(rows=3, bytes=1000)))

    assert (followed.rows, followed.rejected) == (2, 5)
    assert _numbers(dataset) == [0, 6]
    assert dataset.snapshot().gather("text", [0, 1]) == [b"a", None]
    assert begin.rejects() == [
        {"source": "item 1", "reason": "column 'number' takes whole numbers from -9223372036854775808 to "
         "9223372036854775807; got '1'"},
        {"source": "list, item 2", "reason": "no value in 'number'"},
        {"source": "item 4", "reason": "a record is values by column; got str"},
        {"source": "item 5", "reason": "a record weighs at most as much as a batch, 1,000 bytes; got 2,008"},
        {"source": "list, item 3", "reason": "no value in 'number'"},
    ]  # fmt: skip
    reports = [dataset.record(number).provenance for number in dataset.snapshots()]
    assert [(each["cleaning"]["found"], each["cleaning"]["kept"]) for each in reports] == [(3, 1), (3, 0), (1, 1)]
    assert reports[0]["cleaning"]["notes"][0].startswith("2 × left out, e.g. item 1: column 'number' takes")
    spans = [each["rejects"] for each in reports]
    assert [begin for begin, _ in spans] == [0, *(end for _, end in spans[:-1])]


def test_a_batch_of_nothing_but_rejects_moves_the_position_even_before_there_is_a_row(dataset, begin) -> None:
    asyncio.run(begin(Listed([{}] * 6)))
    assert [dataset.record(number).rows for number in dataset.snapshots()] == [0, 0]
    assert dataset.snapshot().values("number").tolist() == []
    stream = Listed([*[{}] * 6, {"number": 7}])
    asyncio.run(begin(stream, job="two", columns=None))
    assert stream.given == [6]
    assert _numbers(dataset) == [7]


def test_the_list_of_rejects_is_bounded_and_what_is_beyond_is_counted(dataset, begin, monkeypatch) -> None:
    monkeypatch.setattr(following, "MAX_REJECTS_BYTES", 1000)
    followed = asyncio.run(begin(Listed([{"number": "x"}] * 30)))
    assert followed.rejected == 30
    assert len(begin.rejects()) == 5
    last = dataset.record().provenance
    assert last["rejects"] is None
    assert last["cleaning"]["notes"][0].startswith("5 × left out, e.g. item 25")
    assert last["cleaning"]["notes"][1] == "what was left out is no longer listed: the list has its greatest length"


def test_two_followers_at_once_bring_each_record_once(dataset, begin, tmp_path) -> None:
    streams = [Listed(numbers(60)) for _ in range(2)]

    async def race():
        return await asyncio.gather(*(begin(stream, job=f"job{at}") for at, stream in enumerate(streams)))

    followed = asyncio.run(race())
    assert sorted(_numbers(dataset)) == list(range(60))
    assert sum(each.rows for each in followed) == 60
    assert dataset.record().positions == {"list": {"next": 60}}
    assert _parts(dataset) == {part.id for part in dataset.record().parts}  # nothing of those that lost stays


def test_two_attempts_at_one_job_at_once_bring_each_record_once(dataset, begin) -> None:
    async def late():
        for number in range(10):
            if number == 2:  # a shorter batch of the same number
                await asyncio.to_thread(lambda: asyncio.run(begin(Listed(numbers(3), name="mine"))))
            yield {"next": number + 1}, {"number": number}

    with pytest.raises(Conflict, match="another one of stream 'mine' was first"):
        asyncio.run(begin(as_stream(late(), name="mine")))
    assert _numbers(dataset) == [0, 1, 2]


def test_two_streams_at_once_bring_the_records_of_both(dataset, begin) -> None:
    async def race():
        await asyncio.gather(*(begin(Listed(numbers(20, begin=at), name=f"s{at}"), job=f"{at}") for at in (0, 100)))

    asyncio.run(race())
    assert sorted(_numbers(dataset)) == [*range(20), *range(100, 120)]
    snapshot = dataset.snapshot()
    sources = np.array(snapshot.column("row_source").labels)[snapshot.values("row_source")]
    assert (sources == "s100").tolist() == (snapshot.values("number") >= 100).tolist()
    assert snapshot.record.positions == {"s0": {"next": 20}, "s100": {"next": 20}}


def test_an_iterator_that_was_overtaken_says_so_since_it_cannot_begin_again(dataset, begin) -> None:
    async def pairs():
        for number in range(20):
            if number == 2:
                await asyncio.to_thread(lambda: asyncio.run(begin(Listed(numbers(3), name="mine"), job="other")))
            yield {"next": number + 1}, {"number": number}

    with pytest.raises(Conflict, match="another one of stream 'mine' was first"):
        asyncio.run(begin(as_stream(pairs(), name="mine")))


def test_records_without_positions_come_in_as_they_come(dataset, begin) -> None:
    async def plain():
        for number in range(7):
            yield {"number": number}

    for _ in range(2):
        asyncio.run(begin(as_stream(plain())))
    assert _numbers(dataset) == [*range(7), *range(7)]
    assert (dataset.record().streams, dataset.record().positions) == ({}, {})


def test_a_position_that_is_none_is_refused_and_nothing_comes_in(dataset, begin) -> None:
    for position in ({1: 2}, b"x", 2**64, "x" * 70_000, object()):

        async def pairs(position=position):
            yield position, {"number": 1}

        with pytest.raises(InvalidRequest, match="a stream's position is"):
            asyncio.run(begin(as_stream(pairs())))
    assert dataset.snapshots() == []
    assert _parts(dataset) == set()


def test_after_a_batch_that_could_not_be_written_none_is(dataset, begin, monkeypatch) -> None:
    commit, calls = Landing._commit, []

    def full(self, kept, *rest):
        calls.append(len(kept))
        if len(calls) == 2:
            raise StorageFull("no space left")
        return commit(self, kept, *rest)

    monkeypatch.setattr(Landing, "_commit", full)
    with pytest.raises(StorageFull):
        asyncio.run(begin(Listed(numbers(20))))
    assert _numbers(dataset) == list(range(5))
    assert len(calls) == 2
    asyncio.run(begin(Listed(numbers(20)), job="two"))
    assert _numbers(dataset) == list(range(20))


def test_steps_that_look_at_one_record_clean_it(dataset, begin) -> None:
    columns = (NUMBER, Column(name="kind", kind="category", dtype="int32", labels=("a", "b")))
    items = [{"number": number, "kind": kind} for number, kind in zip(range(8), "abab?bab", strict=True)]
    items[3]["kind"] = None
    clean = [
        Impute("kind", by="value", value="b"),
        DropOutOfRange("number", max=6),
        KeepWhere("kind == 'b'"),
        Clip("number", max=4),
        DropMissing(columns=("number",)),
    ]
    asyncio.run(begin(Listed(items), columns=columns, clean=clean, batches=Batches()))
    assert _numbers(dataset) == [1, 3, 4]
    steps = dataset.record().provenance["cleaning"]["steps"]
    assert [(step["step"], step["dropped"]) for step in steps] == [
        ("impute", 0),
        ("drop-out-of-range", 1),
        ("keep-where", 3),
        ("clip", 0),
        ("drop-missing", 0),
    ]
    assert len(begin.rejects()) == 5


@pytest.mark.parametrize(
    "step", [DropDuplicates(), DropConstant(), Impute("number"), Impute("number", by="most-frequent")]
)
def test_a_step_that_needs_all_rows_is_refused(begin, step) -> None:
    with pytest.raises(InvalidRequest, match="a stream is cleaned record by record"):
        asyncio.run(begin(Listed(numbers(3)), clean=[step]))


def test_a_record_that_a_step_cannot_look_at_goes_to_the_rejects_and_the_others_come_in(dataset, begin) -> None:
    items = [*numbers(5), {"number": 0}, *numbers(3, begin=1)]
    asyncio.run(begin(Listed(items), clean=[KeepWhere("12 / number >= 3")], batches=Batches()))
    assert _numbers(dataset) == [1, 2, 3, 4, 1, 2, 3]
    reason = "a cleaning step cannot look at it: divide by zero"
    assert begin.rejects() == [{"source": f"list, item {at}", "reason": reason} for at in (0, 5)]
    assert dataset.record().provenance["cleaning"]["notes"] == [f"2 × left out, e.g. list, item 0: {reason}"]


def test_names_and_reasons_that_are_no_unicode_are_written_out(dataset, begin) -> None:
    async def odd():
        yield Record(1, {"number": 1}, "fits \udc80")
        yield Record(2, None, "\ud800" * 1000, "torn \udcff")
        yield Record(3, {"number": 2, "\ud800": 3}, 7)  # a name that is none

    asyncio.run(begin(as_stream(odd())))
    assert _numbers(dataset) == [1, 2]
    [reject] = begin.rejects()
    assert reject["reason"] == r"torn \udcff"
    assert reject["source"] == r"\ud800" * 300


def test_what_is_filled_in_is_a_label(begin) -> None:
    kind = Column(name="kind", kind="category", dtype="int32", labels=("a", "b"))
    with pytest.raises(InvalidRequest, match="what is filled in is a label of the column; 'c' is none"):
        asyncio.run(begin(Listed([]), columns=(kind,), clean=[Impute("kind", by="value", value="c")]))


def test_the_same_content_is_in_the_same_split_whoever_brings_it(dataset, begin, tmp_path) -> None:
    half = Split(train=0.5, val=0.25, test=0.25, seed=3)
    asyncio.run(begin(Listed(numbers(400)), split=half, batches=Batches()))
    asyncio.run(begin(Listed(numbers(400), name="again"), split=half, job="two", batches=Batches()))
    splits = dataset.snapshot().values("split")
    np.testing.assert_array_equal(splits[:400], splits[400:])
    assert np.bincount(splits[:400]).tolist() == pytest.approx([200, 100, 100], abs=40)


def test_a_stream_adds_to_an_ingested_table_and_a_table_to_what_a_stream_brought(dataset, begin, tmp_path) -> None:
    (tmp_path / "in.jsonl").write_text("".join(f'{{"number": {number}}}\n' for number in range(10)))
    spec = IngestSpec(source=JSONL(tmp_path / "in.jsonl"))
    (tmp_path / "one").mkdir()
    ingest(dataset, spec, job="one", folder=tmp_path / "one", tell=lambda _: None)
    asyncio.run(begin(Listed(numbers(3, begin=5)), columns=None, job="two"))
    _, report = ingest(dataset, spec, job="one", folder=tmp_path / "one", tell=lambda _: None)

    assert _numbers(dataset) == [*range(10), 5, 6, 7]
    assert (report.already_present, report.kept) == (10, 0)
    snapshot = dataset.snapshot()
    assert snapshot.column("row_source").labels == ("in.jsonl", "list")
    ids = snapshot.values("row_id")
    np.testing.assert_array_equal(ids[5:8], ids[10:])  # the same values have the same digest
    assert snapshot.record.positions == {"list": {"next": 3}}


def test_labels_may_grow_before_it_and_meanwhile(dataset, begin) -> None:
    kind = Column(name="label", kind="label", dtype="int32", labels=("a",))
    more = kind.model_copy(update={"labels": ("a", "b")})
    asyncio.run(begin(Listed([{"label": "a"}]), columns=(kind,)))

    async def meanwhile():
        yield {"label": "a"}
        await asyncio.to_thread(
            lambda: asyncio.run(begin(Listed([{"label": "b"}], name="x"), columns=(more,), job="x"))
        )
        yield {"label": "a"}

    asyncio.run(begin(as_stream(meanwhile()), columns=None, job="two"))
    snapshot = dataset.snapshot()
    assert snapshot.column("label").labels == ("a", "b")
    assert snapshot.values("label").tolist() == [0, 1, 0, 0]
    assert snapshot.record.statistics == {"classes": {"a": 3, "b": 1}}
    sources = snapshot.column("row_source").labels
    assert [sources[code] for code in snapshot.values("row_source")] == ["list", "x", "records", "records"]


def test_columns_that_change_meanwhile_end_it(dataset, begin) -> None:
    async def meanwhile():
        for number in range(10):
            if number == 7:
                while not dataset.snapshots():
                    await asyncio.sleep(0.01)
                edits.rename_columns(dataset, {"number": "n"}, of=dataset.snapshot())
            yield {"number": number}

    with pytest.raises(SnapshotConflict, match="a stream's rows have the columns that its dataset has"):
        asyncio.run(begin(as_stream(meanwhile())))
    assert dataset.snapshot().values("n").tolist() == list(range(5))


@pytest.mark.parametrize(
    ("columns", "rule"),
    [
        (None, "a dataset begins with its columns"),
        ((), "a dataset begins with its columns"),
        ((NUMBER, Column(name="split", kind="number", dtype="int8")), "are made by MMS; leave"),
        ((NUMBER, NUMBER), "each Zarr array belongs to one column"),
    ],
)
def test_columns_that_cannot_be_are_refused(dataset, begin, columns, rule) -> None:
    with pytest.raises(InvalidRequest, match=rule):
        asyncio.run(begin(Listed(numbers(3)), columns=columns))
    assert dataset.snapshots() == []


def test_other_columns_than_the_dataset_has_are_refused(dataset, begin) -> None:
    asyncio.run(begin(Listed(numbers(3))))
    other = NUMBER.model_copy(update={"dtype": "int8"})
    beside = NUMBER.model_copy(update={"name": "beside"})
    for columns in ((other,), (NUMBER, beside), (beside,)):
        with pytest.raises(InvalidRequest, match="rows are added with the columns that are there"):
            asyncio.run(begin(Listed(numbers(3), name="x"), columns=columns))


def test_a_dataset_without_the_columns_of_rows_is_refused(dataset, begin) -> None:
    with dataset.writer((NUMBER,)) as writer:
        writer.write({"number": np.arange(3)})
        dataset.commit(Addition(parts=[writer.close()], columns=(NUMBER,)), base=None, rebase=False)
    with pytest.raises(InvalidRequest, match="has no 'row_source'; follow it into another"):
        asyncio.run(begin(Listed(numbers(3))))


def test_a_name_under_which_batches_without_positions_came_is_refused(dataset, begin) -> None:
    asyncio.run(begin(Listed(numbers(3))))
    base = dataset.record()
    dataset.commit(Addition(parts=(), columns=base.columns), base=base, rebase=True, once=("spark", 4))
    with pytest.raises(InvalidRequest, match="batch 4 of 'spark' in 'rows' has none"):
        asyncio.run(begin(Listed(numbers(3), name="spark")))


def test_small_parts_are_put_together_by_the_way(dataset, begin) -> None:
    asyncio.run(begin(Listed(numbers(20)), batches=Batches(rows=2, compact_every=4)))
    assert _numbers(dataset) == list(range(20))
    assert len(dataset.record().parts) == 3
    assert dataset.record().positions == {"list": {"next": 20}}


def test_columns_lie_as_suits_the_place_unless_it_is_said_how(dataset, begin, monkeypatch) -> None:
    photo = Column(name="photo", kind="encoded-image", dtype="uint8", shape=None, nullable=True)
    said = Column(name="said", kind="number", dtype="int64", profile="zstd")
    columns, records = (NUMBER, said, photo), [{"number": number, "said": -number} for number in range(5)]
    lie_far_away = partial(parts.laid_out, remote=True)
    with monkeypatch.context() as patch:
        patch.setattr(following, "laid_out", lambda columns, profile, **_: lie_far_away(columns, profile))
        asyncio.run(begin(Listed(records), columns=columns))

    profiles = {column.name: column.profile for column in dataset.record().columns}
    assert profiles == {
        "number": "blosc",
        "said": "zstd",
        "photo": "raw",
        "row_source": "blosc",
        "row_id": "raw",
        "split": "blosc",
    }
    asyncio.run(begin(Listed([*records, *records]), columns=columns))  # as the rows that are there
    assert _numbers(dataset) == [0, 1, 2, 3, 4] * 2
    assert {column.name: column.profile for column in dataset.record().columns} == profiles


def test_a_stream_asks_where_its_dataset_lies(dataset, begin, monkeypatch) -> None:
    asked = []
    monkeypatch.setattr(following, "laid_out", lambda columns, *_, remote: asked.append(remote) or tuple(columns))
    asyncio.run(begin(Listed(numbers(5))))
    assert asked == [False]
