"""Who is next: of the jobs that wait for an engine, the order in which they are started.

The highest priority is next. Among equals it is the project that has the least at that moment, and among its jobs the
oldest. A project that has its quota waits and keeps nobody waiting; any other job that is next and finds no room keeps
all behind it waiting, however small they are, or it would wait for ever.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import sqlalchemy as sa

from mms_sdk.schema.job import Attempt, Job, JobSpec
from mms_sdk.schema.quota import Quota
from mms_sdk.storage import tables
from mms_sdk.storage.ids import now
from mms_sdk.storage.owners import here

Given = dict[str, Any]
Fits = Callable[[JobSpec, Sequence[Given]], Given | None]
"""Says what of the machine a job is given beside what others have; None if there is too little left. Beside nothing it
is always given what it asks for."""
AtWork = Sequence[tuple[Job, Attempt]]


class Taken(NamedTuple):
    """Of a machine, or of several."""

    gpus: int = 0
    cpus: int = 0
    memory: int = 0


class Next(NamedTuple):
    """The job that is next, and what it is given; None as long as there is no room."""

    job: Job
    given: Given | None


def taken_by(given: Given) -> Taken:
    """What somebody was given, on all nodes together."""
    nodes, gpus = given.get("nodes", 1), given.get("gpus", 0)
    each = gpus if isinstance(gpus, int) else len(gpus)
    return Taken(each * nodes, given.get("cpus", 0) * nodes, given.get("memory", 0) * nodes)


def of_engine(engine: str) -> sa.ColumnElement[bool]:
    """Which jobs are an engine's: of `local`, those that were submitted on this machine, and run here."""
    return _of(engine, here())


@lru_cache
def _of(engine: str, place: str) -> sa.ColumnElement[bool]:
    # Put together once: what is asked with it is then known to SQLAlchemy, too.
    columns = tables.jobs.c
    mine: sa.ColumnElement[bool] = columns.engine == engine
    if engine != "local":
        return mine
    life, _, machine = place.partition(".")
    somewhere = columns.owner.like("%@%.%")
    return mine & (sa.not_(somewhere) | columns.owner.contains(life) | columns.owner.endswith(f".{machine}"))


def next_in_line(connection: sa.Connection, engine: str, at_work: AtWork, fits: Fits) -> Next | None:
    """The next job of an engine; None if none waits, or none whose project may take more."""
    has, quotas = by_project(at_work), _quotas(connection)
    everything = [attempt.given for _, attempt in at_work]
    heads = sorted(_heads(connection, engine), key=lambda job: (-job.priority, has.get(job.project, Taken()), job.id))
    for job in heads:
        spec = JobSpec.model_validate(job.spec)
        wanted = taken_by(fits(spec, []) or {})
        if is_within(quotas.get(job.project), (has.get(job.project, Taken()), wanted)):
            return Next(job, fits(spec, everything))
    return None


def to_make_room(job: Job, at_work: AtWork, fits: Fits) -> list[Attempt]:
    """Attempts that are to stop for a job of a higher priority: the fewest that are enough, the least and newest first.

    Nothing if all that may be stopped would not be enough.
    """
    spec = JobSpec.model_validate(job.spec)
    lower = [each for each in at_work if each[0].spec.get("preemptible") and each[0].priority < job.priority]
    lower.sort(key=lambda each: each[1].started_at, reverse=True)
    lower.sort(key=lambda each: each[0].priority)
    stopped = [attempt for _, attempt in lower]
    if fits(spec, _without(at_work, stopped)) is None:
        return []
    for attempt in reversed(list(stopped)):
        fewer = [each for each in stopped if each is not attempt]
        if fits(spec, _without(at_work, fewer)) is not None:
            stopped = fewer
    return stopped


def is_within(quota: Quota | None, takings: Iterable[Taken]) -> bool:
    """Whether a project may have so much together."""
    if quota is None:
        return True
    bounds = (quota.gpus, quota.cpus, quota.memory)
    return all(
        bound is None or sum(each) <= bound for bound, each in zip(bounds, zip(*takings, strict=True), strict=True)
    )


def _without(at_work: AtWork, stopped: Sequence[Attempt]) -> list[Given]:
    return [attempt.given for _, attempt in at_work if not any(attempt is each for each in stopped)]


def by_project(at_work: AtWork) -> dict[str, Taken]:
    """What the jobs of each project have been given, all together."""
    has: dict[str, Taken] = {}
    for job, attempt in at_work:
        has[job.project] = Taken(*map(sum, zip(has.get(job.project, Taken()), taken_by(attempt.given), strict=True)))
    return has


def _heads(connection: sa.Connection, engine: str) -> list[Job]:
    # Of each project the job that is next in it; each is found where the index has it, however long the queue is.
    columns = tables.jobs.c
    due = sa.or_(columns.not_before.is_(None), columns.not_before <= now())
    waits = (columns.state == "queued", of_engine(engine), due)
    project = sa.select(columns.project, columns.priority).where(*waits).limit(1)
    project = project.order_by(columns.project.desc(), columns.priority.desc())
    oldest = sa.select(tables.jobs).where(*waits).order_by(columns.id).limit(1)
    heads: list[Job] = []
    found = connection.execute(project).first()
    while found is not None:
        of = (columns.project == found.project, columns.priority == found.priority)
        row = connection.execute(oldest.where(*of)).mappings().first()
        if row is not None:  # else somebody took it in this moment
            heads.append(Job.model_validate(dict(row)))
        found = connection.execute(project.where(columns.project < found.project)).first()
    return heads


def _quotas(connection: sa.Connection) -> dict[str, Quota]:
    rows = connection.execute(sa.select(tables.quotas)).mappings()
    return {row["project"]: Quota.model_validate(dict(row)) for row in rows}
