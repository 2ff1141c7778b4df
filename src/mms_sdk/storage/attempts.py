"""Jobs that an engine runs: the queue they wait in, and the attempts at them.

The catalog says what is to run and what became of it. Every change is a compare-and-set, so that of those who believe
that a job is theirs to start or to end, one is right.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from mms_sdk.errors import Conflict
from mms_sdk.schema.event import EventKind
from mms_sdk.schema.job import Attempt, Ended, Job, JobRequest, JobSpec, JobState, Reason
from mms_sdk.schema.lineage import Reference
from mms_sdk.storage import lineage, tables
from mms_sdk.storage.events import record
from mms_sdk.storage.ids import new_id, now
from mms_sdk.storage.owners import here
from mms_sdk.storage.queue import Fits, next_in_line, of_engine, to_make_room

if TYPE_CHECKING:
    from mms_sdk.storage.catalog import Catalog

_LONGEST_WAIT_S = 3600.0  # doubled a hundred times, it would be no time that there is
_WAITED = "it waited when the backup was made that this is a copy of; run it anew with job.retry()"
_AT_WORK: tuple[JobState, ...] = ("starting", "running")
_AGAIN: frozenset[Reason] = frozenset({"infra", "lost"})


class Attempts:
    """The queue of jobs, and the attempts at them."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    def submit(self, asked: JobRequest) -> Job:
        """Puts a job at its place in the queue of its engine; the job of the first time if its key was used before.

        Raises:
            Conflict: Another job was asked for with that key.
        """
        job = Job(
            id=new_id(),
            kind=asked.kind,
            name=asked.name,
            state="queued",
            created_at=now(),
            spec=asked.spec.model_dump(mode="json"),
            parent=asked.parent,
            engine=asked.engine,
            owner=here(),
            priority=asked.spec.priority,
            project=asked.project,
            key=asked.key,
        )
        with self._catalog.writing() as connection:
            if asked.key is not None:
                first = _one(connection, tables.jobs.c.key == asked.key)
                if first is not None:
                    return _same(first, job)
            connection.execute(sa.insert(tables.jobs).values(job.model_dump(mode="json")))
            record(connection, job.id, "queued")
            read = {label: Reference.of(text) for label, text in asked.spec.inputs.items()}
            lineage.record(connection, job.id, "input", read.items())
        return job

    def take(self, *, engine: str, owner: str, fits: Fits) -> tuple[Job, Attempt] | None:
        """Makes the next job of the queue a starting one, if there is room for it; see `queue` for who is next.

        Args:
            engine: Whose queue.
            owner: Who starts it.
            fits: Says what of the machine a job is given.
        """
        columns = tables.jobs.c
        with self._catalog.writing() as connection:
            _forget_other_clocks(connection, of_engine(engine))
            found = next_in_line(connection, engine, list(_at_work(connection, engine)), fits)
            if found is None or found.given is None:
                return None
            job, given = found.job, found.given
            attempts = tables.attempts.c
            last = connection.execute(sa.select(sa.func.max(attempts.number)).where(attempts.job == job.id)).scalar()
            attempt = Attempt(job=job.id, number=(last or 0) + 1, owner=owner, given=given, started_at=now())
            connection.execute(sa.insert(tables.attempts).values(attempt.model_dump(mode="json")))
            started = {"state": "starting", "owner": owner, "started_at": job.started_at or attempt.started_at}
            connection.execute(sa.update(tables.jobs).where(columns.id == job.id).values(**started))
            record(connection, job.id, "starting", attempt=attempt.number, given=given)
        return job.model_copy(update=started), attempt

    def to_make_room(self, *, engine: str, fits: Fits) -> list[Attempt]:
        """Attempts that are to stop, since the next job of the queue has a higher priority and finds no room."""
        with self._catalog.reading() as connection:
            at_work = list(_at_work(connection, engine))
            if not any(job.spec.get("preemptible") for job, _ in at_work):
                return []
            found = next_in_line(connection, engine, at_work, fits)
        return to_make_room(found.job, at_work, fits) if found is not None and found.given is None else []

    def runs(self, attempt: Attempt, owner: str) -> bool:
        """Records who looks after an attempt that has been started; False if it has ended meanwhile."""
        columns, jobs = tables.attempts.c, tables.jobs.c
        this = (columns.job == attempt.job, columns.number == attempt.number, _open(columns))
        with self._catalog.writing() as connection:
            if not connection.execute(sa.update(tables.attempts).where(*this).values(owner=owner)).rowcount:
                return False
            this_job = sa.update(tables.jobs).where(jobs.id == attempt.job)
            if connection.execute(this_job.where(jobs.state == "starting").values(state="running")).rowcount:
                record(connection, attempt.job, "running", attempt=attempt.number)
            return connection.execute(this_job.where(jobs.state == "running").values(owner=owner)).rowcount == 1

    def end(
        self,
        attempt: Attempt,
        ended: Ended,
        *,
        made: Iterable[Reference] = (),
        outcome: Mapping[str, Any] | None = None,
    ) -> JobState | None:
        """Records how an attempt ended, and with it the job, or puts the job back into the queue.

        Args:
            attempt: Which.
            ended: How.
            made: What it made, however it ended.
            outcome: Of work that is described: the `result`, or the `error` as the service would answer it.

        Returns:
            The job's state now; None if the attempt had ended before.
        """
        columns, jobs = tables.attempts.c, tables.jobs.c
        this = (columns.job == attempt.job, columns.number == attempt.number, _open(columns))
        with self._catalog.writing() as connection:
            told = {"ended": ended.model_dump(mode="json")}
            if not connection.execute(sa.update(tables.attempts).where(*this).values(**told)).rowcount:
                return None
            job = _one(connection, jobs.id == attempt.job)
            if job is None or job.state not in _AT_WORK:
                return None
            values = _after(JobSpec.model_validate(job.spec), _failures(connection, job.id), ended)
            if job.spec.get("request") is not None and outcome is not None:
                values |= _came_out(values["state"], outcome)
            if values["state"] == "queued":
                values["owner"] = f"@{job.owner.rpartition('@')[2]}"  # where it waits
            connection.execute(sa.update(tables.jobs).where(jobs.id == job.id).values(**values))
            state: JobState = values["state"]
            kind: EventKind = "retrying" if state == "queued" else "ended"
            record(connection, job.id, kind, attempt=attempt.number, **_said(state, ended))
            lineage.record(connection, job.id, "output", (("", each) for each in made))
        return state

    def cancel_waiting(self, job: str) -> bool:
        """Takes a job out of the queue for good; False if it does not wait there."""
        columns = tables.jobs.c
        query = sa.update(tables.jobs).where(columns.id == job, columns.state == "queued", columns.engine.is_not(None))
        error = {"title": "cancelled", "detail": "it was cancelled while it waited"}
        with self._catalog.writing() as connection:
            done = connection.execute(query.values(state="cancelled", ended_at=now(), error=error)).rowcount == 1
            if done:
                told = Ended(reason="cancelled", detail=error["detail"], at=now())
                record(connection, job, "ended", **_said("cancelled", told))
            return done

    def give_up(self, ended: Callable[[Attempt], Ended]) -> None:
        """Ends all that waits or runs, without a further attempt: of a copy, which is not to run anything by itself.

        Args:
            ended: Says how an attempt ended that nobody has recorded the end of.
        """
        columns, attempts = tables.jobs.c, tables.attempts.c
        left = sa.select(tables.jobs).where(columns.engine.is_not(None), columns.state.in_(("queued", *_AT_WORK)))
        with self._catalog.writing() as connection:
            for row in connection.execute(left).mappings().all():
                query = sa.select(tables.attempts).where(attempts.job == row["id"]).order_by(attempts.number.desc())
                newest = connection.execute(query.limit(1)).mappings().first()
                attempt = Attempt.model_validate(dict(newest)) if newest else None
                if attempt is None or (attempt.ended is not None and row["state"] == "queued"):
                    told = Ended(reason="lost", detail=_WAITED, at=now())
                else:
                    told = ended(attempt)
                    this = (attempts.job == attempt.job, attempts.number == attempt.number)
                    values = {"ended": told.model_dump(mode="json")}
                    connection.execute(sa.update(tables.attempts).where(*this).values(**values))
                connection.execute(sa.update(tables.jobs).where(columns.id == row["id"]).values(**_for_good(told)))
                number = attempt.number if attempt else None
                record(connection, row["id"], "ended", attempt=number, **_said(_STATES[told.reason], told))

    def of(self, *jobs: str) -> list[Attempt]:
        """All attempts at a job, the first one first; or at several jobs, those at each together."""
        columns = tables.attempts.c
        query = sa.select(tables.attempts).where(columns.job.in_(jobs)).order_by(columns.job, columns.number)
        with self._catalog.reading() as connection:
            return [Attempt.model_validate(dict(row)) for row in connection.execute(query).mappings()]

    def at_work(self, engine: str) -> list[tuple[Job, Attempt]]:
        """Jobs of an engine that have been started and have not ended, with their attempts."""
        with self._catalog.reading() as connection:
            return list(_at_work(connection, engine))

    def waiting(self, engine: str, *, limit: int) -> list[Job]:
        """Jobs that wait for an engine, the highest priority and then the oldest first; see `queue`."""
        columns = tables.jobs.c
        query = sa.select(tables.jobs).where(columns.state == "queued", of_engine(engine))
        with self._catalog.reading() as connection:
            rows = connection.execute(query.order_by(columns.priority.desc(), columns.id).limit(limit)).mappings()
            return [Job.model_validate(dict(row)) for row in rows]

    def next_due_s(self, engine: str) -> float | None:
        """Seconds until a job that waits to be tried again is due; 0 if one is, None if none waits."""
        columns = tables.jobs.c
        earliest = sa.func.min(sa.func.coalesce(columns.not_before, ""))
        query = sa.select(earliest).where(columns.state == "queued", of_engine(engine))
        with self._catalog.reading() as connection:
            first = connection.execute(query).scalar()
        if first is None:
            return None
        left = datetime.fromisoformat(first) - datetime.now(UTC) if first else timedelta()
        return max(0.0, left.total_seconds())


