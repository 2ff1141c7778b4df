"""What happened to jobs: a row for each change of a state, written in the transaction that changes it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from mms_sdk.schema.event import Event, EventKind
from mms_sdk.storage import tables
from mms_sdk.storage.ids import now

if TYPE_CHECKING:
    from mms_sdk.storage.catalog import Catalog

KEPT = 100_000
"""Events that are kept: the newest. A job has four of them, or three more for each further attempt."""
_TRIM_EVERY = 1000
_DETAIL = 500  # characters of an error that an event repeats; all of it is with the job


class Events:
    """The events of a catalog."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    def list(self, *, since: int = 0, job: str | None = None, limit: int = 500) -> list[Event]:
        """Events with a higher number, oldest first; of one job, if so asked."""
        columns = tables.events.c
        query = sa.select(tables.events).where(columns.number > since).order_by(columns.number).limit(limit)
        if job is not None:
            query = query.where(columns.job == job)
        with self._catalog.reading() as connection:
            return [Event.model_validate(dict(row)) for row in connection.execute(query).mappings()]

    def cancelling(self, job: str) -> None:
        """Records that a job at work was asked to stop, once for each attempt at it."""
        attempts = tables.attempts.c
        newest = sa.select(sa.func.max(attempts.number)).where(attempts.job == job)
        with self._catalog.writing() as connection:
            attempt = connection.execute(newest).scalar()
            if _is_at_work(connection, job) and not _is_told(connection, job, "cancelling", attempt):
                record(connection, job, "cancelling", attempt=attempt)

    def alarm(self, job: str, why: str, *, mark: str) -> None:
        """Records that something seems wrong with a job that has not ended.

        Args:
            job: Its id.
            why: What, in words.
            mark: What it is about; an alarm that is about the same as the one before is told once.
        """
        if self._is_marked(job, mark):
            return
        attempts = tables.attempts.c
        newest = sa.select(sa.func.max(attempts.number)).where(attempts.job == job)
        with self._catalog.writing() as connection:
            if _is_at_work(connection, job) and _newest_mark(connection, job) != mark:
                number = connection.execute(newest).scalar()
                record(connection, job, "alarm", attempt=number, detail=why, mark=mark)

    def _is_marked(self, job: str, mark: str) -> bool:
        with self._catalog.reading() as connection:
            return _newest_mark(connection, job) == mark


def record(connection: sa.Connection, job: str, kind: EventKind, *, attempt: int | None = None, **detail: Any) -> None:
    """Writes down what happens in a transaction that holds the write lock, so that numbers are in order."""
    columns = tables.events.c
    # Not the database's own counting: a catalog that was filled from a backup goes on where that ended.
    number = (connection.execute(sa.select(sa.func.max(columns.number))).scalar() or 0) + 1
    told = {name: value[:_DETAIL] if isinstance(value, str) else value for name, value in detail.items()}
    event = Event(number=number, at=now(), job=job, attempt=attempt, kind=kind, detail=told)
    connection.execute(sa.insert(tables.events).values(event.model_dump(mode="json")))
    if number % _TRIM_EVERY == 0:
        connection.execute(sa.delete(tables.events).where(columns.number <= number - KEPT))


def _is_at_work(connection: sa.Connection, job: str) -> bool:
    columns = tables.jobs.c
    query = sa.select(columns.id).where(columns.id == job, columns.state.in_(("starting", "running")))
    return connection.execute(query).first() is not None


def _newest_mark(connection: sa.Connection, job: str) -> str | None:
    columns = tables.events.c
    alarms = sa.select(columns.detail).where(columns.job == job, columns.kind == "alarm")
    found = connection.execute(alarms.order_by(columns.number.desc()).limit(1)).scalar()
    return found and found.get("mark")


def _is_told(connection: sa.Connection, job: str, kind: EventKind, attempt: int | None) -> bool:
    columns = tables.events.c
    query = sa.select(columns.number).where(columns.job == job, columns.kind == kind, columns.attempt == attempt)
    return connection.execute(query).first() is not None
