"""Datasets: bringing data in, and looking at what is there."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mms_sdk import html, told
from mms_sdk.client import pages
from mms_sdk.client.api import Api
from mms_sdk.client.arriving import follow_stream, watch_folder
from mms_sdk.client.descriptions import Description
from mms_sdk.client.jobs import Job
from mms_sdk.client.tables import Table, aligned, terminal_width
from mms_sdk.compute.data import describe as statistics
from mms_sdk.compute.data import preview as looking
from mms_sdk.compute.data import spark
from mms_sdk.compute.data.follow import Batches, Following
from mms_sdk.compute.data.kinds.tabular import told_values, write_arrays
from mms_sdk.compute.data.sources.files import SUFFIXES
from mms_sdk.compute.data.streams import Stream, as_stream
from mms_sdk.compute.data.watch import Pace
from mms_sdk.errors import InvalidRequest, MissingExtra
from mms_sdk.schema.dataset import (
    SPLITS,
    CleaningReport,
    CleanSpec,
    CleanStep,
    Column,
    ConcatSpec,
    DatasetInfo,
    IngestSpec,
    JoinSpec,
    PictureStep,
    Profile,
    Reject,
    SnapshotDiff,
    SnapshotInfo,
    Split,
    TableStep,
)
from mms_sdk.schema.job import Job as JobRecord
from mms_sdk.schema.names import check_name, parse_dataset_ref, parse_snapshot
from mms_sdk.schema.sources import (
    CSV,
    JSONL,
    SQL,
    Arrow,
    Files,
    ImageFolder,
    Parquet,
    Source,
    Union,
    WebDataset,
    Zarr,
)
from mms_sdk.storage import datasets as storage
from mms_sdk.storage import edits
from mms_sdk.storage.snapshots import OpenSnapshot
from mms_sdk.storage.workspace import Workspace
from mms_sdk.storage.writing import Writing, begin
from mms_sdk.types import Rows

AnySource = Source | str | Path | Mapping[str, Any]
"""What an ingest takes: a source, a path that means one, or arrays by column."""


class Dataset:
    """A dataset at one snapshot. It stays the same whatever is ingested later."""

    def __init__(self, api: Api, info: DatasetInfo, workspace: Workspace | None) -> None:
        self._api = api
        self.info = info
        self._workspace = workspace

    def __repr__(self) -> str:
        classes = f", {told.counted(self.num_classes, 'class')}" if self.labels else ""
        splits = ", ".join(f"{name} {rows:,}" for name, rows in self.splits.items())
        return f"<dataset {self.ref}: {told.counted(self.rows, 'row')}{classes}{splits and '; '}{splits}>"

    def _repr_html_(self) -> str:
        return pages.page(self)

    def facts(self) -> dict[str, Any]:
        """What matters about it, by name."""
        return pages.facts(self)

    @property
    def name(self) -> str:
        """Its name."""
        return self.info.name

    @property
    def ref(self) -> str:
        """The reference that names exactly these rows, e.g. `flowers@7`."""
        return f"{self.info.name}@{self.info.snapshot}"

    @property
    def rows(self) -> int:
        """Number of rows."""
        return self.info.rows

    @property
    def splits(self) -> dict[str, int]:
        """Rows in each split."""
        return {name: self.info.splits[name] for name in ("train", "val", "test") if self.info.splits.get(name)}

    @property
    def classes(self) -> dict[str, int]:
        """Rows in each class, in order of the labels' codes."""
        counts = self.info.statistics.get("classes", {})
        return {label: counts.get(label, 0) for label in self.labels}

    def classes_by_split(self) -> dict[str, dict[str, int]]:
        """Rows of each class in each split, counted now; two small columns are read whole.

        Raises:
            ColumnNotFound: It has no classes, or no splits.
            InvalidRequest: It lies on a server.
        """
        opened = self.open()
        columns = [opened.column(name).labels or () for name in ("label", "split")]
        return pages.by_split(opened.values("label"), opened.values("split"), *columns)

    @property
    def labels(self) -> tuple[str, ...]:
        """Class names in order of their codes."""
        return next((column.labels or () for column in self.info.columns if column.name == "label"), ())

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.labels)

    @property
    def picture_shape(self) -> tuple[int, ...] | None:
        """(height, width, channels) of its pictures, or None where they differ in size."""
        column = next((column for column in self.info.columns if column.name == "image"), None)
        return None if column is None or column.varies else column.fixed

    @property
    def cleaning(self) -> CleaningReport | None:
        """What cleaning found when this snapshot was ingested."""
        told = self.info.provenance.get("cleaning")
        return None if told is None else CleaningReport.model_validate(told)

    @property
    def embedded(self) -> bool:
        """Whether its rows can be read here."""
        return self._workspace is not None

    @property
    def workspace(self) -> Workspace:
        """The workspace folder it lies in.

        Raises:
            InvalidRequest: It lies on a server.
        """
        if self._workspace is None:
            raise InvalidRequest(
                f"training and looking at rows need a dataset of this machine's workspace; {self.ref} lies on a "
                f"server; run it there, with mms.connect() without a URL"
            )
        return self._workspace

    def head(self, rows: int = 10) -> Table[dict[str, Any]]:
        """The first rows, as a table: texts and labels by name, arrays by their shape.

        Args:
            rows: How many.
        """
        opened = self.open()
        numbers = np.arange(min(rows, opened.rows))
        columns = [column for column in opened.record.columns if column.kind != "id"]
        shown = {column.name: told_values(column, opened.gather(column.name, numbers)) for column in columns}
        found = [dict(zip(shown, row, strict=True)) for row in zip(*shown.values(), strict=True)]
        return Table(found, title="rows", rows=found)

    def describe(self, split: str | None = None) -> Description:
        """Its columns in numbers, ids left out. Every row is read, twice, some at a time.

        Of numbers: how many there are, the ends, mean, standard deviation and a histogram, over all items where a row
        has several; of names and texts: how many different ones and the commonest; of times the first and last; of rows
        of varying length, how long they are; of pictures their sizes.

        Args:
            split: Of its rows only; of all if left out.

        Raises:
            SplitNotFound: There is no such split.
            InvalidRequest: It lies on a server.
        """
        opened = self.open()
        found = statistics.describe(opened, opened.split_rows(split))
        return Description(found, title=f"columns of {self.ref}{f'/{split}' if split else ''}")

    def preview(
        self,
        rows: Sequence[int] | None = None,
        *,
        split: str | None = None,
        captions: Sequence[str] | None = None,
    ) -> Preview:
        """Some rows to look at: pictures, sounds to hear, series as lines, and words, numbers and times as they are.

        Args:
            rows: Row numbers; some of each class if left out, or some from everywhere where there are no classes.
            split: Of its rows only, where `rows` is left out.
            captions: What to write below each instead of its class.

        Raises:
            SplitNotFound: There is no such split.
            InvalidRequest: A row number is out of range or none; `rows` and `split` at once; another number of
                captions than rows; or it lies on a server.
        """
        opened = self.open()
        numbers = self._to_show(opened, split) if rows is None else _row_numbers(rows)
        if rows is not None and split is not None:
            raise InvalidRequest(f"rows are given by number or by split; got rows and split={split!r}; leave one out")
        if captions is not None and len(captions) != len(numbers):
            raise InvalidRequest(f"there is one caption for each row; got {len(captions)} for {len(numbers)} rows")
        return Preview(opened, numbers, captions)

    def _to_show(self, opened: OpenSnapshot, split: str | None) -> Rows:
        rows = opened.split_rows(split)
        codes = opened.values("label")[rows] if self.labels else None
        chosen: Rows = looking.choose(codes, rows, classes=self.num_classes, most=24 if self.labels else 12)
        return chosen

    def rejects(self) -> Table[Reject]:
        """Every file or record that was left out when this snapshot was made, and why.

        Raises:
            InvalidRequest: It was made by neither an ingest nor a stream; or too much had been left out before.
        """
        job, span = (self.info.provenance.get(name) for name in ("job", "rejects"))
        if job is None:
            raise InvalidRequest(f"an ingest's job keeps what was left out; {self.ref} has none; look at .cleaning")
        if span is None and "rejects" in self.info.provenance:
            raise InvalidRequest(
                f"a follower lists what it leaves out up to 64 MiB; {self.ref} came later; .cleaning has the counts"
            )
        listed = self._api.read(f"/v1/jobs/{job}/files/rejects.jsonl")
        lines = listed[slice(*span or (None,))].splitlines()
        found = [Reject.model_validate_json(line) for line in lines]
        return Table(found, title="rejects", rows=(reject.model_dump() for reject in found))

    def delete_rows(self, rows: Sequence[int], *, message: str = "") -> Dataset:
        """The dataset without some rows, as a new snapshot; this one stays as it is.

        Args:
            rows: Row numbers in this snapshot. Rows that somebody added meanwhile stay.
            message: Kept with the snapshot.

        Raises:
            InvalidRequest: A row number is out of range, or there is none.
            SnapshotConflict: Somebody deleted from the same parts meanwhile.
        """
        body = {"snapshot": self.info.snapshot, "rows": [int(row) for row in rows], "message": message}
        return self._now(self._api.send("POST", f"/v1/datasets/{self.name}:delete-rows", DatasetInfo, body))

    def rename_columns(self, names: Mapping[str, str | None], *, message: str = "") -> Dataset:
        """The dataset with other names for columns, or, with None, without them; no value is written.

        Raises:
            ColumnNotFound: There is no such column.
            InvalidRequest: Two columns would have one name, or none is left.
        """
        body = {"snapshot": self.info.snapshot, "names": dict(names), "message": message}
        return self._now(self._api.send("POST", f"/v1/datasets/{self.name}:rename-columns", DatasetInfo, body))

    def write_column(
        self, column: Column, derive: Callable[[Mapping[str, Any]], Any], *, inputs: Sequence[str], message: str = ""
    ) -> Dataset:
        """The dataset with one column more, or other values in one that is there, as a new snapshot.

        Args:
            column: Name, kind, dtype, shape and labels.
            derive: Called with a few thousand rows at a time: values of `inputs` by name, as arrays of shape
                (rows, *column.shape) or lists of bytes; returns the new values for them, in the same order.
            inputs: Columns that `derive` is given.
            message: Kept with the snapshot.

        Raises:
            ColumnNotFound: An input is not there.
            InvalidRequest: Values that do not fit the column; or the dataset lies on a server.
            SnapshotConflict: Somebody changed which rows there are meanwhile.
        """
        of, dataset = self.open(), self.workspace.dataset(self.name)
        done = edits.write_column(dataset, column, derive, inputs=inputs, of=of, message=message)
        return self._now(self._api.get(f"/v1/datasets/{self.name}", DatasetInfo, snapshot=done.number))

    def clean(self, clean: CleanStep | Sequence[CleanStep], *, message: str = "", progress: bool = True) -> Dataset:
        """The dataset's newest snapshot, cleaned: rows that go and values that change, as one new snapshot.

        Args:
            clean: Steps in order, e.g. `[mms.drop_missing(), mms.clip("age", min=0)]`.
            message: Kept with the snapshot.
            progress: Show a bar on a terminal.

        Raises:
            InvalidRequest: A step does not suit what the dataset holds.
            ColumnNotFound: A step names a column that is not there.
            SnapshotConflict: Others changed the dataset meanwhile, time after time.
        """
        spec = CleanSpec(clean=_steps(clean), message=message)
        record = self._api.send("POST", f"/v1/datasets/{self.name}:clean", JobRecord, spec.model_dump(mode="json"))
        job = Job(self._api, record).wait(progress=progress)
        return self._now(self._api.get(f"/v1/datasets/{self.name}", DatasetInfo, snapshot=job.result["snapshot"]))

    def tag(self, name: str) -> None:
        """Gives this snapshot a name that stays with it: `flowers@paper`. A tagged snapshot does not expire.

        Raises:
            InvalidName: The name is none, or begins like a number.
            Conflict: The name is taken.
        """
        parse_snapshot(name)
        body = {"snapshot": self.info.snapshot}
        self._api.send("PUT", f"/v1/datasets/{self.name}/tags/{name}", DatasetInfo, body)

    def diff(self, older: int | str) -> SnapshotDiff:
        """What became of the dataset from an older snapshot, by number or tag, to this one."""
        query = {"older": older, "newer": self.info.snapshot}
        return self._api.get(f"/v1/datasets/{self.name}:diff", SnapshotDiff, **query)

    def _now(self, info: DatasetInfo) -> Dataset:
        return Dataset(self._api, info, self._workspace)

    def open(self) -> OpenSnapshot:
        """The rows themselves: NumPy arrays by column, gathered by row number."""
        return self.workspace.dataset(self.name).snapshot(self.info.snapshot)


