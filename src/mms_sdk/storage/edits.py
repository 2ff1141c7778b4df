"""Changes to what a dataset holds: rows deleted, columns written, parts put together.

Nothing that is there is touched. Each writes new folders beside the old ones, and one commit says how they belong
together; whoever reads an earlier snapshot reads on.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from mms_sdk.errors import InvalidName, InvalidRequest
from mms_sdk.schema.dataset import COLUMN_NAME, Column, Layer, Part, Run, Sealed, Snapshot, SnapshotDiff
from mms_sdk.storage.changes import ColumnNames, Compaction, Deletion, NewColumns, arrays_in_use, lying_at
from mms_sdk.storage.counts import by_label
from mms_sdk.storage.datasets import Dataset
from mms_sdk.storage.parts import DELETED
from mms_sdk.storage.snapshots import OpenSnapshot
from mms_sdk.storage.unused import removed_after_errors
from mms_sdk.types import Array, Rows

BATCH_BYTES = 64 * 2**20  # read and written at a time: bounds memory whatever a dataset weighs
BATCH_ROWS = 4096
Derive = Callable[[Mapping[str, Any]], Any]
"""Values of some columns for a batch of rows, by name → the new column's values for them, in the same order."""


def delete_rows(dataset: Dataset, rows: Sequence[int] | Rows, *, of: OpenSnapshot, message: str = "") -> Snapshot:
    """Commits a snapshot without some rows. The others keep their order and move up.

    Args:
        dataset: Whose rows.
        rows: Row numbers in the snapshot `of`, in any order.
        of: The snapshot that was looked at. If somebody added rows meanwhile, those stay.
        message: Kept with the snapshot.

    Raises:
        InvalidRequest: A row number is out of range, or there is none.
        SnapshotConflict: Somebody deleted rows of, or put together, the same parts meanwhile.
    """
    wanted = np.unique(np.asarray(rows, np.int64))
    if not len(wanted):
        raise InvalidRequest("at least one row is deleted; got none; leave the call out")
    with removed_after_errors(dataset, of.record) as sealed:
        change = deletion(dataset, wanted, of=of, message=message, sealed=sealed)
        return dataset.commit(change, base=of.record, rebase=True)


def deletion(dataset: Dataset, rows: Rows, *, of: OpenSnapshot, message: str = "", sealed: list[Sealed]) -> Deletion:
    """Writes what says that rows are gone, to be committed.

    Args:
        dataset: Whose rows.
        rows: Row numbers in the snapshot `of`, ascending, each once.
        of: The snapshot that was looked at.
        message: Kept with the snapshot.
        sealed: The folders that are written are added.

    Raises:
        InvalidRequest: A row number is out of range.
    """
    places = of.places(rows)
    deleted = {}
    for part, positions in places.items():
        _, live = of.rows_of(part)
        record = next(each for each in of.record.parts if each.id == part)
        gone = np.ones(record.rows, bool)
        gone[live] = False
        gone[positions] = True
        with dataset.writer((DELETED,)) as writer:
            writer.write({DELETED.name: np.flatnonzero(gone)})
            deleted[part] = writer.close()
        sealed.append(deleted[part])
    return Deletion(
        before=[part for part in of.record.parts if part.id in places],
        deleted=deleted,
        columns=of.record.columns,
        splits=_counts(of, "split", rows),
        classes=_counts(of, "label", rows),
        message=message or f"{len(rows):,} rows deleted",
        provenance={"deleted": len(rows)},
    )


def write_column(
    dataset: Dataset, column: Column, derive: Derive, *, inputs: Sequence[str], of: OpenSnapshot, message: str = ""
) -> Snapshot:
    """Commits a snapshot with one column more, or with other values in a column that is there.

    Args:
        dataset: Whose rows.
        column: Name, kind, dtype, shape and labels of the column.
        derive: Called with batches of rows, in row order.
        inputs: Columns that `derive` is given.
        of: The snapshot that is read.
        message: Kept with the snapshot.

    Raises:
        ColumnNotFound: An input is not a column of the snapshot.
        InvalidRequest: `derive` returned another number of values, or values that do not fit the column.
        SnapshotConflict: Somebody changed which rows there are meanwhile, or wrote, renamed or dropped that column.
    """
    for name in inputs:
        of.column(name)
    stored = with_free_arrays(of, column)
    counting = column.name in ("split", "label") and column.labels is not None
    counts: Counter[str] = Counter()
    layers = {}
    with removed_after_errors(dataset, of.record) as sealed:
        for part in of.record.parts:
            with dataset.writer((stored,)) as writer:
                for values in _derived(of, part, column, derive, inputs, counts if counting else None):
                    writer.write({stored.name: values})
                sealed.append(writer.close())
            layers[part.id] = Layer(**sealed[-1].model_dump(), arrays=(stored.name,))
        change = NewColumns(
            before=of.record.parts,
            columns=[column.model_copy(update={"array": stored.name if stored.name != column.name else None})],
            replaced=lying_at(of.record, [column.name]),
            layers=layers,
            splits=dict(counts) if column.name == "split" else None,
            classes=dict(counts) if column.name == "label" else None,
            message=message or f"column {column.name} written",
            provenance={"column": column.name, "inputs": list(inputs)},
        )
        return dataset.commit(change, base=of.record, rebase=True)


