"""Datasets: bringing data in, making new ones of what is there, and looking after them."""

from __future__ import annotations

import asyncio
import os
import tempfile
import threading
from collections.abc import AsyncIterable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, overload

from mms_sdk import told
from mms_sdk.client.api import Api
from mms_sdk.client.arriving import follow_stream, watch_folder
from mms_sdk.client.dataset import Dataset, columns_of, steps_of
from mms_sdk.client.engines import Where, asked_on
from mms_sdk.client.jobs import Job
from mms_sdk.client.tables import Table
from mms_sdk.client.uploads import Uploads
from mms_sdk.compute.data import spark
from mms_sdk.compute.data.follow import Batches, Following
from mms_sdk.compute.data.kinds.tabular import write_arrays
from mms_sdk.compute.data.sources.files import SUFFIXES
from mms_sdk.compute.data.streams import Stream, as_stream
from mms_sdk.compute.data.watch import Pace
from mms_sdk.errors import InvalidRequest, MissingExtra
from mms_sdk.schema.base import Asked
from mms_sdk.schema.cleaning import CleanStep
from mms_sdk.schema.dataset import SPLITS, Column, DatasetInfo, Profile, SnapshotInfo
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
from mms_sdk.schema.specs import ConcatSpec, IngestSpec, JoinSpec, Split
from mms_sdk.schema.upload import PREFIX
from mms_sdk.storage import datasets as storage
from mms_sdk.storage.workspace import Workspace
from mms_sdk.storage.writing import Writing, begin

AnySource = Source | str | os.PathLike[str] | Mapping[str, Any]
"""What an ingest takes: a source, a path or an upload that means one, or arrays by column."""


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
        given = None if columns is None else columns_of(columns)
        return begin(self._to_write(name), given)

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
        steps = steps_of(clean)
        described = None if columns is None else columns_of(columns)
        dataset = self._to_write(name)
        if described is not None:
            if steps or split is not None or color != "auto":
                raise InvalidRequest("color=, clean= and split= are for pictures; with columns=, do that in the frame")
            done = spark.write_columns(dataset, given, described)
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
        described = None if columns is None else columns_of(columns)
        done = ray_data.write_columns(self._to_write(name), rows, described, message=message)
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
            columns=None if columns is None else columns_of(columns),
            batches=batch or Batches(),
            clean=steps_of(clean),
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
            return Arrow(path=self._staged(source))
        found = source_of(os.fspath(source)) if isinstance(source, str | os.PathLike) else source
        if not isinstance(found, Asked) or not hasattr(found, "told"):
            raise InvalidRequest(
                f"what is ingested is a source such as mms.CSV('rows.csv'), a path, or arrays by column; got "
                f"{type(found).__name__}; give columns as {{'name': array}}, e.g. of a frame dict(frame.items())"
            )
        if isinstance(found, SQL) or found.path is None or found.path.startswith(PREFIX):
            return found
        return found.model_copy(update={"path": str(Path(found.path).expanduser().absolute())})

    def _staged(self, arrays: Mapping[str, Any]) -> str:
        if self._workspace is not None:
            _, folder = self._workspace.stage()
            return str(write_arrays(arrays, folder / "arrays.arrow"))
        with tempfile.TemporaryDirectory(prefix="mms-arrays-") as beside:
            return Uploads(self._api).send(write_arrays(arrays, Path(beside) / "arrays.arrow")).path

    @overload
    def ingest(
        self,
        name: str,
        source: AnySource | Union | Sequence[AnySource],
        *,
        clean: CleanStep | Sequence[CleanStep] = (),
        split: Split | None = None,
        message: str = "",
        profile: Profile | None = None,
        on: None = None,
        progress: bool = True,
    ) -> Dataset: ...

    @overload
    def ingest(
        self,
        name: str,
        source: AnySource | Union | Sequence[AnySource],
        *,
        clean: CleanStep | Sequence[CleanStep] = (),
        split: Split | None = None,
        message: str = "",
        profile: Profile | None = None,
        on: Where,
        progress: bool = True,
    ) -> Job: ...

    def ingest(
        self,
        name: str,
        source: AnySource | Union | Sequence[AnySource],
        *,
        clean: CleanStep | Sequence[CleanStep] = (),
        split: Split | None = None,
        message: str = "",
        profile: Profile | None = None,
        on: Where | None = None,
        progress: bool = True,
    ) -> Dataset | Job:
        """Brings what is new in a source into a dataset, as one new snapshot.

        Args:
            name: The dataset; made if it is not there.
            source: A source, such as `mms.CSV("rows.csv")`; a path, of a folder with one sub-folder of pictures for
                each class, or a pattern or path of files whose names say what they are; files of this machine that were
                sent to a server's, `ws.uploads.send("photos/")`; or arrays by column. A list of these comes in
                together.
            clean: Steps in order, e.g. `[mms.drop_unreadable(), mms.drop_duplicates()]`.
            split: Fractions of train, val and test; 0.8, 0.1 and 0.1 if left out.
            message: Kept with the snapshot.
            profile: How columns of a new dataset lie: `raw`, read fastest; `blosc`, about half the room, for object
                stores; or `zstd`, less room still. The first on a disk and the second elsewhere if left out.
            on: What does it in place of this process, which need not stay: `local`, `ray`, or `mms.On(...)`.
            progress: Show a bar on a terminal.

        Returns:
            The dataset at the new snapshot; with `on`, at once, the job: its `outputs` name the snapshot in the end.

        Raises:
            NothingToIngest: There is no usable row.
            DataError: A file is unreadable and no step drops such files, or a class is too small to split.
            StorageFull, NotWritable: It cannot be written; there is no new snapshot.
        """
        check_name(name, what="dataset")
        spec = self._spec(source, clean, split or Split(), message, profile)
        asked = spec.model_dump(mode="json")
        if on is not None:
            record = self._api.send("POST", f"/v1/datasets/{name}:ingest", JobRecord, {**asked, "on": asked_on(on)})
            return Job(self._api, record)
        job = self._work(name, "ingest", asked, progress)
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
            source=self._source(source), clean=steps_of(clean), split=split, message=message, profile=profile
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
            rename=_renamed(rename or {}),
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
        if not isinstance(datasets, str | Dataset | Sequence):
            raise InvalidRequest(f"datasets are put behind one another as a list, e.g. ['a@2', 'b']; got {datasets!r}")
        refs = tuple(map(_ref, [datasets] if isinstance(datasets, str | Dataset) else datasets))
        spec = ConcatSpec(
            datasets=refs,
            missing=missing,
            message=message,
        )
        job = self._work(name, "concat", spec.model_dump(mode="json"), progress)
        return self.get(f"{name}@{job.result['snapshot']}")


def _several(names: str | Sequence[str]) -> tuple[str, ...]:
    if not isinstance(names, str | Sequence):
        raise InvalidRequest(f"columns are given by name, one or a list, e.g. 'id' or ['id', 'day']; got {names!r}")
    return (names,) if isinstance(names, str) else tuple(names)


def _renamed(names: Mapping[str, str]) -> dict[str, str]:
    if not isinstance(names, Mapping):
        raise InvalidRequest(f"columns are renamed by old and new names, e.g. {{'age': 'years'}}; got {names!r}")
    return dict(names)


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