class Preview:
    """Some rows of a dataset, to look at. Pictures and sounds are re-encoded: only pixels and samples come along.

    Args:
        opened: The snapshot.
        rows: Row numbers.
        captions: What is written below each; None for its class.
    """

    def __init__(self, opened: OpenSnapshot, rows: Rows, captions: Sequence[str] | None = None) -> None:
        self._ref = opened.ref
        self._rows = [int(row) for row in rows]
        columns = [column for column in opened.record.columns if column.kind not in ("id", "split")]
        self._given = None if captions is None else list(captions)
        label = opened.record.column("label")
        if self._given is not None:
            self._captions = self._given
        elif label is not None:
            self._captions = [told.cell(name) for name in looking.looks(label, opened.gather("label", rows))]
        else:
            self._captions = [f"row {row}" for row in self._rows]
        # A class is the caption, and a file is known by the number of its row.
        self._left_out = {"row_source", *(["source"] if opened.record.column("id") else [])}
        self._left_out |= {"label"} if self._given is None else set()
        self._looks = {
            column.name: looking.looks(column, opened.gather(column.name, rows), caption=self._captions.__getitem__)
            for column in columns
        }

    def __repr__(self) -> str:
        rows = self._table()
        return "\n".join([self._title, *([aligned(rows, width=terminal_width())] if rows else [])])

    def _repr_html_(self) -> str:
        if not any(isinstance(look, looking.Look) for looks in self._looks.values() for look in looks):
            rows = self._table()
            return html.table(self._title, list(rows[0]) if rows else [], [list(row.values()) for row in rows])
        return html.grid(self._title, map(self._figure, range(len(self._rows))))

    @property
    def _title(self) -> str:
        return f"{told.counted(len(self._rows), 'row')} of {self._ref}"

    def _table(self) -> list[dict[str, Any]]:
        return [
            {
                "row": row,
                **({"caption": self._given[at]} if self._given else {}),
                **{name: looks[at] for name, looks in self._looks.items()},
            }
            for at, row in enumerate(self._rows)
        ]

    def _figure(self, at: int) -> tuple[list[looking.Look], str, list[str]]:
        shown = {name: looks[at] for name, looks in self._looks.items() if name not in self._left_out}
        drawn = {name: look for name, look in shown.items() if isinstance(look, looking.Look)}
        said = [f"{name}: {look}" if len(drawn) > 1 else str(look) for name, look in drawn.items() if look.told]
        number = f"row {self._rows[at]}"
        words = [f"{name}: {told.cell(look)}" for name, look in shown.items() if not isinstance(look, looking.Look)]
        short = [word if len(word) <= _DETAIL_SIGNS else f"{word[: _DETAIL_SIGNS - 1]}…" for word in words[:_DETAILS]]
        rest = [f"and {told.counted(len(words) - _DETAILS, 'column')} more"] if len(words) > _DETAILS else []
        caption = self._captions[at]
        return list(drawn.values()), caption, [*([number] if caption != number else []), *said, *short, *rest]