def rename_columns(
    dataset: Dataset, names: Mapping[str, str | None], *, of: OpenSnapshot, message: str = ""
) -> Snapshot:
    """Commits a snapshot in which columns have other names, or are gone; no value is written.

    Args:
        dataset: Whose columns.
        names: For each column concerned its new name, or None to drop it.
        of: The snapshot that was looked at.
        message: Kept with the snapshot.

    Raises:
        ColumnNotFound: There is no such column.
        InvalidName: A new name has other characters or is too long.
        InvalidRequest: Two columns would have one name, or none is left.
    """
    for name, new in names.items():
        of.column(name)
        if new is not None and re.fullmatch(COLUMN_NAME, new) is None:
            raise InvalidName(f"a column name has 1 to 63 of a-z 0-9 _ and begins with a letter; got {new!r}")
    if all(names.get(column.name, "") is None for column in of.record.columns):
        raise InvalidRequest(f"a dataset has at least one column; all of {of.ref} would be dropped; keep one")
    told = ", ".join(f"{old} dropped" if new is None else f"{old} renamed to {new}" for old, new in names.items())
    return dataset.commit(ColumnNames(names=dict(names), message=message or told), base=of.record, rebase=True)


def compact(dataset: Dataset, *, of: OpenSnapshot, max_part_rows: int = 1_000_000, message: str = "") -> list[Snapshot]:
    """Puts small neighbouring parts together, and writes parts without their deleted rows and with all their columns.

    Rows stay the same, in the same order: only folders change. One commit for each new part.

    Args:
        dataset: Whose parts.
        of: The snapshot that is read.
        max_part_rows: Parts are put together up to so many rows; larger ones stay as they are.
        message: Kept with the snapshots.

    Returns:
        The snapshots, oldest first; none if there was nothing to put together.

    Raises:
        SnapshotConflict: Somebody else changed the same parts meanwhile.
    """
    done: list[Snapshot] = []
    for group in groups(of.record.parts, max_part_rows):
        base = done[-1] if done else of.record
        with removed_after_errors(dataset, base) as sealed:
            sealed.append(_put_together(dataset, group, of))
            since = _runs(np.concatenate([of.snapshots_of(part.id) for part in group]))
            change = Compaction(
                before=group,
                part=Part(**sealed[0].model_dump(), since=since),
                message=message or f"{len(group)} parts put together",
                provenance={"compacted": [part.id for part in group]},
            )
            done.append(dataset.commit(change, base=base, rebase=True))
    return done


def _put_together(dataset: Dataset, group: Sequence[Part], of: OpenSnapshot) -> Sealed:
    with dataset.writer(of.record.columns) as writer:
        for part in group:
            first, live = of.rows_of(part.id)
            for start, end in batches(of.record.columns, len(live)):
                rows = np.arange(first + start, first + end)
                writer.write({column.name: of.gather(column.name, rows) for column in of.record.columns})
        return writer.close()


def groups(parts: Sequence[Part], max_rows: int) -> Iterator[list[Part]]:
    """Which parts compacting puts together: neighbours, so that rows keep their order, up to so many rows.

    A part is alone in its group only if writing it anew frees room or files; what stays as it is is in none.
    """
    group: list[Part] = []
    rows = 0
    for part in parts:
        if group and rows + part.live > max_rows:
            yield from _worth_it(group)
            group, rows = [], 0
        group.append(part)
        rows += part.live
    yield from _worth_it(group)


