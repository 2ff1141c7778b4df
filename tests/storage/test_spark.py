"""Jobs of a real Spark, on two cores of this machine."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_datasets
from PIL import Image
from small_datasets import COLUMNS, content_of
from spark_session import spark_session

import mms_sdk as mms
from mms_sdk.errors import DataError, InvalidRequest, NothingToIngest

if shutil.which("java") is None:
    pytest.skip(
        "needs the program `java` (Debian's default-jre-headless), which Spark runs on", allow_module_level=True
    )

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    # Of the tests' own frames; and of starting Java from a process that has loaded JAX: its fork is followed by exec.
    pytest.mark.filterwarnings("ignore:PySpark does not yet fully support pandas:FutureWarning"),
    pytest.mark.filterwarnings(r"ignore:os\.fork\(\) was called:RuntimeWarning"),
]
DRIVER = Path(__file__).with_name("streams_pictures.py")
Pixels = dict[bytes, tuple[str, Any]]


@pytest.fixture(scope="module")
def spark(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    session = spark_session(tmp_path_factory.mktemp("spark"))
    session.sparkContext.addPyFile(small_datasets.__file__)  # what tests send to tasks is looked up there
    yield session
    session.stop()


@pytest.fixture
def ws(tmp_path: Path) -> Iterator[mms.WorkspaceClient]:
    with mms.connect(workspace=tmp_path / "workspace") as found:
        yield found


def draw(folder: Path, labels: Iterable[str], of_each: int, *, size: tuple[int, int] = (6, 8), seed: int = 0) -> Pixels:
    """Random pictures below a sub-folder for each label; by the name each has in a dataset, its label and pixels."""
    rng = np.random.default_rng(seed)
    drawn = {}
    for label in labels:
        (folder / label).mkdir(parents=True, exist_ok=True)
        for number in range(of_each):
            pixels = rng.integers(0, 256, (*size, 3), np.uint8)
            name = f"{seed} {number:02} ü.png"
            Image.fromarray(pixels).save(folder / label / name)
            drawn[f"{label}/{name}".encode()] = (label, pixels)
    return drawn


def binary_files(spark: Any, folder: Path) -> Any:
    return spark.read.format("binaryFile").load(f"{folder}/*/*")


def assert_holds_exactly(dataset: mms.Dataset, drawn: Pixels) -> None:
    """Every picture once, with its label and its pixels."""
    rows = dataset.open()
    everything = np.arange(rows.rows)
    sources = rows.gather("source", everything)
    assert Counter(sources) == Counter(drawn.keys())
    images, codes = rows.gather("image", everything), rows.values("label")
    for source, picture, code in zip(sources, images, codes, strict=True):
        label, pixels = drawn[source]
        assert dataset.labels[code] == label
        np.testing.assert_array_equal(picture, pixels)
    assert dataset.classes == Counter(label for label, _ in drawn.values())
    assert sum(dataset.splits.values()) == len(drawn)


# Pictures -----------------------------------------------------------------------------------------------------------


def test_a_folder_of_pictures_becomes_a_dataset_in_three_lines(
    spark: Any, ws: mms.WorkspaceClient, tmp_path: Path
) -> None:
    drawn = draw(tmp_path / "photos", ("cat", "a dog"), 20)

    frame = spark.read.format("binaryFile").load(str(tmp_path / "photos/*/*.png")).repartition(5)
    pets = ws.datasets.write_spark("pets", frame, message="by Spark")

    assert (pets.ref, pets.labels, pets.info.message) == ("pets@1", ("a dog", "cat"), "by Spark")
    assert_holds_exactly(pets, drawn)
    assert len(pets.open().record.parts) == 5
    ids = pets.open().gather("id", np.arange(pets.rows))
    sources = pets.open().gather("source", np.arange(pets.rows))
    for content, source in zip(ids, sources, strict=True):
        file = (tmp_path / "photos" / source.decode()).read_bytes()
        assert content.tobytes() == hashlib.blake2b(file, digest_size=16).digest()
    ws.datasets.verify("pets", progress=False)


def test_what_spark_wrote_and_an_ingest_of_the_same_folder_are_the_same_rows(
    spark: Any, ws: mms.WorkspaceClient, tmp_path: Path
) -> None:
    drawn = draw(tmp_path / "photos", ("cat", "dog"), 6)
    by_spark = ws.datasets.write_spark("pets", binary_files(spark, tmp_path / "photos"))
    alone = ws.datasets.ingest("alone", tmp_path / "photos", progress=False)
    again = ws.datasets.ingest("pets", tmp_path / "photos", progress=False)

    assert by_spark.info.columns == alone.info.columns
    assert again.cleaning is not None
    assert (again.rows, again.cleaning.already_present) == (12, 12)
    assert_holds_exactly(again, drawn)


def test_rows_of_tasks_that_fail_or_are_killed_and_are_run_again_come_in_once(
    spark: Any, ws: mms.WorkspaceClient, tmp_path: Path
) -> None:
    drawn = draw(tmp_path / "photos", ("cat", "dog"), 20)
    died = tmp_path / "died"
    died.mkdir()

    def flaky(
        batches: Iterable[Any],
    ) -> Iterator[Any]:  # fails in the middle of partitions 0 and 1, when they are written
        from pyspark import TaskContext

        context = TaskContext.get()
        assert context is not None
        number, attempt = context.partitionId(), context.attemptNumber()
        for batch in batches:
            yield batch.slice(0, 3)
            if attempt == 0 and number < 2:
                (died / f"{number}-{context.stageId()}").touch()
                if number == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                raise ValueError("this task fails the first time")
            yield batch.slice(3)

    frame = binary_files(spark, tmp_path / "photos").repartition(4)
    pets = ws.datasets.write_spark("pets", frame.mapInArrow(flaky, frame.schema))

    assert len(list(died.iterdir())) == 4  # two partitions, in each of the two passes
    assert_holds_exactly(pets, drawn)


def test_pictures_of_several_sizes_are_kept_as_the_bytes_of_their_files(
    spark: Any, ws: mms.WorkspaceClient, tmp_path: Path
) -> None:
    draw(tmp_path / "photos", ("cat",), 3)
    draw(tmp_path / "photos", ("dog",), 3, size=(9, 5))

    pets = ws.datasets.write_spark("pets", binary_files(spark, tmp_path / "photos"))

    rows = pets.open()
    assert pets.info.columns[0].kind == "encoded-image"
    everything = np.arange(rows.rows)
    files = zip(rows.gather("source", everything), rows.gather("image", everything), strict=True)
    assert all((tmp_path / "photos" / source.decode()).read_bytes() == content for source, content in files)


def test_new_labels_go_behind_the_old_and_other_sizes_are_refused(
    spark: Any, ws: mms.WorkspaceClient, tmp_path: Path
) -> None:
    drawn = draw(tmp_path / "first", ("cat", "eel"), 3)
    ws.datasets.write_spark("pets", binary_files(spark, tmp_path / "first"))
    more = draw(tmp_path / "second", ("dog", "eel"), 2, seed=1)

    pets = ws.datasets.write_spark("pets", binary_files(spark, tmp_path / "second"))

    assert pets.labels == ("cat", "eel", "dog")
    assert_holds_exactly(pets, drawn | more)
    draw(tmp_path / "third", ("cat",), 2, size=(3, 3))
    with pytest.raises(DataError, match="the size of those in the dataset, 8×6; some are 3×3"):
        ws.datasets.write_spark("pets", binary_files(spark, tmp_path / "third"))
    assert ws.datasets.get("pets").ref == pets.ref


def test_unreadable_files_are_an_error_or_dropped_and_told(spark: Any, ws: mms.WorkspaceClient, tmp_path: Path) -> None:
    drawn = draw(tmp_path / "photos", ("cat", "dog"), 4)
    (tmp_path / "photos" / "cat" / "bad.png").write_bytes(b"no picture")
    frame = binary_files(spark, tmp_path / "photos")

    with pytest.raises(DataError, match=r"1 of 9 do not, e\.g\. cat/bad\.png: .* drop such files"):
        ws.datasets.write_spark("pets", frame)
    pets = ws.datasets.write_spark("pets", frame, clean=mms.drop_unreadable())

    assert_holds_exactly(pets, drawn)
    report = pets.cleaning
    assert report is not None
    assert (report.found, report.kept, report.dropped) == (9, 8, 1)
    assert report.steps[0].examples[0].source == "cat/bad.png"
    with pytest.raises(InvalidRequest, match=r"look at \.cleaning"):
        pets.rejects()
    bad = frame.filter("path like '%bad.png'")
    with pytest.raises(NothingToIngest, match="all 1 were left out"):
        ws.datasets.write_spark("empty", bad, clean=mms.drop_unreadable())


def test_a_label_column_comes_before_the_folder_and_splits_go_by_content(
    spark: Any, ws: mms.WorkspaceClient, tmp_path: Path
) -> None:
    from pyspark.sql import functions

    draw(tmp_path / "photos", ("in",), 200)
    frame = binary_files(spark, tmp_path / "photos").withColumn("label", functions.lit("pet"))

    half = mms.Split(train=0.5, val=0.25, test=0.25, seed=3)
    one = ws.datasets.write_spark("one", frame, split=half)
    two = ws.datasets.write_spark("two", frame.repartition(3), split=half)

    assert one.classes == {"pet": 200}
    places = []
    for dataset in (one, two):
        rows = dataset.open()
        sources = rows.gather("source", np.arange(200))
        places.append(dict(zip(sources, rows.values("split").tolist(), strict=True)))
    assert places[0] == places[1]
    assert one.splits == two.splits
    for name, share in (("train", 0.5), ("val", 0.25), ("test", 0.25)):  # within four standard deviations
        assert abs(one.splits[name] - 200 * share) < 4 * (200 * share * (1 - share)) ** 0.5


# Other rows ---------------------------------------------------------------------------------------------------------


def test_columns_of_a_frame_are_kept_as_they_are_declared(spark: Any, ws: mms.WorkspaceClient) -> None:
    values = [(n, n / 2, [float(n), float(-n)], f"ä{n}", None if n % 3 else n, "ab"[n % 2]) for n in range(50)]
    frame = spark.createDataFrame(
        values, "n long, half double, pair array<float>, word string, hole int, label string"
    ).repartitionByRange(4, "n")
    columns = [
        mms.Column(name="n", kind="number", dtype="int64"),
        mms.Column(name="half", kind="number", dtype="float32"),
        mms.Column(name="pair", kind="embedding", dtype="float32", shape=(2,)),
        mms.Column(name="word", kind="text", dtype="uint8", shape=None),
        mms.Column(name="hole", kind="number", dtype="int32", nullable=True),
        mms.Column(name="label", kind="label", dtype="int32", labels=("a", "b")),
    ]

    table = ws.datasets.write_spark("table", frame, columns=columns)

    rows = table.open()
    order = np.arange(50)
    assert rows.values("n").tolist() == list(range(50))  # ranges in the order of their partitions
    np.testing.assert_array_equal(rows.values("half"), order / 2)
    np.testing.assert_array_equal(rows.gather("pair", order), np.stack([order, -order], 1))
    assert rows.gather("word", order) == [f"ä{n}".encode() for n in range(50)]
    assert rows.gather("hole", order).tolist() == [None if n % 3 else n for n in range(50)]
    assert rows.values("label").tolist() == [n % 2 for n in range(50)]
    assert table.classes == {"a": 25, "b": 25}


@pytest.mark.parametrize(
    ("column", "value", "match"),
    [
        (mms.Column(name="x", kind="label", dtype="int32", labels=("a",)), "'b'", r"labels of column 'x' .* got 'b'"),
        (mms.Column(name="x", kind="number", dtype="uint8"), "300", r"values of column 'x' are uint8"),
        (
            mms.Column(name="x", kind="number", dtype="uint8"),
            "cast(null as int)",
            r"every row of column 'x' has a value",
        ),
        (
            mms.Column(name="x", kind="embedding", dtype="int32", shape=(2,)),
            "array(1, 2, 3)",
            r"have 2 values; some have",
        ),
    ],
)
def test_values_that_do_not_fit_their_column_fail_the_job_and_commit_nothing(
    spark: Any, ws: mms.WorkspaceClient, column: mms.Column, value: str, match: str
) -> None:
    from pyspark.errors import PySparkException

    with pytest.raises(PySparkException, match=match):
        ws.datasets.write_spark("table", spark.sql(f"select {value} as x"), columns=[column])
    assert ws.datasets.list() == []


def test_a_task_whose_input_fails_half_way_seals_half_a_partition_that_does_not_count(
    spark: Any, ws: mms.WorkspaceClient
) -> None:
    def fails_half_way(batches: Iterable[Any]) -> Iterator[Any]:
        from pyspark import TaskContext

        context = TaskContext.get()
        assert context is not None
        for number, batch in enumerate(batches):
            yield batch
            if number == 15 and context.attemptNumber() == 0:
                time.sleep(1)  # until the task that writes has taken what there is
                raise ValueError("this task fails the first time")

    column = mms.Column(name="id", kind="number", dtype="int64")
    frame = spark.range(200_000).coalesce(1)
    numbers = ws.datasets.write_spark("numbers", frame.mapInArrow(fails_half_way, frame.schema), columns=[column])

    np.testing.assert_array_equal(numbers.open().values("id"), np.arange(200_000))
    assert sorted(sealed_rows(ws)) == [pytest.approx(150_000, abs=49_999), 200_000]  # Spark said that was all of it


def test_rows_are_those_of_the_attempt_that_spark_took(spark: Any, ws: mms.WorkspaceClient) -> None:
    def changing(batches: Iterable[Any]) -> Iterator[Any]:
        from pyspark import TaskContext

        context = TaskContext.get()
        assert context is not None
        yield from [batch.slice(0, 2 + context.attemptNumber()) for batch in batches]

    def fails_once(batches: Iterable[Any]) -> Iterator[Any]:
        from pyspark import TaskContext

        context = TaskContext.get()
        assert context is not None
        yield from batches
        if context.attemptNumber() == 0:
            raise ValueError("this task fails the first time")

    column = mms.Column(name="id", kind="number", dtype="int64")
    frame = spark.range(20).coalesce(1)
    # What fails is behind the writing, as a machine that is lost once its task has sealed its rows.
    changed = FailsBehind(frame.mapInArrow(changing, frame.schema), fails_once)
    numbers = ws.datasets.write_spark("numbers", changed, columns=[column])

    assert numbers.open().values("id").tolist() == [0, 1, 2]
    assert sorted(sealed_rows(ws)) == [2, 3]


def sealed_rows(ws: mms.WorkspaceClient) -> list[int]:
    """Rows of every key that was sealed for `numbers`, whether it was committed or not."""
    files = (ws.folder / "datasets" / "numbers" / "writing").glob(f"*/{'?' * 64}.json")
    return [json.loads(file.read_text())["written"]["part"]["rows"] for file in files]


class FailsBehind:
    """A frame whose tasks fail once what is mapped over them is done."""

    def __init__(self, frame: Any, failure: Any) -> None:
        self.frame, self.failure, self.columns = frame, failure, frame.columns

    def select(self, *names: str) -> FailsBehind:
        return FailsBehind(self.frame.select(*names), self.failure)

    def mapInArrow(self, task: Any, schema: str) -> Any:  # noqa: N802
        mapped = self.frame.mapInArrow(task, schema)
        return mapped.mapInArrow(self.failure, mapped.schema)


def test_what_write_spark_cannot_write_is_refused(spark: Any, ws: mms.WorkspaceClient) -> None:
    number = mms.Column(name="x", kind="number", dtype="int64")
    with pytest.raises(InvalidRequest, match="takes a Spark DataFrame; got dict"):
        ws.datasets.write_spark("pets", {"x": [1]})
    with pytest.raises(InvalidRequest, match=r"\['content', 'path'\] are not among its columns \['id'\]"):
        ws.datasets.write_spark("pets", spark.range(3))
    with pytest.raises(InvalidRequest, match=r"\['x'\] are not among its \['id'\]"):
        ws.datasets.write_spark("pets", spark.range(3), columns=[number])
    with pytest.raises(InvalidRequest, match="are for pictures"):
        ws.datasets.write_spark("pets", spark.range(3), columns=[number], clean=mms.drop_unreadable())
    files = spark.sql("select 'a/b' as path, binary('') as content")
    with pytest.raises(InvalidRequest, match=r"clean the frame with Spark"):
        ws.datasets.write_spark("pets", files, clean=mms.drop_duplicates())
    assert ws.datasets.list() == []


# By hand and as a stream --------------------------------------------------------------------------------------------


def test_partitions_written_by_hand_with_tasks_that_fail_before_and_after_they_sealed(
    spark: Any, ws: mms.WorkspaceClient
) -> None:
    writing = ws.datasets.write("flowers", columns=COLUMNS)

    def fill(rows: Iterable[Any]) -> Iterator[str]:
        from pyspark import TaskContext

        context = TaskContext.get()
        assert context is not None
        number, first = context.partitionId(), context.attemptNumber() == 0
        key = f"{number:05}-{context.taskAttemptId()}"
        with writing.writer(key) as writer:
            for row in rows:
                writer.write(content_of(3, seed=row.id))
                if first and number == 1:
                    raise ValueError("this task fails before it has sealed")
        if first and number == 2:
            raise ValueError("this task fails after it has sealed")
        yield key

    keys = spark.range(0, 12, 1, 4).rdd.mapPartitions(fill).collect()
    record = writing.commit(keys=keys)

    assert len(writing.sealed()) == 5
    rows = ws.datasets.get("flowers").open()
    wanted = [text for seed in range(12) for text in content_of(3, seed=seed)["source"]]
    assert (len(record.parts), rows.gather("source", np.arange(rows.rows))) == (4, wanted)
    images = np.concatenate([content_of(3, seed=seed)["image"] for seed in range(12)])
    np.testing.assert_array_equal(rows.values("image"), images)


def test_for_each_partition_a_key_keeps_the_first_that_was_sealed(spark: Any, ws: mms.WorkspaceClient) -> None:
    writing = ws.datasets.write("flowers", columns=COLUMNS)

    def write(rows: Iterable[Any]) -> None:
        from pyspark import TaskContext

        context = TaskContext.get()
        assert context is not None
        with writing.writer(f"{context.partitionId():05}") as writer:
            for row in rows:
                writer.write(content_of(3, seed=row.id))
        if context.attemptNumber() == 0:
            raise ValueError("this task fails after it has sealed")

    spark.range(0, 12, 1, 4).foreachPartition(write)
    record = writing.commit(expect=4)

    rows = ws.datasets.get("flowers").open()
    wanted = [text for seed in range(12) for text in content_of(3, seed=seed)["source"]]
    assert rows.gather("source", np.arange(rows.rows)) == wanted
    images = np.concatenate([content_of(3, seed=seed)["image"] for seed in range(12)])
    np.testing.assert_array_equal(rows.values("image"), images)
    assert {path.name for path in (writing.store.folder / "parts").iterdir()} == {part.id for part in record.parts}


def test_a_stream_that_is_killed_between_a_commit_and_its_checkpoint_goes_on_without_a_row_lost_or_twice(
    tmp_path: Path,
) -> None:
    drawn = draw(tmp_path / "in", ("cat", "dog"), 4)
    command = [sys.executable, "-W", "ignore", str(DRIVER), str(tmp_path)]

    killed = subprocess.run([*command, "1"], capture_output=True, text=True, check=False, timeout=140)
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=140)

    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert ended.returncode == 0, ended.stderr
    given = (tmp_path / "batches").read_text().split("\n")[:-1]
    assert given == ["0 2", "1 2", "1 2", "2 2", "3 2"]  # Spark knew nothing of the second batch and gave it again
    with mms.connect(workspace=tmp_path / "workspace") as ws:
        pets = ws.datasets.get("pets")
        assert (pets.ref, pets.open().record.streams) == ("pets@4", {"camera": 3})
        assert_holds_exactly(pets, drawn)