def _forget_other_clocks(connection: sa.Connection, mine: Any) -> None:
    # What is due later than it could be was put back by a clock that has been set back since: it is due now.
    columns, attempts = tables.jobs.c, tables.attempts.c
    waits = sa.select(columns.id, columns.spec, columns.not_before, sa.func.max(attempts.number).label("number"))
    later = waits.join_from(tables.jobs, tables.attempts, attempts.job == columns.id).group_by(columns.id)
    for row in connection.execute(later.where(columns.state == "queued", mine, columns.not_before > now())).all():
        longest = datetime.now(UTC) + _wait(JobSpec.model_validate(row.spec), row.number)
        if datetime.fromisoformat(row.not_before) > longest:
            connection.execute(sa.update(tables.jobs).where(columns.id == row.id).values(not_before=None))


def _wait(spec: JobSpec, number: int) -> timedelta:
    return timedelta(seconds=min(_LONGEST_WAIT_S, spec.retry.wait_s * 2 ** (number - 1)))


def _failures(connection: sa.Connection, job: str) -> int:
    # Attempts that ended by no doing of their own; to have made room is no failure.
    query = sa.select(tables.attempts.c.ended).where(tables.attempts.c.job == job)
    return sum(1 for ended in connection.execute(query).scalars() if ended and ended["reason"] in _AGAIN)


