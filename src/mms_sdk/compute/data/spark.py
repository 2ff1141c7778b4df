"""DataFrames of Spark become datasets: its tasks decode and write the rows, and what they sealed is committed here.

A frame is computed twice where it holds pictures: once to know sizes and classes, which the columns are made from, and
once to write. Nothing but counts comes to the driver.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import orjson
import pyarrow as pa

from mms_sdk.compute.data.bring import EXAMPLES
from mms_sdk.compute.data.declared import values_as
from mms_sdk.compute.data.ingest import columns_of, content_id, refuse_other_columns
from mms_sdk.compute.data.kinds import image
from mms_sdk.compute.data.media import Pictures
from mms_sdk.compute.data.split import place_by_content, refuse_by_column
from mms_sdk.errors import DataError, InvalidInput, InvalidRequest, NothingToIngest
from mms_sdk.schema.cleaning import CleaningReport, CleaningStepReport, CleanStep, DropUnreadable, Reject
from mms_sdk.schema.dataset import Column, Snapshot
from mms_sdk.schema.sources import ImageFolder
from mms_sdk.schema.specs import Split
from mms_sdk.storage.datasets import Dataset, holds
from mms_sdk.storage.parts import laid_out
from mms_sdk.storage.snapshots import OpenSnapshot
from mms_sdk.storage.writing import Writing, begin

_ROWS = 256  # decoded at a time: Spark's batches are of ten thousand rows, whatever they weigh
_FILES = ("path", "content")
_CHANGED = "a frame of pictures is computed twice and stays as it is meanwhile"
_Batches = Iterable[pa.RecordBatch]
_Task = Callable[[_Batches], Iterator[pa.RecordBatch]]


@dataclass(frozen=True, kw_only=True)
class Frame:
    """A DataFrame, and what is to be made of it.

    Attributes:
        frame: The DataFrame.
        message: Kept with the snapshot.
        once: A stream's name and the number of a batch.
    """

    frame: Any
    message: str = ""
    once: tuple[str, int] | None = None


def is_frame(frame: Any) -> bool:
    """Whether it is a DataFrame of Spark, classic or Connect."""
    return hasattr(frame, "mapInArrow") and hasattr(frame, "columns")


def write_columns(dataset: Dataset, given: Frame, columns: Sequence[Column]) -> Snapshot:
    """Commits the rows of a frame, whose columns have the names of the dataset's.

    Args:
        dataset: Where to.
        given: The frame.
        columns: What is written.

    Raises:
        InvalidRequest: A column is not in the frame.
    """
    if (done := _committed(dataset, given.once)) is not None:
        return done
    writing = begin(dataset, columns)
    names = [column.name for column in writing.columns]
    if missing := sorted(set(names) - set(given.frame.columns)):
        raise InvalidRequest(
            f"a frame has the columns that are written; {missing} are not among its {given.frame.columns}; rename its "
            f"columns, or give columns="
        )

    def values(batch: pa.RecordBatch) -> dict[str, Any]:
        return {column.name: values_as(column, batch.column(column.name)) for column in writing.columns}

    return _write(writing, given, given.frame.select(*names), values)


def write_pictures(
    dataset: Dataset, given: Frame, *, color: Literal["auto", "gray", "rgb"], clean: Sequence[CleanStep], split: Split
) -> Snapshot:
    """Commits the pictures of a frame as Spark's `binaryFile` reader gives them.

    Args:
        dataset: Where to.
        given: The frame: `path`, `content` and, where the class is not the name of the file's folder, `label`.
        color: Channels; `auto` for those of the pictures.
        clean: Nothing, or `drop_unreadable()`.
        split: The rule that places rows.

    Raises:
        InvalidRequest: The frame has other columns; or a step is not for Spark.
        NothingToIngest: There is no usable row, and the dataset has none either.
        DataError: A file is unreadable and no step drops such files; pictures that do not fit those in the dataset;
            the frame had other rows the second time.
    """
    refuse_by_column(split, what="pictures of a frame")
    if missing := sorted(set(_FILES) - set(given.frame.columns)):
        raise InvalidRequest(
            f"a frame of pictures is read with spark.read.format('binaryFile'); {missing} are not among its columns "
            f"{given.frame.columns}; for other rows give columns="
        )
    if wrong := [step for step in clean if not isinstance(step, DropUnreadable)]:
        raise InvalidRequest(
            f"of the cleaning steps, mms.drop_unreadable() works on frames; got {wrong[0]!r}; clean the frame with "
            f"Spark, e.g. frame.dropDuplicates(['content'])"
        )
    if (done := _committed(dataset, given.once)) is not None:
        return done
    base = dataset.snapshot() if dataset.snapshots() else None
    medium = Pictures(ImageFolder(path="", color=color))
    frame = given.frame.select(*_FILES, *(["label"] if "label" in given.frame.columns else []))
    seen = _Seen.together(_run(frame, _look, "seen binary"))
    report = _report(seen, clean)
    if not seen.kept:
        if base is not None:
            return base.record
        raise NothingToIngest(f"a dataset begins with at least one usable picture; all {seen.found} were left out")
    columns = _columns(seen, medium, base)
    if base is None:
        columns = laid_out(columns, None, remote=not dataset.store.local)
    writing = begin(dataset, columns)
    return _write(
        writing,
        given,
        frame,
        _pictures(columns, split, medium, drop=seen.kept < seen.found),
        rows=seen.kept,
        split_rule={**split.model_dump(exclude_none=True), "by": "content"},
        provenance={"cleaning": report.model_dump(mode="json")},
    )


def _committed(dataset: Dataset, once: tuple[str, int] | None) -> Snapshot | None:
    # Asked before anything is written: a stream that is started again repeats its last batch as a rule.
    base = dataset.record() if dataset.snapshots() else None
    return base if once is not None and holds(base, once) else None


def _write(
    writing: Writing,
    given: Frame,
    frame: Any,
    values: Callable[[pa.RecordBatch], Mapping[str, Any]],
    *,
    rows: int | None = None,
    **told: Any,
) -> Snapshot:
    def write(batches: _Batches) -> Iterator[pa.RecordBatch]:
        key, count = _key(), 0
        with writing.writer(key) as writer:
            for batch in _slices(batches):
                brought = values(batch)
                writer.write(brought)
                count += len(next(iter(brought.values())))
        yield pa.RecordBatch.from_pydict({"key": [key], "rows": [count]})

    told_rows = {row["key"]: row["rows"] for row in _run(frame, write, "key string, rows long")}
    if rows is not None and rows != (again := sum(told_rows.values())):
        raise DataError(f"{_CHANGED}; it had {rows} rows the first time and then {again}; write it again")
    return writing.commit(message=given.message or "written by Spark", once=given.once, keys=told_rows, **told)


def _run(frame: Any, task: _Task, schema: str) -> list[Any]:
    # One row a partition comes back, of the attempt that Spark took for the right one.
    with warnings.catch_warnings():
        # It asks for pandas, warns of new ones, and uses none: batches stay Arrow's.
        warnings.filterwarnings("ignore", message="PySpark does not yet fully support pandas", category=FutureWarning)
        mapped = frame.mapInArrow(task, schema)
    return list(mapped.collect())


def _key() -> str:
    # Of the attempt, not of the partition: when what a task reads fails half-way, Spark ends its input as if that were
    # all, and tells only its own driver that the attempt does not count. It may have sealed half a partition by then.
    from pyspark import TaskContext

    context = TaskContext.get()
    assert context is not None, "tasks run in Spark's executors"
    return f"{context.partitionId():08}-{context.taskAttemptId()}"


def _slices(batches: _Batches) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        for start in range(0, batch.num_rows, _ROWS):
            yield batch.slice(start, _ROWS)


# Pictures ---------------------------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class _Seen:
    """What a partition of pictures holds, and all of them together.

    Attributes:
        found: Files.
        kept: Those that decode.
        labels: Of these, by class.
        forms: The same by height, width and whether they are grey.
        notes: Of how many something has to be told.
        unreadable: The first few of the others.
    """

    found: int = 0
    kept: int = 0
    labels: Counter[str] = field(default_factory=Counter)
    forms: Counter[tuple[int, int, bool]] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    unreadable: list[Reject] = field(default_factory=list)

    @classmethod
    def together(cls, rows: Iterable[Any]) -> _Seen:
        """Of all partitions."""
        seen = cls()
        for row in rows:
            told = orjson.loads(bytes(row["seen"]))
            seen.found += told["found"]
            seen.kept += told["kept"]
            seen.labels.update(told["labels"])
            seen.notes.update(told["notes"])
            seen.forms.update({(height, width, gray): count for (height, width, gray), count in told["forms"]})
            seen.unreadable += map(Reject.model_validate, told["unreadable"])
        return seen

    def encode(self) -> bytes:
        """For the way to the driver."""
        told = {name: getattr(self, name) for name in ("found", "kept", "labels", "notes")}
        unreadable = [reject.model_dump() for reject in self.unreadable[:EXAMPLES]]
        return orjson.dumps({**told, "forms": list(self.forms.items()), "unreadable": unreadable})


def _look(batches: _Batches) -> Iterator[pa.RecordBatch]:
    seen = _Seen()
    for batch in _slices(batches):
        for source, label, content in _files(batch):
            seen.found += 1
            try:
                facts = image.inspect(content)
            except InvalidInput as error:
                seen.unreadable.append(Reject(source=source, reason=error.message))
                continue
            seen.kept += 1
            seen.labels[label] += 1
            seen.forms[(*facts.size, facts.gray)] += 1
            seen.notes.update(facts.notes)
    yield pa.RecordBatch.from_pydict({"seen": [seen.encode()]})


def _files(batch: pa.RecordBatch) -> Iterator[tuple[str, str, bytes]]:
    # Each file's name within its source, its class and its bytes.
    paths, contents = batch.column("path").to_pylist(), batch.column("content").to_pylist()
    folders = [path.rsplit("/", 2)[-2] for path in paths]
    labels = batch.column("label").to_pylist() if "label" in batch.schema.names else folders
    for path, label, content in zip(paths, labels, contents, strict=True):
        if label is None or content is None:
            raise DataError(f"every picture has a label and a content; {path} has none; filter such rows out first")
        yield "/".join(path.rsplit("/", 2)[-2:]), str(label), content


def _report(seen: _Seen, clean: Sequence[CleanStep]) -> CleaningReport:
    lost = seen.found - seen.kept
    if lost and not clean:
        raise DataError(
            f"every file of an image frame decodes; {lost} of {seen.found} do not, e.g. {seen.unreadable[0].source}: "
            f"{seen.unreadable[0].reason}; mend them, or drop such files with clean=[mms.drop_unreadable()]"
        )
    steps = [
        CleaningStepReport(step=step.step, dropped=lost, examples=tuple(seen.unreadable[:EXAMPLES]))
        for step in clean[:1]
    ]
    notes = [f"{count} × {note}" for note, count in sorted(seen.notes.items())]
    return CleaningReport(found=seen.found, already_present=0, kept=seen.kept, steps=tuple(steps), notes=tuple(notes))


def _columns(seen: _Seen, medium: Pictures, base: OpenSnapshot | None) -> tuple[Column, ...]:
    if base is not None:
        refuse_other_columns(base, medium)
    forms = [image.Facts(size=(height, width), gray=gray) for height, width, gray in seen.forms]
    column = (base.column("image") if base else None) or medium.describe(forms)
    medium.refuse([], column)
    if column.shape is not None and (other := [facts.size for facts in forms if facts.size != column.shape[:2]]):
        raise DataError(
            f"new pictures have the size of those in the dataset, {column.shape[1]}×{column.shape[0]}; some are "
            f"{other[0][1]}×{other[0][0]}; leave them out of the frame, or write everything into a new dataset"
        )
    held = base.column("label") if base else None
    before = (held.labels or ()) if held else ()
    return columns_of(column, (*before, *sorted(seen.labels.keys() - set(before))), base)


def _pictures(
    columns: Sequence[Column], split: Split, medium: Pictures, *, drop: bool
) -> Callable[[pa.RecordBatch], Mapping[str, Any]]:
    column = columns[0]
    codes = {label: code for code, label in enumerate(columns[1].labels or ())}

    def values(batch: pa.RecordBatch) -> Mapping[str, Any]:
        files = [each for each in _files(batch) if not drop or _is_readable(each[2])]
        pictures = [medium.decode(content, column) for _, _, content in files]
        for (source, label, _), picture in zip(files, pictures, strict=True):
            if label not in codes or (column.shape is not None and picture.shape != column.shape):
                raise DataError(f"{_CHANGED}; {source} is not as it was the first time; write it again")
        ids = np.frombuffer(b"".join(content_id(content) for _, _, content in files), np.uint8).reshape(-1, 16)
        return {
            column.name: pictures if column.shape is None else np.array(pictures, np.uint8).reshape(-1, *column.fixed),
            "label": np.array([codes[label] for _, label, _ in files], np.int32),
            "source": [source.encode() for source, _, _ in files],
            "id": ids,
            "split": place_by_content(ids, split=split),
        }

    return values


def _is_readable(content: bytes) -> bool:
    try:
        image.inspect(content)
    except InvalidInput:
        return False
    return True
