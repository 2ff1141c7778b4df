"""Joining: each row of one dataset with the one row of another that has its key.

Of the right dataset a digest of sixteen bytes a row is in memory, with its place, and of the left one the place of each
row's partner. Values are gathered by row number, a batch at a time, so columns of either may be larger than memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mms_sdk.compute.data import stored
from mms_sdk.compute.data.bring import EXAMPLES, Tell, told, tried
from mms_sdk.compute.data.combined import COUNTED, commit_combined, missing_values
from mms_sdk.compute.data.keys import DIGEST, SortedKeys, keys_of
from mms_sdk.errors import DataError, InvalidRequest
from mms_sdk.schema.dataset import Column, Snapshot
from mms_sdk.schema.specs import JoinReport, JoinSpec
from mms_sdk.storage import edits
from mms_sdk.storage.datasets import Dataset
from mms_sdk.storage.snapshots import OpenSnapshot
from mms_sdk.types import Array, Rows


def join(
    dataset: Dataset, left: OpenSnapshot, right: OpenSnapshot, spec: JoinSpec, *, job: str, tell: Tell
) -> tuple[Snapshot, JoinReport]:
    """Commits the rows of one snapshot, each with columns of the row of another that has its key.

    Args:
        dataset: Where to: a new one, or one that was made so before, which gets a snapshot with the new rows.
        left: Whose rows they are, in its order.
        right: Whose columns come along.
        spec: By what and how.
        job: Whose work it is; kept with the snapshot.
        tell: Called with the progress.

    Raises:
        ColumnNotFound: A column is not there.
        InvalidRequest: Keys that cannot be compared, a key that several rows of the right have, or two columns of one
            name.
        DataError: No row has a partner, and only such rows were asked for.
    """
    _refuse_other_kinds(left, right, spec.on)
    brought = _brought(left, right, spec)
    partners = _partners(left, right, spec, tell)
    report = JoinReport(
        rows=left.rows if spec.how == "left" else int(np.count_nonzero(partners >= 0)),
        matched=int(np.count_nonzero(partners >= 0)),
        unmatched=int(np.count_nonzero(partners < 0)),
    )
    if not report.rows:
        raise DataError(
            f"a join has at least one row; no row of {left.ref} has a key that {right.ref} has; check on=, or keep "
            f"rows without a partner with how='left'"
        )
    gaps = spec.how == "left" and report.unmatched > 0
    if gaps and (counted := [new for new in brought.values() if new in COUNTED]):
        raise InvalidRequest(
            f"every row has a {counted[0]}; {report.unmatched:,} rows of {left.ref} would have none; name it otherwise "
            f"with rename=, or leave rows without a partner out with how='inner'"
        )
    columns = {
        name: right.column(name).model_copy(
            update={"name": new, "array": None, "nullable": right.column(name).nullable or gaps}
        )
        for name, new in brought.items()
    }
    chosen = np.arange(left.rows) if spec.how == "left" else np.flatnonzero(partners >= 0)
    own = [column.model_copy(update={"array": None}) for column in left.record.columns]
    made = spec.model_copy(update={"left": left.ref, "right": right.ref})
    done = tried(
        lambda: commit_combined(
            dataset,
            (*own, *columns.values()),
            _joined(left, right, chosen, partners, columns),
            rows=report.rows,
            message=spec.message or f"{left.ref} joined with {right.ref}",
            provenance={"job": job, "join": made.model_dump(mode="json"), "joined": report.model_dump()},
            tell=tell,
        )
    )
    return done, report


def _refuse_other_kinds(left: OpenSnapshot, right: OpenSnapshot, on: Mapping[str, str]) -> None:
    for one, other in on.items():
        kinds = _comparable(left, one), _comparable(right, other)
        if kinds[0] != kinds[1]:
            raise InvalidRequest(
                f"keys are compared with keys of their kind; {one!r} of {left.ref} holds {kinds[0]}, {other!r} of "
                f"{right.ref} {kinds[1]}; convert one with dataset.clean(mms.convert(...))"
            )


def _comparable(of: OpenSnapshot, name: str) -> str:
    column = of.column(name)
    if column.labels is not None or column.kind == "text":
        return "texts"
    if column.kind == "timestamp":
        return f"times in {column.unit}"
    if column.shape in ((), None) or column.kind == "id":
        words = {"b": "truth values", "i": "whole numbers", "u": "whole numbers", "f": "floats"}
        return words[np.dtype(column.dtype).kind] if column.shape == () else f"{column.kind} of shape {column.shape}"
    raise InvalidRequest(
        f"a key is a number, truth value, time, text or id; {name!r} of {of.ref} is {column.kind} of shape "
        f"{column.shape}; join by another column"
    )


def _brought(left: OpenSnapshot, right: OpenSnapshot, spec: JoinSpec) -> dict[str, str]:
    # Names of the right columns that come along, and what they are called then.
    keys = set(spec.on.values())
    known = [column.name for column in right.record.columns]
    of_rows = {column.name for column in right.record.columns if column.kind in ("id", "split")} | {"row_source"}
    names = spec.columns or [name for name in known if name not in keys | of_rows]
    for name in (*names, *spec.rename):
        right.column(name)
    taken = {column.name for column in left.record.columns}
    brought: dict[str, str] = {}
    for name in names:
        new = spec.rename.get(name, name)
        if new in taken and name not in spec.rename and spec.suffix:
            new = f"{name}{spec.suffix}"
        if new in taken:
            raise InvalidRequest(
                f"each column has a name of its own; {new!r} of {right.ref} would be there twice; name it otherwise "
                f"with rename={{{name!r}: ...}} or suffix='_2', or choose others with columns="
            )
        taken.add(new)
        brought[name] = new
    if not brought:
        raise InvalidRequest(f"a join brings at least one column; {right.ref} has {known}; name some with columns=")
    return brought


def _partners(left: OpenSnapshot, right: OpenSnapshot, spec: JoinSpec, tell: Tell) -> Rows:
    # For each row of the left the row of the right that has its key, or -1.
    there, keys = _keys(right, list(spec.on.values()), tell)
    places = SortedKeys(keys)
    if spec.many == "refuse" and len(again := places.repeated(EXAMPLES)):
        rows = stored.arrow_batch(right, list(spec.on.values()), there[again]).to_pylist()
        examples = "; ".join(", ".join(f"{name}={value!r}" for name, value in row.items()) for row in rows)
        raise InvalidRequest(
            f"a row has one partner; {right.ref} has several rows with {examples}; drop all but one with "
            f"mms.drop_duplicates(by=...), or take the first with many='first'"
        )
    partners = np.full(left.rows, -1, np.int64)
    wanted, keys = _keys(left, list(spec.on), tell)
    found = places.find(keys)
    partners[wanted[found >= 0]] = there[found[found >= 0]]
    return partners


def _keys(of: OpenSnapshot, names: Sequence[str], tell: Tell) -> tuple[Rows, Array]:
    # Rows that have all of the key, and its digests: what is missing is the same as nothing.
    rows, keys, first = [np.empty(0, np.int64)], [np.empty(0, DIGEST)], 0
    for batch in told(stored.arrow_batches(of, names), f"keys of {of.ref}", of.rows, tell, size=len):
        missing = [np.asarray(pc.is_null(column, nan_is_null=True)) for column in batch.columns]
        there = np.flatnonzero(~np.logical_or.reduce(missing))
        rows.append(there + first)
        keys.append(keys_of(batch.take(pa.array(there)), names, types={}))
        first += len(batch)
    return np.concatenate(rows), np.concatenate(keys)


def _joined(
    left: OpenSnapshot, right: OpenSnapshot, chosen: Rows, partners: Rows, columns: Mapping[str, Column]
) -> Iterator[dict[str, Any]]:
    own = left.record.columns
    for start, end in edits.batches((*own, *columns.values()), len(chosen)):
        rows = chosen[start:end]
        values = {column.name: left.take(column.name, rows) for column in own}
        values |= {column.name: _found(right, name, column, partners[rows]) for name, column in columns.items()}
        yield values


def _found(right: OpenSnapshot, name: str, column: Column, partners: Rows) -> Any:
    places = np.flatnonzero(partners >= 0)
    values = right.take(name, partners[places])
    if len(places) == len(partners):
        return values
    out = missing_values(column, len(partners))
    if column.varies:
        for place, value in zip(places.tolist(), values, strict=True):
            out[place] = value
    else:
        out[places] = values
    return out