def diff(older: OpenSnapshot, newer: OpenSnapshot) -> SnapshotDiff:
    """What became of a dataset between two of its snapshots.

    Raises:
        InvalidRequest: The second is not the newer one.
    """
    if newer.record.number < older.record.number:
        raise InvalidRequest(f"a difference is from an older snapshot to a newer one; got {older.ref} to {newer.ref}")
    added = len(newer.rows_since(older.record.number))
    before = {column.stored: column for column in older.record.columns}
    after = {column.stored: column for column in newer.record.columns}
    old_names, new_names = ({column.name for column in each.values()} for each in (before, after))
    # The same array under another name was renamed; the same name over another array was replaced.
    renamed = {
        before[stored].name: after[stored].name
        for stored in before.keys() & after.keys()
        if before[stored].name != after[stored].name
    }
    fresh = {column.name for stored, column in after.items() if stored not in before}
    label, grown = older.record.column("label"), newer.record.column("label")
    return SnapshotDiff(
        dataset=newer.record.dataset,
        older=older.record.number,
        newer=newer.record.number,
        rows_added=added,
        rows_deleted=older.rows - (newer.rows - added),
        columns_added=tuple(sorted(new_names - old_names - set(renamed.values()))),
        columns_dropped=tuple(sorted(old_names - new_names - set(renamed))),
        columns_replaced=tuple(sorted(fresh & old_names)),
        columns_renamed=dict(sorted(renamed.items())),
        labels_added=tuple(
            name for name in (grown and grown.labels) or () if name not in ((label and label.labels) or ())
        ),
    )


def _worth_it(group: list[Part]) -> Iterator[list[Part]]:
    if len(group) > 1 or any(part.deleted or part.layers for part in group):
        yield group


def _runs(snapshots: Rows) -> tuple[Run, ...]:
    bounds = [0, *(np.flatnonzero(np.diff(snapshots)) + 1).tolist(), len(snapshots)]
    runs = [(end - start, int(snapshots[start])) for start, end in pairwise(bounds) if end > start]
    return tuple(Run(rows=rows, snapshot=number) for rows, number in runs)


def _derived(
    of: OpenSnapshot, part: Part, column: Column, derive: Derive, inputs: Sequence[str], counts: Counter[str] | None
) -> Iterator[Any]:
    # Rows that were deleted are there for those who read earlier snapshots; the new column holds nothing for them.
    first, live = of.rows_of(part.id)
    columns = [*(of.column(name) for name in inputs), column]
    written = 0
    for start, end in batches(columns, len(live)):
        rows = np.arange(first + start, first + end)
        values = derive({name: of.gather(name, rows) for name in inputs})
        if len(values) != len(rows):
            raise InvalidRequest(
                f"a column has one value for each row; for {len(rows)} rows of {of.ref} came {len(values)}; return as "
                f"many values as rows came in"
            )
        if counts is not None:
            counts.update(by_label(column, values))
        last = part.rows if end == len(live) else int(live[end])
        yield spread(column, values, live[start:end] - written, last - written)
        written = last
    if written < part.rows:
        yield spread(column, [], np.empty(0, np.int64), part.rows - written)


def spread(column: Column, values: Any, places: Rows, rows: int) -> Any:
    """Values at their places among so many rows, with nothing in the others."""
    if column.varies:
        missing: Any = b"" if column.shape is None else np.empty((0, *column.fixed), column.dtype)
        spread = [missing] * rows
        for place, value in zip(places.tolist(), values, strict=True):
            spread[place] = value
        return spread
    given = np.ma.asanyarray(values) if column.nullable else np.asarray(values)
    out: Array = (
        np.ma.zeros((rows, *column.fixed), column.dtype)
        if column.nullable
        else np.zeros((rows, *column.fixed), column.dtype)
    )
    if len(places):
        if given.dtype != out.dtype or given.shape[1:] != column.shape:
            raise InvalidRequest(
                f"column {column.name!r} takes {column.dtype} rows of shape {column.shape}; got {given.dtype} rows of "
                f"shape {given.shape[1:]}; convert them first"
            )
        out[places] = given
    return out


def batches(columns: Sequence[Column], rows: int) -> Iterator[tuple[int, int]]:
    """Where to cut so many rows of these columns so that memory is bounded: from and to."""
    # Rows of varying length are taken for 256 KiB each, an encoded picture's weight.
    row_bytes = sum(column.row_bytes if column.row_bytes is not None else 2**18 for column in columns)
    step = max(1, min(BATCH_ROWS, BATCH_BYTES // max(1, row_bytes)))
    for start in range(0, rows, step):
        yield start, min(rows, start + step)


def with_free_arrays(of: OpenSnapshot, column: Column) -> Column:
    """The column under a name that no array of the snapshot has: as it is written to a layer."""
    taken = arrays_in_use(of.record)
    number = 2
    free = column.model_copy(update={"array": None})
    while taken & {free.stored, *free.arrays}:
        free, number = free.model_copy(update={"name": f"{column.name}_{number}"}), number + 1
    return free


def _counts(of: OpenSnapshot, column: str, rows: Rows) -> dict[str, int]:
    found = of.record.column(column)
    return by_label(found, of.values(column)[rows]) if found is not None and found.labels else {}
