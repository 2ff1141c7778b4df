"""Cleaning of what a dataset holds: rows go and columns are written anew, in one commit.

The steps are those of an ingest, and see the rows as Arrow's batches, of which only the columns that they ask for are
read. The rows are gone over once to learn what goes and what the columns become, and, where values change, once more to
write them. What stays in memory is what a step keeps of a row.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mms_sdk.compute.data import clean_table, expressions, stored
from mms_sdk.compute.data.bring import Tell, told, tried
from mms_sdk.compute.data.clean_table import ID, Applied, Batches, Fitted, Reported
from mms_sdk.compute.data.ingest_table import converted
from mms_sdk.compute.data.keys import DIGEST, keys_of
from mms_sdk.compute.data.kinds import audio, image, tabular
from mms_sdk.compute.data.near_duplicates import NamedLeaders, NearPictures
from mms_sdk.compute.data.sources.rows import ROW, SOURCE
from mms_sdk.errors import DataError, InvalidInput, InvalidRequest
from mms_sdk.schema.cleaning import (
    CleaningReport,
    Clip,
    Convert,
    DropConstant,
    DropDuplicates,
    DropMissing,
    DropNearDuplicates,
    DropOddSizes,
    DropUnreadable,
    Impute,
    KeepWhere,
    Reject,
)
from mms_sdk.schema.dataset import Column, Layer, Part, Sealed, Snapshot
from mms_sdk.schema.specs import CleanSpec
from mms_sdk.storage import edits
from mms_sdk.storage.changes import Change, ColumnNames, NewColumns, Together, lying_at
from mms_sdk.storage.datasets import Dataset
from mms_sdk.storage.snapshots import OpenSnapshot
from mms_sdk.storage.unused import removed_after_errors
from mms_sdk.types import Array, Rows

_MAX_PIXELS = 2**31  # what is stored came in already, by whatever bound; Pillow has its own
_MAX_SECONDS = 24 * 3600.0


@dataclass(kw_only=True)
class _Seen:
    """What the cleaned rows are.

    Attributes:
        left: Numbers of those that stay, batch by batch.
        missing: Of each column, rows without a value.
        texts: Of each category, the names that occur.
        schema: Of the batches.
    """

    left: list[Rows]
    missing: Counter[str]
    texts: dict[str, set[str]]
    schema: pa.Schema = None


def clean(dataset: Dataset, spec: CleanSpec, *, job: str, folder: Path, tell: Tell) -> tuple[Snapshot, CleaningReport]:
    """Cleans the newest snapshot of a dataset, as one new snapshot.

    Args:
        dataset: Whose rows.
        spec: The steps.
        job: Whose work it is; kept with the snapshot.
        folder: Where `rejects.jsonl` is written: every row that goes, and why.
        tell: Called with the progress.

    Raises:
        InvalidRequest: A step does not suit what the dataset holds.
        ColumnNotFound: A step names a column that is not there.
        DataError: There is no row; or values that are not what their column says.
        SnapshotConflict: Others changed the dataset meanwhile, time after time.
    """
    return tried(lambda: _clean(dataset, spec, job=job, folder=folder, tell=tell))


def _clean(dataset: Dataset, spec: CleanSpec, *, job: str, folder: Path, tell: Tell) -> tuple[Snapshot, CleaningReport]:
    of = dataset.snapshot()
    if not of.rows:
        raise DataError(f"rows are cleaned; {of.ref} has none; clean an earlier snapshot's, or ingest some first")
    rows = _Rows(of, spec.clean)
    steps = clean_table.fit(spec.clean, rows.read, fixed=_kept(of), others=_steps(of))
    reported = Reported(steps, folder)
    seen = _Seen(left=[], missing=Counter(), texts={})
    changing = {step.column for step in spec.clean if isinstance(step, Clip | Impute | Convert)}
    categories = converted(spec.clean, [each.name for each in of.record.columns if each.kind == "category"])
    for batch in reported.through(told(rows.read(), "rows checked", of.rows, tell, size=len)):
        _see(seen, batch, changing, categories)
    left = np.concatenate(seen.left)
    dropped = [name for name in rows.names if name not in seen.schema.names]
    columns = [_column(of, seen, name, categories) for name in sorted(changing - set(dropped))]
    report = CleaningReport(found=of.rows, already_present=0, kept=len(left), steps=tuple(reported.reports))
    provenance = {
        "job": job,
        "clean": {"of": of.ref, **spec.model_dump(mode="json")},
        "cleaning": report.model_dump(mode="json"),
    }
    message = spec.message or f"cleaned by {', '.join(dict.fromkeys(step.step for step in spec.clean))}"
    changes: list[Change] = []
    with removed_after_errors(dataset, of.record) as sealed:
        if columns:
            changes.append(_written(dataset, of, rows, steps, columns, tell, sealed))
        if dropped:
            changes.append(ColumnNames(names=dict.fromkeys(dropped)))
        if len(left) < of.rows:
            deletion = edits.deletion(dataset, np.setdiff1d(np.arange(of.rows), left), of=of, sealed=sealed)
            # What this cleaning writes itself is compared where it is written.
            others = [column for column in of.record.columns if column.name not in changing | set(dropped)]
            changes.append(replace(deletion, chosen_by=others))
        change = Together(changes=changes, message=message, provenance=provenance)
        return dataset.commit(change, base=of.record, rebase=True), report


def _kept(of: OpenSnapshot) -> set[str]:
    # What rows are counted by, split by and known by.
    return {each.name for each in of.record.columns if each.kind in ("label", "split", "id")} | _origin(of)


def _origin(of: OpenSnapshot) -> set[str]:
    names = {column.name for column in of.record.columns}
    return names & ({"row_source"} if "row_id" in names else {"source"} if _known_by_id(of) else set())


def _known_by_id(of: OpenSnapshot) -> bool:
    column = of.record.column("id")
    return column is not None and column.kind == "id"


class _Rows:
    """The rows of a snapshot, as the steps see them.

    Args:
        of: The snapshot.
        steps: What they are read for.

    Attributes:
        names: Columns that are read.
    """

    def __init__(self, of: OpenSnapshot, steps: Sequence[Any]) -> None:
        self._of = of
        kept = _kept(of)
        own = [column.name for column in of.record.columns if column.name not in kept or column.kind == "label"]
        self._by_values = any(isinstance(step, DropDuplicates) and step.by is None for step in steps)
        self._identity = ["id"] if _known_by_id(of) else own
        asked = {name for step in steps for name in _asked(step, of, own)}
        self.names = [column.name for column in of.record.columns if column.name in asked]
        pictures = any(isinstance(step, DropUnreadable | DropOddSizes | DropNearDuplicates) for step in steps)
        read = {*self.names, *(self._identity if self._by_values else ()), *(_media(of) if pictures else ())}
        self._columns = [column for column in of.record.columns if column.name in read]

    def read(self) -> Iterator[pa.RecordBatch]:
        """All of them, in order; a batch is of one part."""
        for part in self._of.record.parts:
            first, _ = self._of.rows_of(part.id)
            for start, end in self.cuts(part):
                yield self._batch(np.arange(first + start, first + end))

    def cuts(self, part: Part) -> list[tuple[int, int]]:
        """Where a part is cut into batches."""
        return list(edits.batches(self._columns, part.live))

    def _batch(self, rows: Rows) -> pa.RecordBatch:
        batch = stored.arrow_batch(self._of, self.names, rows)
        if "source" in _origin(self._of):
            sources = pa.array(self._of.gather("source", rows), pa.binary()).cast(pa.string())
        else:
            sources = pa.DictionaryArray.from_arrays(np.zeros(len(rows), np.int32), [self._of.ref])
        own = [*batch.columns, sources, pa.array(rows), self._ids(rows)]
        return pa.RecordBatch.from_arrays(own, names=[*self.names, SOURCE, ROW, ID])

    def _ids(self, rows: Rows) -> pa.Array:
        if not self._by_values:
            return pa.nulls(len(rows), pa.binary(16))
        keys = keys_of(stored.arrow_batch(self._of, self._identity, rows), self._identity, types={})
        return pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), len(rows), [None, pa.py_buffer(keys.astype(DIGEST))])


def _asked(step: Any, of: OpenSnapshot, own: Sequence[str]) -> Sequence[str]:
    # The columns that a step looks at.
    match step:
        case KeepWhere():
            return expressions.names_in(step.expression, columns=[column.name for column in of.record.columns])
        case DropMissing(columns=None):
            return [name for name in own if of.column(name).nullable or of.column(name).dtype.startswith("float")]
        case DropConstant():
            return [name for name in own if of.column(name).shape in ((), None)]
        case DropMissing():
            names = step.columns or ()
        case DropDuplicates():
            names = step.by or ()
        case _:
            column = getattr(step, "column", None)
            names = () if column is None else (column,)
    return [of.column(name).name for name in names]


def _see(seen: _Seen, batch: pa.RecordBatch, changing: set[str], categories: set[str]) -> None:
    seen.schema = batch.schema
    seen.left.append(np.asarray(batch.column(ROW)))
    for name in changing & set(batch.schema.names):
        seen.missing[name] += batch.column(name).null_count
        if name in categories:
            found = batch.column(name).unique().drop_null().to_pylist()
            seen.texts.setdefault(name, set()).update(found)


def _column(of: OpenSnapshot, seen: _Seen, name: str, categories: set[str]) -> Column:
    before, kind = of.column(name), seen.schema.field(name).type
    nullable = seen.missing[name] > 0
    if name in categories:
        known = before.labels or ()
        labels = (*known, *sorted(seen.texts[name] - set(known)))
        return Column(name=name, kind="category", dtype="int32", labels=labels, nullable=nullable, title=before.title)
    if before.labels is None and kind == tabular.type_of(before):
        return before.model_copy(update={"nullable": nullable, "array": None})
    return tabular.column_of(name, before.title or name, kind, nullable=nullable, length=None)


def _written(
    dataset: Dataset,
    of: OpenSnapshot,
    rows: _Rows,
    steps: Sequence[Fitted],
    columns: Sequence[Column],
    tell: Tell,
    sealed: list[Sealed],
) -> NewColumns:
    stored_as = [edits.with_free_arrays(of, column) for column in columns]
    batches = clean_table.through(steps, told(rows.read(), "rows written", of.rows, tell, size=len))
    layers = {}
    for part in of.record.parts:
        cuts = rows.cuts(part)
        with dataset.writer(stored_as) as writer:
            for values in _layer(of, part, cuts, (batch for batch, _ in islice(batches, len(cuts))), columns):
                writer.write({each.name: spread for each, spread in zip(stored_as, values, strict=True)})
            sealed.append(writer.close())
        layers[part.id] = Layer(**sealed[-1].model_dump(), arrays=tuple(each.name for each in stored_as))
    described = [
        column.model_copy(update={"array": each.name if each.name != column.name else None})
        for each, column in zip(stored_as, columns, strict=True)
    ]
    replaced = lying_at(of.record, [column.name for column in columns])
    return NewColumns(before=of.record.parts, columns=described, replaced=replaced, layers=layers)


def _layer(
    of: OpenSnapshot, part: Part, cuts: Sequence[tuple[int, int]], batches: Batches, columns: Sequence[Column]
) -> Iterator[list[Any]]:
    # Rows that go have nothing in the new columns, as those that went earlier.
    first, live = of.rows_of(part.id)
    written = 0
    for (_, end), batch in zip(cuts, batches, strict=True):
        until = part.rows if end == len(live) else int(live[end])
        places = live[np.asarray(batch.column(ROW)) - first] - written
        values = [tabular.values_of(column, batch.column(column.name)) for column in columns]
        yield [edits.spread(*each, places, until - written) for each in zip(columns, values, strict=True)]
        written = until
    if written < part.rows:
        yield [edits.spread(column, [], np.empty(0, np.int64), part.rows - written) for column in columns]


# Pictures and recordings ------------------------------------------------------------------------------------------


def _media(of: OpenSnapshot) -> list[str]:
    return [name for name in ("image", "audio") if of.record.column(name) is not None][:1]


def _steps(of: OpenSnapshot) -> dict[type, clean_table.Fit]:
    # Those that are others here than in an ingest of a table.
    arrays = any(column.shape not in ((), None) and column.name not in _kept(of) for column in of.record.columns)
    return {
        DropConstant: partial(clean_table.drop_constant, fixed=_kept(of), beside=arrays),
        DropUnreadable: partial(_drop_unreadable, of),
        DropOddSizes: partial(_drop_odd_sizes, of),
        DropNearDuplicates: partial(_drop_near_duplicates, of),
    }


def _medium(of: OpenSnapshot, step: Any, *kinds: str) -> Column:
    column = next((of.column(name) for name in _media(of)), None)
    if column is None or column.kind not in kinds:
        names = {each.name: each.kind for each in of.record.columns}
        raise InvalidRequest(f"step {step.step} is for {' and '.join(kinds)}; {of.ref} has {names}; leave it out")
    return column


def _gathered(of: OpenSnapshot, column: Column, batch: pa.RecordBatch, look: Callable[[Any], Any]) -> list[Any]:
    # None for a row without one.
    values = of.gather(column.name, np.asarray(batch.column(ROW)))
    if isinstance(values, np.ma.MaskedArray):
        masks = np.ma.getmaskarray(values)
        values = [None if mask.any() else value for mask, value in zip(masks, values.data, strict=True)]
    with ThreadPoolExecutor(thread_name_prefix="mms-clean") as pool:
        return list(pool.map(lambda value: None if value is None else look(value), values))


def _inspected(column: Column, data: Any) -> Any:
    # What an encoded picture or recording is, or why it does not decode.
    try:
        if column.kind == "encoded-image":
            return image.inspect(data, max_pixels=_MAX_PIXELS)
        return audio.inspect(data, max_seconds=_MAX_SECONDS)
    except InvalidInput as error:
        return error.message


def _drop_unreadable(of: OpenSnapshot, step: DropUnreadable, read: Callable[[], Batches]) -> Fitted:
    column = _medium(of, step, "image", "encoded-image", "audio", "encoded-audio")

    def apply(batch: pa.RecordBatch) -> tuple[pa.RecordBatch, list[Reject]]:
        if column.kind in ("image", "audio"):  # decoded when they came in
            return batch, []
        found = _gathered(of, column, batch, partial(_inspected, column))
        return clean_table.without(batch, np.array([isinstance(each, str) for each in found], bool), found.__getitem__)

    return Fitted(step=step, begin=lambda: apply)


def _drop_odd_sizes(of: OpenSnapshot, step: DropOddSizes, read: Callable[[], Batches]) -> Fitted:
    column = _medium(of, step, "image", "encoded-image")
    if column.kind == "image":  # of one size

        def nothing(batch: pa.RecordBatch) -> tuple[pa.RecordBatch, list[Reject]]:
            return batch, []

        return Fitted(step=step, begin=lambda: nothing)

    def sizes_of(batch: pa.RecordBatch) -> list[tuple[int, int] | None]:
        found = _gathered(of, column, batch, partial(_inspected, column))
        return [getattr(each, "size", None) for each in found]

    sizes = Counter(size for batch in read() for size in sizes_of(batch) if size is not None)
    usual, count = sizes.most_common(1)[0] if sizes else (None, 0)
    others = f"{count:,} of {sizes.total():,} have {_told(usual)}"
    agreed = count >= step.min_share * sizes.total()

    def apply(batch: pa.RecordBatch) -> tuple[pa.RecordBatch, list[Reject]]:
        found = sizes_of(batch) if agreed else [usual] * len(batch)
        odd: Array = np.array([size not in (None, usual) for size in found], bool)
        return clean_table.without(batch, odd, lambda at: f"it has {_told(found[at])} pixels, {others}")

    return Fitted(step=step, begin=lambda: apply)


def _told(size: tuple[int, int] | None) -> str:
    return f"{size[1]}×{size[0]}" if size else "no"


def _drop_near_duplicates(of: OpenSnapshot, step: DropNearDuplicates, read: Callable[[], Batches]) -> Fitted:
    if step.distance is None:
        return clean_table.drop_near_texts(step, read)
    column, distance = _medium(of, step, "image", "encoded-image"), step.distance

    def begin() -> Applied:
        near = NamedLeaders(NearPictures(distance), "uint64")

        def apply(batch: pa.RecordBatch) -> tuple[pa.RecordBatch, list[Reject]]:
            hashes = _gathered(of, column, batch, partial(stored.looks, column))
            firsts = near.firsts(clean_table.row_names(batch), hashes)
            return clean_table.without(
                batch, np.array([first is not None for first in firsts], bool), lambda at: f"it looks like {firsts[at]}"
            )

        return apply

    return Fitted(step=step, begin=begin)