def _after(spec: JobSpec, failures: int, ended: Ended) -> dict[str, Any]:
    if ended.reason == "preempted":
        return {"state": "queued", "not_before": None}
    if ended.reason in _AGAIN and failures <= spec.retry.times:
        due = (datetime.now(UTC) + _wait(spec, failures)).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        return {"state": "queued", "not_before": due}
    return _for_good(ended)


def _for_good(ended: Ended) -> dict[str, Any]:
    error = None
    if ended.reason != "succeeded":
        error = {"title": ended.reason, "detail": ended.detail}
    return {"state": _STATES[ended.reason], "ended_at": ended.at, "error": error, "not_before": None}


def _came_out(state: JobState, outcome: Mapping[str, Any]) -> dict[str, Any]:
    told = {"succeeded": "result", "failed": "error"}.get(state)
    return {} if told is None or told not in outcome else {told: outcome[told]}


def _said(state: JobState, ended: Ended) -> dict[str, Any]:
    return {"state": state, "reason": ended.reason, "detail": ended.detail}


_STATES: dict[Reason, JobState] = {
    "succeeded": "succeeded",
    "cancelled": "cancelled",
    "lost": "lost",
    "preempted": "lost",  # in a copy, where nothing runs any more
    "user": "failed",
    "oom": "failed",
    "timeout": "failed",
    "infra": "failed",
}


def _open(columns: Any) -> Any:
    # JSON's null and SQL's are two things; a row without an end has either.
    return sa.or_(columns.ended.is_(None), sa.cast(columns.ended, sa.String) == "null")


def _one(connection: sa.Connection, which: Any) -> Job | None:
    row = connection.execute(sa.select(tables.jobs).where(which)).mappings().first()
    return None if row is None else Job.model_validate(dict(row))


def _at_work(connection: sa.Connection, engine: str) -> Iterator[tuple[Job, Attempt]]:
    for row in connection.execute(_jobs_at_work().where(of_engine(engine))).mappings():
        yield (
            Job.model_validate({column.name: row[column.name] for column in tables.jobs.c}),
            Attempt.model_validate({column.name: row[f"attempt_{column.name}"] for column in tables.attempts.c}),
        )


@cache
def _jobs_at_work() -> sa.Select[Any]:
    # Each with its newest attempt.
    jobs, attempts, later = tables.jobs, tables.attempts, tables.attempts.alias()
    newest = sa.select(sa.func.max(later.c.number)).where(later.c.job == jobs.c.id).scalar_subquery()
    query = sa.select(jobs, *(column.label(f"attempt_{column.name}") for column in attempts.c))
    query = query.join_from(jobs, attempts, (attempts.c.job == jobs.c.id) & (attempts.c.number == newest))
    return query.where(jobs.c.state.in_(_AT_WORK))


def _same(first: Job, again: Job) -> Job:
    if _asked(first) != _asked(again):
        raise Conflict(
            f"a key stands for one job; {first.key!r} is that of job {first.id}, which runs something else; give this "
            f"one a key of its own"
        )
    return first


def _asked(job: Job) -> list[Any]:
    # Without what the workspace filled in, and what is only told of the code.
    told = ("python", "inherited", "revision")
    spec = {name: value for name, value in job.spec.items() if name not in told}
    return [job.kind, job.name, job.engine, job.project, spec]
