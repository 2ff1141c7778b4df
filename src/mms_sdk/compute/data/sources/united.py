"""Several sources as one: what is in each is known by the name of its source, a slash, and its own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from mms_sdk.compute.data.sources.rows import ROW, SOURCE, SPLIT, Table
from mms_sdk.compute.data.sources.samples import Collection, Entry, Sample, hint
from mms_sdk.errors import DataError, InvalidRequest, NothingToIngest
from mms_sdk.schema.cleaning import Reject
from mms_sdk.schema.sources import AsClips, AsPictures, AsRecordings, AsTable, AsTexts

_KINDS = (AsPictures, AsRecordings, AsClips, AsTexts)


@dataclass(frozen=True, kw_only=True)
class _Named(Entry):
    """An entry of one of the sources.

    Attributes:
        entry: It.
    """

    entry: Entry

    def read(self) -> Sample:
        """Reads it."""
        return self.entry.read()


def united(names: Sequence[str], opened: Sequence[Collection | Table]) -> Collection | Table:
    """Sources that were looked through, as one.

    Args:
        names: What each is called; each another.
        opened: The sources, in order.

    Raises:
        InvalidRequest: They are not of one kind, or not taken alike.
        DataError: A column has not one type in all of them.
    """
    collections = [each for each in opened if isinstance(each, Collection)]
    if len(collections) == len(opened):
        return _collection(names, collections)
    tables = [each for each in opened if isinstance(each, Table)]
    if len(tables) < len(opened):
        raise InvalidRequest(
            f"sources that come in together are all of files or all of tables; got both: {list(names)}; ingest them "
            f"into datasets of their own"
        )
    return _table(names, tables)


def _collection(names: Sequence[str], those: Sequence[Collection]) -> Collection:
    kind = next(kind for kind in _KINDS if isinstance(those[0].taken, kind))
    _refuse_other(names, [_taken(each, kind) for each in those], "are taken alike")
    _refuse_other(names, [each.columns for each in those], "have the same columns beside")
    _refuse_other(names, [each.labelled for each in those], "all have classes or none")
    _refuse_other(names, [any(entry.split for entry in each.entries) for each in those], "all have splits or none")
    return replace(
        those[0],
        entries=[
            _Named(source=f"{name}/{entry.source}", label=entry.label, split=entry.split, entry=entry)
            for name, each in zip(names, those, strict=True)
            for entry in each.entries
        ],
        rejects=_rejects(names, those),
        labels=_in_order(each.labels for each in those),
        notes=_notes(names, those),
    )


def _table(names: Sequence[str], those: Sequence[Table]) -> Table:
    _refuse_other(names, [_taken(each, AsTable) for each in those], "are taken alike")
    first = [next(iter(each.read()), None) for each in those]
    said = [SPLIT in batch.schema.names for batch in first if batch is not None]  # one without a row says nothing
    names_said = [name for name, batch in zip(names, first, strict=True) if batch is not None]
    if not said:
        rejects = _rejects(names, those)
        raise NothingToIngest(f"sources have at least one row; {list(names)} have none that can be read{hint(rejects)}")
    _refuse_other(names_said, said, "all have splits or none")
    try:
        schema = pa.unify_schemas([each.schema for each in those], promote_options="permissive")
    except pa.ArrowException as error:
        raise DataError(
            f"a column has one type in all sources; {str(error).splitlines()[0]}; ingest them into datasets of their "
            f"own, convert a column, and put them end to end with ws.datasets.concat()"
        ) from error

    def read() -> Iterator[pa.RecordBatch]:
        for name, each in zip(names, those, strict=True):
            for batch in each.read():
                yield _as_of(schema, name, batch)

    return Table(
        taken=those[0].taken,
        schema=schema,
        rows=sum(each.rows for each in those),
        rejects=_rejects(names, those),
        read=read,
        labels={title: _in_order(each.labels.get(title, ()) for each in those) for title in schema.names},
        notes=_notes(names, those),
    )


def _as_of(schema: pa.Schema, name: str, batch: pa.RecordBatch) -> pa.RecordBatch:
    there = set(batch.schema.names)
    try:
        columns = [
            batch.column(field.name).cast(field.type) if field.name in there else pa.nulls(len(batch), field.type)
            for field in schema
        ]
    except pa.ArrowInvalid as error:
        raise DataError(
            f"values come in without loss; {str(error).splitlines()[0]} in {name}; ingest the sources into datasets of "
            f"their own, and convert a column"
        ) from error
    sources = pc.binary_join_element_wise(pa.scalar(name), batch.column(SOURCE).cast(pa.string()), "/")
    beside = {SOURCE: sources, **{name: batch.column(name) for name in (ROW, SPLIT) if name in there}}
    return pa.RecordBatch.from_arrays([*columns, *beside.values()], names=[*schema.names, *beside])


def _taken(opened: Collection | Table, kind: type[AsPictures | AsRecordings | AsClips | AsTexts | AsTable]) -> Any:
    fields = [name for name in kind.model_fields if name != "type"]
    return isinstance(opened.taken, kind) and {name: getattr(opened.taken, name) for name in fields}


def _refuse_other(names: Sequence[str], values: Sequence[Any], rule: str) -> None:
    other = next((place for place, value in enumerate(values) if value != values[0]), None)
    if other is not None:
        raise InvalidRequest(
            f"sources that come in together {rule}; {names[0]} has {values[0]}, {names[other]} {values[other]}; ingest "
            f"them into datasets of their own"
        )


def _in_order(labels: Iterable[Sequence[str]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(label for each in labels for label in each))


def _notes(names: Sequence[str], those: Sequence[Collection | Table]) -> tuple[str, ...]:
    return tuple(f"{name}: {note}" for name, each in zip(names, those, strict=True) for note in each.notes)


def _rejects(names: Sequence[str], those: Sequence[Collection | Table]) -> list[Reject]:
    return [
        Reject(source=f"{name}/{reject.source}", reason=reject.reason)
        for name, each in zip(names, those, strict=True)
        for reject in each.rejects
    ]
