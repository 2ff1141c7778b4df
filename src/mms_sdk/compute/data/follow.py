"""Following a stream: what arrives becomes snapshots, each batch once, though processes are killed.

A batch and the position behind it are committed in one snapshot, so whoever follows the stream next begins where the
rows end. Two who follow it at once both read; the first to commit a batch is kept, and the other begins again behind
it. While one batch is written the next is read, and no more than that.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
import orjson
import pyarrow as pa

from mms_sdk.compute.data import clean_table
from mms_sdk.compute.data.bring import EXAMPLES, Tell, commit_part, tried
from mms_sdk.compute.data.clean_table import ID
from mms_sdk.compute.data.ingest_table import ID_COLUMN, LABEL, SOURCE_COLUMN, SPLIT_COLUMN
from mms_sdk.compute.data.kinds import tabular
from mms_sdk.compute.data.records import Misfit, Rows
from mms_sdk.compute.data.split import place_by_content, refuse_by_column, rule_in
from mms_sdk.compute.data.streams import Record, Stream, record_of
from mms_sdk.errors import DataError, InvalidRequest, SnapshotConflict
from mms_sdk.schema.cleaning import (
    CleaningReport,
    CleaningStepReport,
    CleanStep,
    Clip,
    DropMissing,
    DropOutOfRange,
    Impute,
    KeepWhere,
    Reject,
)
from mms_sdk.schema.dataset import Column, Position, Snapshot
from mms_sdk.schema.job import Progress
from mms_sdk.schema.specs import Split
from mms_sdk.storage import edits, files
from mms_sdk.storage.changes import Addition, extend
from mms_sdk.storage.counts import by_label
from mms_sdk.storage.datasets import Dataset
from mms_sdk.storage.parts import laid_out, refuse_shared_arrays

MAX_REJECTS_BYTES = 64 * 2**20
"""How long the list of what a follower left out gets; what comes later is counted."""

_LOOK_S = 0.1  # how soon it is noticed that somebody wants to stop
_SAYABLE = 300
_STEPS = (DropMissing, DropOutOfRange, KeepWhere, Clip, Impute)
_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class Batches:
    """When what was read of a stream is committed, as one snapshot: as soon as one of the three is reached.

    Attributes:
        rows: Records, those that are left out among them.
        bytes: Of their values. A record that has more is left out.
        seconds: Since the first of them came.
        compact_every: After how many commits small parts are put together; None for never.
    """

    rows: int = 10_000
    bytes: int = 64 * 2**20  # a column's texts of one batch have less than 2 GiB, Arrow's limit, if this is up to 1
    seconds: float = 5.0
    compact_every: int | None = None

    def __post_init__(self) -> None:
        bounds = {"rows": (1, 2**31), "bytes": (1, 2**30), "seconds": (0, float("inf")), "compact_every": (2, 2**31)}
        for name, (least, most) in bounds.items():
            value = getattr(self, name)
            if value is None and name == "compact_every":
                continue
            if not isinstance(value, int | float) or not least <= value <= most:
                raise InvalidRequest(f"{name} of a batch is a number from {least} to {most}; got {value!r}")

    def due(self, *, rows: int, size: int, age_s: float) -> bool:
        """Whether a batch is to be committed."""
        return rows >= self.rows or size >= self.bytes or (rows > 0 and age_s >= self.seconds)


@dataclass(frozen=True, kw_only=True)
class Following:
    """What is made of the records of a stream.

    Attributes:
        columns: Which values are taken, as what; None for the columns of the dataset.
        batches: When they are committed.
        clean: Steps, in order.
        split: The rule that places rows.
        message: Kept with every snapshot.
    """

    columns: Sequence[Column] | None = None
    batches: Batches = field(default_factory=Batches)
    clean: Sequence[CleanStep] = ()
    split: Split = field(default_factory=Split)
    message: str = ""


@dataclass(kw_only=True)
class Followed:
    """What came of following a stream, so far.

    Attributes:
        snapshots: Committed.
        rows: In them.
        rejected: Records that were left out.
    """

    snapshots: int = 0
    rows: int = 0
    rejected: int = 0


async def follow(
    dataset: Dataset,
    stream: Stream,
    asked: Following,
    *,
    job: str,
    folder: Path,
    tell: Tell,
    stop: threading.Event,
) -> Followed:
    """Commits what a stream brings, batch by batch, until it ends or is to stop; what was read by then is committed.

    Args:
        dataset: Where to.
        stream: Where from.
        asked: What is made of it.
        job: Whose work it is; kept with each snapshot.
        folder: Where `rejects.jsonl` is written: what was left out, and why.
        tell: Called with the progress.
        stop: Ends it. So does cancelling it, or an error of the stream, which goes on.

    Raises:
        InvalidRequest: Columns that no record has or the dataset has not; a step that needs all rows; positions that
            are none.
        SnapshotConflict: The dataset has got other columns meanwhile.
        Conflict: Another follower was first, and the stream cannot begin again.
    """
    begin = partial(Landing, dataset, stream.name, asked, job=job, folder=folder, tell=tell)
    with await asyncio.to_thread(begin) as landing:
        while await _follow_once(landing, stream, asked.batches, stop):
            await asyncio.to_thread(landing.begin)
        return landing.followed


async def _follow_once(landing: Landing, stream: Stream, batches: Batches, stop: threading.Event) -> bool:
    # True if somebody else committed what was read, so that it is begun again behind that.
    intake = _Intake(landing.rows, batches, landing.position)
    found = stream.records(landing.position)
    if not hasattr(found, "aclose"):
        raise InvalidRequest(f"records(after) is an async generator; got {type(found).__name__}; yield the records")
    async with contextlib.aclosing(found) as records:
        reader = asyncio.create_task(intake.read(records))
        reader.add_done_callback(intake.notice)
        try:
            while not await intake.wait(reader, stop):
                if not await _whole(intake.land(landing)):
                    return True
            await _stopped(reader)
            if not await _whole(intake.land(landing)):
                return True
            if not reader.cancelled():
                reader.result()
            return False
        except asyncio.CancelledError:
            await _stopped(reader)
            await _whole(intake.land(landing))
            raise
        finally:
            await _stopped(reader)


async def _stopped(reader: asyncio.Task[None]) -> None:
    # Before the last batch is taken, so that nothing is read behind it.
    reader.cancel()
    await asyncio.wait([reader])


async def _whole(work: Coroutine[Any, Any, _T]) -> _T:
    # To its end, also when this is cancelled meanwhile: a commit that is under way becomes one.
    task = asyncio.create_task(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        task.result()  # an error says more than that this was to end
        raise


@dataclass(kw_only=True)
class _Batch:
    rows: list[tuple[Any, ...]] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    rejects: list[Reject] = field(default_factory=list)
    position: Position = None
    bytes: int = 0
    since: float = field(default_factory=time.monotonic)

    def __len__(self) -> int:
        return len(self.rows) + len(self.rejects)


class _Intake:
    """What was read and is not committed yet: one batch at most."""

    def __init__(self, rows: Rows, batches: Batches, position: Position) -> None:
        self._rows = rows
        self._batches = batches
        self._batch = _Batch(position=position)
        self._due = asyncio.Event()
        self._room = asyncio.Event()

    async def read(self, records: AsyncIterator[Record]) -> None:
        """Takes records, as long as there is room."""
        async for record in records:
            self._take(record_of(record))
            if self._is_due:
                self._room.clear()
                self._due.set()
                await self._room.wait()

    async def wait(self, reader: asyncio.Task[None], stop: threading.Event) -> bool:
        """Until a batch is due, or all is over; whether all is over."""
        while not (self._is_due or reader.done() or stop.is_set()):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._due.wait(), _LOOK_S)
        return reader.done() or stop.is_set()

    def notice(self, _: object) -> None:
        """Has whoever waits look."""
        self._due.set()

    async def land(self, landing: Landing) -> bool:
        """Has the batch committed and makes room for the next; whether it was, and not somebody else's instead."""
        batch = self._batch
        self._batch = _Batch(position=batch.position)
        self._due.clear()
        self._room.set()
        return await asyncio.to_thread(landing.land, batch) if len(batch) else True

    @property
    def _is_due(self) -> bool:
        batch = self._batch
        return self._batches.due(rows=len(batch), size=batch.bytes, age_s=time.monotonic() - batch.since)

    def _take(self, record: Record) -> None:
        batch = self._batch
        if not len(batch):
            batch.since = time.monotonic()
        if record.position is not None:
            batch.position = record.position
        try:
            if not isinstance(record.values, Mapping):
                raise Misfit(record.reason or f"a record is values by column; got {type(record.values).__name__}")
            row, weight = self._rows.take(record.values)
        except Misfit as error:
            batch.rejects.append(Reject(source=_name(record), reason=_sayable(str(error))))
            batch.bytes += _SAYABLE
        else:
            batch.rows.append(row)
            batch.names.append(_name(record))
            batch.bytes += weight