_DETAILS, _DETAIL_SIGNS = 6, 90  # lines below a drawing, and how long they are


def _row_numbers(rows: Sequence[int]) -> Rows:
    numbers = [row for row in rows if isinstance(row, int | np.integer) and not isinstance(row, bool)]
    if len(numbers) < len(rows) or any(abs(int(row)) >= 2**63 for row in numbers):
        raise InvalidRequest(f"rows are given by their numbers, e.g. [3, 17]; got {str(rows)[:80]}")
    return np.array(numbers, np.int64)


class Datasets:
    """All datasets of a workspace."""

    def __init__(self, api: Api, workspace: Workspace | None) -> None:
        self._api = api
        self._workspace = workspace

    def list(self) -> Table[Dataset]:
        """Every dataset at its newest snapshot."""
        found = [Dataset(self._api, info, self._workspace) for info in self._api.get("/v1/datasets", list[DatasetInfo])]
        return Table(found, title="datasets", rows=map(_row, found))

    def get(self, ref: str) -> Dataset:
        """A dataset by reference, e.g. `flowers`, `flowers@7` or, by a tag, `flowers@paper`.

        Raises:
            DatasetNotFound, SnapshotNotFound: There is none.
        """
        asked = parse_dataset_ref(ref)
        if asked.split is not None:
            raise InvalidRequest(f"a dataset is NAME or NAME@SNAPSHOT here, without a split; got {ref!r}")
        info = self._api.get(f"/v1/datasets/{asked.name}", DatasetInfo, snapshot=asked.snapshot)
        return Dataset(self._api, info, self._workspace)

    def snapshots(self, name: str) -> Table[SnapshotInfo]:
        """A dataset's snapshots, newest first.

        Raises:
            DatasetNotFound: There is none.
        """
        check_name(name, what="dataset")
        found = self._api.get(f"/v1/datasets/{name}/snapshots", list[SnapshotInfo])
        return Table(found, title="snapshots", rows=(info.row() for info in found))

    def untag(self, name: str, tag: str) -> None:
        """Takes a snapshot's name away.

        Raises:
            SnapshotNotFound: There is no such tag.
        """
        check_name(name, what="dataset")
        parse_snapshot(tag)
        self._api.delete(f"/v1/datasets/{name}/tags/{tag}")

    def compact(self, name: str, *, max_part_rows: int = 1_000_000, progress: bool = True) -> Job:
        """Puts small neighbouring parts together, and writes parts without their deleted rows.

        Args:
            name: The dataset. Its rows stay the same, in the same order.
            max_part_rows: Parts are put together up to so many rows.
            progress: Show a bar on a terminal.

        Returns:
            The finished job; its result says how many parts there were and are.
        """
        return self._work(name, "compact", {"max_part_rows": max_part_rows}, progress)

    def expire(self, name: str, *, keep: int) -> tuple[int, ...]:
        """Lets all but the newest snapshots go; tagged ones stay.

        Args:
            name: The dataset.
            keep: How many of the newest stay.

        Returns:
            Numbers of those that are gone. What only they held goes with `collect_garbage`, after two days.
        """
        check_name(name, what="dataset")
        return self._api.send("POST", f"/v1/datasets/{name}:expire", tuple[int, ...], {"keep": keep})

    def collect_garbage(self, name: str, *, grace_s: float = 48 * 3600.0, progress: bool = True) -> Job:
        """Removes what no snapshot refers to, and what killed writers left behind.

        Args:
            name: The dataset.
            grace_s: Seconds for which nobody may have touched it. The default is safe beside readers and writers; 0 is
                for when nobody else is at work.
            progress: Show a bar on a terminal.

        Returns:
            The finished job; its result counts folders and bytes.
        """
        return self._work(name, "collect", {"grace_s": grace_s}, progress)

    def _work(self, name: str, what: str, asked: Any, progress: bool) -> Job:
        check_name(name, what="dataset")
        record = self._api.send("POST", f"/v1/datasets/{name}:{what}", JobRecord, asked)
        return Job(self._api, record).wait(progress=progress)

    def verify(self, name: str, *, progress: bool = True) -> Job:
        """Reads every byte of all snapshots of a dataset and compares it with the digests written at commit.

        Returns:
            The finished job; its result counts snapshots, parts and bytes.

        Raises:
            DatasetNotFound: There is none.
            Damaged: Something is not what was written; the message names the file.
        """
        return self._work(name, "verify", None, progress)

    def write(self, name: str, *, columns: Sequence[Column] | None = None) -> Writing:
        """Begins to write rows from many processes, to be committed as one snapshot.

        Args:
            name: The dataset; made if it is not there. Others see it once something is committed.
            columns: What is written; None for the columns of the newest snapshot. Labels may be added at their end.

        Returns:
            What the processes are sent. Each fills a part with `writing.writer(key)`; `writing.commit()` joins them.

        Raises:
            InvalidRequest: The workspace is a server's; there are no columns; or the newest snapshot has others.
        """
        return begin(self._to_write(name), columns)

    def write_spark(
        self,
        name: str,
        frame: Any,
        *,
        columns: Sequence[Column] | None = None,
        color: Literal["auto", "gray", "rgb"] = "auto",
        clean: CleanStep | Sequence[CleanStep] = (),
        split: Split | None = None,
        message: str = "",
        once: tuple[str, int] | None = None,
    ) -> Dataset:
        """Writes the rows of a Spark DataFrame from Spark's tasks, as one new snapshot.

        A frame read with `spark.read.format("binaryFile")` is taken for pictures, labelled by the name of the folder
        that each lies in, or by a column `label` if the frame has one. They get the columns of an `ImageFolder`. Of
        other frames, `columns` says what is written; the rest is left out.

        Args:
            name: The dataset; made if it is not there. Every executor sees the workspace's folder.
            frame: The DataFrame. One of pictures is computed twice; `frame.cache()` it where that takes long.
            columns: For a frame that is not of pictures: columns of the frame, by name, as they are kept.
            color: Of pictures: `gray` and `rgb` force their channels.
            clean: Of pictures: `mms.drop_unreadable()`.
            split: Of pictures: fractions of train, val and test; 0.8, 0.1 and 0.1 if left out. Each is placed by a hash
                of its content, so that the fractions hold on average.
            message: Kept with the snapshot.
            once: A stream's name and the number of one of its batches, e.g. `("camera", batch_id)` in `foreachBatch`.
                If that batch or a later one is committed already, nothing is written.

        Returns:
            The dataset at the new snapshot; at the newest one if the batch was committed already or had no rows.

        Raises:
            NothingToIngest: There is no usable picture.
            DataError: A file is unreadable and no step drops such files; or rows that do not fit the dataset.
            InvalidRequest: The workspace is a server's; or columns that the frame or the dataset does not have.
        """
        if not spark.is_frame(frame):
            raise InvalidRequest(
                f"write_spark takes a Spark DataFrame; got {type(frame).__name__}; ingest other sources"
            )
        given = spark.Frame(frame=frame, message=message, once=once)
        steps = tuple(clean) if isinstance(clean, Sequence) else (clean,)
        dataset = self._to_write(name)
        if columns is not None:
            if steps or split is not None or color != "auto":
                raise InvalidRequest("color=, clean= and split= are for pictures; with columns=, do that in the frame")
            done = spark.write_columns(dataset, given, columns)
        else:
            done = spark.write_pictures(dataset, given, color=color, clean=steps, split=split or Split())
        return self.get(f"{name}@{done.number}")

    def write_ray(self, name: str, rows: Any, *, columns: Sequence[Column] | None = None, message: str = "") -> Dataset:
        """Writes the rows of a Ray Data dataset from Ray's tasks, as one new snapshot.

        Args:
            name: The dataset; made if it is not there. Every worker sees the workspace's folder.
            rows: A `ray.data.Dataset`. Tensors are written as they are; texts become the codes of a column with labels.
            columns: Columns of it, by name, as they are kept; None for the columns of the newest snapshot. Others are
                left out.
            message: Kept with the snapshot.

        Returns:
            The dataset at the new snapshot.

        Raises:
            DataError: A value does not fit its column; nothing is committed.
            InvalidRequest: The workspace is a server's; or columns that Ray's dataset or this one does not have.
            MissingExtra: Ray is not installed.
        """
        try:
            from mms_sdk.compute.data import ray_data
        except ModuleNotFoundError as error:
            raise MissingExtra("ray", extra="ray") from error
        done = ray_data.write_columns(self._to_write(name), rows, columns, message=message)
        return self.get(f"{name}@{done.number}")

    def follow(
        self,
        name: str,
        stream: Stream | AsyncIterable[Any],
        *,
        columns: Sequence[Column] | None = None,
        batch: Batches | None = None,
        clean: CleanStep | Sequence[CleanStep] = (),
        split: Split | None = None,
        message: str = "",
        named: str | None = None,
        stop: threading.Event | None = None,
    ) -> Job:
        """Brings in what a stream gives, batch by batch, each as one snapshot, until the stream ends.

        An interrupt ends it too, once what was read is committed. With a stream that has positions, such as
        `mms.Kafka`, each record comes in once, also if this is killed at any moment and called again.

        Args:
            name: The dataset; made if it is not there.
            stream: A `Stream`; or an async iterator of mappings of values by column, or of pairs of a position and such
                a mapping.
            columns: Which values are taken, as what; None for the columns of the newest snapshot. Labels may be added
                at their end.
            batch: When a batch is committed.
            clean: Steps that look at one record at a time.
            split: Fractions of train, val and test; 0.8, 0.1 and 0.1 if left out. Each row is placed by a hash of its
                content, so that the fractions hold on average.
            message: Kept with the snapshots.
            named: What the stream's position is kept under; the stream's own name if left out.
            stop: Set it to end this from another thread.

        Returns:
            The finished job; its result counts snapshots, rows and records that were left out.

        Raises:
            InvalidRequest: No stream; columns that the dataset has not; a step that needs all rows; the workspace is a
                server's.
            Conflict: Another follower was first, and the stream is an iterator, which cannot begin again.
        """
        ended = stop or threading.Event()
        work = self.follow_async(
            name,
            stream,
            columns=columns,
            batch=batch,
            clean=clean,
            split=split,
            message=message,
            named=named,
            stop=ended,
        )
        # In a thread of its own: where this is called, in a notebook, an event loop may be running.
        with ThreadPoolExecutor(1, thread_name_prefix="mms-follow") as thread:
            try:
                return thread.submit(asyncio.run, work).result()
            finally:
                ended.set()

    async def follow_async(
        self,
        name: str,
        stream: Stream | AsyncIterable[Any],
        *,
        columns: Sequence[Column] | None = None,
        batch: Batches | None = None,
        clean: CleanStep | Sequence[CleanStep] = (),
        split: Split | None = None,
        message: str = "",
        named: str | None = None,
        stop: threading.Event | None = None,
    ) -> Job:
        """`follow` in the caller's event loop, for iterators that belong to it; cancelling it is the interrupt.

        Args, errors: See `follow`.
        """
        asked = Following(
            columns=columns,
            batches=batch or Batches(),
            clean=_steps(clean),
            split=split or Split(),
            message=message,
        )
        found = as_stream(stream, name=named)
        workspace = self._here("a stream is followed")
        job = await follow_stream(
            workspace, check_name(name, what="dataset"), found, asked, stop=stop or threading.Event()
        )
        return Job(self._api, workspace.catalog.jobs.get(job))

    def watch(
        self,
        name: str,
        source: Source | str | Path,
        *,
        every_s: float = 2.0,
        settle_s: float = 5.0,
        clean: CleanStep | Sequence[CleanStep] = (),
        split: Split | None = None,
        message: str = "",
        say: Callable[[str], None] = print,
        stop: threading.Event | None = None,
    ) -> None:
        """Brings in what is new in a folder, again and again, until it is interrupted or told to stop.

        There is a snapshot whenever something new has settled, and none otherwise. A round that fails is said and tried
        again, less and less often, at least every five minutes.

        Args:
            name: The dataset; made if it is not there.
            source: `mms.ImageFolder("in/")`, `mms.AudioFolder("in/")`, or files of a table, such as `mms.CSV("in/")`.
            every_s: Seconds from one look to the next.
            settle_s: Seconds for which a file must have stayed as it is; what is still being copied is left for later.
            clean: Steps in order. Without `mms.drop_unreadable()` nothing comes in as long as one file is unreadable.
            split: Fractions of train, val and test; each row is placed by a hash of its content if left out.
            message: Kept with the snapshots.
            say: Told about each round that brought something or failed.
            stop: Set it to end this from another thread.

        Raises:
            InvalidRequest: No such folder; a step that is not for it; or the workspace is a server's.
        """
        workspace = self._here("a folder is watched")
        spec = self._spec(source, clean, split or Split(by="content"), message)
        pace = Pace(every_s=every_s, settle_s=settle_s)
        watch_folder(
            workspace, check_name(name, what="dataset"), spec, pace=pace, say=say, stop=stop or threading.Event()
        )

    def _to_write(self, name: str) -> storage.Dataset:
        return self._here("many processes write").open_or_create_dataset(name)

    def _here(self, done: str) -> Workspace:
        if self._workspace is None:
            raise InvalidRequest(
                f"{done} where the files lie; this workspace is a server's; open its folder there with "
                f"mms.connect(workspace=...), or ingest a source"
            )
        return self._workspace

    def _source(self, source: AnySource | Union | Sequence[AnySource]) -> Source | Union:
        if isinstance(source, Union):
            return source.model_copy(update={"sources": tuple(self._one(each) for each in source.sources)})
        if isinstance(source, Sequence) and not isinstance(source, str):
            return Union(sources=tuple(self._one(each) for each in source))
        return self._one(source)

    def _one(self, source: AnySource) -> Source:
        if isinstance(source, Mapping):
            return Arrow(path=str(self._staged(source)))
        found = source_of(str(source)) if isinstance(source, str | Path) else source
        if isinstance(found, SQL) or found.path is None:
            return found
        return found.model_copy(update={"path": str(Path(found.path).expanduser().absolute())})

    def _staged(self, arrays: Mapping[str, Any]) -> Path:
        if self._workspace is None:
            raise InvalidRequest("arrays are ingested by mms.connect() without a URL; save them for another one")
        _, folder = self._workspace.stage()
        return write_arrays(arrays, folder / "arrays.arrow")

    def ingest(
        self,
        name: str,
        source: AnySource | Union | Sequence[AnySource],
        *,
        clean: CleanStep | Sequence[CleanStep] = (),
        split: Split | None = None,
        message: str = "",
        profile: Profile | None = None,
        progress: bool = True,
    ) -> Dataset:
        """Brings what is new in a source into a dataset, as one new snapshot.

        Args:
            name: The dataset; made if it is not there.
            source: A source, such as `mms.CSV("rows.csv")`; a path, of a folder with one sub-folder of pictures for
                each class, or a pattern or path of files whose names say what they are; or arrays by column. A list of
                these comes in together.
            clean: Steps in order, e.g. `[mms.drop_unreadable(), mms.drop_duplicates()]`.
            split: Fractions of train, val and test; 0.8, 0.1 and 0.1 if left out.
            message: Kept with the snapshot.
            profile: How columns of a new dataset lie: `raw`, read fastest; `blosc`, about half the room, for object
                stores; or `zstd`, less room still. The first on a disk and the second elsewhere if left out.
            progress: Show a bar on a terminal.

        Raises:
            NothingToIngest: There is no usable row.
            DataError: A file is unreadable and no step drops such files, or a class is too small to split.
            StorageFull, NotWritable: It cannot be written; there is no new snapshot.
        """
        check_name(name, what="dataset")
        spec = self._spec(source, clean, split or Split(), message, profile)
        job = self._work(name, "ingest", spec.model_dump(mode="json"), progress)
        return self.get(f"{name}@{job.result['snapshot']}")

    def _spec(
        self,
        source: AnySource | Union | Sequence[AnySource],
        clean: CleanStep | Sequence[CleanStep],
        split: Split,
        message: str,
        profile: Profile | None = None,
    ) -> IngestSpec:
        return IngestSpec(
            source=self._source(source), clean=_steps(clean), split=split, message=message, profile=profile
        )

    def join(
        self,
        name: str,
        *,
        left: str | Dataset,
        right: str | Dataset,
        on: str | Sequence[str] | Mapping[str, str],
        how: Literal["inner", "left"] = "inner",
        columns: str | Sequence[str] | None = None,
        rename: Mapping[str, str] | None = None,
        suffix: str = "",
        many: Literal["refuse", "first"] = "refuse",
        message: str = "",
        progress: bool = True,
    ) -> Dataset:
        """Makes a dataset of one's rows, each with columns of the row of another that has its key.

        Args:
            name: What is made: a new dataset, or one that was made so before, which gets a new snapshot.
            left: Whose rows they are, in its order, e.g. `orders` or `orders@2`.
            right: Whose columns come along. A key is in it once.
            on: The key: a column of both, several, or names in the left with those in the right. A row without a key
                has no partner.
            how: `inner` leaves rows without a partner out; `left` keeps them, without the values.
            columns: Which of the right come along; all but the key, the split and what rows are known by if left out.
            rename: New names for columns of the right.
            suffix: Put behind the name of a column of the right that the left has too.
            many: `first` takes the first of several rows of the right with one key.
            message: Kept with the snapshot.
            progress: Show a bar on a terminal.

        Raises:
            DatasetNotFound, SnapshotNotFound, ColumnNotFound: It is not there.
            InvalidRequest: A key that several rows of the right have, keys of two kinds, two columns of one name, or a
                dataset of that name that holds other rows.
            DataError: No row has a partner.
        """
        spec = JoinSpec(
            left=_ref(left),
            right=_ref(right),
            on=dict(on) if isinstance(on, Mapping) else {key: key for key in _several(on)},
            how=how,
            columns=None if columns is None else _several(columns),
            rename=dict(rename or {}),
            suffix=suffix,
            many=many,
            message=message,
        )
        job = self._work(name, "join", spec.model_dump(mode="json"), progress)
        return self.get(f"{name}@{job.result['snapshot']}")

    def concat(
        self,
        name: str,
        datasets: Sequence[str | Dataset],
        *,
        missing: Literal["refuse", "null"] = "refuse",
        message: str = "",
        progress: bool = True,
    ) -> Dataset:
        """Makes a dataset of the rows of several, end to end.

        Args:
            name: What is made: a new dataset, or one that was made so before, which gets a new snapshot.
            datasets: In order, e.g. `["a@2", "b"]`. Columns go by name, labels too.
            missing: `null` leaves values missing of a column that is not in all of them.
            message: Kept with the snapshot.
            progress: Show a bar on a terminal.

        Raises:
            DatasetNotFound, SnapshotNotFound: One is not there.
            InvalidRequest: A column is not in all of them or does not hold the same, or a dataset of that name that
                holds other rows.
        """
        spec = ConcatSpec(datasets=tuple(_ref(each) for each in datasets), missing=missing, message=message)
        job = self._work(name, "concat", spec.model_dump(mode="json"), progress)
        return self.get(f"{name}@{job.result['snapshot']}")


