from __future__ import annotations

import os
import pickle
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pytest
import zarr
from small_datasets import COLUMNS, IMAGE, LABEL, add, content_of
from writes_keys import write_key

from mms_sdk.errors import Conflict, Damaged, InvalidRequest, SnapshotConflict
from mms_sdk.schema.dataset import SPLITS, Column, Snapshot
from mms_sdk.storage import files
from mms_sdk.storage.datasets import Dataset
from mms_sdk.storage.edits import rename_columns
from mms_sdk.storage.retention import collect_garbage, expire
from mms_sdk.storage.snapshots import OpenSnapshot
from mms_sdk.storage.stores.base import Store
from mms_sdk.storage.writing import WRITINGS, Writing, begin
from torture import times

DRIVER = Path(__file__).with_name("writes_keys.py")
DAY = 24.0


def folders(dataset: Dataset) -> set[str]:
    """Ids of the parts that are on disk."""
    return {path.name for path in (dataset.store.folder / "parts").iterdir()}


def own(writing: Writing) -> Path:
    return writing.store.folder / WRITINGS / writing.id


def aged(path: Path, *, hours: float) -> None:
    """As if nobody had touched it for so long."""
    then = time.time() - hours * 3600
    for each in (path, *path.rglob("*")):
        os.utime(each, (then, then))


def read_with_zarr(dataset: Dataset, record: Snapshot) -> dict[str, Any]:
    """The rows of a snapshot by Zarr alone, parts end to end."""
    found: dict[str, list[Any]] = {"image": [], "label": [], "split": [], "source": []}
    for part in record.parts:
        group = zarr.open_group(dataset.store.folder / "parts" / part.id / "data.zarr", mode="r")
        for name in ("image", "label", "split"):
            found[name].append(np.asarray(group[name]))
        bounds, text = np.asarray(group["source_offsets"]).tolist(), np.asarray(group["source_data"]).tobytes()
        found["source"] += [text[start:end] for start, end in pairwise(bounds)]
    return {name: values if name == "source" else np.concatenate(values) for name, values in found.items()}


def assert_holds_exactly(dataset: Dataset, record: Snapshot, keys: list[str], rows: int) -> None:
    """The rows of these keys, in this order, once each, and their counts."""
    found = read_with_zarr(dataset, record)
    wanted = [content_of(rows, seed=int(key)) for key in keys]
    for name in ("image", "label", "split"):
        np.testing.assert_array_equal(found[name], np.concatenate([content[name] for content in wanted]))
    assert found["source"] == [text for content in wanted for text in content["source"]]
    labels = Counter(LABEL.labels[code] for code in found["label"]) if LABEL.labels else {}
    assert record.statistics["classes"] == labels
    assert record.splits == Counter(SPLITS[code] for code in found["split"])


def refused(*arguments: object) -> None:
    raise AssertionError(f"nothing is written for a key that is sealed; got {arguments}")


# One process --------------------------------------------------------------------------------------------------------


def test_parts_of_several_writers_become_one_snapshot_in_the_order_of_their_keys(dataset: Dataset) -> None:
    writing = begin(dataset, COLUMNS)
    for key in ("000002", "000000", "000001"):
        write_key(writing, key, rows=7, batch=3)

    assert dataset.snapshots() == []
    record = writing.commit(message="three at once", expect=3)

    assert dataset.snapshots() == [1]
    assert (record.rows, record.message, len(record.parts)) == (21, "three at once", 3)
    assert_holds_exactly(dataset, record, ["000000", "000001", "000002"], 7)
    dataset.verify()


def test_rows_are_added_behind_those_that_are_there_with_their_columns_if_none_are_given(dataset: Dataset) -> None:
    add(dataset, content_of(5))
    writing = begin(dataset, None)
    write_key(writing, "1", rows=4, batch=4)
    assert add(dataset, content_of(2, seed=7)) == 2  # somebody else commits meanwhile

    record = writing.commit()

    assert (record.number, record.parent, record.rows) == (3, 2, 11)
    assert writing.columns == COLUMNS
    sources = OpenSnapshot(dataset.store.below("parts"), record).gather("source", np.arange(11))
    assert sources == [
        text for rows, seed in ((5, 0), (2, 7), (4, 1)) for text in content_of(rows, seed=seed)["source"]
    ]


