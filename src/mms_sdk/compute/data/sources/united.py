"""Several sources as one: what is in each is known by the name of its source, a slash, and its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from mms_sdk.compute.data.sources.rows import ROW, SOURCE, Table
from mms_sdk.compute.data.sources.samples import Collection, Entry, Sample
from mms_sdk.errors import DataError, InvalidRequest
from mms_sdk.schema.dataset import Reject
from mms_sdk.schema.sources import AsPictures, AsRecordings, AsTable


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
    kind = AsPictures if isinstance(those[0].taken, AsPictures) else AsRecordings
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
        labels=tuple(dict.fromkeys(label for each in those for label in each.labels)),
        notes=tuple(f"{name}: {note}" for name, each in zip(names, those, strict=True) for note in each.notes),
    )


def _table(names: Sequence[str], those: Sequence[Table]) -> Table:
    _refuse_other(names, [_taken(each, AsTable) for each in those], "are taken alike")
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
    return pa.RecordBatch.from_arrays([*columns, sources, batch.column(ROW)], names=[*schema.names, SOURCE, ROW])


def _taken(opened: Collection | Table, kind: type[AsPictures | AsRecordings | AsTable]) -> Any:
    fields = [name for name in kind.model_fields if name != "type"]
    return isinstance(opened.taken, kind) and {name: getattr(opened.taken, name) for name in fields}


def _refuse_other(names: Sequence[str], values: Sequence[Any], rule: str) -> None:
    other = next((place for place, value in enumerate(values) if value != values[0]), None)
    if other is not None:
        raise InvalidRequest(
            f"sources that come in together {rule}; {names[0]} has {values[0]}, {names[other]} {values[other]}; ingest "
            f"them into datasets of their own"
        )


def _rejects(names: Sequence[str], those: Sequence[Collection | Table]) -> list[Reject]:
    return [
        Reject(source=f"{name}/{reject.source}", reason=reject.reason)
        for name, each in zip(names, those, strict=True)
        for reject in each.rejects
    ]
