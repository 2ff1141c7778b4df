"""Ingest of tables: rows with named columns, from a source to a new snapshot, or to nothing at all.

The rows are gone over several times, batch by batch: to learn the types, to learn what a cleaning step has to know, to
decide which rows come in and where they are placed, and to bring them in. What stays in memory is a digest a row.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mms_sdk.compute.data import clean_table, stored
from mms_sdk.compute.data.bring import Tell, digest_of, told, tried, write_rows
from mms_sdk.compute.data.clean_table import ID, Fitted, Reported
from mms_sdk.compute.data.keys import DIGEST, as_keys, keys_of
from mms_sdk.compute.data.kinds import tabular
from mms_sdk.compute.data.placing import column_to_place_by, group_digests, rule_of, times_of
from mms_sdk.compute.data.sources.rows import ROW, SOURCE, SPLIT, Table
from mms_sdk.compute.data.split import cuts_of, place, place_by_content, place_by_time
from mms_sdk.errors import DataError, InvalidRequest, NothingToIngest
from mms_sdk.schema.cleaning import (
    CleaningReport,
    CleaningStepReport,
    Convert,
    DropConstant,
    DropMissing,
    Reject,
    TableStep,
)
from mms_sdk.schema.dataset import SPLITS, Column, Snapshot
from mms_sdk.schema.sources import AsTable
from mms_sdk.schema.specs import IngestSpec, Split
from mms_sdk.storage.changes import Addition
from mms_sdk.storage.datasets import Dataset
from mms_sdk.storage.parts import laid_out
from mms_sdk.storage.snapshots import OpenSnapshot
from mms_sdk.types import Array

LABEL = "label"
SOURCE_COLUMN = Column(name="row_source", kind="category", dtype="int32", labels=())
ID_COLUMN = Column(name="row_id", kind="id", dtype="uint8", shape=(16,))
SPLIT_COLUMN = Column(name="split", kind="split", dtype="uint8", labels=SPLITS)

Read = Callable[[], Iterator[pa.RecordBatch]]


class _Codes:
    """Texts as numbers, in the order in which they were first seen."""

    def __init__(self) -> None:
        self.texts: dict[str, int] = {}
        self._batches: list[Array] = []

    def add(self, texts: pa.Array) -> None:
        encoded = texts.dictionary_encode() if not pa.types.is_dictionary(texts.type) else texts
        known = [self.texts.setdefault(text, len(self.texts)) for text in encoded.dictionary.to_pylist()]
        self._batches.append(np.array(known, np.int32)[np.asarray(encoded.indices)])

    def as_of(self, labels: Sequence[str]) -> Array:
        """For each row its code among other labels, int32."""
        codes = np.array([labels.index(text) for text in self.texts], np.int32)
        found: Array = codes[np.concatenate([np.empty(0, np.int32), *self._batches])]
        return found


@dataclass(kw_only=True)
class _Seen:
    """What going over the cleaned rows told."""

    ids: list[Array] = field(default_factory=list)
    sources: _Codes = field(default_factory=_Codes)
    classes: _Codes = field(default_factory=_Codes)
    splits: _Codes = field(default_factory=_Codes)
    categories: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    missing: Counter[str] = field(default_factory=Counter)
    lengths: dict[str, set[int]] = field(default_factory=lambda: defaultdict(set))
    schema: pa.Schema = None
    steps: list[CleaningStepReport] = field(default_factory=list)
    placing: list[pa.Array] = field(default_factory=list)


class HeldRows:
    """Rows of a dataset of tables, as duplicates of them are looked for. See `clean_table.Held`.

    Args:
        base: Its newest snapshot.
    """

    def __init__(self, base: OpenSnapshot) -> None:
        _refuse_pictures(base)
        self._base = base

    def types(self, by: Sequence[str]) -> Mapping[str, pa.DataType]:
        """What the values of columns are stored as."""
        return {name: tabular.type_of(self._base.column(name)) for name in by}

    def keys(self, by: Sequence[str] | None) -> Array:
        """Keys of all rows, by some columns; None by all values, as they came."""
        if by is None:
            return as_keys(self._base.values("row_id"))
        found = [keys_of(batch, by, types={}) for batch in stored.arrow_batches(self._base, by)]
        return np.concatenate([np.empty(0, DIGEST), *found])

    def present(self, batch: pa.RecordBatch) -> Array:
        """Which rows of a batch the dataset holds, from the same file."""
        sources = pa.array(self._base.column("row_source").labels or (), pa.string())
        codes = np.asarray(pc.index_in(batch.column(SOURCE).cast(pa.string()), sources).fill_null(-1))
        found = np.zeros(len(batch), bool)
        known = np.flatnonzero(codes >= 0)
        if len(known) and len(self._rows):
            ids = np.frombuffer(b"".join(batch.column(ID).to_pylist()), np.uint8).reshape(-1, 16)
            keys = _keys(ids[known], codes[known])
            at = np.minimum(np.searchsorted(self._rows, keys), len(self._rows) - 1)
            found[known] = self._rows[at] == keys
        return found

    @cached_property
    def _rows(self) -> Array:
        return np.sort(_keys(self._base.values("row_id"), self._base.values("row_source")))


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """What an ingest will write, decided before anything is written.

    Attributes:
        columns: Of the dataset.
        take: Which of the cleaned rows come in.
        ids: Their digests, uint8, shape (rows, 16).
        classes: Their class codes.
        sources: Their codes among the sources.
        splits: Their codes among the splits, where the source says them.
        placing: What rows are placed by, where that is a column; one value a row.
        report: For the snapshot.
    """

    columns: tuple[Column, ...]
    take: Array
    ids: Array
    classes: Array
    sources: Array
    splits: Array | None
    placing: pa.ChunkedArray | None
    report: CleaningReport


def ingest_table(
    dataset: Dataset, spec: IngestSpec, table: Table, *, job: str, folder: Path, tell: Tell, if_nothing: bool = True
) -> tuple[Snapshot, CleaningReport]:
    """Brings what is new in a table into a dataset, as one snapshot. See `ingest_opened` for arguments and errors."""
    if not table.rows:
        raise NothingToIngest(f"a table has at least one row; there is none{_first(table.rejects)}; check the source")
    return tried(lambda: _ingest(dataset, spec, table, job=job, folder=folder, tell=tell, if_nothing=if_nothing))


def _ingest(
    dataset: Dataset, spec: IngestSpec, table: Table, *, job: str, folder: Path, tell: Tell, if_nothing: bool
) -> tuple[Snapshot, CleaningReport]:
    base = dataset.snapshot() if dataset.snapshots() else None
    spec = spec.model_copy(update={"split": rule_of(spec.split, base)})
    chosen, categories = _chosen(table.taken, table.schema)
    as_texts = frozenset(categories)
    asked, names = _without_constant(spec.clean, chosen, base)
    if table.taken.label is not None:
        asked = [*asked, DropMissing(columns=(LABEL,))]

    def read() -> Iterator[pa.RecordBatch]:
        return (_prepared(batch, names, as_texts) for batch in table.read())

    steps = clean_table.fit(asked, read, held=HeldRows(base) if base else None, fixed=(LABEL,))
    categories = converted(asked, categories)
    seen = _look(steps, read, table, categories, folder, tell, placed_by=spec.split.column)
    plan = _plan(seen, table, names, categories, base)
    if base is not None and not len(plan.ids) and not if_nothing:
        return base.record, plan.report
    if base is None:
        plan = replace(plan, columns=laid_out(plan.columns, spec.profile, remote=not dataset.store.local))
    return _write(dataset, spec, plan, steps, read, base, job, tell), plan.report


def _chosen(taken: AsTable, schema: pa.Schema) -> tuple[dict[str, str], set[str]]:
    # Names by titles, and the names of those that are categories.
    there, label = schema.names, taken.label
    asked = [*(taken.columns or ()), *taken.categories, *([label] if label else [])]
    if unknown := [title for title in asked if title not in there]:
        raise InvalidRequest(f"a table's columns are {there}; got {unknown[0]!r}; name one of them")
    titles = there if taken.columns is None else [title for title in there if title in asked]
    reserved = (*tabular.RESERVED, LABEL) if label else tabular.RESERVED
    names = tabular.column_names((title for title in titles if title != label), taken=reserved)
    encoded = [title for title in titles if pa.types.is_dictionary(schema.field(title).type)]
    categories = {names[title] for title in (*taken.categories, *encoded) if title != label}
    return {title: LABEL if title == label else names[title] for title in titles}, categories


def _without_constant(
    steps: Sequence[Any], names: dict[str, str], base: OpenSnapshot | None
) -> tuple[list[TableStep], dict[str, str]]:
    # Which columns are constant was decided by the first rows of the dataset; later ones follow.
    if wrong := [step for step in steps if not isinstance(step, TableStep)]:
        raise InvalidRequest(f"step {wrong[0].step} is for files of a folder, not for tables; leave it out")
    if base is None or not any(isinstance(step, DropConstant) for step in steps):
        return list(steps), names
    kept = {title: name for title, name in names.items() if base.record.column(name) is not None}
    return [step for step in steps if not isinstance(step, DropConstant)], kept


def converted(steps: Sequence[Any], categories: Collection[str]) -> set[str]:
    """Which columns are categories once steps were applied."""
    found = set(categories)
    for step in steps:
        if isinstance(step, Convert):
            found = found | {step.column} if step.to == "category" else found - {step.column}
    return found


def _prepared(batch: pa.RecordBatch, names: dict[str, str], categories: Collection[str]) -> pa.RecordBatch:
    own = batch.select(list(names)).rename_columns(list(names.values()))
    for name in (*categories, LABEL):
        at = own.schema.get_field_index(name)
        if at >= 0:
            own = own.set_column(at, name, own.column(at).cast(pa.string()))
    ids = pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(16), len(own), [None, pa.py_buffer(tabular.digests(own, own.schema.names))]
    )
    beside = [name for name in (SOURCE, ROW, SPLIT) if name in batch.schema.names]
    columns = [*own.columns, *(batch.column(name) for name in beside), ids]
    return pa.RecordBatch.from_arrays(columns, names=[*own.schema.names, *beside, ID])


def _look(
    steps: Sequence[Fitted],
    read: Read,
    table: Table,
    categories: Collection[str],
    folder: Path,
    tell: Tell,
    *,
    placed_by: str | None,
) -> _Seen:
    seen = _Seen()
    reported = Reported(steps, folder, before=table.rejects)
    for batch in reported.through(told(read(), "rows checked", table.rows, tell, size=len)):
        _see(seen, batch, categories)
        if placed_by is not None:
            seen.placing.append(column_to_place_by(batch, placed_by))
    seen.steps += reported.reports
    return seen


def _see(seen: _Seen, batch: pa.RecordBatch, categories: Collection[str]) -> None:
    seen.schema = batch.schema
    seen.ids.append(np.frombuffer(b"".join(batch.column(ID).to_pylist()), np.uint8).reshape(-1, 16))
    seen.sources.add(batch.column(SOURCE))
    if SPLIT in batch.schema.names:
        seen.splits.add(batch.column(SPLIT))
    for name in clean_table.own_columns(batch.schema):
        column = batch.column(name)
        seen.missing[name] += column.null_count
        if name == LABEL:
            seen.classes.add(column)
        elif name in categories:
            seen.categories[name] |= set(column.unique().drop_null().to_pylist())
        else:
            seen.lengths[name] |= tabular.lengths(column)


def _plan(seen: _Seen, table: Table, names: dict[str, str], categories: set[str], base: OpenSnapshot | None) -> _Plan:
    ids = np.concatenate(seen.ids)
    if not len(ids) and base is None:
        told = "; ".join(f"{step.step} dropped {step.dropped:,}" for step in seen.steps)
        raise NothingToIngest(
            f"a dataset begins with at least one row; of {table.rows:,} rows none is left: {told}; check the steps"
        )
    sources = _grown(base, "row_source", seen.sources.texts)
    source_codes = seen.sources.as_of(sources)
    new = _is_new(ids, source_codes, base)
    labelled = LABEL in seen.schema.names
    named = {names[title]: labels for title, labels in table.labels.items() if title in names}
    labels = _grown(base, LABEL, seen.classes.texts, named.get(LABEL, ())) if labelled else ("",)
    classes = seen.classes.as_of(labels) if labelled else np.zeros(len(ids), np.int32)
    columns, notes = _columns(seen, names, {name: named.get(name, ()) for name in categories}, labels, base)
    if table.rejects:
        notes.append(f"{len(table.rejects):,} × left out{_first(table.rejects)}")
    notes += table.notes
    report = CleaningReport(
        found=table.rows + len(table.rejects),
        already_present=int(np.count_nonzero(~new)),
        kept=int(np.count_nonzero(new)),
        steps=tuple(seen.steps),
        notes=tuple(notes),
    )
    own = (SOURCE_COLUMN.model_copy(update={"labels": sources}), ID_COLUMN, SPLIT_COLUMN)
    return _Plan(
        columns=_in_order((*columns, *own), base),
        take=new,
        ids=ids[new],
        classes=classes[new],
        sources=source_codes[new],
        splits=seen.splits.as_of(SPLITS)[new].astype(np.uint8) if SPLIT in seen.schema.names else None,
        placing=pa.chunked_array(seen.placing).filter(pa.array(new)) if seen.placing else None,
        report=report,
    )


def _in_order(columns: Sequence[Column], base: OpenSnapshot | None) -> tuple[Column, ...]:
    if base is None:
        return tuple(columns)
    by_name = {column.name: column for column in columns}
    return tuple(by_name[column.name] for column in base.record.columns)


def _first(rejects: Sequence[Reject]) -> str:
    return f", e.g. {rejects[0].source}: {rejects[0].reason}" if rejects else ""


def _grown(
    base: OpenSnapshot | None, name: str, texts: dict[str, int] | set[str], named: Sequence[str] = ()
) -> tuple[str, ...]:
    # Labels that were there keep their codes; then those that the source names, in its order; others follow by name.
    column = base.record.column(name) if base else None
    before = (column.labels or ()) if column else ()
    known = (*before, *(label for label in named if label not in before))
    return (*known, *sorted(set(texts) - set(known)))


def _is_new(ids: Array, sources: Array, base: OpenSnapshot | None) -> Array:
    # A row that stands in a file three times comes in three times; of a file that has grown, only what is new does.
    if base is None or not len(ids):
        return np.ones(len(ids), bool)
    _refuse_pictures(base)
    held = _keys(base.values("row_id"), base.values("row_source"))
    known, known_counts = np.unique(held, return_counts=True)
    values, inverse, counts = np.unique(_keys(ids, sources), return_inverse=True, return_counts=True)
    order = np.argsort(inverse, kind="stable")
    nth = np.empty(len(ids), np.int64)
    nth[order] = np.arange(len(ids)) - np.repeat(np.cumsum(counts) - counts, counts)
    at = np.minimum(np.searchsorted(known, values), len(known) - 1)
    there = np.where(known[at] == values, known_counts[at], 0) if len(known) else np.zeros(len(values), np.int64)
    return nth >= there[inverse]


def _refuse_pictures(base: OpenSnapshot) -> None:
    if base.record.column("row_id") is None:
        names = [column.name for column in base.record.columns]
        raise DataError(
            f"rows of a table are added to a dataset of tables; {base.ref} has the columns {names}; ingest into another"
        )


def _keys(ids: Array, sources: Array) -> Array:
    # Rows are the same if their values and their file are.
    keys = np.ascontiguousarray(ids).copy()
    for code in np.unique(sources):
        salt = np.frombuffer(hashlib.blake2b(int(code).to_bytes(4, "little"), digest_size=16).digest(), np.uint8)
        keys[sources == code] ^= salt
    return keys.view("S16").ravel()


def _columns(
    seen: _Seen,
    names: dict[str, str],
    categories: dict[str, Sequence[str]],
    labels: tuple[str, ...],
    base: OpenSnapshot | None,
) -> tuple[list[Column], list[str]]:
    titles = {name: title for title, name in names.items()}
    columns, notes = [], []
    for name in clean_table.own_columns(seen.schema):
        kind = seen.schema.field(name).type
        before = base.record.column(name) if base else None
        if name == LABEL:
            title = titles[name] if titles[name] != name else None
            column = Column(name=name, kind="label", dtype="int32", labels=labels, title=title)
        elif name in categories:
            title = titles[name] if titles[name] != name else None
            grown = _grown(base, name, seen.categories[name], categories[name])
            nullable = seen.missing[name] > 0
            column = Column(name=name, kind="category", dtype="int32", labels=grown, title=title, nullable=nullable)
        elif pa.types.is_null(kind):
            if before is None:
                notes.append(f"column {titles[name]!r} has no value at all and was left out")
                continue
            column = before.model_copy(update={"nullable": True})
        else:
            lengths = seen.lengths.get(name, set())
            length = next(iter(lengths)) if len(lengths) == 1 and min(lengths) > 0 else None
            column = tabular.column_of(name, titles[name], kind, nullable=seen.missing[name] > 0, length=length)
        columns.append(column if base is None else as_before(column, before, base))
    if base is not None:
        _refuse_missing(columns, base)
    return columns, notes


def as_before(column: Column, before: Column | None, base: OpenSnapshot) -> Column:
    """The column there is, with new labels: it never changes under those who read it.

    Raises:
        DataError: New rows do not fit it.
    """
    if before is None:
        raise DataError(
            f"new rows have the columns of those in the dataset; {base.ref} has no {column.name!r}; choose columns "
            f"with columns=, or ingest into a new dataset"
        )
    if column.nullable and not before.nullable:
        raise DataError(
            f"every row of column {column.name!r} of {base.ref} has a value; some new ones have none; drop them with "
            f"mms.drop_missing(), fill in with mms.impute(), or ingest everything into a new dataset"
        )
    fits = np.can_cast(column.dtype, before.dtype, "safe") and (column.shape == before.shape or before.varies)
    if (column.kind != before.kind and {column.kind, before.kind} != {"series", "embedding"}) or not fits:
        raise DataError(
            f"column {column.name!r} of {base.ref} holds {before.kind} {before.dtype} {before.shape}; new rows have "
            f"{column.kind} {column.dtype} {column.shape}; convert them, or ingest everything into a new dataset"
        )
    return before.model_copy(update={"labels": column.labels})


def _refuse_missing(columns: Sequence[Column], base: OpenSnapshot) -> None:
    names = {column.name for column in columns} | {"row_source", "row_id", "split"}
    if gone := [column.name for column in base.record.columns if column.name not in names]:
        raise DataError(
            f"new rows have the columns of those in the dataset; {gone} of {base.ref} are not in the source; add them "
            f"there, or ingest into a new dataset"
        )


def _write(
    dataset: Dataset,
    spec: IngestSpec,
    plan: _Plan,
    steps: Sequence[Fitted],
    read: Read,
    base: OpenSnapshot | None,
    job: str,
    tell: Tell,
) -> Snapshot:
    label = next((column for column in plan.columns if column.name == LABEL), None)
    labels = (label.labels if label else None) or ("",)
    splits, rule = plan.splits, dict[str, Any](by="source")
    if splits is None:
        try:
            splits, rule = _places(plan, spec.split, base, labels)
        except DataError as error:
            if not plan.report.notes:
                raise
            raise DataError(f"{error.message}; of the source: {'; '.join(plan.report.notes)}") from error
    record = base.record if base else None
    addition = Addition(
        parts=(),
        columns=plan.columns,
        message=spec.message or f"ingest of {spec.source.told}",
        splits=Counter(SPLITS[code] for code in splits.tolist()),
        classes=Counter(labels[code] for code in plan.classes.tolist()) if label else {},
        split_rule=rule,
        provenance={
            "job": job,
            "ingest": spec.model_dump(mode="json"),
            "cleaning": plan.report.model_dump(mode="json"),
        },
    )
    if not len(plan.ids):
        return dataset.commit(addition, base=record, rebase=False)

    def rows(start: int) -> Iterator[Mapping[str, Any]]:
        at = 0
        for batch in told(_taken(plan, steps, read), "rows stored", len(plan.ids), tell, size=len):
            new = batch.slice(max(0, min(start - at, len(batch))))
            at += len(batch)
            if not len(new):
                continue
            part = slice(at - len(new), at)
            own = {"row_source": plan.sources[part], "row_id": plan.ids[part], "split": splits[part]}
            values = {
                column.name: tabular.values_of(column, new.column(column.name))
                for column in addition.columns
                if column.name not in own
            }
            yield {**values, **own}

    work = digest_of(spec, plan.report, addition.columns, plan.ids, plan.sources, splits)
    return write_rows(dataset, addition, rows, count=len(plan.ids), base=record, work=work)


def _taken(plan: _Plan, steps: Sequence[Fitted], read: Read) -> Iterator[pa.RecordBatch]:
    at = 0
    for batch, _ in clean_table.through(steps, read()):
        yield batch.filter(pa.array(plan.take[at : at + len(batch)]))
        at += len(batch)


def _places(
    plan: _Plan, split: Split, base: OpenSnapshot | None, labels: Sequence[str]
) -> tuple[Array, dict[str, Any]]:
    # Where each row goes, and the rule that rows which come later go by.
    rule = split.model_dump(exclude_none=True)
    if plan.placing is None:
        return place(plan.ids, plan.classes, split=split, before=_placed(base), labels=labels), rule
    column = next(column for column in plan.columns if column.name == split.column)
    if split.by == "group":
        return place_by_content(group_digests(column, plan.placing), split=split), rule
    values = times_of(column, plan.placing)
    cuts = base.record.split_rule["cuts"] if base else cuts_of(values, split=split)
    return place_by_time(values, cuts=cuts), {**rule, "cuts": cuts}


def _placed(base: OpenSnapshot | None) -> dict[int, Counter[str]]:
    if base is None:
        return {}
    splits = base.values("split")
    classes = base.values(LABEL) if base.record.column(LABEL) else np.zeros(len(splits), np.int32)
    pairs, counts = np.unique(np.stack([classes, splits]), axis=1, return_counts=True)
    placed: dict[int, Counter[str]] = defaultdict(Counter)
    for code, split, count in zip(*pairs.tolist(), counts.tolist(), strict=True):
        placed[code][SPLITS[split]] = count
    return placed