def _name(record: Record) -> str:
    if not record.name and record.position is None:
        return "a record"
    return _sayable(str(record.name or f"the record before {record.position}"))


def _sayable(text: str) -> str:
    return text[:_SAYABLE].encode("utf-8", "backslashreplace").decode()


class Landing:
    """Where the batches of one stream become snapshots. One thread at a time.

    Args:
        dataset: Where to.
        stream: The stream's name.
        asked: What is made of its records.
        job: Whose work it is.
        folder: Where `rejects.jsonl` is written.
        tell: Called with the progress.
    """

    def __init__(self, dataset: Dataset, stream: str, asked: Following, *, job: str, folder: Path, tell: Tell) -> None:
        self.followed = Followed()
        self._dataset = dataset
        self._stream = stream
        self._asked = asked
        self._job = job
        self._tell = tell
        base = dataset.record() if dataset.snapshots() else None
        self._columns = _columns(asked.columns, base, stream, remote=not dataset.store.local)
        refuse_shared_arrays(self._columns)
        own = [column for column in self._columns if column.name not in tabular.RESERVED]
        self.rows = Rows(own, max_bytes=asked.batches.bytes)
        steps = _steps(asked.clean, own)
        empty = self.rows.as_arrow([], [], stream=stream)
        self._steps = clean_table.fit(steps, lambda: iter([empty]))
        self.begin()
        self._rejects = _Rejects(folder / "rejects.jsonl")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._rejects.close()

    def begin(self) -> None:
        """Looks where the stream goes on."""
        base = self._dataset.record() if self._dataset.snapshots() else None
        for rule in (self._asked.split, rule_in(base.split_rule if base else {})):
            refuse_by_column(rule, what="rows of a stream")
        self.position: Position = base.positions.get(self._stream) if base else None
        self._number = (base.streams.get(self._stream, -1) if base else -1) + 1
        self._behind = False
        if self._number and self.position is None:
            raise InvalidRequest(
                f"a stream's position is committed with its batches; batch {self._number - 1} of {self._stream!r} in "
                f"{self._dataset.name!r} has none, so somebody else writes under that name; follow it under another"
            )

    def land(self, batch: _Batch) -> bool:
        """Commits a batch; whether it was, and not another follower's in its place.

        After one that was not, none is until `begin`: its records would be left out.
        """
        if self._behind:
            return False
        self._behind = True
        arrow = self.rows.as_arrow(batch.rows, batch.names, stream=self._stream)
        kept, dropped = self._cleaned(arrow)
        rejects = [*batch.rejects, *(reject for _, reject in dropped)]
        span = self._rejects.write(rejects)
        report = self._report(batch, dropped, len(kept), listed=span is not None)
        made = tried(lambda: self._commit(kept, batch.position, report, span))
        if made is None:
            return False
        self._behind = False
        self.followed.snapshots += 1
        self.followed.rows += len(kept)
        self.followed.rejected += len(rejects)
        self._number += 1
        self._tell(Progress(done=self.followed.rows, what="rows stored"))
        if self._asked.batches.compact_every and self.followed.snapshots % self._asked.batches.compact_every == 0:
            with contextlib.suppress(SnapshotConflict):  # then somebody else is at it
                edits.compact(self._dataset, of=self._dataset.snapshot())
        return True

    def _cleaned(self, arrow: pa.RecordBatch) -> tuple[pa.RecordBatch, list[tuple[int, Reject]]]:
        try:
            [(kept, dropped)] = clean_table.through(self._steps, [arrow])
        except DataError as error:  # e.g. a division by zero: the others come in all the same
            if len(arrow) == 1:
                reason = _sayable(f"a cleaning step cannot look at it: {error.__cause__ or error}")
                reject = Reject(source=clean_table.row_names(arrow)[0], reason=reason)
                return arrow.slice(0, 0), [(len(self._asked.clean), reject)]
            half = len(arrow) // 2
            one, two = self._cleaned(arrow.slice(0, half)), self._cleaned(arrow.slice(half))
            return pa.concat_batches([one[0], two[0]]), [*one[1], *two[1]]
        return kept, dropped

    def _report(
        self, batch: _Batch, dropped: Sequence[tuple[int, Reject]], kept: int, *, listed: bool
    ) -> CleaningReport:
        steps = []
        for number, step in enumerate(self._asked.clean):
            own = [reject for at, reject in dropped if at == number]
            told = self._steps[number].told
            steps.append(
                CleaningStepReport(step=step.step, dropped=len(own), examples=tuple(own[:EXAMPLES]), note=told)
            )
        unfit = [*batch.rejects, *(reject for at, reject in dropped if at == len(steps))]
        first = f", e.g. {unfit[0].source}: {unfit[0].reason}" if unfit else ""
        notes = [f"{len(unfit):,} × left out{first}"] if unfit else []
        if not listed:
            notes.append("what was left out is no longer listed: the list has its greatest length")
        return CleaningReport(found=len(batch), already_present=0, kept=kept, steps=tuple(steps), notes=tuple(notes))

    def _commit(
        self, kept: pa.RecordBatch, position: Position, report: CleaningReport, span: tuple[int, int] | None
    ) -> Snapshot | None:
        base = self._dataset.record() if self._dataset.snapshots() else None
        columns = self._columns_on(base)
        values = self._values(kept, columns)
        labels = {column.name: column for column in columns if column.name in (LABEL, "split") and column.labels}
        counts = {name: by_label(column, values[name]) for name, column in labels.items()}
        addition = Addition(
            parts=(),
            columns=columns,
            message=self._asked.message or f"from stream {self._stream}",
            splits=counts.get("split", {}),
            classes=counts.get(LABEL, {}),
            split_rule={**self._asked.split.model_dump(exclude_none=True), "by": "content"},
            provenance={
                "job": self._job,
                "stream": self._stream,
                "cleaning": report.model_dump(mode="json"),
                "rejects": span,
            },
        )
        # Without positions nobody can repeat a batch, nor tell that it was one.
        once = None if position is None else (self._stream, self._number)
        if len(kept):
            with self._dataset.writer(columns) as writer:
                writer.write(values)
                made = commit_part(
                    self._dataset, writer, addition, base=base, rebase=True, once=once, position=position
                )
            own = writer.id in {part.id for part in made.parts}  # another attempt at this job has its name, too
        else:
            made = self._dataset.commit(addition, base=base, rebase=True, once=once, position=position)
            job = made.provenance.get("job")
            own = job == self._job and (once is None or made.streams[self._stream] == self._number)
        return made if own else None

    def _columns_on(self, base: Snapshot | None) -> tuple[Column, ...]:
        # Labels may have grown meanwhile: here, there, and those that name the streams and files.
        if base is None:
            return self._columns
        now = _with_source(base.columns, self._stream)
        sources = {column.name: column for column in now if column.name == "row_source"}
        own = tuple(sources.get(column.name, column) for column in self._columns)
        if extend(own, base.columns):
            return own
        if extend(now, own):
            return now
        raise SnapshotConflict(
            f"a stream's rows have the columns that its dataset has; those of {base.dataset!r} are others by snapshot "
            f"{base.number}; follow it again"
        )

    def _values(self, kept: pa.RecordBatch, columns: Sequence[Column]) -> dict[str, Any]:
        ids = np.frombuffer(b"".join(kept.column(ID).to_pylist()), np.uint8).reshape(-1, 16)
        source = next(column for column in columns if column.name == "row_source")
        own = {
            "row_source": np.full(len(kept), (source.labels or ()).index(self._stream), source.dtype),
            "row_id": ids,
            "split": place_by_content(ids, split=self._asked.split),
        }
        return own | {
            column.name: tabular.values_of(column, kept.column(column.name))
            for column in columns
            if column.name not in own
        }


