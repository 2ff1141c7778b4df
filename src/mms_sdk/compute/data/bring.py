"""What every ingest does: tells how far it is, and commits the part it wrote or leaves nothing behind."""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import orjson

from mms_sdk.errors import Conflict, DataError, MmsError, SnapshotConflict
from mms_sdk.schema.cleaning import CleaningReport
from mms_sdk.schema.dataset import Column, Position, Snapshot
from mms_sdk.schema.job import Progress
from mms_sdk.schema.specs import IngestSpec
from mms_sdk.storage import fence
from mms_sdk.storage.changes import Addition, Replacement
from mms_sdk.storage.datasets import Dataset
from mms_sdk.storage.ids import new_id
from mms_sdk.storage.parts import PartWriter
from mms_sdk.storage.unused import remove_unused, removed_after_errors
from mms_sdk.storage.writing import Writing, begin
from mms_sdk.types import Array

Tell = Callable[[Progress], None]
EXAMPLES = 5
"""Rejects of a step that its report shows; the job keeps all."""

PART_BYTES = 2**30
"""Of rows, before compression: what a killed ingest writes again, at most, and what a part weighs."""

_ATTEMPTS = 5
_TELL_EVERY_S = 0.1
_Item = TypeVar("_Item")


def told(
    items: Iterable[_Item],
    what: str,
    total: int,
    tell: Tell,
    *,
    size: Callable[[_Item], int] = lambda _: 1,
    done: int = 0,
) -> Iterator[_Item]:
    """The items, telling how many of them were taken.

    Args:
        items: Passed on.
        what: They are, for people.
        total: How many there will be.
        tell: Called at most ten times a second.
        size: How many an item stands for.
        done: How many were taken before.
    """
    last = 0.0
    for item in items:
        done += size(item)
        if time.monotonic() - last > _TELL_EVERY_S or done == total:
            last = time.monotonic()
            tell(Progress(done=done, total=total, what=what))
        yield item


def tried(ingest: Callable[[], _Item]) -> _Item:
    """Does an ingest again on what others committed meanwhile; gives up when that happens time after time."""
    for _ in range(_ATTEMPTS - 1):
        with contextlib.suppress(SnapshotConflict):
            return ingest()
    return ingest()


def commit_part(
    dataset: Dataset,
    writer: PartWriter,
    change: Addition | Replacement,
    *,
    base: Snapshot | None,
    rebase: bool = False,
    once: tuple[str, int] | None = None,
    position: Position = None,
) -> Snapshot:
    """Closes a part and commits it on top of what was looked at; if that fails, the part goes too.

    Also if the batch was committed already. See `Dataset.commit`.

    Raises:
        SnapshotConflict: Somebody committed meanwhile, and the two do not commute or `rebase` is false.
    """
    with removed_after_errors(dataset, base) as sealed:
        sealed.append(writer.close())
        change = replace(change, parts=tuple(sealed))
        made = dataset.commit(change, base=base, rebase=rebase, once=once, position=position)
    remove_unused(dataset, sealed, [made])
    return made


def write_rows(
    dataset: Dataset,
    addition: Addition,
    rows: Callable[[int], Iterator[Mapping[str, Any]]],
    *,
    count: int,
    base: Snapshot | None,
    work: str,
) -> Snapshot:
    """Writes rows in parts of bounded size, and commits them as one snapshot on what was looked at.

    The parts that a process sealed before it was killed are found by those who do the same work again, and not written
    again. After an error nothing is left.

    Args:
        dataset: Where to.
        addition: What is told of the rows; its parts come from here.
        rows: Gives the rows from a number on, batch by batch, by column.
        count: How many there are.
        base: The snapshot that was looked at.
        work: What the rows are, by `digest_of`.

    Raises:
        SnapshotConflict: Somebody committed meanwhile, or the same work was done or given up by another process.
        DataError: There are more rows now, or fewer.
    """
    after = base.number if base else 0
    digest = hashlib.sha256(f"{work} on {after}".encode()).hexdigest()
    writing = begin(dataset, addition.columns, work=digest, after=after)
    attempt = new_id()
    try:
        keys, done = _sealed_in_a_row(writing)
        batches = rows(done)
        batch = next(batches, None)
        while batch is not None:
            # Each attempt has keys of its own, and commits those that it counted: two at once cannot mix.
            keys.append(f"{done:012}-{attempt}")
            with writing.writer(keys[-1]) as writer:
                size = 0
                while batch is not None and size < PART_BYTES:
                    writer.write(batch)
                    done += len(next(iter(batch.values())))
                    size += sum(map(_bytes, batch.values()))
                    batch = next(batches, None)
        if done != count:
            raise DataError(f"a source stays as it is during an ingest; it had {count:,} rows and has {done:,} now")
        made = writing.commit(
            keys=keys,
            rebase=False,
            message=addition.message,
            split_rule=addition.split_rule,
            provenance=addition.provenance,
        )
    except Exception as error:
        with contextlib.suppress(OSError, MmsError):  # what went wrong on the way here says more
            fence.check()  # of an attempt that was given up another one takes over the parts
            writing.abandon()
        if isinstance(error, Conflict) and not isinstance(error, SnapshotConflict):
            raise SnapshotConflict(f"another process did the same work or gave it up: {error.message}") from error
        raise
    with contextlib.suppress(OSError, MmsError):  # the snapshot is there; what is left of the writing is garbage
        writing.forget()
    return made


def _sealed_in_a_row(writing: Writing) -> tuple[list[str], int]:
    # Keys that hold the rows from the first on without a gap, and how many rows that are.
    keys, done = [], 0
    for written in writing.sealed():
        if written.rows and written.key.startswith(f"{done:012}-"):
            keys.append(written.key)
            done += written.rows
    return keys, done


def digest_of(
    spec: IngestSpec, report: CleaningReport, columns: Sequence[Column], *values: Array | Sequence[str]
) -> str:
    """What tells the rows of one ingest from those of any other: what was asked for and found, and what each row is."""
    told = hashlib.sha256(orjson.dumps([each.model_dump(mode="json") for each in (spec, report, *columns)]))
    for each in values:
        told.update(orjson.dumps(list(each)) if not isinstance(each, np.ndarray) else np.ascontiguousarray(each).data)
    return told.hexdigest()


def _bytes(values: Any) -> int:
    return int(values.nbytes) if hasattr(values, "nbytes") else sum(map(_bytes_of_row, values))


def _bytes_of_row(value: Any) -> int:
    return 0 if value is None else int(getattr(value, "nbytes", 0)) or len(value)