def test_the_first_to_seal_a_key_is_kept_and_what_a_later_one_wrote_is_removed(dataset: Dataset) -> None:
    writing = begin(dataset, COLUMNS)
    with writing.writer("a") as slow, writing.writer("a") as quick:  # a task and its speculative copy
        slow.write(content_of(3, seed=1))
        quick.write(content_of(3, seed=2))
    (kept,) = writing.sealed()

    assert kept.part is not None
    assert folders(dataset) == {kept.part.id}
    with writing.writer("a") as late:
        late.write(content_of(3, seed=3))
    assert folders(dataset) == {kept.part.id}
    assert_holds_exactly(dataset, writing.commit(expect=1), ["2"], 3)


def test_a_writer_of_a_key_that_is_sealed_writes_nothing(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    writing = begin(dataset, COLUMNS)
    write_key(writing, "1", rows=3, batch=3)
    monkeypatch.setattr("mms_sdk.storage.writing.PartWriter", refused)

    write_key(writing, "1", rows=3, batch=3)

    assert writing.holds("1")
    assert not writing.holds("2")
    assert [(written.key, written.rows) for written in writing.sealed()] == [("1", 3)]


def test_a_writer_left_by_an_exception_leaves_nothing(dataset: Dataset) -> None:
    writing = begin(dataset, COLUMNS)
    with pytest.raises(InvalidRequest, match="a batch has exactly the columns"), writing.writer("a") as writer:
        writer.write({**content_of(3), "more": [1, 2, 3]})

    assert (writing.sealed(), folders(dataset)) == ([], set())


def test_a_key_whose_file_cannot_be_written_is_not_sealed_and_can_be_tried_again(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    writing = begin(dataset, COLUMNS)

    def full(path: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(files, "publish", full)
        with pytest.raises(OSError, match="No space left"):
            write_key(writing, "1", rows=3, batch=3)
    assert (writing.sealed(), folders(dataset)) == ([], set())

    write_key(writing, "1", rows=3, batch=3)
    assert_holds_exactly(dataset, writing.commit(), ["1"], 3)


def test_an_error_that_comes_once_a_key_is_sealed_leaves_its_part_there(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    writing, publish = begin(dataset, COLUMNS), files.publish

    def interrupted(path: Path, data: bytes) -> None:
        publish(path, data)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(files, "publish", interrupted)
        with pytest.raises(KeyboardInterrupt):
            write_key(writing, "1", rows=3, batch=3)

    write_key(writing, "1", rows=3, batch=3)  # the task is tried again
    assert_holds_exactly(dataset, writing.commit(), ["1"], 3)


def test_a_share_without_rows_counts_as_sealed(dataset: Dataset) -> None:
    writing = begin(dataset, COLUMNS)
    write_key(writing, "1", rows=2, batch=2)
    with writing.writer("0"):
        pass

    record = writing.commit(expect=2)

    assert (len(record.parts), record.rows) == (1, 2)
    assert folders(dataset) == {record.parts[0].id}


def test_a_code_that_names_no_label_is_refused_where_it_is_written(dataset: Dataset) -> None:
    writing = begin(dataset, COLUMNS)
    wrong = {**content_of(2), "label": np.array([0, 3], np.int32)}

    with (
        pytest.raises(InvalidRequest, match="codes of column 'label' are 0 to 2; got 3"),
        writing.writer("a") as writer,
    ):
        writer.write(wrong)


def test_a_commit_needs_rows_and_as_many_keys_as_expected(dataset: Dataset) -> None:
    writing = begin(dataset, COLUMNS)
    with pytest.raises(InvalidRequest, match="a commit brings rows; 0 keys"):
        writing.commit()
    with writing.writer("0"):
        pass
    with pytest.raises(InvalidRequest, match="1 keys are sealed, with no row"):
        writing.commit()
    write_key(writing, "1", rows=2, batch=2)
    with pytest.raises(InvalidRequest, match="expected 3, sealed are 2, 0, 1; write those that are missing"):
        writing.commit(expect=3)

    write_key(writing, "2", rows=2, batch=2)  # a refusal does not end the writing
    assert writing.commit(expect=3).rows == 4


def test_of_several_attempts_at_a_share_those_that_are_named_count(dataset: Dataset) -> None:
    writing = begin(dataset, COLUMNS)
    for key in ("0-7", "0-8", "1-9"):
        with writing.writer(key) as writer:
            writer.write(content_of(4, seed=int(key[-1])))
    with pytest.raises(InvalidRequest, match="keys are committed that are sealed; 1-10, 2-11 are not"):
        writing.commit(keys={"1-10", "0-8", "2-11"})

    record = writing.commit(keys=["1-9", "0-8"])

    assert_holds_exactly(dataset, record, ["8", "9"], 4)
    assert writing.commit() == record
    aged(dataset.store.folder / "parts", hours=3 * DAY)
    aged(own(writing), hours=3 * DAY)
    assert collect_garbage(dataset).folders == 1
    dataset.verify()


@pytest.mark.parametrize("key", ["", 3, None, b"a"])
def test_a_key_is_a_text(dataset: Dataset, key: Any) -> None:
    with pytest.raises(InvalidRequest, match="a key is a text"):
        begin(dataset, COLUMNS).writer(key)


def test_keys_are_no_paths(dataset: Dataset) -> None:
    writing, keys = begin(dataset, COLUMNS), ["../../x", "a/b", "closed", "x" * 5000, "ü\n\0"]
    for number, key in enumerate(keys):
        with writing.writer(key) as writer:
            writer.write(content_of(1, seed=number))

    assert [written.key for written in writing.sealed()] == sorted(keys)
    assert {path.name for path in dataset.store.folder.iterdir()} == {"dataset.json", "parts", "writing"}
    assert writing.commit().rows == 5


def test_columns_are_those_that_are_there_or_as_many_labels_more(dataset: Dataset) -> None:
    with pytest.raises(InvalidRequest, match="has no snapshot yet; give columns="):
        begin(dataset, None)
    with pytest.raises(InvalidRequest, match="each Zarr array belongs to one column"):
        begin(dataset, [IMAGE, IMAGE])
    add(dataset, content_of(2))
    with pytest.raises(InvalidRequest, match="labels may grow at their end; snapshot 1"):
        begin(dataset, [IMAGE])

    grown = LABEL.model_copy(update={"labels": (*(LABEL.labels or ()), "fox")})
    writing = begin(dataset, [grown if column is LABEL else column for column in COLUMNS])
    early = begin(dataset, None)  # knows nothing of foxes
    with writing.writer("a") as writer:
        writer.write({**content_of(1), "label": np.array([3], np.int32)})
    write_key(early, "1", rows=2, batch=2)

    assert writing.commit().statistics["classes"] == {"fox": 1}
    record = early.commit()
    assert record.columns[1].labels == ("cat", "dog", "eel", "fox")
    assert record.statistics["classes"].pop("fox") == 1


def test_other_columns_that_came_meanwhile_are_a_conflict(dataset: Dataset) -> None:
    add(dataset, content_of(2))
    writing = begin(dataset, None)
    write_key(writing, "1", rows=2, batch=2)
    rename_columns(dataset, {"source": "path"}, of=dataset.snapshot())

    with pytest.raises(SnapshotConflict, match="rows are added with the columns that snapshot 2 has"):
        writing.commit()


# Exactly once -------------------------------------------------------------------------------------------------------


def test_a_writing_is_committed_once_however_often_it_is_asked_for(dataset: Dataset) -> None:
    writing = begin(dataset, COLUMNS)
    write_key(writing, "1", rows=4, batch=4)
    first = writing.commit()

    assert writing.commit() == first
    assert pickle.loads(pickle.dumps(writing)).commit() == first
    add(dataset, content_of(1))
    assert writing.commit() == first
    expire(dataset)
    assert writing.commit() == first
    assert dataset.record().rows == 5
    assert dataset.record().streams == {}  # nothing that every later snapshot would carry


def test_a_writing_that_is_over_takes_no_new_key_and_a_late_attempt_passes_silently(dataset: Dataset) -> None:
    writing = begin(dataset, COLUMNS)
    with writing.writer("1") as speculative:
        speculative.write(content_of(4, seed=9))
        late = writing.writer("2").__enter__()
        late.write(content_of(2))
        write_key(writing, "1", rows=4, batch=4)
        record = writing.commit()
        with pytest.raises(Conflict, match=r"is over, without the key '2'"):
            late.__exit__(None, None, None)
    with pytest.raises(Conflict, match=r"is over, without the key '3'"), writing.writer("3"):
        pass

    assert_holds_exactly(dataset, record, ["1"], 4)
    assert folders(dataset) == {record.parts[0].id}


def test_a_key_that_is_sealed_while_the_writing_is_closed_is_told_and_stays(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    writing, publish = begin(dataset, COLUMNS), files.publish
    write_key(writing, "1", rows=2, batch=2)

    def closed_meanwhile(path: Path, data: bytes) -> None:
        publish(own(writing) / "closed.json", b'{"abandoned": false}')
        publish(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(files, "publish", closed_meanwhile)
        with pytest.raises(Conflict, match="was while '2' was being sealed; commit"):
            write_key(writing, "2", rows=2, batch=2)

    assert_holds_exactly(dataset, writing.commit(), ["1", "2"], 2)


def test_a_batch_of_a_stream_is_committed_once_by_whichever_writing(dataset: Dataset) -> None:
    first, again = begin(dataset, COLUMNS), begin(dataset, COLUMNS)
    for writing in (first, again):
        write_key(writing, "1", rows=4, batch=4)

    record = first.commit(once=("camera", 0))

    assert again.commit(once=("camera", 0)) == record
    assert begin(dataset, None).commit(once=("camera", 0)) == record  # even before anything is written again
    assert dataset.snapshots() == [1]
    more = begin(dataset, None)
    write_key(more, "2", rows=1, batch=1)
    assert more.commit(once=("camera", 1)).rows == 5


@pytest.mark.slow
def test_of_processes_that_commit_one_writing_at_once_all_get_the_same_snapshot(
    dataset: Dataset, tmp_path: Path
) -> None:
    add(dataset, content_of(3))
    told: list[set[str]] = []
    for number in range(5):
        writing = begin(dataset, None)
        write_key(writing, str(number), rows=2, batch=2)
        pickled = tmp_path / f"writing-{number}"
        pickled.write_bytes(pickle.dumps(writing))
        command = [sys.executable, str(DRIVER), str(pickled), "0", "1", "commit"]
        processes = [
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(3)
        ]
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
        told.append({process.communicate(timeout=60)[0].strip() for process in processes})

    assert told == [{str(number)} for number in range(2, 7)]
    assert dataset.snapshots() == list(range(1, 7))
    assert dataset.record().rows == 13


@pytest.mark.slow
def test_processes_that_write_at_once_lose_no_row_and_double_none(dataset: Dataset) -> None:
    writing = begin(dataset, COLUMNS)
    keys = [f"{number:06d}" for number in range(12)]
    with ProcessPoolExecutor(4, mp_context=get_context("spawn")) as pool:  # each key by two of them, as in speculation
        for done in [pool.submit(write_key, writing, key, rows=20, batch=6) for key in (*keys, *reversed(keys))]:
            done.result()

    record = writing.commit(expect=12)

    assert_holds_exactly(dataset, record, keys, 20)
    assert folders(dataset) == {part.id for part in record.parts}


@pytest.mark.torture
@pytest.mark.timeout(1800)
def test_writers_killed_at_any_moment_and_tried_again_bring_every_row_once(
    dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kills, rows, drawn = times(15, full=50), 400, random.Random(3)
    keys = [f"{number:06d}" for number in range(6)]
    number = killed = sealed_before = left = 0
    took: list[float] = []
    while killed < kills:  # one that was done before the moment that was drawn counts as none
        writing = begin(dataset, COLUMNS)
        pickled = tmp_path / "writing"
        pickled.write_bytes(pickle.dumps(writing))
        command = [sys.executable, str(DRIVER), str(pickled), str(rows), "10", *keys]
        told, died = killed_within_a_key(command, drawn, len(keys), took)
        killed += died
        held = {written.key for written in writing.sealed()}
        assert set(told) <= held
        sealed_before += len(held) if died else 0
        left += len(folders(dataset)) - len(held) - number * len(keys)

        for key in keys:
            write_key(writing, key, rows=rows, batch=10)
        record = writing.commit(expect=len(keys))

        added = record.model_copy(update={"parts": record.parts[-len(keys) :]})
        assert read_with_zarr(dataset, added)["source"] == [
            text for key in keys for text in content_of(rows, seed=int(key))["source"]
        ]
        assert record.rows == (number + 1) * len(keys) * rows
        collect_garbage(dataset, grace_s=0)
        assert folders(dataset) == {part.id for part in record.parts}
        number += 1
    dataset.verify()
    with capsys.disabled():
        print(
            f"\n{number} rounds: {killed} writers killed, {sealed_before} keys sealed by then, {left} parts left "
            f"behind; rows lost or twice: 0"
        )
    assert 0 < sealed_before < killed * len(keys)


def killed_within_a_key(
    command: list[str], drawn: random.Random, keys: int, took: list[float]
) -> tuple[list[str], bool]:
    """Kills a writer behind so many keys as are drawn, within the time that one more takes.

    Args:
        command: Starts it.
        drawn: Draws when.
        keys: That it writes.
        took: How long a key took so far, in seconds; what is seen is added.

    Returns:
        The keys that it told; whether it was alive when it was killed.
    """
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    told: list[str] = []
    began = time.monotonic()
    for _ in range(drawn.randrange(keys)):
        told.append(process.stdout.readline().strip())
        took.append(time.monotonic() - began)
        began = time.monotonic()
    try:
        process.wait(drawn.uniform(0, median(took or [1.0])))
        took.append((time.monotonic() - began) / (keys - len(told)))
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
    told += process.communicate()[0].split()
    return told, process.returncode == -signal.SIGKILL


# Garbage ------------------------------------------------------------------------------------------------------------


def test_an_abandoned_writing_is_collected_with_its_parts_after_two_days(dataset: Dataset) -> None:
    add(dataset, content_of(2))
    writing = begin(dataset, None)
    write_key(writing, "1", rows=3, batch=3)
    aged(dataset.store.folder / "parts", hours=3 * DAY)
    aged(own(writing), hours=1.9 * DAY)
    assert collect_garbage(dataset).folders == 0

    aged(own(writing), hours=2.1 * DAY)
    collected = collect_garbage(dataset)

    assert (collected.folders, collected.writings) == (1, 1)
    assert list((dataset.store.folder / WRITINGS).iterdir()) == []
    assert folders(dataset) == {dataset.record().parts[0].id}
    with pytest.raises(Conflict, match="is over; begin another"):
        writing.commit()
    with pytest.raises(Conflict, match="is over, without the key '2'"), writing.writer("2"):
        pass


def test_a_part_of_a_living_writing_is_kept_and_committed_however_old_it_is(dataset: Dataset) -> None:
    writing = begin(dataset, COLUMNS)
    write_key(writing, "1", rows=3, batch=3)
    aged(dataset.store.folder / "parts", hours=10 * DAY)
    aged(own(writing), hours=10 * DAY)
    write_key(writing, "2", rows=3, batch=3)  # a sign of life

    assert collect_garbage(dataset).folders == 0

    assert_holds_exactly(dataset, writing.commit(), ["1", "2"], 3)


def test_what_lay_for_a_day_since_the_last_key_was_sealed_is_not_committed(dataset: Dataset) -> None:
    writing = begin(dataset, COLUMNS)
    write_key(writing, "1", rows=3, batch=3)
    aged(dataset.store.folder / "parts", hours=1.1 * DAY)
    aged(own(writing), hours=1.1 * DAY)

    for _ in range(2):  # trying does not count as a sign of life
        with pytest.raises(Conflict, match="is committed within 24 hours"):
            writing.commit()
    assert dataset.snapshots() == []


def test_a_committed_writing_is_told_after_its_folder_is_collected(dataset: Dataset) -> None:
    writing = begin(dataset, COLUMNS)
    write_key(writing, "1", rows=3, batch=3)
    record = writing.commit()
    aged(own(writing), hours=3 * DAY)

    assert collect_garbage(dataset).writings == 1

    assert writing.commit() == record
    dataset.verify()


@pytest.mark.parametrize("harm", [b"", b"{}", b"[]", b'{"written": {}, "sha256": ""}', None])
def test_the_file_of_a_key_that_is_not_what_was_written_is_damage(dataset: Dataset, harm: bytes | None) -> None:
    writing = begin(dataset, COLUMNS)
    write_key(writing, "1", rows=3, batch=3)
    (path,) = own(writing).glob("?" * 64 + ".json")
    path.write_bytes(path.read_bytes().replace(b'"rows": 3', b'"rows": 2') if harm is None else harm)

    for act in (writing.commit, writing.sealed, lambda: collect_garbage(dataset)):
        with pytest.raises(Damaged, match=path.name):
            act()


def test_a_writing_is_a_few_hundred_bytes_on_its_way(dataset: Dataset) -> None:
    writing = begin(dataset, [Column(name="x", kind="number", dtype="float32")])

    assert pickle.loads(pickle.dumps(writing)) == writing
    assert len(pickle.dumps(writing)) < 2000


def test_many_write_to_s3_and_one_commit_joins_them(far_store: Store) -> None:
    dataset = Dataset.create(far_store.below("flowers"), "flowers")
    writing: Writing = pickle.loads(pickle.dumps(begin(dataset, COLUMNS)))
    for seed in (2, 0, 1, 1):
        with writing.writer(f"{seed}") as writer:
            writer.write(content_of(4, seed=seed))
    with pytest.raises(InvalidRequest), writing.writer("9") as writer:
        writer.write({"nothing": []})
    assert len(dataset.store.names("parts")) == 3
    record = writing.commit(expect=3)
    assert writing.commit() == record
    images = np.concatenate([content_of(4, seed=seed)["image"] for seed in range(3)])
    np.testing.assert_array_equal(dataset.snapshot().values("image"), images)
    with pytest.raises(Conflict, match="is over"), writing.writer("7"):
        pass
    later = Dataset.open(far_store.below("flowers"), "flowers")
    assert collect_garbage(later, grace_s=0).writings == 1
    assert later.snapshot().verify() > 0