def _columns(asked: Sequence[Column] | None, base: Snapshot | None, stream: str, *, remote: bool) -> tuple[Column, ...]:
    taken = {"row_source": SOURCE_COLUMN, "row_id": ID_COLUMN, "split": SPLIT_COLUMN}
    if reserved := [column.name for column in asked or () if column.name in taken]:
        raise InvalidRequest(f"the columns {', '.join(taken)} are made by MMS; leave {reserved} out of columns=")
    if base is None:
        if not asked:
            raise InvalidRequest("a dataset begins with its columns; this one has no snapshot yet; give columns=")
        given = (*asked, *taken.values())
        suited = laid_out(given, None, remote=remote)
        return _with_source([_in_profile_of(*each) for each in zip(given, suited, strict=True)], stream)
    there = {column.name: column for column in base.columns}
    if wrong := [name for name, column in taken.items() if name not in there or there[name].kind != column.kind]:
        raise InvalidRequest(
            f"a stream is added to a dataset of rows, which has the columns {', '.join(taken)}; snapshot {base.number} "
            f"of {base.dataset!r} has no {wrong[0]!r}; follow it into another"
        )
    if asked is None:
        return _with_source(base.columns, stream)
    left = {column.name: column for column in asked}
    chosen = tuple(_in_profile_of(left.pop(column.name, column), column) for column in base.columns)
    own = set(there) - set(taken)
    if left or own != {column.name for column in asked} or not extend(chosen, base.columns):
        raise InvalidRequest(
            f"rows are added with the columns that are there, labels may grow at their end; snapshot {base.number} of "
            f"{base.dataset!r} has {sorted(own)}, asked for were {[column.name for column in asked]}, or others of "
            f"these names; leave columns= out"
        )
    return _with_source(chosen, stream)