def _steps(clean: CleanStep | Sequence[CleanStep]) -> tuple[CleanStep, ...]:
    steps = tuple(clean) if isinstance(clean, Sequence) else (clean,)
    if wrong := [step for step in steps if not isinstance(step, PictureStep | TableStep)]:
        raise InvalidRequest(f"a cleaning step is made by a call such as mms.drop_duplicates(); got {wrong[0]!r}")
    return steps


def _several(names: str | Sequence[str]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names)


def _ref(dataset: str | Dataset) -> str:
    return dataset.ref if isinstance(dataset, Dataset) else dataset


def source_of(path: str) -> ImageFolder | Files | WebDataset | CSV | JSONL | Parquet | Arrow | Zarr:
    """The source that a path means by what its name ends with; a folder of pictures if by nothing known."""
    suffix = Path(path).suffix.lower()
    return _BY_SUFFIX[suffix](path=path) if suffix in _BY_SUFFIX else ImageFolder(path=path)


_BY_SUFFIX: dict[str, Callable[..., Files | WebDataset | CSV | JSONL | Parquet | Arrow | Zarr]] = {
    **dict.fromkeys(SUFFIXES, Files),
    ".tar": WebDataset,
    **dict.fromkeys((".csv", ".tsv", ".tab"), CSV),
    **dict.fromkeys((".jsonl", ".ndjson"), JSONL),
    **dict.fromkeys((".parquet", ".pq"), Parquet),
    **dict.fromkeys((".arrow", ".feather"), Arrow),
    ".zarr": Zarr,
}


def _row(dataset: Dataset) -> dict[str, Any]:
    return {
        "dataset": dataset.ref,
        "rows": dataset.rows,
        "classes": dataset.num_classes,
        "splits": "/".join(str(dataset.info.splits.get(name, 0)) for name in SPLITS) if dataset.splits else "",
        "size": told.size(dataset.info.bytes),
        "parts": dataset.info.layout.parts,
        "created": dataset.info.created_at[:16].replace("T", " "),
    }
