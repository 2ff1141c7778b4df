"""What jobs read and make, in the catalog."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from mms_sdk.schema.lineage import JobLineage, Reference, Way
from mms_sdk.schema.names import ModelRef
from mms_sdk.storage import retention, tables

if TYPE_CHECKING:
    from mms_sdk.storage.catalog import Catalog
    from mms_sdk.storage.workspace import Workspace


class Lineages:
    """What jobs read and make."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    def of(self, job: str) -> JobLineage:
        """What a job reads and has made."""
        columns = tables.lineage.c
        query = sa.select(tables.lineage).where(columns.job == job).order_by(columns.place)
        with self._catalog.reading() as connection:
            rows = connection.execute(query).all()
        return JobLineage(
            inputs={row.label: str(_reference(row)) for row in rows if row.way == "input"},
            outputs=tuple(str(_reference(row)) for row in rows if row.way == "output"),
        )


def touching(way: Way, asked: Reference) -> Any:
    """A query for the ids of jobs that read, or made, what a reference names: any snapshot if it names none."""
    columns = tables.lineage.c
    found = sa.select(columns.job).where(columns.way == way, columns.what == asked.what, columns.name == asked.name)
    if asked.at is not None:
        found = found.where(columns.number == asked.at)
    return found if asked.split is None else found.where(columns.split == asked.split)


def exact(workspace: Workspace, asked: Reference) -> Reference:
    """The snapshot or version that a reference means now, by its number.

    Raises:
        DatasetNotFound, SnapshotNotFound, SplitNotFound, ModelNotFound: There is none.
    """
    if asked.what == "model":
        row = workspace.catalog.models.resolve(ModelRef(name=asked.name, version=asked.at))
        return asked.model_copy(update={"at": row["version"]})
    dataset = workspace.dataset(asked.name)
    snapshot = dataset.snapshot(retention.resolve(dataset, asked.at))
    if asked.split is not None:
        snapshot.split_rows(asked.split)
    return asked.model_copy(update={"at": snapshot.record.number})


def record(connection: sa.Connection, job: str, way: Way, references: Iterable[tuple[str, Reference]]) -> None:
    """Writes down what a job reads or made, in the transaction of the connection, each once.

    Args:
        connection: Of the catalog.
        job: Which.
        way: Which of the two.
        references: Exact ones, with their labels.
    """
    columns = tables.lineage.c
    query = sa.select(tables.lineage).where(columns.job == job, columns.way == way)
    there = {(row.label, str(_reference(row))) for row in connection.execute(query)}
    for label, each in references:
        if (label, str(each)) in there:
            continue
        row = {"what": each.what, "name": each.name, "number": each.at, "split": each.split}
        connection.execute(sa.insert(tables.lineage).values(job=job, way=way, place=len(there), label=label, **row))
        there.add((label, str(each)))


def _reference(row: Any) -> Reference:
    return Reference(what=row.what, name=row.name, at=row.number, split=row.split)