def _in_profile_of(column: Column, other: Column) -> Column:
    # Unless it was said how the column lies.
    said = "profile" in column.model_fields_set
    return column if said else column.model_copy(update={"profile": other.profile})


def _with_source(columns: Sequence[Column], stream: str) -> tuple[Column, ...]:
    def grown(column: Column) -> Column:
        labels = column.labels or ()
        named = column.name == "row_source" and stream not in labels
        return column.model_copy(update={"labels": (*labels, stream)}) if named else column

    return tuple(map(grown, columns))


def _steps(clean: Sequence[CleanStep], columns: Sequence[Column]) -> list[Any]:
    for step in clean:
        if not isinstance(step, _STEPS) or (isinstance(step, Impute) and step.by != "value"):
            raise InvalidRequest(
                f"a stream is cleaned record by record: drop_missing, drop_out_of_range, keep_where, clip, and impute "
                f"by='value'; {step!r} needs all rows; leave it out"
            )
        column = next((each for each in columns if isinstance(step, Impute) and each.name == step.column), None)
        if isinstance(step, Impute) and column and column.labels and step.value not in column.labels:
            raise InvalidRequest(
                f"what is filled in is a label of the column; {step.value!r} is none of {column.labels}; add it at "
                f"their end"
            )
    whole = tuple(column.name for column in columns if not column.nullable)
    return [*clean, *([DropMissing(columns=whole)] if whole else [])]


class _Rejects:
    """The list of what was left out. It is on the disk before the batch that it belongs to is committed.

    Of a batch that never was, e.g. since another follower was first, lines stay that no snapshot refers to.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with files.writing(path):
            path.touch(files.FILE_MODE)
            self._file = path.open("ab")
            files.fsync_folder(path.parent)

    def write(self, rejects: Sequence[Reject]) -> tuple[int, int] | None:
        """Where in the file they are, in bytes; None if they would make it too long."""
        lines = b"".join(orjson.dumps(reject.model_dump()) + b"\n" for reject in rejects)
        begin = self._file.tell()
        if begin + len(lines) > MAX_REJECTS_BYTES:
            return None
        if lines:
            with files.writing(self._path):
                self._file.write(lines)
                self._file.flush()
                os.fsync(self._file.fileno())
        return begin, begin + len(lines)

    def close(self) -> None:
        """Closes the file."""
        self._file.close()
